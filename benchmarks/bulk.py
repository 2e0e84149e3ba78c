"""Time a folder of tiles by ``pathup generate`` beside its bare U-Net and decoder, and beside diffusers' own pipeline.

    python benchmarks/bulk.py --model models/atlas --output bulk.json --table bulk.md

All draw single tiles of one level by the same networks in the same number of steps. *PathUp*: what ``pathup generate
--label all --level L --count N`` does with its model loaded, from the request's checks to the metadata, with PNGs or
with shards. *Bare*: as many forwards of the U-Net and of the decoder, in the same batches, on latents that are there
already, with nothing around them: no scheduler, no noise, no files; *plain*: these as diffusers calls them, with its
own attention and, where there is guidance, every latent given twice. *diffusers*: `StableDiffusionPipeline` in a plain
loop, one prompt and one saved PNG after the other, and in the same batches as PathUp. They take turns (A B C D A B C
D), and the median of the turns' ratios counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks import each other

import torch
from diffusers import StableDiffusionPipeline

from benchmarks.figures import add_targets, measured
from pathup import PathUpError, __version__
from pathup.memory import ask_for_huge_pages, keep_freed_memory
from pathup.model.pipeline import PathUpPipeline
from pathup.sampling.batching import batches_of
from pathup.sampling.device import peak_memory_bytes
from pathup.sampling.runs import GenerateRequest, generate, loaded

TITLES = {
    "pathup": "pathup generate, one PNG a tile",
    "shards": "pathup generate, WebDataset shards",
    "bare": "its U-Net's and decoder's forwards alone",
    "plain": "the same forwards, as diffusers calls them",
    "diffusers_batches": "diffusers' pipeline, the same batches",
    "diffusers_loop": "diffusers' pipeline, one tile after the other",
}


class Arms:
    """What takes turns; each arm draws the same number of tiles of each class."""

    def __init__(self, asked: argparse.Namespace, work: Path) -> None:
        self.asked, self.work, self.turns = asked, work, 0
        self.request = GenerateRequest(
            model=asked.model, out=work, label="all", level=asked.level, count=asked.count, device=asked.device,
            threads=asked.threads, precision=asked.precision, window_batch=asked.batch,
        )  # fmt: skip
        self.pipeline: PathUpPipeline = loaded(self.request)
        self.sampling = self.pipeline.sampling
        self.batch = asked.batch or self.sampling.window_batch
        spans = dict.fromkeys(self.pipeline.labels, range(asked.count))
        self.batches = batches_of(spans, self.batch)
        self.plain = StableDiffusionPipeline(
            vae=self.pipeline.vae, text_encoder=self.pipeline.text_encoder, tokenizer=self.pipeline.tokenizer,
            unet=self.pipeline.unet, scheduler=self.pipeline.make_scheduler(), safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        self.plain.set_progress_bar_config(disable=True)

    @property
    def tiles(self) -> int:
        """How many each arm draws a turn."""
        return sum(len(batch.indices) for batch in self.batches)

    def seconds(self, name: str) -> float:
        """One turn of an arm."""
        self.turns += 1
        arms: dict[str, Callable[[], None]] = {
            "pathup": lambda: self.ours(None), "shards": lambda: self.ours(max(1, self.tiles // 4)),
            "bare": self.bare, "plain": lambda: self.bare(plain=True),
            "diffusers_batches": lambda: self.diffusers(self.batch), "diffusers_loop": lambda: self.diffusers(1),
        }  # fmt: skip
        self._finished()
        begun = time.perf_counter()
        arms[name]()
        self._finished()
        return time.perf_counter() - begun

    def ours(self, shard_size: int | None) -> None:
        """``pathup generate`` into a new folder."""
        request = {**vars(self.request), "out": self.work / str(self.turns), "shard_size": shard_size}
        report = generate(GenerateRequest(**request), pipeline=self.pipeline)
        if report.images != self.tiles:
            raise PathUpError(f"{report.images} tiles were drawn, but {self.tiles} were wanted")

    @torch.inference_mode()
    def bare(self, *, plain: bool = False) -> None:
        """The forwards alone, by `PathUpPipeline.predict` or by the U-Net itself."""
        pipeline, side = self.pipeline, int(self.pipeline.config.tile_px) // self.pipeline.factor
        empty = pipeline.encode_prompts([""])
        for batch in self.batches:
            count = len(batch.indices)
            latents = torch.zeros(count, pipeline.latent_channels, side, side, device=pipeline.compute_device)
            prompts = pipeline.encode_prompts([pipeline.prompt(batch.label, self.asked.level)]).expand(count, -1, -1)
            given = self.as_diffusers(latents, prompts, empty.expand_as(prompts))
            for step in range(self.sampling.steps):
                if plain:
                    pipeline.unet(given[0], step, given[1], return_dict=False)
                else:
                    pipeline.predict(latents, step, prompts, empty.expand_as(prompts), self.sampling.guidance)
            pipeline.vae.decode(latents, return_dict=False)[0].cpu()

    def as_diffusers(self, *given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and prompts as the U-Net itself takes them: with guidance, twice, without prompts and with them."""
        latents, prompts, empty = (one.to(next(self.pipeline.unet.parameters()).dtype) for one in given)
        if self.sampling.guidance == 1:
            return latents, prompts
        return torch.cat([latents, latents]), torch.cat([empty, prompts])

    def diffusers(self, at_once: int) -> None:
        """The pipeline, as its documentation has it: prompts in, images out, saved one by one."""
        folder = self.work / str(self.turns)
        folder.mkdir()
        for label in self.pipeline.labels:
            prompt = self.pipeline.prompt(label, self.asked.level)
            for first in range(0, self.asked.count, at_once):
                count = min(at_once, self.asked.count - first)
                with torch.autocast(self.pipeline.compute_device.type, torch.bfloat16, enabled=self._reduced):
                    images = self.plain(
                        [prompt] * count, height=self.pipeline.config.tile_px, width=self.pipeline.config.tile_px,
                        num_inference_steps=self.sampling.steps, guidance_scale=self.sampling.guidance,
                    ).images  # fmt: skip
                for number, image in enumerate(images):
                    image.save(folder / f"{label}_{first + number:04d}.png")

    @property
    def _reduced(self) -> bool:
        return self.asked.precision != "fp32"

    def _finished(self) -> None:
        if self.pipeline.compute_device.type == "cuda":
            torch.cuda.synchronize()


