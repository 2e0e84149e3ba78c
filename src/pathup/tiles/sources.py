"""Sources: what kind a path is, and which regions it holds.

A source is a folder tree of classes (with or without ``train/val/test``; BRACS's published tree is one), a
region table (CSV), or whole slides with QuPath annotations.
"""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from shapely import box

from pathup.errors import PathUpError, unknown
from pathup.recipes import Recipe
from pathup.slides.images import image_size
from pathup.slides.reader import is_slide
from pathup.tiles.regions import SPLITS, Region, named_apart, safe_name
from pathup.tiles.slide_sources import (
    clusters,
    images_in,
    is_annotated,
    is_image,
    slide_regions,
    slides_in,
    wanted_annotations,
)
from pathup.tiles.taxonomy import label_of

_BRACS = re.compile(r"^(BRACS_\d+)_[A-Za-z]+_\d+$")
_SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_DEPTH = 3
"""How many folders down a train/val/test root is looked for: ``BRACS_RoI/previous_version/NAME/Images``."""


@dataclass(frozen=True)
class Source:
    """What was found at a path.

    Attributes
    ----------
    kind : str
        'class folders', 'region table' or 'slides'.
    regions : list of Region
        Sorted by name.
    joined : dict
        Region name to the name of the cluster of overlapping annotations or rectangles that it belongs to.
    warnings : list of str
        What was found and not taken, one sentence each.
    """

    kind: str
    regions: list[Region]
    joined: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def find_source(
    path: Path,
    recipe: Recipe,
    *,
    annotations: Path | None = None,
    patients: Path | None = None,
    mpp: float | None = None,
) -> Source:
    """List the regions of a source.

    Parameters
    ----------
    annotations
        GeoJSON file (for one slide) or folder of them; without it, ``STEM.geojson`` beside each slide.
    patients
        CSV with the columns slide and patient.
    mpp
        Micrometres per pixel of files that record none. Without it, the recipe's `assume_mpp` holds for region
        images, and a slide that records none is refused.

    Raises
    ------
    PathUpError
        The path is missing, of no known kind or holds no region; a class, split, table or annotation is wrong;
        a region is listed twice; `mpp` is no positive number.
    """
    if not path.exists():
        raise PathUpError(f"source {path} does not exist")
    if annotations is not None and not annotations.exists():
        raise PathUpError(f"annotations {annotations} do not exist")
    if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
        raise PathUpError(f"--mpp is {mpp:g}, but a positive number of micrometres per pixel is needed")
    is_table = path.suffix.lower() == ".csv" and path.is_file()
    if is_table and annotations is not None:
        raise PathUpError(
            f"--annotations was given, but {path} is a region table, which has its regions from its rows; leave it out"
        )
    joined: dict[str, str] = {}
    warnings: list[str] = []
    if is_table:
        kind, regions = "region table", _table(path, recipe)
    elif path.is_file() or annotations is not None or _has_annotations(path):
        kind = "slides"
        regions, joined = slide_regions(path, recipe, annotations, mpp)
    else:
        kind = "class folders"
        regions, warnings = _class_folders(path, recipe)
    if not regions:
        raise PathUpError(f"source {path} holds no regions; {_NEEDED}")
    if kind != "slides":
        regions = named_apart(_with_scales(regions, recipe, mpp))
    if kind == "region table":
        joined = _overlapping(regions)
    if patients is not None:
        regions = _with_patients(regions, patients)
    return Source(kind, sorted(regions, key=lambda r: r.name), joined, warnings)


_NEEDED = (
    "a folder of class folders with images (with or without train/val/test above them), a region table (.csv), "
    "or slides with a .geojson beside each was needed"
)


def _has_annotations(folder: Path) -> bool:
    return any(folder.glob("*.geojson")) or any(is_annotated(slide) for slide in slides_in(folder))


def _with_scales(regions: list[Region], recipe: Recipe, mpp: float | None) -> list[Region]:
    """Say what to assume of files that record no scale: `mpp`, or for region images alone what the recipe does."""
    whole = {file: is_slide(file) for file in {region.file for region in regions}}
    assumed = {file: mpp if mpp is not None or whole[file] else recipe.tiles.assume_mpp for file in whole}
    return [replace(region, assume_mpp=assumed[region.file]) for region in regions]


