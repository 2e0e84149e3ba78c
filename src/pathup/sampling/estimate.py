"""What a large image will cost, before the work starts: counted where it can be, measured in small where it can't."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pathup.sampling.decoding import decode_band, measure_decoder
from pathup.sampling.device import peak_memory_bytes
from pathup.sampling.footprint import tile_side
from pathup.sampling.fusion import BAND_POSITIONS
from pathup.sampling.outputs import Format
from pathup.sampling.plan import Plan
from pathup.sampling.stepping import BandStepper

__all__ = ["Estimate", "estimate_plan"]

FILE_BYTES_A_PIXEL = {"png": 2.2, "ome.tiff": 0.75, "dzi": 0.75}
"""Of H&E tissue: JPEG at quality 90 with its smaller levels, and PNG. Plain areas take less."""

_PROBE_SECONDS = 2.0


@dataclass(frozen=True)
class Estimate:
    """Cost of one large image; times and memory are of this machine.

    Attributes
    ----------
    size_px
        Height and width.
    images
        How many such images the request asks for; everything else is one image's.
    windows
        Windows of all steps, by stage (``overview``, ``canvas``).
    forwards
        U-Net forwards by stage: exactly what the run will report.
    coverage
        How often the U-Net sees a position of the canvas.
    seconds
        By stage: ``overview``, ``canvas`` and ``decode``, from a probe of some windows and of one tile.
    memory_bytes
        Peak of the process (of the GPU's memory on a GPU).
    disk_bytes
        Most that the unfinished image and the file take together.
    file_bytes
        The finished file.
    """

    size_px: tuple[int, int]
    images: int
    windows: dict[str, int]
    forwards: dict[str, int]
    coverage: float
    seconds: dict[str, float]
    memory_bytes: int
    disk_bytes: int
    file_bytes: int


def estimate_plan(plan: Plan, kind: Format, images: int = 1) -> Estimate:
    """Estimate one image's cost: forwards are exact, times come from a probe of a few seconds, sizes from the plan."""
    pipeline, settings = plan.pipeline, plan.settings
    channels, height, width = plan.shape
    side, batch = settings.window_latent, settings.window_batch
    embeddings = pipeline.encode_prompts([""]).expand(batch, -1, -1)
    windows = torch.zeros(batch, channels, side, side, device=pipeline.compute_device)

    def forward() -> None:
        pipeline.predict(windows, 1, embeddings, embeddings, settings.guidance).float().cpu()

    core = tile_side(pipeline)
    tile = torch.randn(channels, min(core, height), min(core, width), generator=torch.Generator().manual_seed(0))
    statistics = measure_decoder(pipeline, tile)

    def decode() -> None:
        decode_band(pipeline, tile, 0, statistics=statistics)

    a_window = _seconds(forward) / batch
    a_position = _seconds(decode) / tile[0].numel()
    counts = {stage: forwards // (1 if settings.guidance == 1 else 2) for stage, forwards in plan.forwards.items()}
    seconds = {stage: count * a_window for stage, count in counts.items()}
    tissue = 1 - plan.layout.fraction_glass
    seconds["decode"] = height * width * tissue * a_position

    state_bytes = 4 * channels * height * width
    stepper = BandStepper(*plan.canvas_steps(), channels)
    states = []
    for _ in range(len(stepper.timesteps)):
        before = 1 + stepper.memories
        stepper.advance()
        states.append(before + 1 + stepper.memories)
    pixels = plan.size_px[0] * plan.size_px[1]
    overview = 3 * plan.overview_px[0] * plan.overview_px[1]
    file_bytes = round(FILE_BYTES_A_PIXEL[kind] * pixels * tissue)
    canvas_disk = max(states) * state_bytes + overview
    written_disk = state_bytes + overview + round(2.2 * pixels * tissue) + round(1.25 * file_bytes)
    band = 4 * (channels + 1) * max(BAND_POSITIONS, side * width)
    held = 3 * band + 4 * 3 * core * pipeline.factor * plan.size_px[1] + (3 * pixels if kind == "png" else 0)
    return Estimate(
        size_px=plan.size_px,
        images=images,
        windows=counts,
        forwards=plan.forwards,
        coverage=plan.coverage,
        seconds=seconds,
        memory_bytes=peak_memory_bytes(pipeline.compute_device)
        + (held if pipeline.compute_device.type == "cpu" else 0),
        disk_bytes=max(canvas_disk, written_disk),
        file_bytes=file_bytes,
    )


def _seconds(work: Callable[[], None]) -> float:
    """Seconds that it takes, the least of some calls; the first pays for allocations."""
    least, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < _PROBE_SECONDS or least == float("inf"):
        before = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - before)
    return least
