"""Sets of tiles to compare: what is known of each tile, wherever it came from.

A set comes from a folder of ``pathup tiles`` (one split of it), from any folder with ``metadata.jsonl`` (what ``pathup
generate`` writes, or several such folders under one), or from a folder of plain images, whose subfolders, if any, name
their classes. Slides and other large images are cut into random crops first (`pathup.evaluation.crops`).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pathup import draws
from pathup.errors import PathUpError
from pathup.recipes import Recipe, load_recipe
from pathup.slides.images import REGION_SUFFIXES
from pathup.tiles.dataset import MPP_TOLERANCE, TileFolder, tile_size
from pathup.tiles.making import METADATA_FILE
from pathup.tiles.regions import SPLITS

__all__ = [
    "Cell",
    "TileSet",
    "check_comparable",
    "is_tiles_folder",
    "load_tile_set",
    "metadata_folders",
    "recipe_of",
]

Cell = tuple[str | None, str | None]
"""Level and class of a tile; None where it is not known."""

_CLASS_FOLDER = re.compile(r"(?:\d+_)?(.+)")  # BRACS: 3_FEA


@dataclass(frozen=True)
class TileSet:
    """Square tiles of one size.

    Attributes
    ----------
    name
        What messages and results call the set.
    files, labels, levels, regions, mpp
        One entry a tile; all but the file may be None.
    size_px
        Side of every tile.
    source
        What it was loaded from, for results.
    """

    name: str
    files: tuple[Path, ...]
    labels: tuple[str | None, ...]
    levels: tuple[str | None, ...]
    regions: tuple[str | None, ...]
    mpp: tuple[float | None, ...]
    size_px: int
    source: str

    def __len__(self) -> int:
        return len(self.files)

    def at(self, places: Iterable[int], name: str | None = None) -> TileSet:
        """Some of the tiles, in the order asked for."""
        places = [int(place) for place in places]

        def chosen(column: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(column[place] for place in places)

        return replace(
            self,
            name=name or self.name,
            files=chosen(self.files),
            labels=chosen(self.labels),
            levels=chosen(self.levels),
            regions=chosen(self.regions),
            mpp=chosen(self.mpp),
        )

    def cells(self) -> dict[Cell, np.ndarray]:
        """Places of the tiles of each level and class, sorted."""
        places: dict[Cell, list[int]] = defaultdict(list)
        for place, cell in enumerate(zip(self.levels, self.labels, strict=True)):
            places[cell].append(place)
        return {cell: np.array(places[cell]) for cell in sorted(places, key=str)}

    def of(self, *, level: str | None = None, label: str | None = None) -> TileSet:
        """The tiles of a level, a class or both."""
        return self.at(
            place
            for place in range(len(self))
            if (level is None or self.levels[place] == level) and (label is None or self.labels[place] == label)
        )

    def mpp_of(self, level: str | None) -> float | None:
        """Micrometres a pixel of a level's tiles (the median); None where it is not known of any."""
        known = [
            value for value, own in zip(self.mpp, self.levels, strict=True) if own == level and value is not None
        ]
        return float(np.median(known)) if known else None

    @property
    def labelled(self) -> bool:
        """Whether the class of every tile is known."""
        return all(label is not None for label in self.labels)


def is_tiles_folder(path: Path) -> bool:
    """Whether `path` is what ``pathup tiles`` wrote: splits with metadata."""
    return path.is_dir() and any((path / split / METADATA_FILE).is_file() for split in SPLITS)


def recipe_of(folder: Path) -> Recipe:
    """The recipe that a folder of ``pathup tiles`` was cut with.

    Raises
    ------
    PathUpError
        There is none.
    """
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise PathUpError(
            f"{folder} holds splits of tiles but no recipe.yaml; the folder that 'pathup tiles' wrote was needed"
        )
    return load_recipe(path)


def load_tile_set(path: Path, name: str, *, split: str | None = None, mpp: float | None = None) -> TileSet:
    """Load tiles and check that they are of one size.

    Parameters
    ----------
    path
        A folder; see the module for the kinds.
    name
        What messages call the set.
    split
        Of a folder of ``pathup tiles``; ignored for others.
    mpp
        Micrometres a pixel to take where none is recorded.

    Raises
    ------
    PathUpError
        The folder is missing, empty or damaged, a listed file is missing or no 8-bit RGB image, or the images differ in
        size or are not square.
    """
    if not path.exists():
        raise PathUpError(f"the {name} tiles {path} do not exist; a folder of tiles or a slide was needed")
    if path.is_dir() and is_tiles_folder(path):
        return _of_split(path, name, split or "test")
    folders = metadata_folders(path)
    rows = [row for folder in folders for row in _metadata_rows(folder)] if folders else _plain_rows(path, name)
    if not rows:
        raise PathUpError(f"{path} holds no tiles; a folder with {METADATA_FILE} or with images was needed")
    side = _one_size([row["file"] for row in rows], name)
    scales = [row.get("mpp") if row.get("mpp") is not None else mpp for row in rows]
    return TileSet(
        name,
        tuple(row["file"] for row in rows),
        tuple(row.get("label") for row in rows),
        tuple(row.get("level") for row in rows),
        tuple(row.get("region") for row in rows),
        tuple(None if value is None else float(value) for value in scales),
        side,
        str(path.name),
    )


