"""One way to read whole-slide images and region images: by place and physical size.

Coordinates are level-0 pixels of the file (x to the right, y down, from the top left corner). What a caller
asks for is a *field*, a rectangle of level-0 pixels, shrunk to so many pixels; which level of the file's
pyramid serves it is decided here and nowhere else.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import openslide
import tifffile
from PIL import Image

from pathup.errors import PathUpError
from pathup.slides.images import read_image

RESIZE_FILTER = Image.Resampling.LANCZOS
"""The one filter that resizes pixels. Its support grows with the reduction, so it averages over the area."""

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".dcm", ".vms", ".vmu", ".scn", ".bif", ".svslide", ".czi")
"""Endings of files that are tried as slides."""

GLANCE = 2
"""How many times as large as its result an image is that `SlideReader.glance` shrinks by the filter."""

PLAUSIBLE_MPP = (0.02, 50.0)
"""Recorded scales outside of this (micrometres per pixel) are no scale: 300 dpi of a print are 85."""

_DAMAGED_TIFF = (tifffile.TiffFileError, OSError, ValueError, TypeError, LookupError, struct.error)
"""What tifffile raises when it meets damaged or unusual tags."""

_KINDS = {
    tifffile.PHOTOMETRIC.MINISBLACK: "a greyscale image",
    tifffile.PHOTOMETRIC.MINISWHITE: "a greyscale image",
    tifffile.PHOTOMETRIC.PALETTE: "a palette image",
    tifffile.PHOTOMETRIC.SEPARATED: "a CMYK image",
}

_LEVEL_TOLERANCE = 1.001
"""A level counts as fine enough when at most 0.1 % too coarse: recorded downsamples are rounded (4.0003)."""


class SlideReader:
    """A slide or region image, open for reading.

    Attributes
    ----------
    path : pathlib.Path
    size : tuple of int
        Width and height in level-0 pixels.
    recorded_mpp : tuple of float, or None
        Micrometres per level-0 pixel in x and y, as the file records them.
    mpp : tuple of float
        The recorded scale, or the stated one where the file records none.
    bounds : tuple of int
        x, y, width, height of the scanned part in level-0 pixels: the whole image, unless the file tells of a part.
    """

    def __init__(
        self, path: Path, size: tuple[int, int], recorded: tuple[float, float] | None, assume_mpp: float | None
    ) -> None:
        self.path = path
        self.size = size
        self.recorded_mpp = recorded
        self.bounds = (0, 0, *size)
        self._assume_mpp = assume_mpp

    @property
    def mpp(self) -> tuple[float, float]:
        """Micrometres per level-0 pixel in x and y.

        Raises
        ------
        PathUpError
            The file records no scale and none was stated.
        """
        if self.recorded_mpp is not None:
            return self.recorded_mpp
        if self._assume_mpp is None:
            raise PathUpError(
                f"{self.path} records no micrometres per pixel (mpp), which cutting by physical size needs; "
                "state it with --mpp"
            )
        return (self._assume_mpp, self._assume_mpp)

    def read_field(
        self, x: int, y: int, field_px_level0: int | tuple[int, int], out_px: int | tuple[int, int]
    ) -> np.ndarray:
        """Read a rectangle and resize it to a square of `out_px`, or to another rectangle.

        The pyramid level read is the coarsest that is not coarser than the result; resizing, if any is needed,
        is `RESIZE_FILTER` on that level's pixels of this field alone. Transparent pixels become white.

        Parameters
        ----------
        x, y
            Top left corner in level-0 pixels.
        field_px_level0
            Side of the field in level-0 pixels, or (width, height) where x and y have different scales.
        out_px
            Side of the result in pixels, or its (width, height).

        Returns
        -------
        numpy.ndarray
            uint8 RGB, (height, width, 3).

        Raises
        ------
        PathUpError
            The field is empty or reaches outside the image (nothing is invented there), or the file is damaged.
        """
        width, height = (field_px_level0,) * 2 if isinstance(field_px_level0, int) else field_px_level0
        size = (out_px, out_px) if isinstance(out_px, int) else out_px
        self._check_inside(x, y, width, height, size)
        reduction = min(width / size[0], height / size[1])
        return np.asarray(_resized(self._pixels(x, y, width, height, reduction), size))

    def glance(self, x: int, y: int, field_px_level0: tuple[int, int], out_px: tuple[int, int]) -> np.ndarray:
        """What `read_field` reads, several times as fast and nearly as exact: averaged over whole pixels first."""
        size = (min(field_px_level0[0], GLANCE * out_px[0]), min(field_px_level0[1], GLANCE * out_px[1]))
        reduction = min(field_px_level0[0] / size[0], field_px_level0[1] / size[1])
        self._check_inside(x, y, *field_px_level0, size)
        pixels = self._pixels(x, y, *field_px_level0, reduction)
        return np.asarray(pixels.resize(out_px, RESIZE_FILTER, reducing_gap=GLANCE))

    def _check_inside(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> None:
        if width < 1 or height < 1 or min(size) < 1:
            raise PathUpError(
                f"a field of {width} x {height} px and a result of {size[0]} x {size[1]} px were asked of {self.path}"
            )
        if x < 0 or y < 0 or x + width > self.size[0] or y + height > self.size[1]:
            raise PathUpError(
                f"the field of {width} x {height} px at ({x}, {y}) reaches outside {self.path}, "
                f"which is {self.size[0]} x {self.size[1]} px"
            )

    def _pixels(self, x: int, y: int, width: int, height: int, reduction: float) -> Image.Image:
        """The field as RGB at the file's best resolution for that many level-0 pixels a pixel."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


class RegionImage(SlideReader):
    """An ordinary image file, held in memory: one level."""

    def __init__(self, path: Path, assume_mpp: float | None = None):
        pixels_HWC = read_image(path)
        super().__init__(path, (pixels_HWC.shape[1], pixels_HWC.shape[0]), _tiff_mpp(path), assume_mpp)
        self._image = Image.fromarray(pixels_HWC)

    def _pixels(self, x: int, y: int, width: int, height: int, reduction: float) -> Image.Image:
        whole = (x, y, width, height) == (0, 0, *self.size)
        return self._image if whole else self._image.crop((x, y, x + width, y + height))


class Slide(SlideReader):
    """A whole-slide image, read through OpenSlide: only the pixels asked for are decoded."""

    def __init__(self, path: Path, assume_mpp: float | None = None):
        try:
            self._slide = openslide.OpenSlide(path)
            properties: dict[str, str] = dict(self._slide.properties)
        except (openslide.OpenSlideError, OSError) as error:
            raise PathUpError(f"{path} cannot be opened as a slide ({error}); it is damaged or incomplete") from None
        if properties.get(openslide.PROPERTY_NAME_VENDOR) == "generic-tiff":
            try:
                _check_tiff(path)
            except PathUpError:
                self._slide.close()
                raise
        recorded = _plausible(
            properties.get(openslide.PROPERTY_NAME_MPP_X), properties.get(openslide.PROPERTY_NAME_MPP_Y)
        ) or _tiff_mpp(path)
        super().__init__(path, self._slide.dimensions, recorded, assume_mpp)
        self.bounds = _bounds(properties, self.size) or self.bounds
        self.downsamples: tuple[float, ...] = tuple(self._slide.level_downsamples)

    def level_for(self, reduction: float) -> int:
        """The coarsest pyramid level that is not coarser than `reduction` level-0 pixels a result's pixel."""
        fine = [i for i, d in enumerate(self.downsamples) if d <= max(1.0, reduction) * _LEVEL_TOLERANCE]
        return max(fine, key=lambda i: self.downsamples[i])

    def _pixels(self, x: int, y: int, width: int, height: int, reduction: float) -> Image.Image:
        level = self.level_for(reduction)
        down = self.downsamples[level]
        held = self._slide.level_dimensions[level]
        size = (min(max(1, round(width / down)), held[0]), min(max(1, round(height / down)), held[1]))
        # rounding may carry a field at the right or lower rim past its level, where there is nothing but white
        corner = (min(x, math.floor((held[0] - size[0]) * down)), min(y, math.floor((held[1] - size[1]) * down)))
        try:
            rgba = self._slide.read_region(corner, level, size)
        except (openslide.OpenSlideError, OSError) as error:
            raise PathUpError(f"{self.path} is damaged: the field at ({x}, {y}) cannot be read ({error})") from None
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white

    def close(self) -> None:
        """Let go of the file."""
        self._slide.close()


