"""Cutting: the grid of fields over a region, the background rule, and the pixels of a tile."""

from __future__ import annotations

import hashlib
import io
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from shapely import Polygon, box, from_wkb, prepare

from pathup import storage
from pathup.errors import PathUpError
from pathup.recipes import LevelSpec, TilesRecipe
from pathup.slides.reader import SlideReader, open_slide, slide_files
from pathup.tiles.provenance import Looks, looks_of
from pathup.tiles.regions import Region

STAINED_DARKEST = 225
"""A stained pixel's darkest channel is at most this (of 255): haematoxylin and eosin both absorb green."""

STAINED_CHROMA = 12
"""A stained pixel's channels differ by at least this (of 255): glass, black borders and pencil are grey."""

MAX_ENLARGEMENT = 2.5
"""Most that a field is enlarged. A 20x slide under a 40x recipe is enlarged about 2 times; more invents detail."""

MPP_AGREEMENT = 0.02
"""Relative difference up to which a table's mpp and the one that its file records count as equal."""

LEFT_OUT = ("background", "outside the annotation", "region smaller than a field", "more than max_per_class")
"""Reasons for which a field (or, for the third, a region) gives no tile."""


@dataclass(frozen=True)
class Field:
    """A rectangle of tissue that becomes one tile; level-0 pixels of its file.

    Attributes
    ----------
    level : str
        Name of its spatial level.
    mpp : float
        Micrometres per pixel of the tile.
    """

    level: str
    x: int
    y: int
    width: int
    height: int
    mpp: float


@dataclass(frozen=True)
class Scan:
    """What looking through a region found.

    Attributes
    ----------
    fields : list of Field
        Those that are tissue and inside the annotation.
    left_out : dict
        Level name to reason to count.
    area : list of int
        Left, top, right, bottom of what was looked through, in level-0 pixels.
    sha256 : str or None
        Of the source file (or of a slide's several files); None where another region of the file has it.
    signature : list
        Sizes and modification times of the source's files, to notice a change.
    looks : Looks
        What the region is known again by.
    """

    fields: list[Field]
    left_out: dict[str, dict[str, int]]
    area: list[int]
    sha256: str | None
    signature: list[list[int]]
    looks: Looks


def positions(length: int, field: int, stride: float) -> list[int]:
    """Starts of fields of `field` pixels along `length` pixels, `stride` apart, all fully inside.

    The n-th starts at n * stride, rounded to the nearest pixel (halves up).
    """
    starts: list[int] = []
    while (start := math.floor(len(starts) * stride + 0.5)) + field <= length:
        starts.append(start)
    return starts


def covering_positions(start: int, length: int, field: int, stride: float, limit: int) -> list[int]:
    """Starts of fields that cover `length` pixels from `start`, centred on them, all inside 0..`limit`.

    For annotations, whose outline need not be a multiple of the stride: the fields may reach over the outline's
    bounding box by less than a stride on both sides together, but never over the slide's rim.
    """
    count = max(1, math.ceil((length - field) / stride - 1e-9) + 1)
    while count > 0:
        extent = math.floor((count - 1) * stride + 0.5) + field
        if extent <= limit:
            first = min(max(0, start + math.floor((length - extent) / 2)), limit - extent)
            return [first + math.floor(i * stride + 0.5) for i in range(count)]
        count -= 1
    return []


def tissue_fraction(pixels_HWC: np.ndarray) -> float:
    """The stained fraction of a tile: the background rule.

    A pixel is stained when its darkest channel is at most `STAINED_DARKEST` (it absorbs) and its channels differ by
    at least `STAINED_CHROMA` (it has colour). Tiles with a fraction below the recipe's `min_tissue` are background.

    Parameters
    ----------
    pixels_HWC
        uint8 RGB, (H, W, 3).

    Returns
    -------
    float
        In [0, 1].
    """
    red, green, blue = (np.ascontiguousarray(pixels_HWC[..., channel]) for channel in range(3))
    darkest = np.minimum(np.minimum(red, green), blue)
    brightest = np.maximum(np.maximum(red, green), blue)
    stained = (darkest <= STAINED_DARKEST) & (brightest - darkest >= STAINED_CHROMA)
    return np.count_nonzero(stained) / stained.size