def _of_split(path: Path, name: str, split: str) -> TileSet:
    found = TileFolder.load(path, split, recipe_of(path))
    records = found.records
    return TileSet(
        name,
        tuple(found.path(i) for i in range(len(found))),
        tuple(record.label for record in records),
        tuple(record.level for record in records),
        tuple(f"{record.slide}/{record.region}" for record in records),
        tuple(record.mpp for record in records),
        found.recipe.tiles.tile_px,
        f"{path.name}, split {split}",
    )


def metadata_folders(path: Path) -> list[Path]:
    """The folder with metadata, or those directly below it: ``pathup generate`` makes one a level."""
    if (path / METADATA_FILE).is_file():
        return [path]
    return sorted(child for child in path.iterdir() if (child / METADATA_FILE).is_file()) if path.is_dir() else []


def _metadata_rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / METADATA_FILE
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PathUpError(f"{path} is damaged ({error}); make the tiles again") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, row {number}"
        try:
            row = json.loads(line)
            name = row["file_name"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise PathUpError(f"{where} is damaged ({error!r}); make the tiles again") from error
        for key, kinds in (("label", str), ("level", str), ("region", str), ("slide", str), ("mpp", (int, float))):
            if row.get(key) is not None and (not isinstance(row[key], kinds) or isinstance(row[key], bool)):
                raise PathUpError(f"{where}: '{key}' is {row[key]!r}, of a wrong type; make the tiles again")
        if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise PathUpError(f"{where}: file_name {name!r} leads out of the folder; make the tiles again")
        region = "/".join(filter(None, (row.get("slide"), row.get("region")))) or None
        rows.append({**{k: row.get(k) for k in ("label", "level", "mpp")}, "region": region, "file": folder / name})
    return rows


def _plain_rows(path: Path, name: str) -> list[dict[str, Any]]:
    if path.is_file():
        if path.suffix.lower() not in REGION_SUFFIXES:
            raise PathUpError(
                f"the {name} set {path} is neither a folder nor an image; name a folder of tiles or a slide"
            )
        raise PathUpError(f"the {name} set {path} is one image; add --crop SIDE to compare random crops of it")

    def images(folder: Path) -> list[Path]:
        return sorted(p for p in folder.iterdir() if p.suffix.lower() in REGION_SUFFIXES and not p.name.startswith("."))

    own = images(path)
    if own:
        return [{"file": file} for file in own]
    rows = []
    for child in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
        match = _CLASS_FOLDER.fullmatch(child.name)
        rows += [{"file": file, "label": match[1] if match else child.name} for file in images(child)]
    return rows


def _one_size(files: Sequence[Path], name: str) -> int:
    first: tuple[int, int] | None = None
    for file in files:
        size = tile_size(file)
        if first is None:
            first = size
            if size[0] != size[1]:
                raise PathUpError(
                    f"{file} is {size[0]} x {size[1]} px, but square tiles were needed; add --crop SIDE to compare "
                    "random "
                    "crops of larger images"
                )
        elif size != first:
            raise PathUpError(
                f"the {name} tiles are of mixed sizes: {files[0]} is {first[0]} x {first[1]} px and {file} "
                f"{size[0]} x {size[1]}; cut them to one size, or add --crop SIDE to compare random crops"
            )
    if first is None:
        raise PathUpError(f"there are no {name} tiles")
    return first[0]


def check_comparable(real: TileSet, other: TileSet) -> None:
    """Refuse tiles that could only differ.

    Raises
    ------
    PathUpError
        Sizes differ, or the scales (beyond 5 %) of a level; or `other` has a level or class without a real tile.
    """
    if real.size_px != other.size_px:
        raise PathUpError(
            f"the {other.name} tiles are {other.size_px} px wide, but the {real.name} ones {real.size_px}; only tiles "
            "of "
            f"one size can be compared (--crop {min(real.size_px, other.size_px)} compares random crops of both)"
        )
    for level in sorted(set(real.levels) & set(other.levels), key=str):
        ours, theirs = real.mpp_of(level), other.mpp_of(level)
        if ours and theirs and abs(theirs / ours - 1) > MPP_TOLERANCE:
            raise PathUpError(
                f"the {other.name} tiles{f' of level {level}' if level else ''} have {theirs:g} micrometres per "
                "pixel, but "
                f"the {real.name} ones {ours:g}; only tiles of one scale can be compared"
            )
    known = set(real.cells())
    for cell in other.cells():
        if cell not in known and real.labelled and other.labelled:
            what = ", ".join(filter(None, (cell[1] and f"class {cell[1]}", cell[0] and f"level '{cell[0]}'")))
            raise PathUpError(
                f"the {other.name} set holds tiles of {what}, but the {real.name} set has none of them; cut real "
                "ones, or "
                "leave these out"
            )


def drawn(places: np.ndarray, count: int, seed: int, *keys: str) -> np.ndarray:
    """`count` of `places` without repetition, drawn by (seed, keys), in sorted order; all when there are fewer."""
    if len(places) <= count:
        return places
    order = draws.numpy_generator(seed, *keys).permutation(len(places))[:count]
    return np.asarray(places[np.sort(order)])
