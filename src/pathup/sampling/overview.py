"""The reference overview: the low-resolution image that lays out the large one (the paper's I^ref)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from pathup import draws
from pathup.errors import PathUpError
from pathup.processes import ONE_PROCESS, Processes
from pathup.recipes import SamplingRecipe
from pathup.sampling.canvas import Canvas, canvas_noise, row_slices
from pathup.sampling.conditions import Conditions
from pathup.sampling.device import reduced_precision
from pathup.sampling.layouts import Layout
from pathup.sampling.schedule import WindowSchedule, window_schedule
from pathup.sampling.states import MemoryStates, States
from pathup.sampling.tissue import GLASS_RGB, TissueDecoder, TissuePlaces
from pathup.sampling.tracking import Progress, all_timesteps, denoise_states

if TYPE_CHECKING:
    from pathup.model.pipeline import PathUpPipeline

__all__ = [
    "ENLARGE_FILTER",
    "EnlargedOverview",
    "Levels",
    "check_reference_level",
    "draw_overview",
    "overview_bands",
    "overview_conditions",
    "overview_schedule",
    "sampling_levels",
]

ENLARGE_FILTER = "bicubic"
"""How an overview is enlarged to the canvas's pixels."""

_REACH_PX = 4
"""Overview pixels around an area that its enlargement may depend on: bicubic takes two each way."""


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


def check_reference_level(levels: Levels, *, has_reference: bool) -> None:
    """Raise a PathUpError when nothing can lay out a large image: one level alone, and no reference image."""
    if levels.overview == levels.patch and not has_reference:
        raise PathUpError(
            f"this model has one level ('{levels.patch}') and none that lays out a large image; give --reference an "
            f"image that "
            "does, take a model with a coarser level as well, or draw single tiles with --level"
        )


