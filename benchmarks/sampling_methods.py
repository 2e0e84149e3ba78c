"""What ``benchmarks/sampling.py`` times: each function is one turn of one method, in a process of its own.

All methods take the same U-Net, attention kernel, allocator, noise, DDIM timesteps and prompt. U-Net forwards are
counted where they happen, not by what a method says of itself.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/sampling/reference.py is beside the package

import numpy as np
import torch

from benchmarks.sampling_bench import Bench, counted
from pathup.sampling.conditions import Conditions
from pathup.sampling.device import peak_memory_bytes
from pathup.sampling.fusion import window_bands
from pathup.sampling.layouts import plain_layout
from pathup.sampling.overview import sampling_levels
from pathup.sampling.requests import GenerateRequest
from pathup.sampling.runs import generate, model_sha256
from pathup.sampling.schedule import WindowKind
from pathup.sampling.synthesis import plan_image
from pathup.sampling.tracking import denoise, window_batches
from pathup.sampling.windows import Weighting
from tests.sampling.reference import algorithm_1

SWEEP_ROUNDS, SWEEP_FORWARDS = 5, 128
"""Rounds in which batch sizes are tried, at least, and forwards of each in a round, at least."""

SAMPLED_FORWARDS = 1024
"""Forwards of full windows from which the cost of all of them is told."""

TILE_SIDES = (32, 64, 128, 256)
"""Sides of plain tiles that bare decoding is tried with, in latent positions."""

PANORAMA_STRIDE = 8
"""The stride between its windows that diffusers' panorama pipeline has, in latent positions."""

Turn = dict[str, Any]


# -- what is compared: the same noise, steps and windows -----------------------------------------------------


def denoised(bench: Bench, work: Callable[[], torch.Tensor], batch: int, expected: float | None = None) -> Turn:
    """One turn of a method that takes the noise to x_0; the first call of a process pays for allocations."""
    bench.repeated([bench.forward(batch)])
    before = peak_memory_bytes(bench.device)
    with counted() as count:
        spent, latents = bench.timed(work)
    if bench.asked.keep:
        np.save(bench.asked.keep, latents.cpu().numpy())
    return {
        "seconds": {"total": spent.wall},
        "cpu_seconds": spent.cpu,
        "forwards": count.forwards,
        "windows_worth": bench.worth(count.positions),
        "windows_worth_expected": expected,
        "window_batch": batch,
        "peak_memory_bytes": peak_memory_bytes(bench.device),
        "peak_memory_before_bytes": before,
    }


def literal(bench: Bench) -> Turn:
    """The paper's algorithm, window after window (tests/sampling/reference.py)."""

    def work() -> torch.Tensor:
        scheduler, timesteps = bench.timesteps()
        with torch.device(bench.device):  # where it makes its sums and weights
            return algorithm_1(
                bench.pipeline, bench.start.to(bench.device), scheduler, timesteps, prompt=bench.prompt,
                guidance=bench.guidance, size=bench.window, overlap=bench.overlap,
            )  # fmt: skip

    return denoised(bench, work, 1)


def ours(bench: Bench, kind: WindowKind, weighting: Weighting, one_by_one: bool = False) -> Turn:
    """PathUp's sampler."""
    batch, schedule = 1 if one_by_one else bench.windows_at_once(bench.guidance), bench.schedule(kind)

    def work() -> torch.Tensor:
        layout = plain_layout(bench.label, (bench.asked.size, bench.asked.size))
        level, factor = sampling_levels(bench.pipeline).patch, bench.pipeline.factor
        return denoise(
            bench.pipeline, bench.start, schedule, *bench.timesteps(),
            conditions=Conditions(bench.pipeline, layout, level, factor),
            guidance=bench.guidance, window_batch=batch, weighting=weighting,
        )  # fmt: skip

    once, overlapping = bench.shape[1] * bench.shape[2], schedule.grid.positions
    last = schedule.overlapped_steps if kind == "shifted" else bench.steps
    passes = 1 if bench.guidance == 1 else 2
    expected = bench.worth(passes * ((bench.steps - last) * once + last * overlapping))
    return denoised(bench, work, batch, expected)


