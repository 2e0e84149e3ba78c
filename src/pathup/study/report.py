"""The report of a study: one page, its figures as files, and the table of the paper.

The data flow: the newest answers and the key become `Scores`; all statistics are made of these and written as JSON,
CSV, plots, and sentences that say what each figure is of.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pathup import __version__, storage
from pathup.errors import PathUpError
from pathup.evaluation.page import page
from pathup.study import plots
from pathup.study.answers import Answers
from pathup.study.findings import findings
from pathup.study.folder import StudyFolder
from pathup.study.readings import COLUMNS, KEY_COLUMNS, answer_rows, csv_text, scores_of, unfinished
from pathup.study.report_text import report_text, table5_rows

__all__ = ["write_export", "write_report"]


def write_report(
    folder: StudyFolder, output: Path, *, margin: float = 1.0, interim: bool = False, seed: int = 0
) -> list[Path]:
    """Write ``report.html``, ``report.json``, ``table5.csv``, ``scores.csv`` and two plots; returns their paths.

    Raises
    ------
    PathUpError
        Readers have images left and `interim` is not set, there are too few answers, or the disk is full.
    """
    answers = Answers(folder.answers_file)
    try:
        rows = answers.rows()
        known = [answers.progress(reader) for reader in range(len(folder.readers))]
    finally:
        answers.close()
    left = unfinished(folder, known)
    if left and not interim:
        raise PathUpError(
            f"{', '.join(left)} have images left; a report shows the key and the scores, so wait, or take --interim"
        )
    scores = scores_of(folder, rows)
    found = findings(scores, margin=margin, seed=seed)
    with storage.atomic_folder(output) as partial:
        pictures = {
            "Scores": [(plots.score_plot(scores, partial / "scores.png"), "Scores of each reader, real and synthetic")],
            "Telling them apart": [
                (plots.roc_plot(scores, found.aucs, partial / "roc.png"), "Receiver operating characteristic curves")
            ],
        }
        text = report_text(folder, scores, found, rows, left)
        storage.write_text(partial / "report.html", page(f"{folder.title}: report", text, pictures))
        storage.write_json(partial / "report.json", {
            "title": folder.title, "version": __version__, "seed": folder.seed, "bootstrap_seed": seed,
            "unfinished": left, "readers": list(folder.readers), **_plain(asdict(found)),
        })  # fmt: skip
        storage.write_text(partial / "table5.csv", csv_text(*table5_rows(found.quality)))
        told = answer_rows(folder, rows, with_key=True)
        storage.write_text(partial / "scores.csv", csv_text(told, (*COLUMNS, *KEY_COLUMNS)))
        names = sorted(path.name for path in partial.iterdir())
    return [output / name for name in names]


def write_export(folder: StudyFolder, target: Path, *, with_key: bool) -> int:
    """Write every answer ever given as CSV; returns how many.

    Raises
    ------
    PathUpError
        The key is asked for while readers have images left, or the file cannot be written.
    """
    answers = Answers(folder.answers_file)
    try:
        rows = answers.rows()
        left = unfinished(folder, [answers.progress(reader) for reader in range(len(folder.readers))])
    finally:
        answers.close()
    if with_key and left:
        raise PathUpError(f"{', '.join(left)} have images left; the key is exported when all are read")
    blinded = tuple(name for name in COLUMNS if name not in ("image", "showing"))
    columns = (*COLUMNS, *KEY_COLUMNS) if with_key else blinded
    storage.write_text(target, csv_text(answer_rows(folder, rows, with_key=with_key), columns))
    return len(rows)


def _plain(value: Any) -> Any:
    """Numbers that JSON has: what is not known becomes null."""
    if isinstance(value, dict):
        return {name: _plain(own) for name, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(own) for own in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