def overview_schedule(
    pipeline: PathUpPipeline,
    size_px: tuple[int, int],
    settings: SamplingRecipe,
    layout: Layout,
    seed: int,
    keys: tuple[str, int],
) -> WindowSchedule:
    """The windows of an overview of `size_px` overview pixels.

    One that is smaller than a window is drawn at the window's size, in which the model has learnt to lay out tissue.
    Its windows overlap at every step, where those of the canvas are shifted as well, but then as little as they do in
    the canvas's last steps: on few windows, those of other sizes at the rim would cost more than the overlap.
    """
    height, width = (max(side // pipeline.factor, settings.window_latent) for side in size_px)
    overlap = settings.overlap_latent // (2 if settings.windows == "shifted" and not layout.has_glass else 1)
    plain = settings.model_copy(update={"windows": "overlapped", "overlap_latent": overlap})
    steps = len(all_timesteps(pipeline.make_scheduler(settings.scheduler), settings))
    return window_schedule(plain, height, width, steps, draws.seed_of(seed, *keys, "overview"))


def overview_conditions(
    pipeline: PathUpPipeline, layout: Layout, schedule: WindowSchedule, size_px: tuple[int, int], shrink: int
) -> Conditions:
    """What an overview's windows are told; what is drawn beyond the overview, around it, lies outside the layout."""
    drawn = (schedule.height * pipeline.factor, schedule.width * pipeline.factor)
    top, left = (-shrink * ((side - wanted) // 2) for side, wanted in zip(drawn, size_px, strict=True))
    level = sampling_levels(pipeline).overview
    return Conditions(pipeline, layout, level, pipeline.factor * shrink, origin=(top, left))


def draw_overview(
    pipeline: PathUpPipeline,
    layout: Layout,
    *,
    size_px: tuple[int, int],
    shrink: int,
    seed: int,
    keys: tuple[str, int],
    settings: SamplingRecipe,
    states: States | None = None,
    processes: Processes = ONE_PROCESS,
    progress: Progress | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Canvas:
    """Draw the latent of an overview from noise, at the coarsest level.

    An overview larger than a window is itself a canvas, with windows as a large image has them.

    Parameters
    ----------
    pipeline
        The model.
    layout
        Which class lies where.
    size_px
        Height and width of the overview, in overview pixels; multiples of the model's factor.
    shrink
        Pixels of the large image an overview pixel, each way.
    seed, keys
        The draw: label and index of the image.
    settings
        Scheduler, steps, guidance, windows.
    states
        Where the canvas lies; in memory when unset.
    processes, progress, on_step
        As in `denoise_states`; the stage is ``overview``.

    Returns
    -------
    Canvas
        The latents.
    """
    level = sampling_levels(pipeline).overview
    schedule = overview_schedule(pipeline, size_px, settings, layout, seed, keys)
    scheduler: Any = pipeline.make_scheduler(settings.scheduler)
    timesteps = all_timesteps(scheduler, settings)
    shape = (pipeline.latent_channels, schedule.height, schedule.width)
    states = MemoryStates(shape[1:]) if states is None else states
    if states.latest is None and processes.is_main:
        start = states.begin(0, shape[0])
        for rows in row_slices(shape[1]):
            # 'overview': in a model of one level the canvas would begin with the same noise, and repeat the overview
            noise = canvas_noise(shape, seed, keys[0], level, "overview", *keys[1:], rows=rows)
            start[:, rows, :] = noise * float(scheduler.init_noise_sigma)
        states.commit(0)
    processes.wait()
    conditions = overview_conditions(pipeline, layout, schedule, size_px, shrink)
    denoise_states(
        pipeline,
        states,
        schedule,
        scheduler,
        timesteps,
        conditions=conditions,
        guidance=settings.guidance,
        window_batch=settings.window_batch,
        weighting=settings.window_weight,
        processes=processes,
        progress=progress,
        stage="overview",
        on_step=on_step,
    )
    return states.read()


def overview_bands(
    pipeline: PathUpPipeline, latents: Canvas, size_px: tuple[int, int], layout: Layout, shrink: int
) -> Iterator[np.ndarray]:
    """The decoded overview in bands, uint8 RGB: its centre of `size_px`, with glass where the layout has it.

    It is enlarged, encoded and noised afterwards, so it need not be as exact as an image.
    """
    height, width = (side * pipeline.factor for side in latents.shape[1:])
    top, left = (height - size_px[0]) // 2, (width - size_px[1]) // 2
    at = 0
    shape, origin = (latents.shape[1], latents.shape[2]), (-shrink * top, -shrink * left)
    places = TissuePlaces(layout, shape, pipeline.factor * shrink, origin)
    bands = TissueDecoder(pipeline, latents, places).bands()
    while True:
        with reduced_precision(pipeline.vae):  # not around a `yield`: it would hold for whoever takes the band
            band = next(bands, None)
        if band is None:
            return
        first, last = max(top - at, 0), min(top + size_px[0] - at, len(band))
        if first < last:
            part = np.ascontiguousarray(band[first:last, left : left + size_px[1]])
            if layout.has_glass:
                part[layout.glass_mask(at + first - top, 0, len(part), size_px[1], shrink)] = GLASS_RGB
            yield part
        at += len(band)


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
        self._image = image
        self._scale = (image.shape[0] / size_px[0], image.shape[1] / size_px[1])

    def __call__(self, top: int, left: int, height: int, width: int) -> torch.Tensor:
        """Pixels (3, height, width) of an area, float32 in [-1, 1]; the same as cut out of the whole."""
        down, across = self._scale
        y, x = max(0, int(top * down) - _REACH_PX), max(0, int(left * across) - _REACH_PX)
        part = self._image[
            y : int((top + height) * down) + 1 + _REACH_PX, x : int((left + width) * across) + 1 + _REACH_PX
        ]
        box = (left * across - x, top * down - y, (left + width) * across - x, (top + height) * down - y)
        # Planes of floats: on bytes Pillow rounds between its two passes, whose order depends on the area's shape
        planes = [
            np.asarray(
                Image.fromarray(part[..., channel].astype(np.float32)).resize(
                    (width, height), Image.Resampling.BICUBIC, box=box
                )
            )
            for channel in range(3)
        ]
        return torch.from_numpy(np.stack(planes)).clamp(0, 255).div(127.5).sub(1)
