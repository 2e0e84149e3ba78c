"""What readers said, brought together with the key: the table that statistics are made of, and CSV for others."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pathup.study.answers import Progress
from pathup.study.folder import Shown, StudyFolder
from pathup.study.scores import Scores

__all__ = ["answer_rows", "csv_text", "scores_of", "unfinished"]

Row = dict[str, Any]

COLUMNS = ("reader", "round", "place", "showing", "image", "score", "guess", "comment", "seconds", "at", "counts")
KEY_COLUMNS = ("label", "arm", "source", "sha256")


def scores_of(folder: StudyFolder, rows: Sequence[Row]) -> Scores:
    """The newest score of every reader and image: of the first showing, and of the second where there was one.

    Images come class by class, real ones first.

    Parameters
    ----------
    folder
        The study.
    rows
        Every answer ever given, in order (`Answers.rows`).
    """
    images = sorted(range(len(folder.images)), key=lambda index: _rank(folder.images[index]))
    column = {index: place for place, index in enumerate(images)}
    first, second = (np.full((len(folder.readers), len(images)), np.nan) for _ in range(2))
    for row in rows:  # a later answer takes the place of an earlier one
        if row["round"] == "study":
            index, showing = _showing(folder, row["reader"], row["place"])
            (first if showing == 1 else second)[row["reader"], column[index]] = row["score"]
    shown = [folder.images[index] for index in images]
    return Scores(
        readers=folder.readers, images=tuple(image.name for image in shown),
        labels=tuple(image.label for image in shown), synthetic=np.array([image.synthetic for image in shown]),
        values=first, repeats=second,
    )  # fmt: skip


def _rank(image: Shown) -> tuple[str, bool, str]:
    return image.label, image.synthetic, image.name


def _showing(folder: StudyFolder, reader: int, place: int) -> tuple[int, int]:
    """The image at a place of a reader's order, and the how manieth time it comes there."""
    order = folder.orders[reader]
    return order[place], order[: place + 1].count(order[place])


def answer_rows(folder: StudyFolder, rows: Sequence[Row], *, with_key: bool) -> list[Row]:
    """Every answer as a row of names and numbers, those that were changed later too (`counts` is then no).

    With the key, also which image it was; without, `image` is a place in the reader's own order, as a reader knows it.
    """
    newest = {(row["reader"], row["round"], row["place"]): row["id"] for row in rows}
    found = []
    for row in rows:
        practice = row["round"] == "practice"
        index, showing = (row["place"], 1) if practice else _showing(folder, row["reader"], row["place"])
        shown = (folder.practice if practice else folder.images)[index]
        told = {name: row[name] for name in ("round", "place", "score", "guess", "comment", "seconds", "at")}
        counts = row["id"] == newest[row["reader"], row["round"], row["place"]]
        told |= {"reader": folder.readers[row["reader"]], "counts": "yes" if counts else "no"}
        if with_key:
            told |= {"image": shown.name, "showing": showing, "label": shown.label, "source": shown.source,
                     "arm": "synthetic" if shown.synthetic else "real", "sha256": shown.sha256}  # fmt: skip
        found.append(told)
    return found


def csv_text(rows: Iterable[Row], columns: Sequence[str]) -> str:
    """Rows as CSV, by RFC 4180; what a spreadsheet would take for a formula begins with an apostrophe."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_plain(row.get(column)) for column in columns])
    return stream.getvalue()


def _plain(value: Any) -> Any:
    is_formula = isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{value}" if is_formula else value


def unfinished(folder: StudyFolder, known: Sequence[Progress]) -> list[str]:
    """Readers who have images left, each with how many were read."""
    count = folder.count("study")
    pairs = zip(folder.readers, known, strict=True)
    return [f"{name} ({one.study} of {count})" for name, one in pairs if one.study < count]
