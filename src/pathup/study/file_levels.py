"""The levels that a file itself has, to be read by rectangles: what Deep Zoom tiles are cut from."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import openslide
from PIL import Image

from pathup.errors import PathUpError
from pathup.slides.reader import Slide

__all__ = ["Levels", "RegionLevels", "SlideLevels"]


class Levels(Protocol):
    """The pyramid of a file, the full size first."""

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        """Width and height of each level."""

    def fitting(self, reduction: float) -> int:
        """The coarsest level that is not coarser than so many full-size pixels a pixel."""

    def read(self, level: int, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """A rectangle of a level: uint8 RGB, (bottom - top, right - left, 3)."""


class SlideLevels:
    """The pyramid of a whole slide, of its scanned part. The file is opened anew after an error: it may be mended."""

    def __init__(self, slide: Slide) -> None:
        self._path, self._downsamples = slide.path, slide.downsamples
        self.fitting = slide.level_for
        self._corner, whole = slide.bounds[:2], slide.bounds[2:]
        self._lock = threading.Lock()
        self._open: openslide.OpenSlide | None = None
        self.sizes: Sequence[tuple[int, int]] = self._handle().level_dimensions
        if whole != slide.size:
            self.sizes = [(max(1, round(whole[0] / d)), max(1, round(whole[1] / d))) for d in self._downsamples]

    def read(self, level: int, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """See `Levels`. Transparent pixels become white."""
        down = self._downsamples[level]
        corner = (self._corner[0] + round(left * down), self._corner[1] + round(top * down))
        try:
            handle = self._handle()
            rgba = handle.read_region(corner, level, (right - left, bottom - top))
        except (openslide.OpenSlideError, OSError) as error:
            with self._lock:
                self._open = None
            raise PathUpError(f"{self._path.name} cannot be read here: it is damaged or gone") from error
        if rgba.getchannel("A").getextrema() == (255, 255):
            return np.asarray(rgba.convert("RGB"))
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return np.asarray(white)

    def _handle(self) -> openslide.OpenSlide:
        with self._lock:
            if self._open is None:
                self._open = openslide.OpenSlide(self._path)
            return self._open


class RegionLevels:
    """A region image, in memory: one level."""

    def __init__(self, pixels_HWC: np.ndarray) -> None:
        self._pixels = pixels_HWC
        self.sizes: Sequence[tuple[int, int]] = [(pixels_HWC.shape[1], pixels_HWC.shape[0])]

    def fitting(self, reduction: float) -> int:
        """See `Levels`."""
        return 0

    def read(self, level: int, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """See `Levels`."""
        return self._pixels[top:bottom, left:right]
