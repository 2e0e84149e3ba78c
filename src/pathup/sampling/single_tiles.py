"""Single tiles of one level, drawn in batches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from pathup.sampling.batching import Batch, batches_of, tiles_at_once
from pathup.sampling.image_folder import claim, indices_of, name_of, row_of, write_rows
from pathup.sampling.outputs import ImageFile, as_band, is_complete, write_image
from pathup.sampling.requests import GenerateReport, Run
from pathup.sampling.shards import is_whole, pack, remove_unfinished, shard_path, unfinished
from pathup.sampling.tracking import Progress, all_timesteps, forwards_of

__all__ = ["make_tile", "make_tiles"]

WRITERS = 4
"""Threads that write a batch's files while the next is drawn: a large GPU draws a small tile sooner than one does."""


def make_tiles(run: Run, level: str, report: GenerateReport, progress: Progress | None) -> None:
    """Single tiles in batches; each is a function of its own index, so a batch may be drawn again in part.

    Processes take turns: in batches, or in shards where there are any.
    """
    report.mpp = run.pipeline.scale_of(level, run.request.mpp)
    shard_size = run.request.shard_size
    claim(run, level=level, kind="png")
    started = time.perf_counter()
    spans = {label: range(run.request.count) if shard_size else indices_of(run, label, "png") for label in run.labels}
    total, done = sum(len(span) for span in spans.values()), 0
    at_once = tiles_at_once(run, level, total)
    batches = batches_of(spans, at_once, shard_size)
    rows: list[dict[str, Any]] = []
    with _Tiles(run, level, at_once, report) as tiles:
        for number, part in enumerate(_parts(batches)):
            part_rows = [row for batch in part for row in tiles.rows(batch)]
            mine = number % run.processes.count == run.processes.rank
            for count in tiles.make(part, part_rows) if mine else (len(batch.indices) for batch in part):
                done += count
                if progress is not None:
                    progress("images", done, total)
            rows += part_rows
    report.images = total
    if shard_size:
        report.files.extend(dict.fromkeys(run.request.out / row["shard"] for row in rows))
    else:
        report.files.extend(run.request.out / row["file_name"] for row in rows)
    run.processes.wait()
    report.seconds["tiles"] = time.perf_counter() - started
    if run.processes.is_main:
        report.files.append(write_rows(run, rows))


def _parts(batches: list[Batch]) -> Iterator[list[Batch]]:
    """What one process makes as a whole: a shard's batches, or one batch."""
    numbered = enumerate(batches)
    for _, part in groupby(numbered, key=lambda one: one[0] if one[1].shard is None else one[1].shard):
        yield [batch for _, batch in part]


class _Tiles:
    """Batches of one level's tiles: what is there is kept, the rest is drawn, and written while the next is drawn."""

    def __init__(self, run: Run, level: str, at_once: int, report: GenerateReport) -> None:
        self._run, self._level, self._at_once, self._report = run, level, at_once, report
        self._pool = ThreadPoolExecutor(WRITERS)
        self._writing: list[Future[None]] = []

    def __enter__(self) -> _Tiles:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._written()
        self._pool.shutdown()

    def rows(self, batch: Batch) -> list[dict[str, Any]]:
        """The metadata of a batch's tiles."""
        mpp, level, shard = self._report.mpp, self._level, batch.shard
        rows = [_tile_row(self._run, batch.label, level, index, mpp) for index in batch.indices]
        where = {} if shard is None else {"shard": shard_path(self._run.request.out, shard).name}
        return [{**row, **where} for row in rows]

    def make(self, part: list[Batch], rows: list[dict[str, Any]]) -> Iterator[int]:
        """Make a part's batches, each's number of tiles yielded when it is drawn; a whole shard is left as it is."""
        number, out = part[0].shard, self._run.request.out
        if number is None:
            for batch in part:
                self._make(batch, out)
                yield len(batch.indices)
            return
        shard = shard_path(out, number)
        if is_whole(shard, rows):
            remove_unfinished(shard)  # of a run that was killed between the two
            self._report.kept += len(rows)
            yield len(rows)
            return
        unfinished(shard).mkdir(exist_ok=True)
        for batch in part:
            self._make(batch, unfinished(shard))
            yield len(batch.indices)
        self._written()
        pack(shard, rows)

    def _make(self, batch: Batch, folder: Path) -> None:
        run, label, size_px, mpp = self._run, batch.label, self._run.size_px, self._report.mpp
        names = [name_of(run, label, index, "png").name for index in batch.indices]
        targets = [ImageFile(folder / name, "png", size_px, mpp) for name in names]
        missing = [not is_complete(target) for target in targets]
        self._report.kept += len(targets) - sum(missing)
        if not any(missing):
            return
        images = _draw_tiles(run, label, self._level, batch.indices, self._at_once, self._report)
        self._written()
        self._writing = [
            self._pool.submit(_write, run, target, image, _provenance(run, label, self._level, index, self._at_once))
            for index, target, image, lacks in zip(batch.indices, targets, images, missing, strict=True)
            if lacks
        ]

    def _written(self) -> None:
        """Wait for the files that are being written; what one of them met is raised here."""
        writing, self._writing = self._writing, []
        for one in writing:
            one.result()


