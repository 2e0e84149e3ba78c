"""What a report says: sections of text and tables, each figure with what it is of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pathup import __version__
from pathup.study.findings import Findings
from pathup.study.folder import StudyFolder
from pathup.study.readings import answer_rows
from pathup.study.resampling import Interval
from pathup.study.scores import Scores
from pathup.study.tables import THRESHOLD, ArmQuality

__all__ = ["report_text", "table5_rows"]

PAPER = {
    "real": "8.167±0.235 8.333±0.249 7.967±0.772 8.500±0.245 7.667±0.330 7.300±0.408 8.633±0.464 8.081±0.363",
    "synthetic": "8.233±0.704 7.533±0.411 7.500±0.779 7.367±0.519 7.533±0.492 7.467±0.624 8.333±0.556 7.709±0.583",
}
PAPER_CLASSES = ("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC", "Mean")
"""The paper's table 5: means of three pathologists, ten images a class and arm."""


def table5_rows(quality: Sequence[ArmQuality]) -> tuple[list[dict[str, Any]], list[str]]:
    """Table 5 as rows of a column a class, and the columns' names."""
    labels = list(quality[0].classes)
    rows = [
        {"arm": arm.arm, **{label: f"{cell.mean:.3f}±{cell.std:.3f}" for label, cell in arm.classes.items()},
         "mean": f"{arm.overall.mean:.3f}±{arm.overall.std:.3f}"}
        for arm in quality
    ]  # fmt: skip
    return rows, ["arm", *labels, "mean"]


def _number(value: float, digits: int = 2) -> str:
    return "" if np.isnan(value) else f"{value:.{digits}f}"


def _points(value: float) -> str:
    return f"{value:g} point{'' if value == 1 else 's'}"


def _between(interval: Interval, digits: int = 2) -> str:
    low, high = interval
    return "not known" if np.isnan(low) or np.isnan(high) else f"{low:.{digits}f} to {high:.{digits}f}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def report_text(folder: StudyFolder, scores: Scores, found: Findings, rows: Sequence[Any], left: Sequence[str]) -> str:
    """The page in Markdown, as `pathup.evaluation.page` takes it; `left` are readers who have images left."""
    real, synthetic = int((~scores.synthetic).sum()), int(scores.synthetic.sum())
    parts = [f"# {folder.title}", _summary(scores, found, real, synthetic)]
    if left:
        parts.append(f"**Interim:** {', '.join(left)} have images left. Whoever sees this page knows the key.")
    for section in (_quality, _scores, _telling_apart, _comparison, _by_class, _agreement, _guesses):
        parts += section(folder, scores, found, rows)
    parts += _how(folder, scores, found, real, synthetic)
    return "\n\n".join(parts)


def _summary(scores: Scores, found: Findings, real: int, synthetic: int) -> str:
    area, several = found.auc, len(scores.readers) > 1
    who = f"{len(scores.readers)} readers" if several else "One reader"
    verdict = "" if found.comparison.non_inferior else "not shown to be "
    own = "the mean AUC" if several else "the AUC"
    difference = found.comparison.difference.value
    gap = f"{_points(round(abs(difference), 2))} {'more' if difference > 0 else 'less'}"
    caveat = "" if several else " With one reader nothing can be said of others."
    return (
        f"{who} scored {real} real and {synthetic} synthetic images from 1 (synthetic) to 10 (real). By their scores "
        f"{own} of real against synthetic is **{area.value:.2f}** (95 % interval {_between(area.widest)}; 0.5 is "
        f"chance, 1 is no mistake). Synthetic images score {gap} than real ones on the average and are {verdict}"
        f"non-inferior within {_points(found.comparison.margin)}.{caveat}"
    )


def _quality(folder: StudyFolder, scores: Scores, found: Findings, rows: Sequence[Any]) -> list[str]:
    table, head = table5_rows(found.quality)
    paper = [[f"{arm} (the paper's)", *text.split()] for arm, text in PAPER.items()]
    return [
        "## Table 5: mean scores",
        "Mean and standard deviation over readers (divided by their number, as the paper's are) of each reader's mean "
        "score.",
        _table(["", *head[1:]], [[row["arm"], *(row[name] for name in head[1:])] for row in table]),
        "The paper's table 5, of BRACS: three pathologists, ten images of every class and arm.",
        _table(["", *PAPER_CLASSES], paper),
    ]


def _scores(folder: StudyFolder, scores: Scores, found: Findings, rows: Sequence[Any]) -> list[str]:
    return ["## Scores", "How often each reader gave each score."]


def _telling_apart(folder: StudyFolder, scores: Scores, found: Findings, rows: Sequence[Any]) -> list[str]:
    body = [
        [name, _number(value), _between(interval)]
        for name, value, interval in zip(scores.readers, found.aucs, found.auc_intervals, strict=True)
    ]
    body.append(["**mean**", f"**{_number(found.auc.value)}**", f"**{_between(found.auc.widest)}**"])
    kinds = (
        ("other readers, other images: bootstrap", found.auc.bootstrap),
        ("other readers, other images: Obuchowski and Rockette, Hillis", found.auc.analytic),
        ("these readers, other images", found.auc.fixed_readers),
    )
    return [
        "## Telling them apart",
        "Area under the ROC curve of *real* by score: how often a real image scores above a synthetic one, ties "
        "counted half. Of single readers with DeLong's interval; of the mean the wider of the two that other readers "
        "and other images would fall into.",
        _table(["reader", "AUC", "95 % interval"], body),
        _table(["interval of the mean for", "95 %"], [[what, _between(interval)] for what, interval in kinds]),
    ]


