"""A folder of tiles, as training reads it: checked first, then one tile at a time."""

from __future__ import annotations

import hashlib
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
import torch

from pathup import storage
from pathup.errors import PathUpError, unknown
from pathup.recipes import Recipe
from pathup.slides.images import image_size, read_image
from pathup.tiles.making import METADATA_FILE
from pathup.tiles.regions import SPLITS
from pathup.tiles.splits import check_disjoint
from pathup.tiles.taxonomy import level_of, prompt_text

MPP_TOLERANCE = 0.05
"""Relative difference of a tile's mpp from its level's that rounding fields to whole pixels may leave."""

_PNG_RGB = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


@dataclass(frozen=True)
class TileRecord:
    """One row of ``metadata.jsonl``; see docs/tiles.md for its fields.

    `x` and `y` are level-0 pixels of the source file; `mpp` is the tile's, in micrometres per pixel.
    """

    file_name: str
    text: str
    label: str
    level: str
    patient: str
    slide: str
    region: str
    x: int
    y: int
    mpp: float
    source_sha256: str

    def group(self, split_by: str) -> str:
        """The name of what must not be on both sides of a split: the patient, the slide or the region."""
        return {"patient": self.patient, "slide": self.slide, "region": self.region}[split_by]


class TileFolder:
    """The tiles of one split.

    Attributes
    ----------
    folder : pathlib.Path
        The split's folder.
    split : str
    recipe : Recipe
    records : list of TileRecord
        In the order of ``metadata.jsonl``.
    """

    def __init__(self, folder: Path, split: str, recipe: Recipe, records: list[TileRecord]):
        self.folder = folder
        self.split = split
        self.recipe = recipe
        self.records = records
        self._fingerprint: str | None = None

    @classmethod
    def load(cls, folder: Path, split: str, recipe: Recipe) -> Self:
        """Open the tiles of a split and check them against the recipe.

        Parameters
        ----------
        folder
            What ``pathup tiles`` made: the folder that holds train, val and test.

        Raises
        ------
        PathUpError
            The folder or its metadata is missing or unfinished; a row is incomplete or listed twice; an image is
            missing or not a square of the recipe's `tile_px` in 8-bit RGB; a label or level is not in the recipe; a
            tile's scale is not its level's; a patient, slide or region (the recipe's `split_by`) or a place of a source
            file is in two splits.
        """
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        records = _read(folder / split / METADATA_FILE)
        if not records:
            raise PathUpError(f"{folder / split / METADATA_FILE} lists no tiles; make them with 'pathup tiles'")
        found = cls(folder / split, split, recipe, records)
        found._check()
        others = [s for s in SPLITS if s != split and (folder / s / METADATA_FILE).is_file()]
        by = recipe.tiles.split_by
        rows = [(r, split) for r in records] + [(r, s) for s in others for r in _read(folder / s / METADATA_FILE)]
        check_disjoint(((r.group(by), s) for r, s in rows), by)
        _check_places(rows)
        return found

    def only(self, level: str) -> TileFolder:
        """The tiles of one spatial level.

        Raises
        ------
        PathUpError
            The recipe has no such level, or the split no tile of it.
        """
        level = level_of(self.recipe, level).name
        kept = [record for record in self.records if record.level == level]
        if not kept:
            raise PathUpError(f"{self.folder} holds no tiles of level '{level}'; cut them with 'pathup tiles'")
        return TileFolder(self.folder, self.split, self.recipe, kept)

    def __len__(self) -> int:
        """The number of tiles."""
        return len(self.records)

    def path(self, index: int) -> Path:
        """The file of a tile."""
        return self.folder / self.records[index].file_name

    def pixels(self, index: int) -> torch.Tensor:
        """The pixels of a tile: uint8 RGB, (3, H, W).

        Raises
        ------
        PathUpError
            The file is damaged or missing.
        """
        pixels_HWC = read_image(self.path(index))
        return torch.from_numpy(np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1)))

    def text(self, index: int) -> str:
        """The prompt of a tile: the recipe's, for the tile's class and level, whatever wording it was cut with."""
        record = self.records[index]
        return prompt_text(self.recipe, record.label, record.level)

    def fingerprint(self) -> str:
        """A SHA-256 over every tile's name, label, level and file content, in order.

        Every byte is read (about a second a gigabyte), so a tile that changed before the first call always changes
        it; copying or moving the folder does not. The answer is kept: later calls cost nothing, and do not look again.
        """
        if self._fingerprint is not None:
            return self._fingerprint
        with ThreadPoolExecutor(8) as pool:
            hashes = list(pool.map(lambda i: storage.sha256_file(self.path(i)), range(len(self))))
        digest = hashlib.sha256()
        for record, content in zip(self.records, hashes, strict=True):
            digest.update(json.dumps([record.file_name, record.label, record.level, content]).encode())
        self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _check(self) -> None:
        side = self.recipe.tiles.tile_px
        scales = {level.name: self.recipe.tiles.level_mpp(level) for level in self.recipe.tiles.levels}
        labels = set(self.recipe.labels)
        seen: set[str] = set()
        for index, record in enumerate(self.records):
            where = f"{self.folder / METADATA_FILE}, row {index + 1}"
            if record.label not in labels:
                raise unknown(f"label in {where}:", record.label, self.recipe.labels)
            if record.level not in scales:
                level_of(self.recipe, record.level)
            if abs(record.mpp / scales[record.level] - 1) > MPP_TOLERANCE:
                raise PathUpError(
                    f"{where}: the tile has {record.mpp:g} micrometres per pixel, but level '{record.level}' of recipe "
                    f"'{self.recipe.name}' has {scales[record.level]:g}; cut the tiles with this recipe"
                )
            name = PurePosixPath(record.file_name)
            if name.is_absolute() or ".." in name.parts or record.file_name in seen:
                why = "is listed twice" if record.file_name in seen else "leads out of the folder"
                raise PathUpError(f"{where}: file_name '{record.file_name}' {why}; make the tiles again")
            seen.add(record.file_name)
            size = tile_size(self.path(index))
            if size != (side, side):
                raise PathUpError(
                    f"tile {self.path(index)} is {size[0]} x {size[1]} px, but recipe '{self.recipe.name}' has tiles "
                    f"of {side} x {side}; cut the tiles with this recipe"
                )


