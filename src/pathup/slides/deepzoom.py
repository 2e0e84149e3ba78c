"""DeepZoom images: an index, and a folder of small JPEG files that a browser's viewer fetches as it needs them.

Level n of N is the image shrunk to ``ceil(side / 2^(N - 1 - n))``: level 0 is one pixel, the last level the image. A
level is cut into tiles of `tile_px`, each with `overlap` more pixels on every side that has a neighbour; they are named
``NAME_files/LEVEL/COLUMN_ROW.jpeg``. (The format: Microsoft, "Deep Zoom File Format Overview", 2011.) It has no field
for the scale or for provenance: they lie in ``NAME_files/provenance.json``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from pathup import __version__, storage
from pathup.slides.pyramid import Level, checked_bands, encode_jpeg
from pathup.slides.targets import DZI_ENDING, PROVENANCE_FILE, check_target, remove_leftovers, tiles_folder

__all__ = [
    "DeepZoomIndex",
    "deepzoom_provenance",
    "deepzoom_shapes",
    "index_text",
    "read_index",
    "whole_deepzoom_shape",
    "write_deepzoom",
]

_NAMESPACE = "http://schemas.microsoft.com/deepzoom/2008"
_ENDING = "jpeg"
_INDEX_BYTES = 10_000
"""Most that is read of an index; PathUp's have 200."""

_FLUSHING = 16
"""Files flushed to the disk at once: a file system that keeps a journal writes it once for all that wait."""


