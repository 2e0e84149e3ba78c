"""The study by class: table 5 of the paper, and what stands behind it.

From `Scores` come, by arm and class, means over readers of each reader's own figures. All of it takes first showings,
and leaves missing answers out reader by reader; where no reader has any, the figure is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pathup.study.discrimination import auc_estimate
from pathup.study.resampling import Estimate
from pathup.study.scores import Scores

__all__ = ["THRESHOLD", "ArmQuality", "ClassRow", "Quality", "by_class", "quality_table"]

THRESHOLD = 6.0
"""Scores from here on say "rather real": the upper half of 1 to 10."""


@dataclass(frozen=True)
class Quality:
    """A cell of table 5: mean and standard deviation over readers of their mean scores, in points."""

    mean: float
    std: float


@dataclass(frozen=True)
class ArmQuality:
    """A row of table 5.

    Attributes
    ----------
    arm
        ``real`` or ``synthetic``.
    classes
        The cell of each class, in the order of `Scores.classes`.
    overall
        The column "Mean": each reader's mean over classes.
    """

    arm: str
    classes: dict[str, Quality]
    overall: Quality


def quality_table(scores: Scores) -> tuple[ArmQuality, ArmQuality]:
    """Table 5's rows, real and synthetic: mean and spread over readers of each reader's mean score.

    The standard deviation divides by R, not R - 1 (ddof 0). That is what the paper prints: three readers' means of ten
    whole scores give its 14 class figures with ddof 0, and none of them with ddof 1. It describes these readers (NaN
    with one); to say how sure a mean is, take `pathup.study.discrimination.mean_difference`.

    The column "Mean" takes each reader's mean over classes, so that classes count alike, and then mean and spread over
    readers. The paper's means agree; what its spreads in that column are of, it does not say.
    """
    rows = []
    for arm, own in (("real", ~scores.synthetic), ("synthetic", scores.synthetic)):
        columns = [
            [_mean(row[own & (scores.class_indices == place)]) for row in scores.values]
            for place in range(len(scores.classes))
        ]
        means_RC = np.array(columns, dtype=float).reshape(len(scores.classes), len(scores.readers)).T
        cells = {label: _quality(means_RC[:, place]) for place, label in enumerate(scores.classes)}
        rows.append(ArmQuality(arm, cells, _quality([_mean(means) for means in means_RC])))
    return rows[0], rows[1]


@dataclass(frozen=True)
class ClassRow:
    """How one class fared.

    Attributes
    ----------
    label
        Of the class.
    real, synthetic
        Images of each arm.
    auc
        Mean over readers of the AUC within the class, with intervals.
    real_mean, synthetic_mean
        Mean over readers of their mean scores, in points.
    real_share, synthetic_share
        Mean over readers of the share of images that they scored at the threshold or above ("rather real"), 0 to 1.
    """

    label: str
    real: int
    synthetic: int
    auc: Estimate
    real_mean: float
    synthetic_mean: float
    real_share: float
    synthetic_share: float


def by_class(
    scores: Scores, threshold: float = THRESHOLD, *, replicates: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[ClassRow, ...]:
    """A row a class. With ten images an arm the intervals are wide, and seven classes are seven looks.

    Parameters
    ----------
    scores
        Of a study.
    threshold
        Scores of this and above count as "rather real".
    replicates, seed, level
        Of the AUC's intervals, as in `pathup.study.discrimination.mean_auc`.
    """
    rows = []
    for label in scores.classes:
        part = scores.of_class(label)
        real, synthetic = part.values[:, ~part.synthetic], part.values[:, part.synthetic]
        rows.append(
            ClassRow(
                label=label,
                real=real.shape[1],
                synthetic=synthetic.shape[1],
                auc=auc_estimate(part, replicates=replicates, seed=seed, level=level),
                real_mean=_mean([_mean(row) for row in real]),
                synthetic_mean=_mean([_mean(row) for row in synthetic]),
                real_share=_mean([_share(row, threshold) for row in real]),
                synthetic_share=_mean([_share(row, threshold) for row in synthetic]),
            )
        )
    return tuple(rows)


def _known(values: Sequence[float] | np.ndarray) -> np.ndarray:
    own = np.asarray(values, dtype=float)
    return own[~np.isnan(own)]


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """Of what is not NaN; NaN where nothing is."""
    own = _known(values)
    return float(own.mean()) if own.size else float("nan")


def _share(values: np.ndarray, threshold: float) -> float:
    """The share of answers at or above the threshold; NaN without answers."""
    return _mean((_known(values) >= threshold).astype(float))


def _quality(means_R: Sequence[float] | np.ndarray) -> Quality:
    own = _known(means_R)
    return Quality(_mean(own), float(own.std()) if own.size > 1 else float("nan"))