def multidiffusion(bench: Bench, stride: int | None, one_by_one: bool) -> Turn:
    """The panorama pipeline of diffusers; without a stride, the paper's."""
    from benchmarks.panorama import draw, panorama  # here: its imports take memory, which other methods don't need

    batch = 1 if one_by_one else bench.windows_at_once(bench.guidance)
    made = panorama(bench.pipeline, bench.window, bench.window - bench.overlap if stride is None else stride)

    def work() -> torch.Tensor:
        prompted, empty = (bench.pipeline.encode_prompts([text]) for text in (bench.prompt, ""))
        return draw(
            made, bench.start, {"prompt_embeds": prompted, "negative_prompt_embeds": empty},
            steps=bench.steps, guidance=bench.guidance, view_batch=batch,
        )  # fmt: skip

    return denoised(bench, work, batch)


# -- a whole slide, and what it would cost with nothing around it --------------------------------------------


def whole(bench: Bench, kind: WindowKind) -> Turn:
    """``pathup generate`` into an OME-TIFF: the time is that of all of it, the model's loading with it."""
    window, label, overrides = bench.window, bench.label, bench.own_overrides(kind)
    small = window * bench.pipeline.factor
    with tempfile.TemporaryDirectory() as scratch:
        model = bench.asked.model
        if model is None:
            model = Path(scratch) / "model"
            bench.pipeline.save_pretrained(model)
        del bench.pipeline  # the command has one of its own

        def draw_slide(name: str, size: int, **changed: Any) -> Any:
            return generate(GenerateRequest(
                model=model, out=Path(scratch) / f"{name}.ome.tiff", label=label, size=str(size),
                device=bench.asked.device, threads=bench.asked.threads, **{**overrides, **changed},
            ))  # fmt: skip

        draw_slide("warm", small, steps=2)
        before = peak_memory_bytes(bench.device)
        with counted() as count:
            spent, report = bench.timed(functools.partial(draw_slide, "whole", bench.asked.size))
    stages = {stage: seconds for stage, seconds in report.seconds.items() if stage != "total"}
    return {
        "seconds": {"load": spent.wall - sum(stages.values()), **stages, "total": spent.wall},
        "cpu_seconds": spent.cpu,
        "forwards": count.forwards,
        "forwards_reported": report.forwards,
        "windows_worth": count.positions / window**2,
        "window_batch": overrides["window_batch"],
        "coverage": report.coverage,
        "peak_memory_bytes": peak_memory_bytes(bench.device),
        "peak_memory_before_bytes": before,
    }