def deepzoom_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Shapes (rows, columns) of all levels, the largest first: halved, rounded up, down to one pixel."""
    shapes = [(height, width)]
    while max(shapes[-1]) > 1:
        shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
    return shapes


def write_deepzoom(
    target: Path,
    bands: Iterable[np.ndarray],
    *,
    shape: tuple[int, int],
    mpp: float,
    provenance: dict[str, Any] | None = None,
    tile_px: int = 254,
    overlap: int = 1,
    quality: int = 90,
    overwrite: bool = False,
) -> None:
    """Write a DeepZoom image from row bands.

    Memory stays below about four bands plus two rows of tiles, whatever the height. An image that is replaced stays as
    it was until all of the new one is on the disk; the index appears last, so that nothing unfinished has one.

    Parameters
    ----------
    target
        The index, ``NAME.dzi``; the tiles go to ``NAME_files`` beside it.
    bands
        Arrays (rows, width, 3), uint8 RGB, from the top down; any number of rows each.
    shape
        Height and width of the whole image in pixels.
    mpp
        Micrometres per pixel.
    provenance
        JSON values that `deepzoom_provenance` gives back.
    tile_px, overlap
        Side of a tile without overlap, and its overlap, 0 to ``tile_px - 1``. With 254 and 1, the format's custom, a
        tile is 256 px.
    quality
        Of the JPEG files, 1 to 100; colour is not subsampled.
    overwrite
        Whether an existing image may be replaced.

    Raises
    ------
    PathUpError
        `target` exists, the disk is full, or the target cannot be written.
    ValueError
        The bands do not add up to `shape`, or are not uint8 RGB; `target` has another ending; no such tile can be.
    """
    if target.suffix.lower() != DZI_ENDING:
        raise ValueError(f"{target.name} does not end in {DZI_ENDING}")
    if not 0 <= overlap < tile_px:
        raise ValueError(f"tiles of {tile_px} px cannot overlap by {overlap}")
    check_target(target, overwrite=overwrite)
    remove_leftovers(target)
    folder = tiles_folder(target)
    partial = folder.with_name(f".{os.getpid()}.partial.{folder.name}")
    replaced = folder.with_name(f".{os.getpid()}.replaced.{folder.name}")
    told = {"software": f"pathup {__version__}", "mpp": mpp, "provenance": provenance}
    try:
        with storage.atomic_path(target) as index:
            partial.mkdir()
            index.write_text(index_text(shape, tile_px, overlap), encoding="utf-8")
            (partial / PROVENANCE_FILE).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
            top: Level | None = None
            for number, level_shape in enumerate(deepzoom_shapes(*shape)[::-1]):
                sink = _TileFiles(partial / str(number), quality)
                top = Level(level_shape, tile_px, sink, overlap=overlap, below=top)
            assert top is not None  # noqa: S101  there is always the level of one pixel
            for band in checked_bands(bands, shape):
                top.add(band)
            with ThreadPoolExecutor(_FLUSHING) as pool:
                list(pool.map(storage.fsync_path, partial.rglob("*")))
            target.unlink(missing_ok=True)  # the old index must not be seen with new tiles
            if folder.exists():
                os.replace(folder, replaced)
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def whole_deepzoom_shape(target: Path) -> tuple[int, int] | None:
    """Height and width of a DeepZoom image whose tiles are all there; None where one is missing or empty.

    Tiles are listed, not opened: a gigapixel image takes a fraction of a second.
    """
    index = read_index(target)
    if index is None:
        return None
    try:
        for number, (height, width) in enumerate(deepzoom_shapes(index.height, index.width)[::-1]):
            rows, columns = -(-height // index.tile_px), -(-width // index.tile_px)
            with os.scandir(tiles_folder(target) / str(number)) as entries:
                found = {entry.name for entry in entries if entry.stat().st_size}
            if len(found) < rows * columns:
                return None
            if any(f"{x}_{y}.{index.ending}" not in found for y in range(rows) for x in range(columns)):
                return None
    except OSError:
        return None
    return index.height, index.width


def deepzoom_provenance(target: Path) -> Any:
    """The provenance that `write_deepzoom` was given; None where there is none.

    Raises
    ------
    OSError, ValueError
        There is no such image, or no JSON beside it.
    """
    if not target.is_file():
        raise FileNotFoundError(target)
    told = json.loads((tiles_folder(target) / PROVENANCE_FILE).read_text(encoding="utf-8"))
    return told.get("provenance") if isinstance(told, dict) else None


@dataclass
class _TileFiles:
    """Puts the tiles of one level into its folder."""

    folder: Path
    quality: int

    def __post_init__(self) -> None:
        self.folder.mkdir()

    def __call__(self, row: int, column: int, pixels: np.ndarray) -> None:
        (self.folder / f"{column}_{row}.{_ENDING}").write_bytes(encode_jpeg(pixels, self.quality))


@dataclass(frozen=True)
class DeepZoomIndex:
    """What a ``.dzi`` file says: sides and overlap in pixels, and the ending of the tiles' names."""

    height: int
    width: int
    tile_px: int
    overlap: int
    ending: str


def index_text(shape: tuple[int, int], tile_px: int, overlap: int, ending: str = _ENDING) -> str:
    """The ``.dzi`` document of an image of (rows, columns)."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<Image xmlns="{_NAMESPACE}" Format="{ending}" Overlap="{overlap}" TileSize="{tile_px}">'
        f'<Size Width="{shape[1]}" Height="{shape[0]}"/></Image>\n'
    )


def read_index(target: Path) -> DeepZoomIndex | None:
    """Read a ``.dzi`` file; None where it isn't one. XML that declares anything of its own is not parsed."""
    try:
        with target.open("rb") as handle:
            text = handle.read(_INDEX_BYTES).decode("utf-8-sig")
        if "<!" in text:
            return None
        root = ElementTree.fromstring(text)  # noqa: S314  (no entities: checked above)
        size = root.find(f"{{{_NAMESPACE}}}Size")
        if size is None:
            return None
        height, width = (int(size.get(name, "")) for name in ("Height", "Width"))
        tile_px, overlap = (int(root.get(name, "")) for name in ("TileSize", "Overlap"))
    except (OSError, ValueError, ElementTree.ParseError):
        return None
    ending = root.get("Format", "")
    if min(height, width, tile_px) < 1 or not 0 <= overlap < tile_px or re.fullmatch("[a-z]{1,5}", ending) is None:
        return None
    return DeepZoomIndex(height, width, tile_px, overlap, ending)
