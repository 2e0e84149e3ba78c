"""All statistics of a study, made of its scores at once."""

from __future__ import annotations

from dataclasses import dataclass

from pathup.study.agreement import ICC, SelfAgreement, alpha_interval, icc, krippendorff_alpha, self_agreement
from pathup.study.discrimination import (
    NonInferiority,
    delong_interval,
    expected_half_width,
    mean_auc,
    non_inferiority,
    reader_aucs,
)
from pathup.study.resampling import Estimate, Interval
from pathup.study.scores import Scores
from pathup.study.tables import ArmQuality, ClassRow, by_class, quality_table

__all__ = ["Findings", "findings"]


@dataclass(frozen=True)
class Findings:
    """All figures of a report."""

    quality: tuple[ArmQuality, ArmQuality]
    aucs: tuple[float, ...]
    auc_intervals: tuple[Interval, ...]
    auc: Estimate
    comparison: NonInferiority
    classes: tuple[ClassRow, ...]
    alpha: float
    alpha_interval: Interval
    icc: ICC
    selves: tuple[SelfAgreement, ...]
    half_width: float


def findings(scores: Scores, *, margin: float = 1.0, replicates: int = 2000, seed: int = 0) -> Findings:
    """Make all statistics of a study.

    Raises
    ------
    PathUpError
        No reader has answered images of both arms, or the margin is not above 0.
    """
    area = mean_auc(scores, replicates=replicates, seed=seed)
    arms = [[row[scores.synthetic == arm] for arm in (False, True)] for row in scores.values]
    counts = int((~scores.synthetic).sum()), int(scores.synthetic.sum())
    return Findings(
        quality=quality_table(scores),
        aucs=tuple(float(value) for value in reader_aucs(scores)),
        auc_intervals=tuple(delong_interval(real, synthetic) for real, synthetic in arms),
        auc=area,
        comparison=non_inferiority(scores, margin, replicates=replicates, seed=seed),
        classes=by_class(scores, replicates=replicates, seed=seed),
        alpha=krippendorff_alpha(scores.values),
        alpha_interval=alpha_interval(scores.values, replicates=replicates, seed=seed),
        icc=icc(scores.values),
        selves=self_agreement(scores, replicates=replicates, seed=seed),
        half_width=expected_half_width(min(max(area.value, 0.5), 0.99), *counts),
    )