def scan_region(region: Region, recipe: TilesRecipe, *, hashed: bool = True, tiles: Path | None = None) -> Scan:
    """Find the fields of a region that are to become tiles.

    Parameters
    ----------
    hashed
        Whether to hash the file: a slide of gigabytes is read once, not for each of its regions.
    tiles
        Folder to which the tiles of levels without an allowance a class are written at once (`early_tile`), since
        their pixels are here and all of them are wanted; unset: nothing is written.

    Raises
    ------
    PathUpError
        The file cannot be read, its scale is unknown or contradicts the table, it is too coarse for the recipe,
        or the region lies outside it.
    """
    with open_slide(region.file, region.assume_mpp) as reader:
        mpp = region_mpp(region, reader)
        area = region_box(region, reader)
        outline = from_wkb(region.outline) if region.outline is not None else None
        if outline is not None:
            prepare(outline)
        fields: list[Field] = []
        left_out: dict[str, dict[str, int]] = {}
        for level in recipe.levels:
            reasons: Counter[str] = Counter()
            candidates = _grid(region, area, reader.size, mpp, recipe, level)
            if not candidates:
                reasons["region smaller than a field"] += 1
            for field in candidates:
                if outline is not None and _inside(field, outline) < recipe.min_inside:
                    reasons["outside the annotation"] += 1
                    continue
                early = early_tile(tiles, field) if tiles is not None and level.max_per_class is None else None
                if recipe.min_tissue > 0 or early is not None:
                    pixels = read_tile(reader, field, recipe.tile_px)
                    if recipe.min_tissue > 0 and tissue_fraction(pixels) < recipe.min_tissue:
                        reasons["background"] += 1
                        continue
                    if early is not None:
                        _write_tile(pixels, early)
                fields.append(field)
            left_out[level.name] = dict(reasons)
        x, y, width, height = area
        looks = looks_of(reader, area, mpp)
    sha256 = source_sha256(region.file) if hashed else None
    return Scan(fields, left_out, [x, y, x + width, y + height], sha256, signature(region.file), looks)


def read_tile(reader: SlideReader, field: Field, tile_px: int) -> np.ndarray:
    """The pixels of a tile: uint8 RGB, (tile_px, tile_px, 3)."""
    return reader.read_field(field.x, field.y, (field.width, field.height), tile_px)


def early_tile(tiles: Path, field: Field) -> Path:
    """Where `scan_region` writes a field's tile."""
    return tiles / f"{field.level}_{field.x}_{field.y}.png"


def cut_region(
    region: Region, fields: list[Field], recipe: TilesRecipe, names: list[Path], *, tiles: Path | None = None
) -> None:
    """Write the tiles of a region as lossless PNGs.

    Parameters
    ----------
    names
        One path a field.
    tiles
        The folder of tiles that `scan_region` has written already; they are moved.

    Raises
    ------
    PathUpError
        The file cannot be read, or a tile cannot be written.
    """
    left = []
    for field, name in zip(fields, names, strict=True):
        early = None if tiles is None else early_tile(tiles, field)
        if early is None or not early.exists():
            left.append((field, name))
            continue
        with storage.clear_disk_errors(name):
            try:
                early.replace(name)
            except FileNotFoundError:
                name.parent.mkdir(parents=True, exist_ok=True)
                early.replace(name)
    if not left:
        return
    with open_slide(region.file, region.assume_mpp) as reader:
        for field, name in left:
            _write_tile(read_tile(reader, field, recipe.tile_px), name)


def _write_tile(pixels_HWC: np.ndarray, name: Path) -> None:
    encoded = io.BytesIO()
    Image.fromarray(pixels_HWC).save(encoded, "PNG", compress_level=2)
    with storage.clear_disk_errors(name):
        try:
            if not name.parent.is_dir():
                name.parent.mkdir(parents=True, exist_ok=True)
            name.write_bytes(encoded.getvalue())
        except OSError:
            name.unlink(missing_ok=True)
            raise