def _overlapping(regions: list[Region]) -> dict[str, str]:
    """Name each region's cluster: rectangles of one file, or crops of one slide, that overlap."""
    of_surface: dict[tuple[str, str], list[Region]] = defaultdict(list)
    for region in regions:
        of_surface[_surface(region)].append(region)
    joined: dict[str, str] = {}
    for found in of_surface.values():
        found.sort(key=lambda r: r.name)
        if any(region.box is None for region in found):  # the whole file: it overlaps with all
            joined |= {region.name: found[0].name for region in found}
        else:
            # a little smaller, so that those which only touch stay apart
            places = [region.box for region in found if region.box is not None]
            boxes = [box(x + 0.25, y + 0.25, x + w - 0.25, y + h - 0.25) for x, y, w, h in places]
            joined |= clusters([region.name for region in found], boxes)
    return joined


def _surface(region: Region) -> tuple[str, str]:
    """What a table's rectangle lies on: its slide, where the file is a crop that is told its place; else the file.

    A crop at 0, 0 is taken for one whose place was left out.
    """
    placed = region.box is not None and region.box[:2] != (0, 0) and not is_slide(region.file)
    if placed and region.box is not None and image_size(region.file) == region.box[2:]:
        return ("slide", region.slide)
    return ("file", str(region.file))


def _class_folders(root: Path, recipe: Recipe) -> tuple[list[Region], list[str]]:
    """Regions of a tree split/class/file or class/file, and warnings of images that are in no class folder."""
    top = _split_root(root, _DEPTH)
    if top is not None:
        splits = {folder: _SPLIT_NAMES[folder.name.lower()] for folder in _folders(top) if _is_split(folder)}
        strays = [f for f in _folders(top) if f not in splits and any(_image_files(f))]
        if strays:
            raise unknown("split folder", strays[0].name, SPLITS)
        regions = [r for folder, split in splits.items() for r in _classes(folder, root, recipe, split)]
        return regions, _left_out(dict.fromkeys([root, top, *splits]))
    regions = list(_classes(root, root, recipe, None))
    slides = slides_in(root)
    if slides and not regions:
        wanted = wanted_annotations(slides[0])
        raise PathUpError(
            f"{root} holds slides or images ({slides[0].name}) but no annotations: put a QuPath export "
            f"({wanted.name}) beside each, here {wanted}, or name them with --annotations; "
            "region images belong in class folders"
        )
    return regions, _left_out([root])


def _left_out(folders: Iterable[Path]) -> list[str]:
    """A warning for each of `folders` that holds images itself, where only their class folders are read."""
    found = {folder: images_in(folder) for folder in folders}
    return [
        f"{len(images)} image(s) directly in {folder} (the first: {images[0].name}) are of no class and were left out: "
        "move them into class folders"
        for folder, images in found.items()
        if images
    ]


def _classes(folder: Path, root: Path, recipe: Recipe, split: str | None) -> Iterator[Region]:
    for class_folder in _folders(folder):
        files = list(_image_files(class_folder))
        if not files:
            continue
        label = label_of(recipe, class_folder.name, where=f"folder {class_folder}")
        for file in files:
            bracs = _BRACS.match(file.stem)
            slide = bracs[1] if bracs else file.stem
            place = file.relative_to(root).as_posix()
            yield Region(
                name=safe_name(file.stem), file=file, place=place, label=label, slide=slide, patient=slide, split=split
            )


def _split_root(folder: Path, depth: int) -> Path | None:
    """The folder at or below `folder` that holds train, val or test."""
    children = _folders(folder)
    if any(_is_split(child) for child in children):
        return folder
    if depth == 0:
        return None
    for child in children:
        if child.name.lower() == "latest_version" and (found := _split_root(child, depth - 1)):
            return found
    roots = [found for child in children if (found := _split_root(child, depth - 1))]
    if len(roots) > 1:
        raise PathUpError(f"{folder} holds several trees with splits ({', '.join(map(str, roots))}); name one of them")
    return roots[0] if roots else None


