"""The reference overview: the low-resolution image that lays out the large one (the paper's I^ref)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from pathup.errors import PathUpError
from pathup.recipes import SamplingRecipe
from pathup.sampling.canvas import canvas_noise
from pathup.sampling.decoding import decode_image
from pathup.sampling.tracking import Progress, denoise, forwards_of, last_timesteps
from pathup.sampling.windows import WindowGrid

if TYPE_CHECKING:
    from pathup.model.pipeline import PathUpPipeline

__all__ = ["ENLARGE_FILTER", "EnlargedOverview", "Levels", "draw_overview", "sampling_levels"]

ENLARGE_FILTER = "bicubic"
"""How an overview is enlarged to the canvas's pixels."""


@dataclass(frozen=True)
class Levels:
    """The two levels that a large image is made of.

    Attributes
    ----------
    overview, patch
        Names of the coarsest and of the finest level.
    shrink
        Canvas pixels an overview pixel, in each direction.
    mpp
        Micrometres per pixel of the large image: the finest level's.
    """

    overview: str
    patch: str
    shrink: int
    mpp: float


def sampling_levels(pipeline: PathUpPipeline) -> Levels:
    """The coarsest and the finest level of a model.

    Raises
    ------
    PathUpError
        Their scales are no whole multiple of each other.
    """
    ordered = sorted(pipeline.config.levels, key=lambda level: float(level["mpp"]))
    fine, coarse = ordered[0], ordered[-1]
    ratio = float(coarse["mpp"]) / float(fine["mpp"])
    if abs(ratio - round(ratio)) > 1e-6:
        raise PathUpError(
            f"level '{coarse['name']}' has {coarse['mpp']:g} and level '{fine['name']}' {fine['mpp']:g} micrometres "
            "a pixel; a large image needs one to be a whole multiple of the other"
        )
    return Levels(coarse["name"], fine["name"], round(ratio), float(fine["mpp"]))


def draw_overview(
    pipeline: PathUpPipeline,
    label: str,
    *,
    size_px: tuple[int, int],
    seed: int,
    index: int,
    settings: SamplingRecipe,
    progress: Progress | None = None,
) -> tuple[np.ndarray, int]:
    """Draw the overview of a class from noise, at the coarsest level.

    An overview larger than a window is itself a canvas of overlapped windows. One that is smaller is drawn at
    the window's size, in which the model has learnt to lay out tissue, and the centre is cut out of it.

    Parameters
    ----------
    pipeline
        The model.
    label
        The class.
    size_px
        Height and width of the overview, in overview pixels; multiples of the model's factor.
    seed, index
        The draw; the same for a label, whatever else is drawn.
    settings
        Scheduler, steps, guidance, windows.
    progress
        Called as ``progress('overview', windows done, windows)``.

    Returns
    -------
    tuple of numpy.ndarray and int
        uint8 RGB (H, W, 3), and the U-Net forwards it took.
    """
    factor, level = pipeline.factor, sampling_levels(pipeline).overview
    height, width = (max(side // factor, settings.window_latent) for side in size_px)
    grid = WindowGrid(height, width, settings.window_latent, settings.overlap_latent)
    scheduler: Any = pipeline.make_scheduler(settings.scheduler)
    timesteps = last_timesteps(scheduler, settings.steps, 1.0)
    # 'overview': in a model of one level the canvas would begin with the same noise, and repeat the overview
    noise = canvas_noise((pipeline.latent_channels, height, width), seed, label, level, "overview", index)
    latents = denoise(
        pipeline,
        noise * scheduler.init_noise_sigma,
        grid,
        scheduler,
        timesteps,
        prompt=pipeline.prompt(label, level),
        guidance=settings.guidance,
        window_batch=settings.window_batch,
        weighted=settings.weighted,
        progress=progress,
        stage="overview",
    )
    image = decode_image(pipeline, latents)
    top, left = (image.shape[0] - size_px[0]) // 2, (image.shape[1] - size_px[1]) // 2
    image = np.ascontiguousarray(image[top : top + size_px[0], left : left + size_px[1]])
    return image, forwards_of(len(grid), len(timesteps), settings.guidance)


class EnlargedOverview:
    """An overview enlarged to the canvas's pixels, area by area: the enlarged image is never held as a whole.

    Parameters
    ----------
    image
        uint8 RGB (h, w, 3).
    size_px
        Height and width to enlarge to.
    """

    def __init__(self, image: np.ndarray, size_px: tuple[int, int]) -> None:
        # Planes of floats: on bytes Pillow rounds between its two passes, whose order depends on the area's shape
        self._planes = [Image.fromarray(image[..., channel].astype(np.float32)) for channel in range(3)]
        self._scale = (image.shape[0] / size_px[0], image.shape[1] / size_px[1])

    def __call__(self, top: int, left: int, height: int, width: int) -> torch.Tensor:
        """Pixels (3, height, width) of an area, float32 in [-1, 1]; the same as cut out of the whole."""
        down, across = self._scale
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        planes = [
            np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC, box=box)) for plane in self._planes
        ]
        return torch.from_numpy(np.stack(planes)).clamp(0, 255).div(127.5).sub(1)
