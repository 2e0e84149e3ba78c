"""Time the sampler against the paper's Algorithm 1 taken literally: same U-Net, canvas, steps and windows.

The literal algorithm (tests/sampling/reference.py, on the CPU) steps one scheduler a window, window after window; the
sampler fuses the windows' predictions and steps the canvas once, windows in batches. Both see every window once a step,
so the forwards are the same, and the ratio is what batching and fusing are worth on this machine's CPU. Their results
are compared as well.

``make bench``, or ``python benchmarks/sampling.py --model models/atlas --output bench.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/sampling/reference.py is beside the package

import diffusers
import torch
import transformers

from pathup import PathUpError, __version__, storage
from pathup.model.pipeline import PathUpPipeline, build_pipeline, load_pipeline
from pathup.recipes import load_recipe
from pathup.sampling.canvas import canvas_noise
from pathup.sampling.overview import sampling_levels
from pathup.sampling.runs import model_sha256
from pathup.sampling.tracking import denoise, forwards_of, last_timesteps
from pathup.sampling.windows import WindowGrid
from tests.sampling.reference import algorithm_1

SHIPPED = Path("models/atlas")


def best_of(repeats: int, work: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - started)
    return min(seconds), result


def loaded(asked: argparse.Namespace) -> tuple[PathUpPipeline, dict[str, Any]]:
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    if asked.model is not None or (SHIPPED / "model_index.json").is_file():
        folder = asked.model or SHIPPED
        return load_pipeline(folder), {"model": folder.as_posix(), "model_sha256": model_sha256(folder)}
    pipeline = build_pipeline(load_recipe(asked.recipe))
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        part.eval().requires_grad_(False)
    return pipeline, {"model": f"recipe '{asked.recipe}', random weights"}


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    if asked.threads:
        torch.set_num_threads(asked.threads)
    pipeline, told = loaded(asked)
    window, overlap = pipeline.sampling.window_latent, pipeline.sampling.overlap_latent
    side = window + (asked.windows - 1) * (window - overlap)
    shape = (pipeline.latent_channels, side, side)
    grid = WindowGrid(side, side, window, overlap)
    prompt = pipeline.prompt(pipeline.labels[0], sampling_levels(pipeline).patch)
    start = canvas_noise(shape, 0)

    def begun() -> tuple[Any, torch.Tensor]:
        scheduler = pipeline.make_scheduler("ddim")
        return scheduler, last_timesteps(scheduler, asked.steps, 1.0)

    def literal() -> torch.Tensor:
        scheduler, timesteps = begun()
        return algorithm_1(
            pipeline, start, scheduler, timesteps, prompt=prompt, guidance=asked.guidance, size=window, overlap=overlap
        )

    def ours(batch: int) -> Callable[[], torch.Tensor]:
        def work() -> torch.Tensor:
            scheduler, timesteps = begun()
            return denoise(
                pipeline, start, grid, scheduler, timesteps, prompt=prompt, guidance=asked.guidance, window_batch=batch
            )

        return work

    ours(4)()  # the first call of a process pays for allocations
    forwards = forwards_of(len(grid), asked.steps, asked.guidance)
    print(f"{told['model']}: {len(grid)} windows of {window} x {window}, {asked.steps} steps, {forwards} forwards")
    seconds, expected = best_of(asked.repeats, literal)
    print(f"  literal algorithm 1: {seconds:.2f} s")
    rows = []
    for batch in asked.batches:
        spent, result = best_of(asked.repeats, ours(batch))
        difference = float((result - expected).abs().max() / expected.abs().max())
        rows.append({"window_batch": batch, "seconds": spent, "relative_difference": difference})
        print(f"  sampler, {batch:>3} windows at once: {spent:.2f} s, {seconds / spent:.2f} times as fast, "
              f"{difference:.1e} apart")  # fmt: skip
    best = min(rows, key=lambda row: row["seconds"])
    return {
        **told,
        "canvas_latent": side,
        "window_latent": window,
        "overlap_latent": overlap,
        "windows": len(grid),
        "scheduler": "ddim",
        "steps": asked.steps,
        "guidance": asked.guidance,
        "unet_parameters": sum(p.numel() for p in pipeline.unet.parameters()),
        "unet_forwards": forwards,
        "repeats": asked.repeats,
        "literal": {"seconds": seconds, "seconds_a_forward": seconds / forwards},
        "sampler": rows,
        "best": {**best, "seconds_a_forward": best["seconds"] / forwards},
        "ratio": seconds / best["seconds"],
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "versions": {"pathup": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, help=f"model folder [{SHIPPED} where it is, else --recipe]")
    parser.add_argument("--recipe", default="atlas", help="a model of random weights, where there is none [atlas]")
    parser.add_argument("--windows", type=int, default=7, help="windows along a side of the canvas [7: 49 in all]")
    parser.add_argument("--steps", type=int, default=4, help="[4]")
    parser.add_argument("--guidance", type=float, default=1.0, help="[1: none]")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 49], help="window batches to try")
    parser.add_argument("--repeats", type=int, default=2, help="of each, the fastest counts [2]")
    parser.add_argument("--threads", type=int, help="CPU threads [all cores]")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    asked = parser.parse_args()
    try:
        result = measure(asked)
        if asked.output is not None:
            storage.write_json(asked.output, result)
    except PathUpError as error:
        print(f"pathup: {error}", file=sys.stderr)
        return 1
    print(json.dumps({key: result[key] for key in ("literal", "best", "ratio")}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
