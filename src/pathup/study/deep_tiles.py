"""Any image as Deep Zoom tiles, made when they are asked for: nothing is converted beforehand.

The file's pyramid -> blocks (squares of a Deep Zoom level, kept a while) -> tiles (pieces of up to four blocks: PNG at
the full size, else JPEG).

Deep Zoom's level n of N is the image shrunk to ``ceil(side / 2^(N - 1 - n))``. A block comes from the file's own level
where that has this size, or one less than twice as fine. Elsewhere it is four blocks of the next level, halved: of a
slide that has no small levels, never more than a few blocks are in memory. Threads may ask at once: OpenSlide is made
for that, and a region image is an array.
"""

from __future__ import annotations

import json
import math
import threading
import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image

from pathup.errors import PathUpError
from pathup.slides.deepzoom import deepzoom_shapes, index_text, read_index
from pathup.slides.images import read_image
from pathup.slides.pyramid import encode_jpeg, halved
from pathup.slides.reader import PLAUSIBLE_MPP, SLIDE_SUFFIXES, Slide, open_slide
from pathup.slides.targets import DZI_ENDING, PROVENANCE_FILE, tiles_folder
from pathup.study.file_levels import Levels, RegionLevels, SlideLevels

__all__ = ["BLOCK_PX", "MEDIA_TYPES", "DeepImage", "FolderTiles", "PyramidTiles", "open_tiles"]

TILE_PX = 510
OVERLAP_PX = 1
"""With its neighbours' pixels a tile is 512 px: a screen takes six of them. Without these, scaled tiles show seams."""

QUALITY = 90
"""Of the JPEG tiles, with colour in full."""

PNG_LEVEL = 1
"""Effort of zlib: 6 makes a tile of tissue 3 % shorter and takes half as long again."""

BLOCK_PX = 512
"""Side of a block: whole tiles of most files (240, 256 or 512 px)."""

BLOCKS_KEPT = 96
"""Of each image, the last used: 72 MiB."""

MEDIA_TYPES = {"jpeg": "image/jpeg", "jpg": "image/jpeg", "png": "image/png"}
"""Of tiles, by the ending of their names."""

_NEARLY_TWICE = 1.999
"""A file's level is taken where it is less than so much finer; recorded ratios of levels are rounded (2.0003)."""


class DeepImage(ABC):
    """An image as Deep Zoom sees it.

    Attributes
    ----------
    path : pathlib.Path
    size : tuple of int
        Width and height in pixels.
    mpp : tuple of float, or None
        Micrometres a pixel in x and y, if known.
    tile_px, overlap : int
        Side of a tile, and how many pixels it shows of each neighbour.
    ending : str
        Of the tiles' names.
    shapes : list of tuple of int
        Rows and columns of each level, the smallest first.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        mpp: tuple[float, float] | None,
        *,
        tile_px: int = TILE_PX,
        overlap: int = OVERLAP_PX,
        ending: str = "jpeg",
    ) -> None:
        self.path, self.size, self.mpp = path, size, mpp
        self.tile_px, self.overlap, self.ending = tile_px, overlap, ending
        self.shapes = deepzoom_shapes(size[1], size[0])[::-1]

    @property
    def extent(self) -> tuple[float, float] | None:
        """Width and height in micrometres, if the scale is known."""
        return (self.size[0] * self.mpp[0], self.size[1] * self.mpp[1]) if self.mpp else None

    def descriptor(self) -> str:
        """The ``.dzi`` document."""
        return index_text((self.size[1], self.size[0]), self.tile_px, self.overlap, self.ending)

    def box(self, level: int, column: int, row: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a tile, overlap included, in pixels of its level.

        Raises
        ------
        LookupError
            The image has no such tile.
        """
        if not 0 <= level < len(self.shapes):
            raise LookupError(f"there is no level {level}")
        rows, columns = self.shapes[level]
        left, top = column * self.tile_px, row * self.tile_px
        if not (0 <= left < columns and 0 <= top < rows):
            raise LookupError(f"level {level} has no tile {column}, {row}")
        more = self.tile_px + self.overlap
        return (
            max(0, left - self.overlap),
            max(0, top - self.overlap),
            min(left + more, columns),
            min(top + more, rows),
        )

    def media_type(self, level: int) -> str:
        """Of the tiles of a level, whatever their names end with: browsers go by this."""
        return MEDIA_TYPES[self.ending]

    @abstractmethod
    def tile(self, level: int, column: int, row: int) -> bytes:
        """A tile as the bytes of an image file.

        Raises
        ------
        LookupError
            The image has no such tile.
        PathUpError
            The file is damaged or gone.
        """


