"""Large images out: a streaming pyramidal OME-TIFF, and plain PNG.

Pixels arrive as an iterator of row bands, so that an image never has to be in memory as a whole.

The TIFF's layout serves three families of readers at once. Level 0 is the first image of the file; its
``SubIFDs`` tag lists the smaller levels, as OME-TIFF wants them (tifffile, Bio-Formats). The same smaller
levels are also chained behind level 0 as top-level images marked "reduced resolution", which is where
OpenSlide's generic TIFF reader looks. The pixels are stored once. The scale stands in the OME-XML
(``PhysicalSizeX``, micrometres) and in the resolution tags (pixels a centimetre), of every level.
"""

from __future__ import annotations

import itertools
import json
import struct
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, PngImagePlugin

from pathup import __version__, storage
from pathup.errors import PathUpError
from pathup.slides.pyramid import Level, checked_bands, encode_jpeg
from pathup.slides.targets import check_target, remove_leftovers

__all__ = [
    "OME_TIFF_ENDINGS",
    "PNG_LIMIT_PX",
    "TIFF_TILE_PX",
    "check_target",
    "level_shapes",
    "write_ome_tiff",
    "write_png",
]

Compression = Literal["jpeg", "deflate"]

TIFF_TILE_PX = 256
"""Side of a TIFF tile: what OpenSlide, QuPath and web viewers are tuned for."""

PNG_LIMIT_PX = 100_000_000
"""Most pixels of a PNG: it is held in memory as a whole, here and by most that read it."""

BIGTIFF_BYTES = 3_500_000_000
"""Uncompressed size from which offsets of 64 bits are used; a classic TIFF ends at 4 GiB."""

OME_TIFF_ENDINGS = (".ome.tiff", ".ome.tif", ".tiff", ".tif")
PROVENANCE_NAMESPACE = "pathup/provenance"


def level_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Shapes (rows, columns) of the pyramid's levels: halved until one TIFF tile holds all.

    Level n is ``side / 2^n``, rounded to nearest. Readers take the ratio of two levels' sides for the scale between
    them: rounded down at each level, a strip of 16,384 x 700 px would be shrunk by 64 one way and by 70 the other.
    """
    shapes = [(height, width)]
    while max(shapes[-1]) > TIFF_TILE_PX:
        half = 2 ** (len(shapes) - 1)
        shapes.append((max(1, (height + half) // (2 * half)), max(1, (width + half) // (2 * half))))
    return shapes


def write_ome_tiff(
    target: Path,
    bands: Iterable[np.ndarray],
    *,
    shape: tuple[int, int],
    mpp: float,
    provenance: dict[str, Any] | None = None,
    compression: Compression = "jpeg",
    quality: int = 90,
    overwrite: bool = False,
) -> None:
    """Write a pyramidal, tiled OME-TIFF from row bands.

    Memory stays below about four bands plus two rows of TIFF tiles, whatever the height: level 0 goes
    straight to the file, and the compressed tiles of the smaller levels wait in unnamed temporary files
    beside it (a third of its size at most).

    Parameters
    ----------
    target
        The file; it appears only when complete.
    bands
        Arrays (rows, width, 3), uint8 RGB, from the top down; any number of rows each.
    shape
        Height and width of the whole image in pixels.
    mpp
        Micrometres per pixel.
    provenance
        JSON values stored in the OME-XML (a comment annotation, namespace ``pathup/provenance``).
    compression, quality
        ``jpeg`` (`quality` 1 to 100; YCbCr, colour at half the columns: Bio-Formats, and with it QuPath, converts
        the colours of full ones twice) or ``deflate`` (lossless).
    overwrite
        Whether an existing `target` may be replaced.

    Raises
    ------
    PathUpError
        `target` exists, the disk is full, or the target cannot be written.
    ValueError
        The bands do not add up to `shape`, or are not uint8 RGB.
    """
    check_target(target, overwrite=overwrite)
    remove_leftovers(target)
    height, width = shape
    shapes = level_shapes(height, width)
    encode = _Encoder(compression, quality, TIFF_TILE_PX)
    with storage.atomic_path(target) as temporary, _Spools(target.parent, len(shapes) - 1) as spools:
        level: Level | None = None
        for level_shape, spool in zip(shapes[:0:-1], spools.spools[::-1], strict=True):
            level = Level(level_shape, TIFF_TILE_PX, encode.into(spool.add), below=level)
        out: list[bytes] = []
        top = Level(shapes[0], TIFF_TILE_PX, encode.into(out.append), below=level)
        with tifffile.TiffWriter(temporary, bigtiff=height * width * 4 > BIGTIFF_BYTES, ome=True) as writer:
            common = {
                "dtype": "uint8",
                "tile": (TIFF_TILE_PX, TIFF_TILE_PX),
                "resolutionunit": "CENTIMETER",
                **encode.tags,
            }
            tiles = _drained(bands, top, out)
            writer.write(
                tiles,
                shape=(height, width, 3),
                subifds=len(shapes) - 1,
                resolution=(1e4 / mpp, 1e4 / mpp),
                metadata=_ome_metadata(target, mpp, provenance),
                software=f"pathup {__version__}",
                **common,
            )
            for _ in tiles:  # tifffile stops at the last tile it needs; a band too many is found here
                pass
            for (rows, columns), spool in zip(shapes[1:], spools.spools, strict=True):
                scale = (1e4 / (mpp * width / columns), 1e4 / (mpp * height / rows))
                writer.write(
                    spool.read(), shape=(rows, columns, 3), subfiletype=1, resolution=scale, metadata=None, **common
                )
        _chain_levels(temporary)


def write_png(
    target: Path,
    bands: Iterable[np.ndarray],
    *,
    shape: tuple[int, int],
    mpp: float,
    provenance: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a PNG with its scale (``pHYs``, pixels a metre) and provenance (text chunk ``pathup``, JSON).

    Parameters as in `write_ome_tiff`; at most `PNG_LIMIT_PX` pixels.

    Raises
    ------
    PathUpError
        `target` exists, the image is too large for a PNG, the disk is full.
    ValueError
        The bands do not add up to `shape`, or are not uint8 RGB.
    """
    check_target(target, overwrite=overwrite)
    height, width = shape
    check_png_size(height, width)
    image = np.empty((height, width, 3), np.uint8)
    done = 0
    for band in checked_bands(bands, shape):
        image[done : done + len(band)] = band
        done += len(band)
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", f"pathup {__version__}")
    if provenance is not None:
        text.add_text("pathup", json.dumps(provenance))
    per_inch = 25_400 / mpp
    with storage.atomic_path(target) as temporary:
        Image.fromarray(image).save(temporary, format="PNG", pnginfo=text, dpi=(per_inch, per_inch))


