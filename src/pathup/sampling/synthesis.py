"""One large image: overview, canvas, denoised windows."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import ValidationError

from pathup.errors import PathUpError
from pathup.model.components import set_steps
from pathup.recipes import SamplingRecipe
from pathup.sampling.canvas import canvas_noise
from pathup.sampling.decoding import decode_bands, encode_canvas
from pathup.sampling.overview import ENLARGE_FILTER, EnlargedOverview, Levels, draw_overview, sampling_levels
from pathup.sampling.tracking import Progress, denoise, forwards_of, last_timesteps, noised
from pathup.sampling.windows import WindowGrid

if TYPE_CHECKING:
    from pathup.model.pipeline import PathUpPipeline

__all__ = ["Synthesis", "check_size", "resolve_settings", "resolve_size", "synthesise"]


@dataclass(frozen=True)
class Synthesis:
    """A large image before it is decoded, and how it came about.

    Attributes
    ----------
    label, prompt, seed, index
        What was drawn.
    size_px
        Height and width in pixels.
    mpp
        Micrometres per pixel.
    settings
        The sampling values, resolved.
    latents_CHW
        The canvas, x_0: float32 on the CPU.
    overview
        The reference overview, uint8 RGB (h, w, 3): drawn, or the one given. A drawn one may reach beyond the image
        at the bottom and the right, to a whole number of latent positions of its own.
    overview_is_drawn
        False when a reference image was given.
    forwards
        U-Net forwards: one window once through the U-Net; guidance takes two.
    windows
        Windows that cover the canvas.
    seconds
        Wall time by stage: ``overview``, ``encode``, ``canvas``.
    """

    label: str
    prompt: str
    seed: int
    index: int
    size_px: tuple[int, int]
    mpp: float
    settings: SamplingRecipe
    latents_CHW: torch.Tensor
    overview: np.ndarray
    overview_is_drawn: bool
    forwards: int
    windows: int
    seconds: dict[str, float]

    def bands(self, pipeline: PathUpPipeline, *, progress: Progress | None = None) -> Iterator[np.ndarray]:
        """The decoded image as uint8 RGB row bands, (rows, W, 3)."""
        return decode_bands(pipeline, self.latents_CHW, progress=progress)

    def pixels(self, pipeline: PathUpPipeline) -> np.ndarray:
        """The decoded image, uint8 RGB (H, W, 3)."""
        return np.concatenate(list(self.bands(pipeline)))

    def provenance(self) -> dict[str, Any]:
        """Everything needed to draw this image again with the same model (and reference), as JSON values."""
        sampling = self.settings.model_dump(mode="json", exclude={"size_px"})
        given = (
            {} if self.overview_is_drawn else {"overview_sha256": hashlib.sha256(self.overview.tobytes()).hexdigest()}
        )
        return {
            "label": self.label,
            "prompt": self.prompt,
            "seed": self.seed,
            "index": self.index,
            "width_px": self.size_px[1],
            "height_px": self.size_px[0],
            "mpp": self.mpp,
            "pixels_per_latent": self.size_px[0] // self.latents_CHW.shape[1],
            "overview": "drawn" if self.overview_is_drawn else "given",
            **given,
            "enlarge_filter": ENLARGE_FILTER,
            "sampling": sampling,
            "unet_forwards": self.forwards,
        }


def resolve_settings(pipeline: PathUpPipeline, **overrides: Any) -> SamplingRecipe:
    """The model's sampling values with some replaced (``None`` keeps the model's), checked.

    Raises
    ------
    PathUpError
        A value is out of its range, or of the wrong type; the scheduler is unknown, or has fewer steps.
    """
    changed = {name: value for name, value in overrides.items() if value is not None}
    try:
        settings = SamplingRecipe.model_validate({**pipeline.sampling.model_dump(), **changed})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "sampling"
        message = first["msg"].removeprefix("Value error, ")
        raise PathUpError(f"{name} {first['input']!r}: {message[0].lower()}{message[1:]}") from None
    set_steps(pipeline.make_scheduler(settings.scheduler), settings.steps)
    return settings


def check_size(pipeline: PathUpPipeline, size_px: tuple[int, int]) -> None:
    """Raise a PathUpError, naming the nearest valid size, when (height, width) cannot be sampled."""
    multiple = pipeline.factor
    least = pipeline.sampling.window_latent * multiple
    nearest = [max(round(side / multiple) * multiple, least) for side in size_px]
    height, width = size_px
    if min(size_px) < least:
        raise PathUpError(
            f"size {width}x{height} is too small: at least {least} px each way, one window of the model, were needed; "
            f"try {nearest[1]}x{nearest[0]}"
        )
    if any(side % multiple for side in size_px):
        raise PathUpError(
            f"size {width}x{height}: both must be multiples of {multiple} px, the factor of this model's autoencoder; "
            f"the nearest is {nearest[1]}x{nearest[0]}"
        )


def synthesise(
    pipeline: PathUpPipeline,
    label: str,
    *,
    size_px: tuple[int, int] | None = None,
    seed: int = 0,
    index: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    strength: float | None = None,
    scheduler: str | None = None,
    window_batch: int | None = None,
    weighted: bool | None = None,
    reference: np.ndarray | None = None,
    progress: Progress | None = None,
) -> Synthesis:
    """Draw one large image (Algorithm 1), up to decoding.

    The overview is drawn from noise at the coarsest level (or given as `reference`), enlarged, encoded tile by
    tile, noised up to `strength`, and denoised window by window at the finest level.

    Parameters
    ----------
    pipeline
        The model.
    label
        The class.
    size_px
        Height and width; the model's own ``size_px`` when unset (with a reference: its size, enlarged).
    seed, index
        Image `index` of a label is a function of (seed, label, index) and of the settings alone.
    steps, guidance, strength, scheduler, window_batch, weighted
        Unset: the model's own. `strength` is the share of the schedule that the enlarged overview is taken back.
    reference
        A uint8 RGB image (h, w, 3) of the size's aspect ratio that takes the place of the drawn overview.
    progress
        Called as ``progress(stage, done, total)`` with the stages ``overview``, ``encode`` and ``canvas``.

    Raises
    ------
    PathUpError
        Unknown label, a size or value that cannot be sampled, a reference of another shape.
    """
    settings = resolve_settings(
        pipeline,
        steps=steps,
        guidance=guidance,
        strength=strength,
        scheduler=scheduler,
        window_batch=window_batch,
        weighted=weighted,
    )
    levels = sampling_levels(pipeline)
    prompt = pipeline.prompt(label, levels.patch)
    size_px = resolve_size(size_px, settings, reference, levels)
    check_size(pipeline, size_px)
    seconds: dict[str, float] = {}
    forwards = 0
    if reference is None:
        with _timed(seconds, "overview"):
            # whole latent positions of the overview; what they reach beyond the image is never encoded
            coarse = pipeline.factor * levels.shrink
            small = (-(-size_px[0] // coarse) * pipeline.factor, -(-size_px[1] // coarse) * pipeline.factor)
            overview, forwards = draw_overview(
                pipeline, label, size_px=small, seed=seed, index=index, settings=settings, progress=progress
            )
        enlarged = EnlargedOverview(overview, (small[0] * levels.shrink, small[1] * levels.shrink))
    else:
        overview, enlarged = reference, EnlargedOverview(reference, size_px)
    height, width = (side // pipeline.factor for side in size_px)
    with _timed(seconds, "encode"):
        clean = encode_canvas(pipeline, enlarged, (height, width), progress=progress)
    with _timed(seconds, "canvas"):
        grid = WindowGrid(height, width, settings.window_latent, settings.overlap_latent)
        steps_taken = pipeline.make_scheduler(settings.scheduler)
        timesteps = last_timesteps(steps_taken, settings.steps, settings.strength)
        noise = canvas_noise((pipeline.latent_channels, height, width), seed, label, levels.patch, index)
        start = noised(steps_taken, clean, noise, timesteps[0])
        del clean, noise
        latents = denoise(
            pipeline,
            start,
            grid,
            steps_taken,
            timesteps,
            prompt=prompt,
            guidance=settings.guidance,
            window_batch=settings.window_batch,
            weighted=settings.weighted,
            progress=progress,
        )
    return Synthesis(
        label=label,
        prompt=prompt,
        seed=seed,
        index=index,
        size_px=size_px,
        mpp=levels.mpp,
        settings=settings,
        latents_CHW=latents,
        overview=overview,
        overview_is_drawn=reference is None,
        forwards=forwards + forwards_of(len(grid), len(timesteps), settings.guidance),
        windows=len(grid),
        seconds=seconds,
    )


def resolve_size(
    size_px: tuple[int, int] | None, settings: SamplingRecipe, reference: np.ndarray | None, levels: Levels
) -> tuple[int, int]:
    """Height and width of a large image: as asked, else the reference's enlarged, else the model's own.

    Raises
    ------
    PathUpError
        The reference is not 8-bit RGB, or not of the size's shape.
    """
    if reference is None:
        return size_px or (settings.size_px, settings.size_px)
    if reference.ndim != 3 or reference.shape[2] != 3 or reference.dtype != np.uint8:
        raise PathUpError(f"the reference image is {reference.dtype} {reference.shape}, but 8-bit RGB was needed")
    height, width = reference.shape[:2]
    if size_px is None:
        return height * levels.shrink, width * levels.shrink
    # the same shape, to within one pixel of the reference
    if abs(width * size_px[0] - height * size_px[1]) > max(size_px):
        raise PathUpError(
            f"the reference image is {width} x {height} px, which is not the shape of {size_px[1]} x {size_px[0]} px; "
            "crop it or ask for a size of its shape"
        )
    return size_px


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
