"""In how many at once single tiles are drawn: the model's own number or, for a long run, what a short probe finds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pathup import storage
from pathup.errors import PathUpError
from pathup.sampling.device import peak_memory_bytes
from pathup.sampling.estimate import FILE_BYTES_A_PIXEL
from pathup.sampling.tracking import all_timesteps, forwards_of

if TYPE_CHECKING:
    from pathup.sampling.requests import Run

__all__ = ["BATCH_FILE", "Batch", "TilesEstimate", "batches_of", "best_batch", "estimate_tiles", "tiles_at_once"]

BATCH_FILE = "pathup.batch.json"
"""In a folder of tiles: how many were drawn at once, so that a resumed run draws the very same ones."""

GAIN = 0.95
"""Another number of tiles at once is taken when a tile then takes no more than this of its time."""

PROBE_SHARE = 0.01
"""The part of a run that a probe may cost."""

LARGEST_BATCH = 4096


@dataclass(frozen=True)
class Batch:
    """Tiles of one label that are drawn at once; `shard` numbers the shard that they go to, where there are any."""

    label: str
    indices: range
    shard: int | None = None


def batches_of(spans: dict[str, range], at_once: int, shard_size: int | None = None) -> list[Batch]:
    """All batches of a run, in order: label by label, each from its first index.

    Parameters
    ----------
    spans
        The indices of each label, which begin at 0.
    at_once
        Tiles a batch; a label's last one may be smaller.
    shard_size
        A shard takes as many whole batches as come to no more tiles than this (one at least).
    """
    batches: list[Batch] = []
    shard, filled = 0, 0
    for label, span in spans.items():
        for indices in (span[first : first + at_once] for first in range(0, len(span), at_once)):
            if filled and shard_size is not None and filled + len(indices) > shard_size:
                shard, filled = shard + 1, 0
            filled += len(indices)
            batches.append(Batch(label, indices, None if shard_size is None else shard))
    return batches


def tiles_at_once(run: Run, level: str, total: int) -> int:
    """How many tiles a folder is drawn in at once, the same in every process.

    What was asked for; else what the folder says it was begun with; else what `best_batch` finds, where a probe is no
    more than `PROBE_SHARE` of the run; else the model's own. The folder keeps it: a tile's last digits depend on how
    many are drawn beside it.

    Raises
    ------
    PathUpError
        Shards were begun with another number.
    """
    kept: Path = run.request.out / BATCH_FILE
    own = run.settings.window_batch
    begun = int(storage.read_json(kept)["tiles_at_once"]) if kept.exists() else None
    seconds: dict[int, float] = {}
    if begun is not None and run.request.shard_size is not None and run.request.window_batch not in (None, begun):
        raise PathUpError(
            f"the shards in {run.request.out} were begun with {begun} tiles at once, which is where one ends and the "
            f"next begins, but --window-batch {own} was asked for; leave it out, or name another folder"
        )
    if run.request.window_batch is not None:
        found = own
    elif begun is not None:
        return begun
    elif not _is_long(run, total):
        found = own
    else:
        found, seconds = best_batch(_timed_batches(run, level), own, most=min(total, LARGEST_BATCH))
        found = int(run.processes.gathered(torch.tensor([found], device=run.pipeline.compute_device))[0])
    run.processes.wait()
    if run.processes.is_main:
        probe = {str(size): round(spent, 6) for size, spent in seconds.items()}
        storage.write_json(kept, {"tiles_at_once": found, **({"probed_seconds_a_tile": probe} if probe else {})})
    run.processes.wait()
    return found


@dataclass(frozen=True)
class TilesEstimate:
    """Cost of a folder of single tiles, as a probe of a few forwards on this machine went.

    Attributes
    ----------
    size_px
        Height and width of a tile.
    images
        Tiles of all classes.
    at_once
        Tiles that the run would draw at once.
    forwards
        U-Net forwards: exactly what the run will report where it draws everything and is not compiled.
    seconds
        Drawing and decoding, by one process.
    memory_bytes
        Peak of the process (of the GPU's memory on a GPU).
    file_bytes
        All PNGs.
    """

    size_px: tuple[int, int]
    images: int
    at_once: int
    forwards: int
    seconds: float
    memory_bytes: int
    file_bytes: int


def estimate_tiles(run: Run, level: str) -> TilesEstimate:
    """What a folder of tiles will cost; nothing is written."""
    own, total = run.settings.window_batch, len(run.labels) * run.request.count
    timed, most = _timed_batches(run, level), min(total, LARGEST_BATCH)
    seconds: dict[int, float] = {}
    found = min(own, total)
    if run.request.window_batch is None and _is_long(run, total):
        found, seconds = best_batch(timed, own, most=most)
    spent = seconds[found] if found in seconds else timed(found)
    passes = len(all_timesteps(run.pipeline.make_scheduler(run.settings.scheduler), run.settings))
    return TilesEstimate(
        size_px=run.size_px,
        images=total,
        at_once=found,
        forwards=forwards_of(total * passes, run.settings.guidance),
        seconds=total * spent,
        memory_bytes=peak_memory_bytes(run.pipeline.compute_device),
        file_bytes=round(FILE_BYTES_A_PIXEL["png"] * run.size_px[0] * run.size_px[1]) * total,
    )


def best_batch(
    seconds_a_tile: Callable[[int], float], own: int, *, most: int = LARGEST_BATCH
) -> tuple[int, dict[int, float]]:
    """The number of tiles at once that takes the least time a tile, and what was measured.

    From `own` on it is doubled for as long as `GAIN` is met, and halved where doubling did not meet it; memory that
    does not suffice ends the doubling.
    """
    found = {own: seconds_a_tile(own)}

    def better(size: int, than: int) -> bool:
        try:
            found[size] = seconds_a_tile(size)
        except (torch.OutOfMemoryError, MemoryError):
            torch.cuda.empty_cache()
            return False
        return found[size] <= GAIN * found[than]

    best = own
    while 2 * best <= most and better(2 * best, best):
        best *= 2
    while best <= own and best > 1 and better(best // 2, best):
        best //= 2
    return best, found


def _is_long(run: Run, total: int) -> bool:
    """Whether a probe is a small part of the run; never where each number of tiles is compiled anew."""
    own = run.settings.window_batch
    probed = 3 * (own + 2 * own + own // 2)  # tiles a forward: usually three forwards of one, two and half as many
    return not run.request.compiled and total * run.settings.steps * PROBE_SHARE >= probed


def _timed_batches(run: Run, level: str) -> Callable[[int], float]:
    """Seconds a tile of a whole batch, by one step of its U-Net and its decoding."""
    pipeline, settings = run.pipeline, run.settings
    timestep = all_timesteps(pipeline.make_scheduler(settings.scheduler), settings)[0]
    prompted = pipeline.encode_prompts([pipeline.prompt(run.labels[0], level)], pipeline.scale_of(level))
    side = int(pipeline.config.tile_px) // pipeline.factor

    @torch.inference_mode()
    def seconds_a_tile(count: int) -> float:
        shape = (count, pipeline.latent_channels, side, side)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(pipeline.compute_device)
        prompts = prompted.expand(count, -1, -1)

        def step() -> None:
            pipeline.predict(latents, timestep, prompts, prompts, settings.guidance)

        def decode() -> None:
            pipeline.decode_latents(latents).cpu()

        step()  # kernels are chosen, memory is taken
        spent = min(_seconds(step) for _ in range(2)) * settings.steps + _seconds(decode)
        return spent / count

    return seconds_a_tile


def _seconds(work: Callable[[], None]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun
