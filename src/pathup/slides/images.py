"""Region images: one file, 8-bit RGB, checked strictly before a pixel of it is used.

A silent conversion (16 bits to 8, CMYK to RGB, a palette) changes stain colours, so it is refused here and
left to the user. Embedded colour profiles are not applied and orientation tags are ignored: pixels are taken
as stored. A TIFF that is to be turned is refused, since Pillow would turn it.
"""

from __future__ import annotations

import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from pathup.errors import PathUpError

MAX_REGION_PIXELS = 400_000_000
"""Most pixels of a region image, width times height: 20,000 x 20,000, or 1.2 GB of memory as RGB.

The largest published regions of interest (BRACS) are about 10,000 x 10,000. Anything larger is a slide, which
is read piece by piece.
"""

REGION_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
"""Endings of files that are taken for region images."""

_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP")
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, OverflowError)
"""What Pillow raises when it meets damaged data."""
_ORIENTATION = 274
_MODES = {
    "1": "a black-and-white image",
    "L": "a greyscale image",
    "LA": "a greyscale image with an alpha channel",
    "P": "a palette image",
    "PA": "a palette image with an alpha channel",
    "RGBA": "an image with an alpha channel",
    "RGBX": "an image with a fourth channel",
    "CMYK": "a CMYK image",
    "F": "a floating-point image",
}


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the header alone, after the same checks as `read_image`."""
    with _opened(path) as image:
        return image.size


def read_image(path: Path) -> np.ndarray:
    """Read a region image.

    Returns
    -------
    numpy.ndarray
        uint8 RGB, (H, W, 3).

    Raises
    ------
    PathUpError
        The file is missing, empty, no image, truncated or damaged, not 8-bit RGB (16-bit, CMYK, grey, palette,
        alpha), holds several images, or has more than `MAX_REGION_PIXELS` pixels (found in its header, before
        anything is decoded).
    """
    with _opened(path) as image:
        try:
            image.load()
        except _DAMAGED as error:
            raise _damaged(path, error) from None
        return np.asarray(image)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open `path` and check all that its header tells."""
    if not path.is_file():
        raise PathUpError(f"image {path} does not exist")
    if path.stat().st_size == 0:
        raise PathUpError(f"{path} is empty (0 bytes), but an image was needed; copy or export it again")
    with _own_limits:
        try:
            image = Image.open(path, formats=_FORMATS)
        except Image.DecompressionBombError:
            raise _too_large(path, f"more than {2 * MAX_REGION_PIXELS:,}") from None
        except UnidentifiedImageError:
            raise PathUpError(
                f"{path} is not an image that can be read (PNG, JPEG, TIFF or WebP was needed), or it is damaged"
            ) from None
        except _DAMAGED as error:
            raise PathUpError(f"{path} cannot be opened as an image ({error}); copy or export it again") from None
        with image:
            try:
                _check(path, image)
            except _DAMAGED as error:
                raise _damaged(path, error) from None
            yield image


class _OwnLimits:
    """Have Pillow admit what our own limit admits, and refuse truncated files, whatever others have set.

    Pillow's limits, like Python's warnings, are the whole process's: threads that read at once share one change of
    them, made by the first and taken back by the last.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._restore = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._readers == 0:
                self._restore.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
                self._restore.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES)
                self._restore.enter_context(warnings.catch_warnings())
                # Pillow's, about size and damaged tags: both are checked with a sentence
                warnings.simplefilter("ignore")
                Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = MAX_REGION_PIXELS, False
            self._readers += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                self._restore.close()


_own_limits = _OwnLimits()


def _check(path: Path, image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_REGION_PIXELS:
        raise _too_large(path, f"{width} x {height} = {width * height:,}")
    depth = _bits(path, image)
    if depth != 8 and image.mode != "1":
        raise PathUpError(f"{path} has {depth} bits per channel, but 8-bit RGB was needed; convert it")
    if image.mode != "RGB":
        what = _MODES.get(image.mode, f"an image of colour mode {image.mode}")
        raise PathUpError(f"{path} is {what}, but 8-bit RGB was needed; convert it")
    turned = getattr(image, "tag_v2", {}).get(_ORIENTATION, 1) if image.format == "TIFF" else 1
    if turned != 1:
        raise PathUpError(
            f"{path} says that it is to be turned or mirrored (orientation tag {turned}), but pixels are taken as "
            "stored; export it upright, without that tag"
        )
    if "transparency" in image.info:
        raise PathUpError(f"{path} has a transparent colour, but 8-bit RGB without alpha was needed; convert it")
    frames = getattr(image, "n_frames", 1)
    if frames != 1:
        raise PathUpError(f"{path} holds {frames} images, but one was needed; export the one that is meant")


def _bits(path: Path, image: Image.Image) -> int:
    """Bits per channel as stored: Pillow opens 16-bit RGB as if it were 8-bit."""
    if image.format == "PNG":
        with path.open("rb") as handle:
            header = handle.read(25)
        return 8 if image.mode in ("P", "1") else header[24]
    if image.format == "TIFF":
        stored = getattr(image, "tag_v2", {}).get(258, 8)
        return int(max(stored)) if isinstance(stored, tuple) else int(stored)
    if image.mode.startswith("I"):
        return 16
    return 8


def _damaged(path: Path, error: Exception) -> PathUpError:
    return PathUpError(
        f"{path} is truncated or damaged ({error}); a whole image was needed, so copy or export it again"
    )


def _too_large(path: Path, found: str) -> PathUpError:
    return PathUpError(
        f"{path} has {found} pixels, more than the {MAX_REGION_PIXELS:,} that a region image may have; "
        "cut it, or store it as a tiled, pyramidal slide"
    )
