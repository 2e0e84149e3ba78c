"""Where generated images go: file or folder, which format, what is there already."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from PIL import Image

from pathup import storage
from pathup.errors import PathUpError, unknown
from pathup.slides.deepzoom import whole_deepzoom_shape, write_deepzoom
from pathup.slides.targets import DZI_ENDING, remove_target
from pathup.slides.writer import OME_TIFF_ENDINGS, check_png_size, write_ome_tiff, write_png

__all__ = [
    "FORMATS",
    "Format",
    "ImageFile",
    "as_band",
    "check_format",
    "check_pixels",
    "format_of",
    "is_complete",
    "parse_size",
    "remove_output",
    "write_image",
    "write_metadata",
]

Format = Literal["png", "ome.tiff", "dzi"]
FORMATS: tuple[Format, ...] = ("png", "ome.tiff", "dzi")

_SIZE = re.compile(r"(\d{1,7})(?:[xX×](\d{1,7}))?")
_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}")


def parse_size(text: str) -> tuple[int, int]:
    """Height and width from ``'WIDTHxHEIGHT'`` or one number for a square, in pixels."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise PathUpError(
            f"size '{text}' is not understood; WIDTHxHEIGHT in pixels (2048x1024) or one number was needed"
        )
    width = int(match[1])
    height = int(match[2] or width)
    if not width or not height:
        raise PathUpError(f"size '{text}' is empty; at least one pixel each way was needed")
    return height, width


def format_of(out: Path) -> Format | None:
    """The image format that an output's ending names; ``None`` for a folder.

    Raises
    ------
    PathUpError
        The ending is that of a file, but of no format that can be written.
    """
    name = out.name.lower()
    if out.is_dir():
        return None
    if name.endswith(".png"):
        return "png"
    if name.endswith(OME_TIFF_ENDINGS):
        return "ome.tiff"
    if name.endswith(DZI_ENDING):
        return "dzi"
    if _ENDING.fullmatch(out.suffix):
        raise PathUpError(
            f"'{out.name}' ends in {out.suffix}, which cannot be written; .png, .ome.tiff, .ome.tif, .tiff, .tif, "
            ".dzi or a folder's name without an ending was needed"
        )
    return None


def check_format(name: str) -> Format:
    """The format of that name, or a PathUpError."""
    for known in FORMATS:
        if name.lower().lstrip(".") in (known, known.replace("tiff", "tif")):
            return known
    raise unknown("format", name, FORMATS)


@dataclass(frozen=True)
class ImageFile:
    """An image to be written: its pixels come as row bands.

    Attributes
    ----------
    path
        Of a DeepZoom image, that of its index; the tiles lie in a folder beside it.
    format
        How it is written.
    size_px
        Height and width.
    mpp
        Micrometres per pixel.
    """

    path: Path
    format: Format
    size_px: tuple[int, int]
    mpp: float


def write_image(
    target: ImageFile, bands: Iterable[np.ndarray], provenance: dict[str, Any], *, overwrite: bool = False
) -> None:
    """Write row bands (uint8 RGB) in the target's format, atomically."""
    write: Callable[..., None] = {"png": write_png, "ome.tiff": write_ome_tiff, "dzi": write_deepzoom}[target.format]
    write(target.path, bands, shape=target.size_px, mpp=target.mpp, provenance=provenance, overwrite=overwrite)


def remove_output(path: Path) -> None:
    """Remove an image, a DeepZoom image's tiles included, if it is there.

    Raises
    ------
    PathUpError
        It cannot be removed.
    """
    try:
        remove_target(path)
    except OSError as error:
        raise PathUpError(
            f"{path} is not whole and cannot be removed ({error.strerror}); remove it, or name another output"
        ) from None


def check_pixels(kind: Format, size_px: tuple[int, int]) -> None:
    """Raise a PathUpError when an image of this size cannot be written in this format."""
    if kind == "png":
        check_png_size(*size_px)


def is_complete(target: ImageFile) -> bool:
    """Whether the image is there, whole, and of the right size (files are written atomically; others may not be)."""
    if not target.path.is_file():
        return False
    shape = {"png": _png_shape, "ome.tiff": _tiff_shape, "dzi": whole_deepzoom_shape}[target.format]
    try:
        return shape(target.path) == target.size_px
    except (OSError, SyntaxError, ValueError, tifffile.TiffFileError):
        return False


def _png_shape(path: Path) -> tuple[int, int] | None:
    with Image.open(path, formats=("PNG",)) as image:
        shape = image.height, image.width
        image.verify()
    return shape


def _tiff_shape(path: Path) -> tuple[int, int] | None:
    """Height and width; None where the file ends before its tiles or its metadata do."""
    with tifffile.TiffFile(path) as reader:
        first = reader.pages.first
        ends = [o + n for page in reader.pages for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
        # tifffile writes the description last
        whole = first.description.endswith("</OME>") and max(ends) <= path.stat().st_size
        return (first.imagelength, first.imagewidth) if whole else None


def as_band(pixels: np.ndarray) -> np.ndarray:
    """One image in [0, 1], (H, W, 3), as a uint8 band."""
    return (np.asarray(pixels) * 255).round().clip(0, 255).astype(np.uint8)


def write_metadata(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write ``metadata.jsonl``, one JSON object an image; it appears when the folder is complete."""
    target = folder / "metadata.jsonl"
    storage.write_text(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return target