def _read(path: Path) -> list[TileRecord]:
    if not path.is_file():
        raise PathUpError(
            f"{path} does not exist: the folder holds no finished tiles of this split; make them with 'pathup tiles' "
            "(add --resume if that was stopped)"
        )
    try:
        # not splitlines(): names may hold its other line ends, such as U+2028
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PathUpError(f"{path} is damaged ({error}); make the tiles again") from error
    return [_record(row, f"{path}, row {i}") for i, row in enumerate(rows, start=1)]


def _check_places(rows: list[tuple[TileRecord, str]]) -> None:
    """Refuse one place of a source file in two splits, whatever its regions are called there."""
    first: dict[tuple[str, int, int, str], tuple[TileRecord, str]] = {}
    for record, split in rows:
        place = (record.source_sha256, record.x, record.y, record.level)
        seen, seen_split = first.setdefault(place, (record, split))
        if seen_split != split:
            raise PathUpError(
                f"{seen_split}/{seen.file_name} and {split}/{record.file_name} are of one place of one source file, "
                "but the splits must not share tissue; keep that file in one of them and make the tiles again"
            )


_TYPES: dict[str, type | tuple[type, ...]] = {"x": int, "y": int, "mpp": (int, float)}


def _record(row: Any, where: str) -> TileRecord:
    names = [f.name for f in fields(TileRecord)]
    if not isinstance(row, dict):
        raise PathUpError(f"{where} is {type(row).__name__}, but an object with {', '.join(names)} was needed")
    for name in names:
        if name not in row:
            raise PathUpError(f"{where} lacks '{name}'; make the tiles again with 'pathup tiles'")
        if not isinstance(row[name], _TYPES.get(name, str)) or isinstance(row[name], bool):
            raise PathUpError(f"{where}: '{name}' is {row[name]!r}, of a wrong type; make the tiles again")
    return TileRecord(**{name: row[name] for name in names})


def tile_size(path: Path) -> tuple[int, int]:
    """Width and height from the header. An 8-bit RGB PNG's is read directly: folders hold many tiles."""
    try:
        with path.open("rb") as handle:
            header = handle.read(26)
    except OSError:
        raise PathUpError(f"tile {path} is listed but cannot be opened; make the tiles again") from None
    if header.startswith(_PNG_RGB) and header[24:26] == b"\x08\x02":
        width, height = struct.unpack(">II", header[16:24])
        return width, height
    return image_size(path)
