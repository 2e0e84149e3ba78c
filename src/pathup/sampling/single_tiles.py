"""Single tiles of one level, drawn in batches."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pathup.sampling.image_folder import claim, indices_of, name_of, row_of, write_rows
from pathup.sampling.outputs import ImageFile, as_band, is_complete, write_image
from pathup.sampling.requests import GenerateReport, Run
from pathup.sampling.tracking import Progress, all_timesteps, forwards_of

__all__ = ["make_tile", "make_tiles"]


def make_tiles(run: Run, level: str, report: GenerateReport, progress: Progress | None) -> None:
    """Single tiles in batches; each is a function of its own index, so a batch may be drawn again in part."""
    mpp = run.pipeline.scale_of(level, run.request.mpp)
    report.mpp = mpp
    claim(run, level=level, kind="png")
    rows = []
    started = time.perf_counter()
    indices = {label: indices_of(run, label, "png") for label in run.labels}
    total, done = sum(len(span) for span in indices.values()), 0
    size, number = run.settings.window_batch, 0
    for label, span in indices.items():
        for batch in (span[first : first + size] for first in range(0, len(span), size)):
            targets = [ImageFile(name_of(run, label, i, "png"), "png", run.size_px, mpp) for i in batch]
            if number % run.processes.count == run.processes.rank:
                missing = [not is_complete(target) for target in targets]
                if any(missing):
                    images = _draw_tiles(run, label, level, batch, report)
                    for index, target, image, lacks in zip(batch, targets, images, missing, strict=True):
                        if lacks:
                            _write(run, target, image, label, level, index)
                report.kept += len(batch) - sum(missing)
            report.files.extend(target.path for target in targets)
            rows += [_tile_row(run, target, label, level, i) for i, target in zip(batch, targets, strict=True)]
            done, number = done + len(batch), number + 1
            if progress is not None:
                progress("images", done, total)
    run.processes.wait()
    report.seconds["tiles"] = time.perf_counter() - started
    if run.processes.is_main:
        report.files.append(write_rows(run, rows))


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
        image = _draw_tiles(run, label, level, batch, report)[batch.index(index)]
        _write(run, target, image, label, level, index)
    run.processes.wait()
    report.files.append(target.path)
    report.seconds["tiles"] = time.perf_counter() - started


def _write(run: Run, target: ImageFile, image: np.ndarray, label: str, level: str, index: int) -> None:
    provenance = {**run.made_by(), **_tile_provenance(run, label, level, index)}
    write_image(target, [as_band(image)], provenance, overwrite=True)


def _draw_tiles(run: Run, label: str, level: str, batch: range, report: GenerateReport) -> np.ndarray:
    settings = run.settings
    timesteps = all_timesteps(run.pipeline.make_scheduler(settings.scheduler), settings)
    report.forwards += forwards_of(len(batch) * len(timesteps), settings.guidance)
    images = run.pipeline(
        label,
        level,
        len(batch),
        seed=run.request.seed,
        first_index=batch.start,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        scheduler=settings.scheduler,
        step_power=settings.step_power,
        mpp=run.request.mpp,
        output_type="np",
    )
    return np.asarray(images)


def _tile_row(run: Run, target: ImageFile, label: str, level: str, index: int) -> dict[str, Any]:
    """The columns of real tiles' metadata, empty where a synthetic tile has no such thing, then its own."""
    row = row_of(run, target, label, level, index)
    real = {"patient": None, "slide": None, "region": None, "x": None, "y": None, "source_sha256": run.model_sha256}
    return {**row, **real}


def _tile_provenance(run: Run, label: str, level: str, index: int) -> dict[str, Any]:
    sampling = run.settings.model_dump(mode="json", include={"scheduler", "steps", "guidance"})
    return {
        "label": label,
        "level": level,
        "prompt": run.pipeline.prompt(label, level),
        "mpp": run.pipeline.scale_of(level, run.request.mpp),
        "seed": run.request.seed,
        "index": index,
        "sampling": sampling,
    }
