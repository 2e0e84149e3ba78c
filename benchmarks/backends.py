"""Time a forward of a model's U-Net on a CPU by PyTorch, by `torch.compile` and by OpenVINO, in turns.

    python benchmarks/backends.py --model models/atlas --output backends.json --table backends.md

*PyTorch* is what ``pathup generate`` does (`PathUpPipeline.predict`), *compiled* the same with ``--compile``;
*OpenVINO* is the same U-Net converted from PyTorch, where it is installed (``pip install openvino``): PathUp does not
need it. Each in fp32 and in bf16. Tells milliseconds a window, each backend's time over PyTorch's in the same
precision, and how far each is from PyTorch in fp32.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks import each other

import torch

from benchmarks.figures import add_targets, measured
from pathup import PathUpError, __version__
from pathup.memory import ask_for_huge_pages, keep_freed_memory
from pathup.model.compiling import compile_blocks
from pathup.model.pipeline import PathUpPipeline, load_pipeline

TIMESTEP = 500
"""Any of the schedule."""

Forward = Callable[[], torch.Tensor]


class Window:
    """What every backend is given: noise, and a prompt of the finest level."""

    def __init__(self, pipeline: PathUpPipeline, batch: int) -> None:
        side = int(pipeline.config.tile_px) // pipeline.factor
        generator = torch.Generator().manual_seed(0)
        self.latents = torch.randn(batch, pipeline.latent_channels, side, side, generator=generator)
        text = pipeline.prompt(pipeline.labels[0], pipeline.level_names[-1])
        self.prompts = pipeline.encode_prompts([text]).expand(batch, -1, -1).contiguous()

    def by_pytorch(self, pipeline: PathUpPipeline) -> Forward:
        """The prediction without guidance, as the shipped model draws."""
        return lambda: pipeline.predict(self.latents, TIMESTEP, self.prompts, self.prompts, 1.0)

    def by_openvino(self, pipeline: PathUpPipeline, precision: str) -> Forward:
        """The same by OpenVINO, of a U-Net that nothing was changed in."""
        import openvino

        given = (self.latents, torch.tensor(TIMESTEP), self.prompts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing: shapes are fixed here
            traced = openvino.convert_model(_Prediction(pipeline.unet), example_input=given)
        hints = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision), "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }  # fmt: skip
        request = openvino.Core().compile_model(traced, "CPU", hints).create_infer_request()
        arrays = [part.numpy() for part in given]
        return lambda: torch.from_numpy(request.infer(arrays)[0].copy())


class _Prediction(torch.nn.Module):
    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """The U-Net's tensor, not its dataclass."""
        return self.unet(latents, timestep, prompts, return_dict=False)[0]


def backends(asked: argparse.Namespace) -> dict[str, Forward]:
    """Each backend's forward, named ``BACKEND PRECISION``."""
    window = Window(load_pipeline(asked.model), asked.batch)
    found: dict[str, Forward] = {}
    for precision in ("fp32", "bf16"):
        found[f"PyTorch {precision}"] = window.by_pytorch(load_pipeline(asked.model, precision=precision))
        compiled = load_pipeline(asked.model, precision=precision)
        try:
            compile_blocks(compiled.unet)
            found[f"compiled {precision}"] = window.by_pytorch(compiled)
        except PathUpError as error:  # no compiler
            print(f"not compiled: {error}", file=sys.stderr)
        if importlib.util.find_spec("openvino") is not None:
            found[f"OpenVINO {precision}"] = window.by_openvino(load_pipeline(asked.model), precision)
    return found


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Have the backends take turns."""
    if asked.threads:
        torch.set_num_threads(asked.threads)
    keep_freed_memory()
    with torch.inference_mode():
        forwards = backends(asked)
        expected = forwards["PyTorch fp32"]()
        apart = {}
        for name, forward in forwards.items():
            difference = (forward().float() - expected).abs().mean() / expected.abs().mean()
            apart[name] = float(difference)
            forward()  # warm
        seconds: dict[str, list[float]] = {name: [] for name in forwards}
        for _ in range(asked.turns):
            for name, forward in forwards.items():
                begun = time.perf_counter()
                forward()
                seconds[name].append((time.perf_counter() - begun) / asked.batch)
    return {
        "version": __version__, "torch": torch.__version__, "threads": torch.get_num_threads(), "batch": asked.batch,
        "seconds_a_window": seconds, "difference": apart, "over_pytorch": over_pytorch(seconds),
    }  # fmt: skip


def over_pytorch(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Of each other backend, its time over PyTorch's in the same turn and precision: median, least and most."""
    found = {}
    for name, spent in seconds.items():
        own = seconds[f"PyTorch {name.rpartition(' ')[2]}"]
        if own is not spent:
            ratios = [a / b for a, b in zip(spent, own, strict=True)]
            found[name] = [statistics.median(ratios), min(ratios), max(ratios)]
    return found


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = []
    for name, spent in found["seconds_a_window"].items():
        ratio = found["over_pytorch"].get(name)
        told = "" if ratio is None else f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})"
        rows.append(f"| {name} | {1000 * statistics.median(spent):.1f} | {told} | {found['difference'][name]:.1e} |")
    head = f"| windows in batches of {found['batch']} | ms a window | over PyTorch's | difference from fp32 |"
    return "\n".join([head, "|---|---:|---:|---:|", *rows]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/atlas"))
    parser.add_argument("--batch", type=int, default=8, help="windows at once [8]")
    parser.add_argument("--turns", type=int, default=9, help="forwards of each, by turns [9]")
    parser.add_argument("--threads", type=int, help="CPU threads [all]")
    add_targets(parser)
    asked = parser.parse_args()
    ask_for_huge_pages()
    return measured(asked, lambda work: measure(asked), table)


if __name__ == "__main__":
    sys.exit(main())
