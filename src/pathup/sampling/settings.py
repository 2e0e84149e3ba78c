"""Sampling values and sizes, checked before anything is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from pathup.errors import PathUpError
from pathup.model.schedulers import set_steps
from pathup.recipes import SamplingRecipe
from pathup.sampling.overview import Levels

if TYPE_CHECKING:
    from pathup.model.pipeline import PathUpPipeline

__all__ = ["check_size", "resolve_settings", "resolve_size"]


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
    set_steps(pipeline.make_scheduler(settings.scheduler), settings.steps, settings.step_power)
    return settings


def check_size(pipeline: PathUpPipeline, size_px: tuple[int, int], settings: SamplingRecipe | None = None) -> None:
    """Raise a PathUpError, naming the nearest valid size, when (height, width) cannot be sampled."""
    multiple = pipeline.factor
    least = (settings or pipeline.sampling).window_latent * multiple
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
