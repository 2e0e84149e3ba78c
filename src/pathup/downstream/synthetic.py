"""Synthetic images for training: listed, and mixed in by class."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pathup import storage
from pathup.downstream.fields import Field
from pathup.errors import PathUpError
from pathup.slides.reader import open_slide
from pathup.tiles.making import METADATA_FILE

__all__ = ["allotted", "mixed", "synthetic_fields"]


def synthetic_fields(folder: Path, labels: Sequence[str]) -> list[Field]:
    """The images of a folder that ``pathup generate`` made, in the order of their indices.

    Raises
    ------
    PathUpError
        The folder is unfinished, empty, or does not say of each image which class it is and at what scale; or a class
        is not of `labels`.
    """
    fields = []
    for row in _rows(folder):
        file = folder / str(row["file_name"])
        if row["label"] not in labels:
            raise PathUpError(f"{file} is of class '{row['label']}', but one of {', '.join(labels)} was needed")
        if not file.is_file():
            raise PathUpError(f"{folder / METADATA_FILE} lists {file.name}, which is not there; generate it again")
        with open_slide(file, float(row["mpp"])) as reader:
            box = (0, 0, *reader.size)
        scale = (float(row["mpp"]),) * 2
        name = f"{folder.name}/{file.name}"
        fields.append(Field(name, name, row["label"], file, storage.sha256_file(file), box, scale, synthetic=True))
    return sorted(fields, key=lambda field: field.file.name)


def allotted(real: Mapping[str, int], total: int, mixing: str) -> dict[str, int]:
    """How many synthetic images each class gets, `total` in all.

    Parameters
    ----------
    real
        Real fields of each class.
    total
        Of synthetic images; what does not divide goes to the first classes.
    mixing
        ``equal``: as many each. ``rare_first``: one by one to the class that has the fewest fields, real and synthetic.
    """
    given = dict.fromkeys(real, 0)
    for turn in range(total):
        if mixing == "rare_first":
            label = min(given, key=lambda own: real[own] + given[own])
        else:
            label = list(given)[turn % len(given)]
        given[label] += 1
    return given


def mixed(
    real: Sequence[Field], synthetic: Sequence[Field], total: int, mixing: str, labels: Sequence[str]
) -> list[Field]:
    """Real fields, and the first synthetic ones of each class.

    Raises
    ------
    PathUpError
        There are fewer synthetic images of a class than it is to get.
    """
    counts = {label: sum(field.label == label for field in real) for label in labels}
    chosen = list(real)
    for label, count in allotted(counts, total, mixing).items():
        own = [field for field in synthetic if field.label == label][:count]
        if len(own) < count:
            raise PathUpError(
                f"{count} synthetic images of class {label} are to be mixed in, but there are {len(own)}; generate "
                "more ('pathup generate --count'), or ask for fewer"
            )
        chosen += own
    return chosen


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / METADATA_FILE
    if not path.is_file():
        raise PathUpError(
            f"{folder} holds no {METADATA_FILE}, so its images have no labels; a finished folder of 'pathup generate' "
            "was needed"
        )
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise PathUpError(f"{path} is damaged ({error}); generate the images again") from error
    if not rows:
        raise PathUpError(f"{path} lists no images; generate some")
    for number, row in enumerate(rows, start=1):
        lacking = [key for key in ("file_name", "label", "mpp") if not (isinstance(row, dict) and row.get(key))]
        if lacking:
            raise PathUpError(
                f"{path}, line {number} says no {' and no '.join(lacking)}, but every synthetic image needs them; "
                "generate the images again"
            )
    return rows