def make_tile(run: Run, level: str, index: int, target: ImageFile, report: GenerateReport) -> None:
    """One tile of a longer run, equal to the byte: its whole batch is drawn, and the others are dropped.

    What a network computes of a tile depends in its last digits on how many are in the batch.
    """
    started, (label,) = time.perf_counter(), run.labels
    size, count = run.settings.window_batch, run.request.count
    first = index // size * size
    batch = range(first, min(first + size, count) if count > index else first + size)
    report.mpp = target.mpp
    if run.processes.is_main:
        image = _draw_tiles(run, label, level, batch, size, report)[batch.index(index)]
        _write(run, target, image, _provenance(run, label, level, index, size))
    run.processes.wait()
    report.files.append(target.path)
    report.images = 1
    report.seconds["tiles"] = time.perf_counter() - started


def _write(run: Run, target: ImageFile, image: np.ndarray, provenance: dict[str, Any]) -> None:
    write_image(target, [as_band(image)], {**run.made_by(), **provenance}, overwrite=True)


def _draw_tiles(run: Run, label: str, level: str, batch: range, at_once: int, report: GenerateReport) -> np.ndarray:
    """A batch's tiles. A compiled network is compiled for one shape, so one that is not full is drawn as a full one."""
    settings, count = run.settings, at_once if run.request.compiled else len(batch)
    timesteps = all_timesteps(run.pipeline.make_scheduler(settings.scheduler), settings)
    report.forwards += forwards_of(count * len(timesteps), settings.guidance)
    images = run.pipeline(
        label,
        level,
        count,
        seed=run.request.seed,
        first_index=batch.start,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        scheduler=settings.scheduler,
        step_power=settings.step_power,
        mpp=run.request.mpp,
        output_type="np",
    )
    return np.asarray(images)[: len(batch)]


def _tile_row(run: Run, label: str, level: str, index: int, mpp: float) -> dict[str, Any]:
    """The columns of real tiles' metadata, empty where a synthetic tile has no such thing, then its own."""
    row = row_of(run, ImageFile(name_of(run, label, index, "png"), "png", run.size_px, mpp), label, level, index)
    real = {"patient": None, "slide": None, "region": None, "x": None, "y": None, "source_sha256": run.model_sha256}
    return {**row, **real}


def _provenance(run: Run, label: str, level: str, index: int, at_once: int) -> dict[str, Any]:
    sampling = run.settings.model_dump(mode="json", include={"scheduler", "steps", "guidance"})
    return {
        "label": label,
        "level": level,
        "prompt": run.pipeline.prompt(label, level),
        "mpp": run.pipeline.scale_of(level, run.request.mpp),
        "seed": run.request.seed,
        "index": index,
        "tiles_at_once": at_once,
        "sampling": sampling,
    }