def measure(asked: argparse.Namespace, arms: Arms) -> dict[str, Any]:
    """Have the arms take turns, and say what came of it."""
    seconds: dict[str, list[float]] = {name: [] for name in asked.arms}
    for _ in range(asked.warm_up):
        arms.bare()
    for turn in range(asked.turns):
        for name, spent in seconds.items():
            spent.append(arms.seconds(name))
        told = ", ".join(f"{name} {spent[-1]:.1f}" for name, spent in seconds.items())
        print(f"turn {turn + 1} of {asked.turns}, seconds: {told}", file=sys.stderr, flush=True)
    device = arms.pipeline.compute_device
    return {
        "version": __version__, "torch": torch.__version__, "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", "tiles": arms.tiles,
        "batch": max(len(batch.indices) for batch in arms.batches), "steps": arms.sampling.steps,
        "guidance": arms.sampling.guidance, "precision": asked.precision,
        "peak_memory_bytes": peak_memory_bytes(device), "seconds": seconds,
        **ratios(seconds, arms.tiles),
    }  # fmt: skip


def ratios(seconds: dict[str, list[float]], tiles: int) -> dict[str, Any]:
    """What the turns say: each ratio is the median over turns, with the least and the most beside."""

    def over(one: str, other: str) -> list[float]:
        found = [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]
        return [statistics.median(found), min(found), max(found)]

    pairs = [
        ("pathup", "bare"), ("shards", "bare"), ("plain", "bare"), ("diffusers_loop", "pathup"),
        ("diffusers_batches", "pathup"),
    ]  # fmt: skip
    return {
        "tiles_a_second": {name: tiles / statistics.median(spent) for name, spent in seconds.items()},
        "over": {f"{a} over {b}": over(a, b) for a, b in pairs if a in seconds and b in seconds},
    }


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [f"| {TITLES[name]} | {rate:.3f} |" for name, rate in found["tiles_a_second"].items()]
    head = f"| {found['tiles']} tiles in batches of {found['batch']}, {found['steps']} steps, {found['precision']} |"
    more = [
        f"| {pair.replace('_', ', ')} | {middle:.3f} | {low:.3f} to {high:.3f} |"
        for pair, (middle, low, high) in found["over"].items()
    ]
    second = ["", "| time | median of the turns | least to most |", "|---|---|---|"]
    return "\n".join([f"{head} tiles a second |", "|---|---|", *rows, *second, *more]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/atlas"))
    parser.add_argument("--level", default="patch")
    parser.add_argument("--count", type=int, default=8, help="tiles of each class and turn [8]")
    parser.add_argument("--batch", type=int, help="tiles at once [the model's]")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--arms", nargs="+", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--warm-up", type=int, default=1, help="bare turns before any is timed [1]")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    add_targets(parser)
    asked = parser.parse_args()
    ask_for_huge_pages()
    keep_freed_memory()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    return measured(asked, lambda work: measure(asked, Arms(asked, work)), table)


if __name__ == "__main__":
    sys.exit(main())