def check_png_size(height: int, width: int) -> None:
    """Raise a PathUpError when an image of this many pixels should not be a PNG."""
    if height * width > PNG_LIMIT_PX:
        raise PathUpError(
            f"{width} x {height} px is too large for a PNG (at most {PNG_LIMIT_PX // 1_000_000} megapixels); "
            "name an output that ends in .ome.tiff or .dzi"
        )


@dataclass(frozen=True)
class _Encoder:
    """One TIFF tile to bytes, and the tags that say how."""

    compression: Compression
    quality: int
    side: int

    @property
    def tags(self) -> dict[str, Any]:
        if self.compression == "jpeg":
            return {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 1)}
        return {"compression": "adobe_deflate", "photometric": "rgb"}

    def into(self, take: Callable[[bytes], None]) -> Callable[[int, int, np.ndarray], None]:
        """A level's sink: tiles come in the file's order, so that row and column need not be told."""
        return lambda _row, _column, tile: take(self._encoded(tile))

    def _encoded(self, tile: np.ndarray) -> bytes:
        missing = (self.side - tile.shape[0], self.side - tile.shape[1])
        if any(missing):  # repeat the rim: black padding would ring into the picture under JPEG
            tile = np.pad(tile, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
        if self.compression == "jpeg":
            return encode_jpeg(tile, self.quality, subsampling="422")
        return bytes(imagecodecs.zlib_encode(np.ascontiguousarray(tile).tobytes(), level=6))


@dataclass
class _Spool:
    """Encoded tiles of one level, on the disk until their turn."""

    file: IO[bytes]
    sizes: list[int] = field(default_factory=list)

    def add(self, tile: bytes) -> None:
        self.file.write(tile)
        self.sizes.append(len(tile))

    def read(self) -> Iterator[bytes]:
        self.file.seek(0)
        for size in self.sizes:
            yield self.file.read(size)


class _Spools:
    """Unnamed temporary files beside the target; nothing is left of them, even after a kill."""

    def __init__(self, folder: Path, count: int) -> None:
        self.spools = [_Spool(tempfile.TemporaryFile(dir=folder)) for _ in range(count)]  # noqa: SIM115

    def __enter__(self) -> _Spools:
        return self

    def __exit__(self, *_: object) -> None:
        for spool in self.spools:
            with suppress(OSError):  # on a full disk, what still waits to be written is not missed
                spool.file.close()


def _drained(bands: Iterable[np.ndarray], top: Level, out: list[bytes]) -> Iterator[bytes]:
    for band in checked_bands(bands, top.shape):
        top.add(band)
        yield from out
        out.clear()


def _ome_metadata(target: Path, mpp: float, provenance: dict[str, Any] | None) -> dict[str, Any]:
    told = json.dumps([provenance, mpp, target.name])
    metadata: dict[str, Any] = {
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_URL, told)),  # not random: the same call writes the same bytes
        "axes": "YXS",
        "Name": target.name,
        "PhysicalSizeX": mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": mpp,
        "PhysicalSizeYUnit": "µm",
    }
    if provenance is not None:
        metadata["CommentAnnotation"] = [{"Namespace": PROVENANCE_NAMESPACE, "Value": json.dumps(provenance)}]
    return metadata


def _chain_levels(path: Path) -> None:
    """Link each smaller level behind the one before it, in the chain of top-level images."""
    with tifffile.TiffFile(path) as reader:
        first = reader.pages.first
        offsets = [first.offset, *(first.subifds or ())]
        big, order = reader.is_bigtiff, reader.byteorder
    count_format, entry_size, pointer_format = ("Q", 20, "Q") if big else ("H", 12, "I")
    with path.open("r+b") as handle:
        for here, following in itertools.pairwise(offsets):
            handle.seek(here)
            count_size = struct.calcsize(order + count_format)
            (entries,) = struct.unpack(order + count_format, handle.read(count_size))
            handle.seek(here + count_size + entries * entry_size)
            handle.write(struct.pack(order + pointer_format, following))