def source_sha256(path: Path) -> str:
    """The SHA-256 of a slide or image; of several files, that of their names and hashes."""
    files = slide_files(path)
    if len(files) == 1:
        return storage.sha256_file(path)
    lines = [f"{storage.sha256_file(f)}  {f.relative_to(path.parent).as_posix()}\n" for f in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def signature(path: Path) -> list[list[int]]:
    """Size in bytes and modification time in nanoseconds of each file of a slide or image."""
    return [[s.st_size, s.st_mtime_ns] for s in (f.stat() for f in slide_files(path))]


def region_mpp(region: Region, reader: SlideReader) -> tuple[float, float]:
    """Micrometres a level-0 pixel in x and y: what the table states, else what the file records.

    Raises
    ------
    PathUpError
        They contradict each other, or neither says.
    """
    stated, recorded = region.stated_mpp, reader.recorded_mpp
    if stated is None:
        return reader.mpp
    if recorded is not None and any(abs(r - stated) > MPP_AGREEMENT * stated for r in recorded):
        raise PathUpError(
            f"{region.place} is listed with {stated:g} micrometres per pixel, but its file records "
            f"{recorded[0]:g} x {recorded[1]:g}; correct the table"
        )
    return (stated, stated)


def region_box(region: Region, reader: SlideReader) -> tuple[int, int, int, int]:
    """The part of the file that is cut: the whole, an annotation's box, or a table's rectangle of a slide."""
    width, height = reader.size
    if region.box is None:
        return (0, 0, width, height)
    x, y, w, h = region.box
    if region.outline is None and (w, h) == (width, height):
        return (0, 0, width, height)  # the table tells where on its slide this image was cropped
    if w < 1 or h < 1 or x < 0 or y < 0 or x + w > width or y + h > height:
        raise PathUpError(
            f"region {region.name} is listed as {w} x {h} px at ({x}, {y}), but {region.file} is "
            f"{width} x {height} px; the file must be of that size (a crop), or hold that rectangle (a slide)"
        )
    return region.box


def _grid(
    region: Region,
    area: tuple[int, int, int, int],
    size: tuple[int, int],
    mpp: tuple[float, float],
    recipe: TilesRecipe,
    level: LevelSpec,
) -> list[Field]:
    """All fields of a level over `area`; a field's physical side is the same whatever the file's scale."""
    scale = (recipe.mpp / mpp[0], recipe.mpp / mpp[1])
    sides = [max(1, math.floor(level.field_px * s + 0.5)) for s in scale]
    if recipe.tile_px / min(sides) > MAX_ENLARGEMENT:
        raise PathUpError(
            f"{region.place} has {mpp[0]:g} micrometres per pixel, but level '{level.name}' needs "
            f"{recipe.level_mpp(level):g}: its tiles would be enlarged {recipe.tile_px / min(sides):.1f} times "
            f"(at most {MAX_ENLARGEMENT:g}); use a finer scan or a recipe with a larger tiles.mpp"
        )
    strides = [(level.field_px - level.overlap_px) * s for s in scale]
    tile_mpp = round((sides[0] * mpp[0] + sides[1] * mpp[1]) / (2 * recipe.tile_px), 6)
    places = [
        [area[axis] + start for start in positions(area[2 + axis], sides[axis], strides[axis])]
        if region.outline is None
        else covering_positions(area[axis], area[2 + axis], sides[axis], strides[axis], size[axis])
        for axis in (0, 1)
    ]
    return [Field(level.name, x, y, sides[0], sides[1], tile_mpp) for y in places[1] for x in places[0]]


def _inside(field: Field, outline: Polygon) -> float:
    """The fraction of a field that is inside an annotation."""
    square = box(field.x, field.y, field.x + field.width, field.y + field.height)
    if outline.contains(square):
        return 1.0
    return float(outline.intersection(square).area / square.area)