def open_slide(path: Path, assume_mpp: float | None = None) -> SlideReader:
    """Open a slide or a region image, whichever the file is.

    Parameters
    ----------
    path
        A file that OpenSlide reads, or a PNG, JPEG, TIFF or WebP image.
    assume_mpp
        Micrometres per pixel to take where the file records none.

    Raises
    ------
    PathUpError
        The file is missing or empty, is neither, or is damaged; see `slides.images.read_image` as well.
    """
    if not path.is_file():
        raise PathUpError(f"image {path} does not exist")
    if path.stat().st_size == 0:
        raise PathUpError(f"{path} is empty (0 bytes), but an image was needed; copy or export it again")
    if is_slide(path):
        return Slide(path, assume_mpp)
    suffix = path.suffix.lower()
    if suffix in SLIDE_SUFFIXES and suffix not in (".tif", ".tiff"):
        raise PathUpError(f"{path} is not a slide that OpenSlide can read; it may be damaged or incomplete")
    return RegionImage(path, assume_mpp)


def is_slide(path: Path) -> bool:
    """Whether `open_slide` reads a file as a whole slide, through OpenSlide, and not as a region image."""
    return path.suffix.lower() in SLIDE_SUFFIXES and openslide.OpenSlide.detect_format(path) is not None


def slide_identity(path: Path) -> str | None:
    """What is the same for all files of one slide and different for another's; None when `path` is no slide's."""
    try:
        with openslide.OpenSlide(path) as slide:
            return slide.properties.get(openslide.PROPERTY_NAME_QUICKHASH1)
    except (openslide.OpenSlideError, OSError):
        return None


def slide_files(path: Path) -> list[Path]:
    """All files that a slide consists of (MIRAX and DICOM have several), sorted, `path` among them."""
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        folder = path.with_suffix("")
        return [path, *sorted(p for p in folder.rglob("*") if p.is_file())]
    if suffix == ".dcm":
        return sorted(p for p in path.parent.iterdir() if p.suffix.lower() == ".dcm")
    return [path]


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, RESIZE_FILTER)


def _plausible(x: str | float | None, y: str | float | None) -> tuple[float, float] | None:
    try:
        mpp = (float(x), float(y)) if x is not None and y is not None else None
    except ValueError:
        return None
    low, high = PLAUSIBLE_MPP
    return mpp if mpp and all(math.isfinite(v) and low <= v <= high for v in mpp) else None


def _bounds(properties: dict[str, str], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The scanned part that a slide tells of (MIRAX, SCN, ...), if it lies within the slide."""
    names = ("x", "y", "width", "height")
    try:
        x, y, width, height = (int(properties[f"openslide.bounds-{name}"]) for name in names)
    except (KeyError, ValueError):
        return None
    within = min(x, y) >= 0 and min(width, height) >= 1 and x + width <= size[0] and y + height <= size[1]
    return (x, y, width, height) if within else None


def _tiff_mpp(path: Path) -> tuple[float, float] | None:
    """Micrometres per pixel from a TIFF's resolution tags, if it has a unit and a plausible value."""
    if path.suffix.lower() not in (".tif", ".tiff", ".svs"):
        return None
    try:
        with tifffile.TiffFile(path) as tiff:
            tags = tiff.pages[0].tags  # type: ignore[union-attr]
            unit = {2: 25_400.0, 3: 10_000.0}.get(int(_tag(tags, "ResolutionUnit", 1)))
            pairs = [_tag(tags, name, (0, 1)) for name in ("XResolution", "YResolution")]
            if unit is None or any(not pair[0] or not pair[1] for pair in pairs):
                return None
            return _plausible(*(unit * pair[1] / pair[0] for pair in pairs))
    except _DAMAGED_TIFF:
        return None


def _tag(tags: Any, name: str, default: Any) -> Any:
    found = tags.get(name)
    return default if found is None else found.value


def _check_tiff(path: Path) -> None:
    """Refuse what OpenSlide would convert without a word: 16-bit, grey, CMYK, alpha."""
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0].aspage()
            bits, samples, extra = page.bitspersample, page.samplesperpixel, page.extrasamples
            photometric = tifffile.PHOTOMETRIC(page.photometric)
    except _DAMAGED_TIFF as error:
        raise PathUpError(f"{path} is a damaged TIFF ({error}); copy or export it again") from None
    depth = max(bits) if isinstance(bits, tuple) else bits
    if depth != 8:
        raise PathUpError(f"{path} has {depth} bits per channel, but 8-bit RGB was needed; convert it")
    kind = _KINDS.get(photometric, f"an image of colour kind {photometric.name}")
    if photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR):
        if samples == 3:
            return
        alpha = {tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA} & set(extra)
        kind = "an image with an alpha channel" if alpha else f"an image of {samples} channels"
    raise PathUpError(f"{path} is {kind}, but 8-bit RGB was needed; convert it")