def _is_split(folder: Path) -> bool:
    return folder.name.lower() in _SPLIT_NAMES


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _image_files(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted(folder.rglob("*")) if is_image(path))


def _table(path: Path, recipe: Recipe) -> list[Region]:
    """Regions of a CSV with at least the columns file and label; files are relative to the table."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle)
            columns = [name.strip().lower() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = [
                {k: (v or "").strip() for k, v in row.items() if isinstance(k, str) and not isinstance(v, list)}
                for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PathUpError(f"{path} is not a readable CSV table ({error})") from error
    for needed in ("file", "label"):
        if needed not in columns:
            raise PathUpError(f"{path} has no column '{needed}' (found: {', '.join(columns) or 'nothing'})")
    has_splits = any(row.get("split") for row in rows)
    regions = [_row(row, f"{path}, row {i}", path.parent, recipe, has_splits) for i, row in enumerate(rows, start=1)]
    seen: dict[tuple[Path, object], int] = {}
    for i, region in enumerate(regions, start=1):
        first = seen.setdefault((region.file, region.box), i)
        if first != i:
            raise PathUpError(f"{path}: rows {first} and {i} are the same region ({region.place}); remove one")
    return regions


def _row(row: dict[str, str], where: str, folder: Path, recipe: Recipe, has_splits: bool) -> Region:
    if not row["file"]:
        raise PathUpError(f"{where}: column 'file' is empty")
    file = folder / row["file"]
    if not file.is_file():
        raise PathUpError(f"{where}: image {file} does not exist")
    split = None
    if has_splits:
        split = _SPLIT_NAMES.get(row["split"].lower())
        if split is None:
            raise unknown(f"split in {where}:", row["split"], SPLITS)
    bracs = _BRACS.match(file.stem)
    slide = row.get("slide") or (bracs[1] if bracs else file.stem)
    x, y, width, height = (_whole_number(row, name, where) for name in ("x", "y", "width", "height"))
    if (width is None) != (height is None):
        raise PathUpError(f"{where}: width and height must both be given, or neither")
    mpp = _number(row, "mpp", where)
    if mpp is not None and not mpp > 0:
        raise PathUpError(f"{where}: mpp is {mpp:g}, but micrometres per pixel must be positive")
    return Region(
        name=safe_name(file.stem),
        file=file,
        place=row["file"],
        label=label_of(recipe, row["label"], where=where),
        slide=slide,
        patient=row.get("patient") or slide,
        split=split,
        box=None if width is None or height is None else (x or 0, y or 0, width, height),
        stated_mpp=mpp,
    )


def _number(row: dict[str, str], column: str, where: str) -> float | None:
    text = row.get(column, "")
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise PathUpError(f"{where}: '{column}' is '{text}', but a number was needed")
    return number


def _whole_number(row: dict[str, str], column: str, where: str) -> int | None:
    number = _number(row, column, where)
    if number is not None and not number.is_integer():
        raise PathUpError(f"{where}: '{column}' is {number:g}, but a whole number of pixels was needed")
    return None if number is None else int(number)


def _with_patients(regions: list[Region], path: Path) -> list[Region]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle)
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PathUpError(f"{path} is not a readable CSV table ({error})") from error
    if not {"slide", "patient"} <= set(reader.fieldnames):
        found = ", ".join(reader.fieldnames) or "nothing"
        raise PathUpError(f"{path} needs the columns slide and patient (found: {found})")
    patient_of: dict[str, str] = {}
    for row in rows:
        slide, patient = (row["slide"] or "").strip(), (row["patient"] or "").strip()
        if not slide or not patient:
            continue
        if patient_of.setdefault(_slide_key(slide), patient) != patient:
            raise PathUpError(f"{path} gives slide '{slide}' two patients; keep one")
    lacking = sorted({r.slide for r in regions if _slide_key(r.slide) not in patient_of})
    if lacking:
        raise PathUpError(f"{path} names no patient for slide '{lacking[0]}' ({len(lacking)} slides lack one); add it")
    return [replace(r, patient=patient_of[_slide_key(r.slide)]) for r in regions]


def _slide_key(slide: str) -> str:
    """BRACS's table writes 'BRACS_1003698', other lists the number alone."""
    return slide.removeprefix("BRACS_").casefold()