def _comparison(folder: StudyFolder, scores: Scores, found: Findings, rows: Sequence[Any]) -> list[str]:
    own = found.comparison
    said = "are non-inferior" if own.non_inferior else "are not shown to be non-inferior"
    no_proof = "" if own.non_inferior else " That is no proof that they are worse."
    return [
        "## Synthetic against real",
        f"Synthetic less real mean score: **{_number(own.difference.value)}** points; one-sided "
        f"{100 * own.confidence:.0f} % bound {_number(own.lower)}. The margin is {_points(own.margin)}; synthetic "
        f"images {said}.{no_proof}",
    ]


def _by_class(folder: StudyFolder, scores: Scores, found: Findings, rows: Sequence[Any]) -> list[str]:
    body = [
        [row.label, f"{row.real}, {row.synthetic}", _number(row.auc.value), _between(row.auc.widest),
         _number(row.real_mean), _number(row.synthetic_mean), _number(100 * row.real_share, 0),
         _number(100 * row.synthetic_share, 0)]
        for row in found.classes
    ]  # fmt: skip
    head = ["class", "images: real, synthetic", "AUC", "95 %", "score: real", "synthetic",
            f"% at {THRESHOLD:g} or more: real", "synthetic"]  # fmt: skip
    return [
        "## By class",
        "Few images of a class make wide intervals, and as many classes are as many looks: one of them below or above "
        "0.5 is no finding by itself.",
        _table(head, body),
    ]


def _agreement(folder: StudyFolder, scores: Scores, found: Findings, rows: Sequence[Any]) -> list[str]:
    selves = [
        [own.reader, str(own.images), _number(own.alpha), _between(own.interval),
         _number(own.mean_absolute_difference, 1), _number(own.mean_change, 1)]
        for own in found.selves
    ]  # fmt: skip
    between = [
        ["Krippendorff's alpha, ordinal", _number(found.alpha), _between(found.alpha_interval)],
        ["ICC(2,1), of one reader's score", _number(found.icc.icc21), _between(found.icc.interval21)],
        ["ICC(2,k), of the mean of all readers", _number(found.icc.icc2k), ""],
    ]
    return [
        "## Agreement",
        "Between readers: 1 is full agreement, 0 what chance would give.",
        _table(["", "", "95 % interval"], between),
        "Each reader against themselves, on the images that came twice; difference and change (second less first) in "
        "points.",
        _table(["reader", "images", "alpha", "95 % interval", "mean difference", "mean change"], selves),
    ]


def _guesses(folder: StudyFolder, scores: Scores, found: Findings, rows: Sequence[Any]) -> list[str]:
    told = [row for row in answer_rows(folder, rows, with_key=True)
            if row["counts"] == "yes" and row["round"] == "study" and row["guess"]]  # fmt: skip
    if not told:
        return []
    given: Counter[str] = Counter(row["arm"] for row in told)
    right: Counter[str] = Counter(row["arm"] for row in told if row["guess"] == row["label"])
    body = [[arm, str(given[arm]), f"{100 * right[arm] / given[arm]:.0f} %"] for arm in sorted(given)]
    return ["## Classes named", "Where readers named a class: how often the image's own.",
            _table(["images", "named", "right"], body)]  # fmt: skip


def _how(folder: StudyFolder, scores: Scores, found: Findings, real: int, synthetic: int) -> list[str]:
    missing = int(np.isnan(scores.values).sum())
    lines = [
        f"- {real} real and {synthetic} synthetic images of {len(scores.classes)} classes, {folder.side_px} px at "
        f"{folder.mpp:g} um a pixel, drawn by seed {folder.seed}; {missing} answers are missing. An answer that was "
        "changed counts as changed; repeats count for nothing but agreement.",
        "- Intervals for other readers and other images: bootstrap of readers, and of images within class and arm "
        "(2,000 replicates), and the analytic one of Obuchowski and Rockette with Hillis's degrees of freedom; with "
        "few readers the first can be too narrow, so the wider is told.",
        f"- How sure can it be? With {real} and {synthetic} images one reader's AUC has an interval of about ± "
        f"{found.half_width:.2f} (Hanley and McNeil 1982); four times as many images halve it. More readers tell more "
        "of readers.",
        f"- Non-inferiority: the margin of {_points(found.comparison.margin)} has to be chosen before the study.",
        "- Images are taken as independent: several of one patient, or grown from one overview, make every interval "
        "too narrow.",
        f"- PathUp {__version__}. All figures: report.json; every answer with its image: scores.csv.",
    ]
    return ["## How it was made", "\n".join(lines)]