def bare(bench: Bench, kind: WindowKind) -> Turn:
    """The forwards that the slide takes, with nothing around them, and plain decoding of its pixels.

    The overview's own pixels and the encoding are not in it. What as many positions cost in full windows of the best
    batch, as the sampler computes them (its attention, and in guidance what is shared), comes with it: the least that
    they could cost.
    """
    size = (bench.asked.size, bench.asked.size)
    plan = plan_image(bench.pipeline, bench.label, size_px=size, **bench.own_overrides(kind))
    passes, at_once = 1 if plan.settings.guidance == 1 else 2, plan.settings.window_batch
    shapes = [
        (passes * len(batch), rows.stop - rows.start, columns.stop - columns.start)
        for schedule in (plan.overview, plan.canvas) if schedule is not None
        for windows in schedule
        for band in window_bands(windows)
        for batch in window_batches(windows, band.indices, at_once)
        for rows, columns in [windows[batch[0]]]
    ]  # fmt: skip
    worth = bench.worth(sum(count * height * width for count, height, width in shapes))
    forward = {shape: bench.forward(*shape) for shape in set(shapes)}
    full = [bench.guided(at_once)] * max(1, SAMPLED_FORWARDS // (passes * at_once))
    tile, side = min(bench.asked.tile, plan.shape[1]), plan.shape[1]
    spans = [min(tile, side - at) for at in range(0, side, tile)]
    tiles = [(tall, wide) for tall in spans for wide in spans]
    decoders = {shape: bench.decode(*shape) for shape in set(tiles)}
    bench.repeated([full[0], decoders[tiles[0]]])  # pays for allocations
    with counted() as count:
        forwards = bench.repeated([forward[shape] for shape in shapes], as_sampler=False)
    decode = bench.repeated([decoders[shape] for shape in tiles])
    in_full = bench.repeated(full).wall / (len(full) * passes * at_once) * worth
    return {
        "seconds": {"forwards": forwards.wall, "decode": decode.wall, "total": forwards.wall + decode.wall},
        "seconds_of_full_windows": in_full + decode.wall,
        "cpu_seconds": forwards.cpu + decode.cpu,
        "forwards": count.forwards,
        "windows_worth": bench.worth(count.positions),
        "window_batch": at_once,
        "peak_memory_bytes": peak_memory_bytes(bench.device),
    }


def sweep(bench: Bench) -> Turn:
    """Seconds a forward by batch size and seconds a position by tile, in turns; and what the model is."""
    side = bench.shape[1]
    works = {("batch", batch): (bench.forward(batch), -(-SWEEP_FORWARDS // batch), batch)
             for batch in bench.asked.batches}  # fmt: skip
    sides = sorted({min(tile, side) for tile in TILE_SIDES})
    for tile in sides:
        works["tile", tile] = bench.decode(tile, tile), (max(sides) // tile) ** 2, tile**2
    found: dict[tuple[str, int], list[float]] = {name: [] for name in works}
    for turn in range(max(bench.asked.repeats, SWEEP_ROUNDS) + 1):
        for name, (work, times, unit) in works.items():
            calls = times if turn else 1  # the first pays for allocations
            spent = bench.repeated([work] * calls)
            if turn:
                found[name].append(spent.wall / calls / unit)
    least = {name: min(values) for name, values in found.items()}
    unet = bench.pipeline.unet
    return {
        "seconds_a_forward": {str(batch): least["batch", batch] for batch in bench.asked.batches},
        "seconds_a_position_decoded": {str(tile): least["tile", tile] for tile in sides},
        "facts": {
            "model_sha256": None if bench.asked.model is None else model_sha256(bench.asked.model),
            "window_latent": bench.window, "overlap_latent": bench.overlap, "factor": bench.pipeline.factor,
            "canvas_latent": side, "steps": bench.steps, "guidance": bench.guidance, "scheduler": "ddim",
            "unet_parameters": sum(p.numel() for p in unet.parameters()),
            "own_settings": bench.pipeline.sampling.model_dump(mode="json"),
            "whole_steps": bench.asked.steps or bench.pipeline.sampling.steps,
            "device": str(bench.device),
            "device_name": torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else None,
            "threads": torch.get_num_threads(),
        },
    }  # fmt: skip


METHODS: dict[str, Callable[[Bench], Turn]] = {
    "literal": literal,
    "equation_6": lambda bench: ours(bench, "overlapped", "equation_6"),
    "overlapped": lambda bench: ours(bench, "overlapped", "hann"),
    "overlapped_1": lambda bench: ours(bench, "overlapped", "hann", one_by_one=True),
    "shifted": lambda bench: ours(bench, "shifted", "hann"),
    "panorama_half": lambda bench: multidiffusion(bench, None, one_by_one=True),
    "panorama_half_batched": lambda bench: multidiffusion(bench, None, one_by_one=False),
    "panorama": lambda bench: multidiffusion(bench, PANORAMA_STRIDE, one_by_one=True),
    "panorama_batched": lambda bench: multidiffusion(bench, PANORAMA_STRIDE, one_by_one=False),
    "whole_overlapped": lambda bench: whole(bench, "overlapped"),
    "bare_overlapped": lambda bench: bare(bench, "overlapped"),
    "whole_shifted": lambda bench: whole(bench, "shifted"),
    "bare_shifted": lambda bench: bare(bench, "shifted"),
}


def turn_of(asked: argparse.Namespace) -> Turn:
    """Carry out the turn that is asked for."""
    bench = Bench(asked)
    return sweep(bench) if asked.turn == "sweep" else METHODS[asked.turn](bench)
