"""An upscaler of small images applied to large ones: in tiles that overlap, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from pathup.errors import PathUpError

__all__ = ["in_tiles"]


def in_tiles(
    pixels_HWC: np.ndarray,
    enlarge: Callable[[np.ndarray], np.ndarray],
    factor: int,
    tile_px: int,
    margin_px: int,
) -> np.ndarray:
    """An image enlarged tile by tile.

    Every tile is `tile_px` a side, or the image's side where that is less; the last of a row or column is moved back
    into the image. Neighbours overlap by at least two margins, and of each tile the margin is cut off at those sides
    where the image goes on. So where an enlarged pixel depends on nothing further than `margin_px` from the pixel that
    it lies in, the result is that of `enlarge` on the whole image; where it does, tiles may meet in a visible edge. An
    image of one tile is given to `enlarge` as it is.

    Parameters
    ----------
    pixels_HWC
        (H, W, C).
    enlarge
        Takes such an image of at most `tile_px` a side and returns it `factor` times as wide and high.
    factor
        See there.
    tile_px, margin_px
        Pixels of the image before it is enlarged.

    Returns
    -------
    numpy.ndarray
        (factor H, factor W, C), of the type of `pixels_HWC`.

    Raises
    ------
    PathUpError
        Two margins leave nothing of a tile, the image is empty, or `enlarge` returned another size.
    """
    if margin_px < 0 or tile_px <= 2 * margin_px:
        raise PathUpError(
            f"tiles of {tile_px} px with a margin of {margin_px} px were asked for, but a tile has to be larger than "
            "two margins"
        )
    height, width = pixels_HWC.shape[:2]
    if not height or not width:
        raise PathUpError(f"an image of {width} x {height} px was given, but one that is not empty was needed")
    result = np.empty((factor * height, factor * width, *pixels_HWC.shape[2:]), pixels_HWC.dtype)
    for top, bottom, first_row, last_row in _spans(height, tile_px, margin_px):
        for left, right, first_column, last_column in _spans(width, tile_px, margin_px):
            tile = enlarge(pixels_HWC[top:bottom, left:right])
            wanted = (factor * (bottom - top), factor * (right - left))
            if tile.shape[:2] != wanted:
                raise PathUpError(f"a tile was enlarged to {tile.shape[:2]}, but {wanted} was needed")
            rows, columns = _scaled(first_row, last_row, factor), _scaled(first_column, last_column, factor)
            kept = tile[
                _scaled(first_row - top, last_row - top, factor),
                _scaled(first_column - left, last_column - left, factor),
            ]
            result[rows, columns] = kept
    return result


def _scaled(first: int, last: int, factor: int) -> slice:
    return slice(factor * first, factor * last)


def _spans(side: int, tile: int, margin: int) -> Iterator[tuple[int, int, int, int]]:
    """Along one side, each tile's begin and end, and the begin and end of what is kept of it."""
    begin, kept = 0, 0
    while True:
        end = min(begin + tile, side)
        begin = max(0, end - tile)
        until = side if end == side else end - margin
        yield begin, end, kept, until
        if end == side:
            return
        begin, kept = begin + tile - 2 * margin, until
