"""Row bands to a pyramid of tiles, streamed: a level cuts its rows into tiles, and passes them on, halved.

A whole image is never in memory: a level holds about two rows of tiles, and each level half as many columns as the one
above it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import imagecodecs
import numpy as np

__all__ = ["Level", "checked_bands", "encode_jpeg", "halved"]

TileSink = Callable[[int, int, np.ndarray], None]
"""Called with a tile's row, its column and its pixels, row by row; the pixels are a view that is soon changed."""


class Level:
    """One level of a pyramid.

    Tile (r, c) holds rows ``r T - O`` to ``(r + 1) T + O`` and columns alike, as far as the image reaches.

    Parameters
    ----------
    shape
        Height and width of this level in pixels.
    tile_px, overlap
        T, the side of a tile, and O, the pixels that it shows of each neighbour.
    sink
        Takes the tiles.
    below
        The next smaller level, of half the shape, rounded up or down.
    """

    def __init__(
        self, shape: tuple[int, int], tile_px: int, sink: TileSink, *, overlap: int = 0, below: Level | None = None
    ) -> None:
        self.shape, self.tile_px, self.overlap = shape, tile_px, overlap
        self._sink, self._below = sink, below
        self._waiting = np.empty((0, shape[1], 3), np.uint8)  # rows that a tile to come needs
        self._first = 0  # which row of the image is the first that waits
        self._tile_row = 0
        self._seen = 0
        self._unpaired: np.ndarray | None = None

    def add(self, rows: np.ndarray) -> None:
        """Take the next rows, uint8 (any number, width, 3), in all as many as the level has."""
        for start in range(0, len(rows), self.tile_px):  # piecewise, so that a tall band is not copied as a whole
            piece = rows[start : start + self.tile_px]
            self._seen += len(piece)
            self._cut(piece)
            if self._below is not None:
                self._pass_on(piece, self._below)

    def _cut(self, rows: np.ndarray) -> None:
        height, width = self.shape
        side, overlap = self.tile_px, self.overlap
        waiting = np.concatenate([self._waiting, rows])
        while self._tile_row * side < height:
            top, bottom = max(0, self._tile_row * side - overlap), min((self._tile_row + 1) * side + overlap, height)
            if self._seen < bottom:
                break
            strip = waiting[top - self._first : bottom - self._first]
            for column, left in enumerate(range(0, width, side)):
                self._sink(self._tile_row, column, strip[:, max(0, left - overlap) : left + side + overlap])
            self._tile_row += 1
        needed = max(0, self._tile_row * side - overlap)
        self._waiting = waiting[needed - self._first :].copy()  # a view would hold on to the rows before it
        self._first = needed

    def _pass_on(self, rows: np.ndarray, below: Level) -> None:
        if self._unpaired is not None:
            rows = np.concatenate([self._unpaired, rows])
        even = len(rows) // 2 * 2
        self._unpaired = rows[even:].copy() if even < len(rows) else None
        if even:
            below.add(halved(rows[:even], below.shape[1]))
        if self._unpaired is not None and self._seen == self.shape[0] and below._seen < below.shape[0]:
            below.add(halved(np.repeat(self._unpaired, 2, axis=0), below.shape[1]))


def halved(rows: np.ndarray, columns: int) -> np.ndarray:
    """Mean of 2 x 2 pixels, rounded to nearest, uint8.

    Parameters
    ----------
    rows
        uint8 (an even number, W, 3).
    columns
        Width of the result: half of W, where W is odd rounded down, so that the last column is left out, or up, so that
        it is its own pair.
    """
    if 2 * columns > rows.shape[1]:
        rows = np.concatenate([rows, rows[:, -1:]], axis=1)
    left, right = rows[:, 0 : 2 * columns : 2], rows[:, 1 : 2 * columns : 2]
    total = np.add(left[0::2], left[1::2], dtype=np.uint16)
    total += right[0::2]
    total += right[1::2]
    total += 2
    total >>= 2
    return total.astype(np.uint8)


def checked_bands(bands: Iterable[np.ndarray], shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """The bands, each checked to be uint8 RGB of the image's width, and all to add up to its height.

    Raises
    ------
    ValueError
        They are not, or do not.
    """
    height, width = shape
    done = 0
    for band in bands:
        if band.dtype != np.uint8 or band.ndim != 3 or band.shape[1:] != (width, 3) or done + len(band) > height:
            raise ValueError(
                f"a band of {band.dtype} {band.shape} after {done} rows does not fit an RGB image of {shape}"
            )
        done += len(band)
        yield band
    if done != height:
        raise ValueError(f"the bands hold {done} rows, but the image has {height}")


def encode_jpeg(tile: np.ndarray, quality: int, *, subsampling: Literal["444", "422"] = "444") -> bytes:
    """A tile, uint8 RGB, as a JPEG in YCbCr: `quality` 1 to 100, colour in full or at half the columns."""
    return bytes(
        imagecodecs.jpeg8_encode(
            np.ascontiguousarray(tile), level=quality, colorspace="rgb", outcolorspace="ycbcr", subsampling=subsampling
        )
    )
