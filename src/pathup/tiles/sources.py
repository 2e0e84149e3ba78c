"""Sources: what kind a path is, and which regions it holds.

A source is a folder tree of classes (with or without ``train/val/test``; BRACS's published tree is one), a
region table (CSV), or whole slides with QuPath annotations.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from pathup.errors import PathUpError, unknown
from pathup.recipes import Recipe
from pathup.slides.images import REGION_SUFFIXES
from pathup.slides.reader import SLIDE_SUFFIXES
from pathup.tiles.regions import SPLITS, Region, named_apart, safe_name
from pathup.tiles.slide_sources import slide_regions, slides_in
from pathup.tiles.taxonomy import label_of

_BRACS = re.compile(r"^(BRACS_\d+)_[A-Za-z]+_\d+$")
_SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_IMAGES = tuple(sorted({*REGION_SUFFIXES, *SLIDE_SUFFIXES} - {".dcm"}))
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
        Region name to the name of the cluster of overlapping annotations that it belongs to.
    """

    kind: str
    regions: list[Region]
    joined: dict[str, str] = field(default_factory=dict)


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
        a region is listed twice.
    """
    if not path.exists():
        raise PathUpError(f"source {path} does not exist")
    if annotations is not None and not annotations.exists():
        raise PathUpError(f"annotations {annotations} do not exist")
    joined: dict[str, str] = {}
    if path.suffix.lower() == ".csv" and path.is_file():
        kind, regions = "region table", _table(path, recipe)
    elif path.is_file() or annotations is not None or any(path.glob("*.geojson")):
        kind = "slides"
        regions, joined = slide_regions(path, recipe, annotations, mpp)
    else:
        kind, regions = "class folders", _class_folders(path, recipe)
    if not regions:
        raise PathUpError(f"source {path} holds no regions; {_NEEDED}")
    if kind != "slides":
        assumed = mpp if mpp is not None else recipe.tiles.assume_mpp
        regions = named_apart([replace(region, assume_mpp=assumed) for region in regions])
    if patients is not None:
        regions = _with_patients(regions, patients)
    return Source(kind, sorted(regions, key=lambda r: r.name), joined)


_NEEDED = (
    "a folder of class folders with images (with or without train/val/test above them), a region table (.csv), "
    "or slides with a .geojson beside each was needed"
)


def _class_folders(root: Path, recipe: Recipe) -> list[Region]:
    """Regions of a tree split/class/file or class/file."""
    top = _split_root(root, _DEPTH)
    if top is not None:
        splits = {folder: _SPLIT_NAMES[folder.name.lower()] for folder in _folders(top) if _is_split(folder)}
        strays = [f for f in _folders(top) if f not in splits and any(_image_files(f))]
        if strays:
            raise unknown("split folder", strays[0].name, SPLITS)
        return [r for folder, split in splits.items() for r in _classes(folder, root, recipe, split)]
    slides = slides_in(root)
    if slides and not _folders(root):
        raise PathUpError(
            f"{root} holds slides or images ({slides[0].name}) but no annotations: put a QuPath export "
            f"({slides[0].stem}.geojson) beside each, or name them with --annotations"
        )
    return list(_classes(root, root, recipe, None))


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
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _IMAGES and not path.name.startswith(".") and path.is_file():
            yield path


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
    edges = [_number(row, name, where) for name in ("x", "y", "width", "height")]
    given = [edge is not None for edge in edges]
    if any(given[2:]) and not all(given[2:]):
        raise PathUpError(f"{where}: width and height must both be given, or neither")
    box = tuple(int(edge or 0) for edge in edges) if all(given[2:]) else None
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
        box=box,  # type: ignore[arg-type]
        stated_mpp=mpp,
    )


def _number(row: dict[str, str], column: str, where: str) -> float | None:
    text = row.get(column, "")
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise PathUpError(f"{where}: '{column}' is '{text}', but a number was needed") from None


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
