"""Table 5 has the paper's kind of spread; classes are told apart; what nobody answered is NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pathup.study.discrimination import mean_auc, mean_difference
from pathup.study.tables import by_class, quality_table
from tests.study.made_scores import CLASSES, study, whole

PAPER = {
    "real": "8.167 0.235, 8.333 0.249, 7.967 0.772, 8.500 0.245, 7.667 0.330, 7.300 0.408, 8.633 0.464",
    "synthetic": "8.233 0.704, 7.533 0.411, 7.500 0.779, 7.367 0.519, 7.533 0.492, 7.467 0.624, 8.333 0.556",
}
"""Table 5's cells: mean and spread over three readers of the mean of ten scores."""


def possible(mean, spread, ddof):
    """Sums of ten whole scores of three readers, (K, 3), that print as this cell (rounded or cut: within 0.001)."""
    one, other = np.mgrid[10:101, 10:101].reshape(2, -1)
    sums = np.stack([one, other, round(30 * mean) - one - other], 1)
    sums = sums[(np.diff(sums, axis=1) >= 0).all(1) & (sums[:, 2] <= 100)]
    return sums[np.abs(sums.std(axis=1, ddof=ddof) / 10 - spread) < 1e-3]


def ten_scores(total):
    """Ten whole scores of this sum."""
    return np.full(10, total // 10) + (np.arange(10) < total % 10)


@pytest.mark.parametrize("arm", PAPER)
def test_the_papers_spreads_divide_by_the_number_of_readers(arm):
    cells = [tuple(map(float, cell.split())) for cell in PAPER[arm].split(",")]
    assert not any(len(possible(*cell, ddof=1)) for cell in cells)
    sums = [possible(*cell, ddof=0)[0] for cell in cells]
    values = [[score for own in sums for score in ten_scores(own[reader])] for reader in range(3)]
    row = quality_table(study(values, [arm == "synthetic"] * 70, np.repeat(CLASSES, 10)))[arm == "synthetic"]
    assert row.arm == arm
    for (mean, spread), quality in zip(cells, row.classes.values(), strict=True):
        assert (quality.mean, quality.std) == (pytest.approx(mean, abs=1e-3), pytest.approx(spread, abs=1e-3))
    assert row.overall.mean == pytest.approx({"real": 8.081, "synthetic": 7.709}[arm], abs=1e-3)


def test_the_column_mean_counts_classes_alike_and_fits_the_difference():
    scores = whole(0, missing=0.2)
    real, synthetic = quality_table(scores)
    assert tuple(real.classes) == CLASSES
    assert real.overall.mean == pytest.approx(np.mean([quality.mean for quality in real.classes.values()]))
    found = mean_difference(scores, replicates=10).value
    assert synthetic.overall.mean - real.overall.mean == pytest.approx(found)


def test_what_nobody_answered_is_unknown():
    scores = study([[8, 6, np.nan], [9, 7, np.nan]], [False, True, False], ["N", "N", "IC"])
    real, synthetic = quality_table(scores)
    assert (real.classes["N"].mean, real.classes["N"].std) == (8.5, 0.5)
    assert math.isnan(real.classes["IC"].mean)
    assert (synthetic.overall.mean, synthetic.overall.std) == (6.5, 0.5)
    row = by_class(scores, replicates=10)[1]
    assert (row.label, row.real, row.synthetic, row.auc.readers) == ("IC", 1, 0, 0)
    assert np.isnan([row.auc.value, *row.auc.widest, row.real_mean, row.synthetic_mean, row.synthetic_share]).all()


def test_one_reader_has_no_spread():
    real, _ = quality_table(whole(0, readers=1))
    assert np.isnan([real.overall.std, real.classes["N"].std]).all()


def test_a_row_of_a_class_is_of_its_images_alone():
    scores = whole(1, missing=0.1)
    rows = by_class(scores, replicates=20, seed=5)
    assert tuple(row.label for row in rows) == CLASSES
    for row in rows:
        part = scores.of_class(row.label)
        assert (row.real, row.synthetic) == (10, 10)
        assert row.auc == mean_auc(part, replicates=20, seed=5)
        real = part.values[:, ~part.synthetic]
        assert row.real_mean == pytest.approx(np.nanmean(real, axis=1).mean())
        shares = [(own[~np.isnan(own)] >= 6).mean() for own in real]
        assert row.real_share == pytest.approx(np.mean(shares))


def test_the_threshold_itself_counts_as_rather_real():
    scores = study([[6, 5, 6, 7]], [True, True, False, False])
    (row,) = by_class(scores, replicates=10)
    assert (row.synthetic_share, row.real_share) == (0.5, 1)
    (row,) = by_class(scores, threshold=7, replicates=10)
    assert (row.synthetic_share, row.real_share) == (0, 0.5)