class PyramidTiles(DeepImage):
    """Tiles cut from a file's pyramid."""

    def __init__(self, path: Path, levels: Levels, mpp: tuple[float, float] | None) -> None:
        super().__init__(path, levels.sizes[0], mpp)
        self._levels = levels
        self._blocks = _Kept(BLOCKS_KEPT)

    def tile(self, level: int, column: int, row: int) -> bytes:
        """A tile as a JPEG; of the full size as a PNG, whose pixels are the file's own."""
        pixels_HWC = self.pixels(level, *self.box(level, column, row))
        if self._whole(level):
            return bytes(imagecodecs.png_encode(pixels_HWC, level=PNG_LEVEL))
        return encode_jpeg(pixels_HWC, QUALITY)

    def media_type(self, level: int) -> str:
        """See `DeepImage`."""
        return MEDIA_TYPES["png"] if self._whole(level) else super().media_type(level)

    def _whole(self, level: int) -> bool:
        return level == len(self.shapes) - 1

    def pixels(self, level: int, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """A rectangle of a Deep Zoom level: uint8 RGB, (bottom - top, right - left, 3)."""
        out = np.empty((bottom - top, right - left, 3), np.uint8)
        for row in range(top // BLOCK_PX, -(-bottom // BLOCK_PX)):
            for column in range(left // BLOCK_PX, -(-right // BLOCK_PX)):
                y, x = row * BLOCK_PX, column * BLOCK_PX
                rows = slice(max(top, y), min(bottom, y + BLOCK_PX))
                columns = slice(max(left, x), min(right, x + BLOCK_PX))
                block = self._block(level, row, column)
                _part(out, rows, columns, top, left)[...] = _part(block, rows, columns, y, x)
        return out

    def _block(self, level: int, row: int, column: int) -> np.ndarray:
        return self._blocks.get((level, row, column), lambda: self._read_block(level, row, column))

    def _read_block(self, level: int, row: int, column: int) -> np.ndarray:
        rows, columns = self.shapes[level]
        top, left = row * BLOCK_PX, column * BLOCK_PX
        bottom, right = min(top + BLOCK_PX, rows), min(left + BLOCK_PX, columns)
        reduction = 2 ** (len(self.shapes) - 1 - level)
        own = self._levels.fitting(reduction)
        width, height = self._levels.sizes[own]
        exact = (self.size[0] / reduction, self.size[1] / reduction)
        if abs(width - exact[0]) < 1 and abs(height - exact[1]) < 1:  # this very level, rounded one way or another
            left, top = min(left, width - 1), min(top, height - 1)
            found = self._levels.read(own, left, top, min(right, width), min(bottom, height))
            return _filled(found, bottom - row * BLOCK_PX, right - column * BLOCK_PX)
        if reduction * max(width, height) / max(self.size) < _NEARLY_TWICE:
            return self._shrunk(own, reduction, left, top, right, bottom)
        finer = self.shapes[level + 1]
        found = self.pixels(level + 1, 2 * left, 2 * top, min(2 * right, finer[1]), min(2 * bottom, finer[0]))
        return halved(_filled(found, 2 * (bottom - top), found.shape[1]), right - left)

    def _shrunk(self, own: int, reduction: int, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """A rectangle of a Deep Zoom level from the file's level `own`, averaged over the area of each pixel."""
        (width, height), (full_width, full_height) = self._levels.sizes[own], self.size
        x, x_end = (min(at * reduction / full_width, 1.0) * width for at in (left, right))
        y, y_end = (min(at * reduction / full_height, 1.0) * height for at in (top, bottom))
        first_x, first_y = math.floor(x), math.floor(y)
        found = self._levels.read(own, first_x, first_y, math.ceil(x_end), math.ceil(y_end))
        box = (x - first_x, y - first_y, x_end - first_x, y_end - first_y)
        image = Image.fromarray(found).resize((right - left, bottom - top), Image.Resampling.BOX, box)
        return np.asarray(image)


def _part(pixels_HWC: np.ndarray, rows: slice, columns: slice, top: int, left: int) -> np.ndarray:
    """Some rows and columns of a level, from pixels whose corner lies at (top, left)."""
    return pixels_HWC[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


def _filled(pixels_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels with their last row and column repeated up to a size."""
    missing = (height - pixels_HWC.shape[0], width - pixels_HWC.shape[1])
    return np.pad(pixels_HWC, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge") if any(missing) else pixels_HWC


class _Kept:
    """The last so many arrays, each made once, however many threads ask for it meanwhile."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._arrays: OrderedDict[tuple[int, ...], Future[np.ndarray]] = OrderedDict()

    def get(self, key: tuple[int, ...], make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of a key; one that cannot be made is tried again when it is asked for again."""
        with self._lock:
            known = self._arrays.get(key)
            array = self._arrays[key] = known or Future()
            self._arrays.move_to_end(key)
            if len(self._arrays) > self._limit:
                self._arrays.popitem(last=False)
        if known is None:
            try:
                array.set_result(make())
            except BaseException as error:
                with self._lock:
                    if self._arrays.get(key) is array:
                        del self._arrays[key]
                array.set_exception(error)
        return array.result()


class FolderTiles(DeepImage):
    """The tiles of a DeepZoom image, as they lie in its folder."""

    def tile(self, level: int, column: int, row: int) -> bytes:
        """A tile's file. Its name is made of the numbers alone, once the image is known to have such a tile."""
        self.box(level, column, row)
        try:
            return (tiles_folder(self.path) / str(level) / f"{column}_{row}.{self.ending}").read_bytes()
        except FileNotFoundError:
            raise LookupError(f"the tile {column}, {row} of level {level} is missing") from None
        except OSError as error:
            raise PathUpError(f"a tile of {self.path.name} cannot be read ({error.strerror})") from error


def open_tiles(path: Path, mpp: float | None = None) -> DeepImage:
    """Open a slide, a region image or a DeepZoom image as Deep Zoom tiles.

    Parameters
    ----------
    path
        What `pathup.slides.reader.open_slide` reads, or the index (``.dzi``) of a DeepZoom image.
    mpp
        Micrometres a pixel, for a file that records none. A PNG's is taken where PathUp wrote it.

    Raises
    ------
    PathUpError
        No such file, or none that can be read; an `mpp` that no image of tissue has.
    """
    low, high = PLAUSIBLE_MPP
    if mpp is not None and not low <= mpp <= high:
        raise PathUpError(f"--mpp is {mpp:g}, but micrometres a pixel from {low:g} to {high:g} were needed")
    stated = (mpp, mpp) if mpp is not None else None
    suffix = path.suffix.lower()
    if suffix == DZI_ENDING:
        return _open_folder(path, stated)
    if suffix not in SLIDE_SUFFIXES:
        return PyramidTiles(path, RegionLevels(read_image(path)), _png_mpp(path) or stated)
    with open_slide(path) as reader:
        levels = SlideLevels(reader) if isinstance(reader, Slide) else RegionLevels(read_image(path))
        return PyramidTiles(path, levels, reader.recorded_mpp or stated)


def _plausible(mpp: object) -> tuple[float, float] | None:
    low, high = PLAUSIBLE_MPP
    return (float(mpp), float(mpp)) if isinstance(mpp, int | float) and low <= mpp <= high else None


def _png_mpp(path: Path) -> tuple[float, float] | None:
    """The scale of a PNG that PathUp wrote: others' resolution is that of a print."""
    if path.suffix.lower() != ".png":
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=("PNG",)) as image:
                ours = str(image.info.get("Software", "")).startswith("pathup ")
                per_inch = float(image.info.get("dpi", (0, 0))[0])
        except Image.DecompressionBombError:  # larger than any of PathUp's
            return None
    return _plausible(25_400 / per_inch) if ours and per_inch else None


def _open_folder(path: Path, stated: tuple[float, float] | None) -> FolderTiles:
    """A DeepZoom image by its index."""
    if not path.is_file():
        raise PathUpError(f"image {path} does not exist")
    if not tiles_folder(path).is_dir():
        raise PathUpError(f"the tiles of {path} are not there; they belong into {tiles_folder(path).name} beside it")
    index = read_index(path)
    if index is None or index.ending not in MEDIA_TYPES:
        raise PathUpError(f"{path} is no index of a DeepZoom image of JPEG or PNG tiles; export it again")
    try:
        told = json.loads((tiles_folder(path) / PROVENANCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        told = None
    recorded = _plausible(told.get("mpp")) if isinstance(told, dict) else None
    return FolderTiles(
        path, (index.width, index.height), recorded or stated, tile_px=index.tile_px, overlap=index.overlap,
        ending=index.ending,
    )  # fmt: skip
