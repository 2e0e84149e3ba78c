"""Where generated images go: file or folder, which format, what is there already."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from PIL import Image

from pathup import storage
from pathup.errors import PathUpError, unknown
from pathup.slides.writer import OME_TIFF_ENDINGS, check_png_size, write_ome_tiff, write_png

__all__ = ["FORMATS", "Format", "format_of", "is_complete", "parse_size", "write_image", "write_metadata"]

Format = Literal["png", "ome.tiff"]
FORMATS: tuple[Format, ...] = ("png", "ome.tiff")

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
    if _ENDING.fullmatch(out.suffix):
        raise PathUpError(
            f"'{out.name}' ends in {out.suffix}, which cannot be written; .png, .ome.tiff, .ome.tif, .tiff, .tif "
            "or a folder's name without an ending was needed"
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
    """An image to be written: its pixels come as row bands."""

    path: Path
    format: Format
    size_px: tuple[int, int]
    mpp: float


def write_image(target: ImageFile, bands: Any, provenance: dict[str, Any], *, overwrite: bool = False) -> None:
    """Write row bands (uint8 RGB) in the target's format, atomically."""
    write = write_png if target.format == "png" else write_ome_tiff
    write(target.path, bands, shape=target.size_px, mpp=target.mpp, provenance=provenance, overwrite=overwrite)


def check_pixels(kind: Format, size_px: tuple[int, int]) -> None:
    """Raise a PathUpError when an image of this size cannot be written in this format."""
    if kind == "png":
        check_png_size(*size_px)


def is_complete(target: ImageFile) -> bool:
    """Whether the file is there, whole, and of the right size (files are written atomically; others may not be)."""
    if not target.path.is_file():
        return False
    try:
        if target.format == "png":
            with Image.open(target.path, formats=("PNG",)) as image:
                size = image.height, image.width
                image.verify()
        else:
            with tifffile.TiffFile(target.path) as reader:
                size = reader.pages.first.imagelength, reader.pages.first.imagewidth
                ends = [
                    o + n for page in reader.pages for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)
                ]
                ome = reader.pages.first.description  # tifffile writes it last
                if not ome.endswith("</OME>") or max(ends) > target.path.stat().st_size:
                    return False
    except (OSError, SyntaxError, ValueError, tifffile.TiffFileError):
        return False
    return size == target.size_px


def as_band(pixels: np.ndarray) -> np.ndarray:
    """One image in [0, 1], (H, W, 3), as a uint8 band."""
    return (np.asarray(pixels) * 255).round().clip(0, 255).astype(np.uint8)


def write_metadata(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write ``metadata.jsonl``, one JSON object an image; it appears when the folder is complete."""
    target = folder / "metadata.jsonl"
    storage.write_text(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return target
