"""What every turn of ``benchmarks/sampling.py`` begins with: a model on its device, a count of forwards, a clock."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from diffusers import UNet2DConditionModel

from pathup.memory import keep_freed_memory
from pathup.model.attention import fast_attention
from pathup.model.pipeline import PathUpPipeline, build_pipeline, load_pipeline
from pathup.recipes import load_recipe
from pathup.sampling.canvas import canvas_noise
from pathup.sampling.device import choose_device
from pathup.sampling.overview import sampling_levels
from pathup.sampling.schedule import WindowKind, WindowSchedule, window_schedule
from pathup.sampling.tracking import last_timesteps

STEPS, GUIDANCE = 8, 1.0
"""Of the methods that are compared; ``pathup generate`` takes the model's own where none are asked for."""


@dataclass
class Count:
    """U-Net forwards: one window once through the U-Net; `positions` are theirs, all together."""

    forwards: int = 0
    positions: int = 0


@contextmanager
def counted() -> Iterator[Count]:
    """Counts what any U-Net gives back meanwhile: with guidance it may be given less (`pathup.model.guidance`)."""
    count, plain = Count(), UNet2DConditionModel.forward

    @functools.wraps(plain)
    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        result = plain(self, *arguments, **named)
        samples, _, height, width = result[0].shape
        count.forwards += samples
        count.positions += samples * height * width
        return result

    UNet2DConditionModel.forward = forward
    try:
        yield count
    finally:
        UNet2DConditionModel.forward = plain


class Spent(NamedTuple):
    """Seconds on the clock, and of the processor in all threads: the latter tells more where the machine is shared."""

    wall: float
    cpu: float


@dataclass
class Bench:
    """A model on its device, and what is asked of it."""

    asked: argparse.Namespace
    pipeline: PathUpPipeline = field(init=False)
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        diffusers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        if self.asked.threads:
            torch.set_num_threads(self.asked.threads)
        self.device = choose_device(self.asked.device)
        if self.device.type == "cpu":
            keep_freed_memory()  # as `pathup generate` does; so no method gains by it over another
        self.pipeline = loaded(self.asked, self.device)

    @property
    def window(self) -> int:
        """Side of a window, in latent positions."""
        return self.pipeline.sampling.window_latent

    @property
    def overlap(self) -> int:
        """Half a window, as in the paper."""
        return self.window // 2

    @property
    def guidance(self) -> float:
        """Of what is compared."""
        return GUIDANCE if self.asked.guidance is None else float(self.asked.guidance)

    @property
    def steps(self) -> int:
        """Of what is compared."""
        return self.asked.steps or STEPS

    @property
    def label(self) -> str:
        """The class that is drawn."""
        return self.pipeline.labels[0]

    @property
    def prompt(self) -> str:
        """Its prompt for large images."""
        return self.pipeline.prompt(self.label, sampling_levels(self.pipeline).patch)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The canvas, (C, H, W)."""
        side = self.asked.size // self.pipeline.factor
        return self.pipeline.latent_channels, side, side

    @functools.cached_property
    def start(self) -> torch.Tensor:
        """The noise that every method begins with."""
        return canvas_noise(self.shape, 0)

    def timesteps(self) -> tuple[Any, torch.Tensor]:
        """A fresh scheduler, and all its timesteps."""
        scheduler = self.pipeline.make_scheduler("ddim")
        return scheduler, last_timesteps(scheduler, self.steps, 1.0)

    def schedule(self, kind: WindowKind) -> WindowSchedule:
        """The windows of each step."""
        values = {"windows": kind, "overlap_latent": self.overlap}
        settings = self.pipeline.sampling.model_copy(update=values)
        return window_schedule(settings, *self.shape[1:], self.steps, 0)

    def windows_at_once(self, guidance: float) -> int:
        """As many as make the best batch of the U-Net: with guidance each window is two of its samples."""
        return max(1, self.asked.batch // (1 if guidance == 1 else 2))

    def worth(self, positions: int) -> float:
        """Positions in full windows' forwards: a window at the rim may be smaller or larger."""
        return positions / self.window**2

    @property
    def own_guidance(self) -> float:
        """Of ``pathup generate``: the model's own where none is asked for."""
        own = self.pipeline.sampling.guidance if self.asked.guidance is None else self.asked.guidance
        return float(own)

    def own_overrides(self, kind: WindowKind) -> dict[str, Any]:
        """What ``pathup generate`` is told; None is the model's own."""
        return {
            "windows": kind, "steps": self.asked.steps, "guidance": self.asked.guidance,
            "window_batch": self.windows_at_once(self.own_guidance),
        }  # fmt: skip

    def timed(self, work: Callable[[], Any]) -> tuple[Spent, Any]:
        """Wall and processor time of some work, and its result."""
        self.finished()
        started, processor = time.perf_counter(), time.process_time()
        result = work()
        self.finished()
        return Spent(time.perf_counter() - started, time.process_time() - processor), result

    def finished(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def forward(self, batch: int, height: int | None = None, width: int | None = None) -> Callable[[], Any]:
        """Windows through the U-Net, called as it is; full ones when no size is given."""
        size = (self.window if height is None else height, self.window if width is None else width)
        latents = torch.randn(batch, self.shape[0], *size, device=self.device)
        embeddings = self.pipeline.encode_prompts([self.prompt]).expand(batch, -1, -1)
        timestep = torch.tensor(500, device=self.device)
        return lambda: self.pipeline.unet(latents, timestep, embeddings, return_dict=False)

    def guided(self, windows: int) -> Callable[[], Any]:
        """Full windows as the sampler takes them through the U-Net, with its guidance."""
        latents = torch.randn(windows, self.shape[0], self.window, self.window, device=self.device)
        prompted, empty = (
            self.pipeline.encode_prompts([text]).expand(windows, -1, -1) for text in (self.prompt, "")
        )
        timestep = torch.tensor(500, device=self.device)
        return lambda: self.pipeline.predict(latents, timestep, prompted, empty, self.own_guidance)

    def decode(self, height: int, width: int) -> Callable[[], Any]:
        """A plain tile through the autoencoder's decoder, called as it is."""
        latents = torch.randn(1, self.shape[0], height, width, device=self.device)
        return lambda: self.pipeline.vae.decode(latents, return_dict=False)

    @torch.inference_mode()
    def repeated(self, calls: list[Callable[[], Any]], *, as_sampler: bool = True) -> Spent:
        """Calls one after the other: with attention as the sampler has it, or with nothing around them at all."""
        with fast_attention(self.pipeline.unet, self.device) if as_sampler else nullcontext():
            return self.timed(lambda: _all(calls))[0]


def _all(calls: list[Callable[[], Any]]) -> None:
    for call in calls:
        call()


def loaded(asked: argparse.Namespace, device: torch.device) -> PathUpPipeline:
    if asked.model is not None:
        return load_pipeline(asked.model, device=device)
    pipeline = build_pipeline(load_recipe(asked.recipe))
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        part.eval().requires_grad_(False)
    return pipeline.to(device)
