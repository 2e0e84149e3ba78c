"""What the gradient ratio of `pathup.evaluation.seams` is at random lines of real tissue."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from pathup import draws
from pathup.errors import PathUpError
from pathup.evaluation.seams import SeamGrid, gradient_ratios

__all__ = ["PLACEMENTS", "moved_grid", "ratios_at_random_lines"]

PLACEMENTS = 4
"""Random places of the grid on each real image."""


def moved_grid(grid: SeamGrid, width: int, height: int, shift: tuple[int, int]) -> SeamGrid:
    """The grid, moved by a number of columns and rows and cut to an image's size; what leaves it comes in again.

    Parameters
    ----------
    grid
        Of an image at least as large.
    width, height
        The image that the moved grid is for, in pixels.
    shift
        Columns and rows.
    """
    xs, ys = (
        tuple(sorted(at for line in lines if 0 < (at := (line + by) % length) < side))
        for lines, by, length, side in zip(
            (grid.xs, grid.ys), shift, (grid.width, grid.height), (width, height), strict=True
        )
    )
    return SeamGrid(width, height, xs, ys)


def ratios_at_random_lines(
    images: Iterable[tuple[str, Callable[[], np.ndarray]]],
    grid: SeamGrid,
    *,
    seed: int = 0,
    placements: int = PLACEMENTS,
) -> dict[str, np.ndarray]:
    """Gradient ratios where the grid lies at random places of real images, which have no seams there.

    Parameters
    ----------
    images
        Name and reader (uint8 RGB, (H, W, 3)) of each; the middle of larger ones is taken, smaller ones hold fewer
        lines.
    grid
        The lines whose pattern is asked about.
    seed, placements
        Of the random places.

    Returns
    -------
    dict of str to numpy.ndarray
        Ratios of each channel, (images x placements,).

    Raises
    ------
    PathUpError
        No image holds enough lines.
    """
    found: dict[str, list[float]] = {}
    for name, read in images:
        pixels = read()
        height, width = min(pixels.shape[0], grid.height), min(pixels.shape[1], grid.width)
        top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
        pixels = pixels[top : top + height, left : left + width]
        for place in range(placements):
            generator = draws.numpy_generator(seed, "real lines", name, place)
            shift = int(generator.integers(grid.width)), int(generator.integers(grid.height))
            try:
                ratios = gradient_ratios(pixels, moved_grid(grid, width, height, shift))
            except PathUpError:  # too small for this grid
                continue
            for channel, ratio in ratios.items():
                found.setdefault(channel, []).append(ratio)
    if not found:
        raise PathUpError(
            "no real image holds enough lines of the synthetic images' grids; name larger ones with --large-real"
        )
    return {channel: np.asarray(ratios) for channel, ratios in found.items()}
