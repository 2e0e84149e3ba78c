from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pathup.experiments.seeds import difference, holm, mean_std


def test_a_difference_is_that_of_the_paired_t_test():
    draw = np.random.default_rng(0)
    own, other = draw.normal(1, 1, 7), draw.normal(0, 1, 7)
    found, expected = difference(own, other), stats.ttest_rel(own, other)
    interval = expected.confidence_interval()
    assert (found.p, found.low, found.high) == pytest.approx((expected.pvalue, interval.low, interval.high))
    assert found.mean == pytest.approx(own.mean() - other.mean())


def test_its_interval_holds_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(1)
    gaps = draw.normal(0.3, 1, (2000, 5))
    held = [low <= 0.3 <= high for low, high in ((d.low, d.high) for d in (difference(g, np.zeros(5)) for g in gaps))]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)  # three standard errors of 2,000 draws


def test_without_any_spread_there_is_no_test():
    found = difference(np.full(5, 0.5), np.full(5, 0.25))
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)
    assert found.p is None


def test_the_deviation_is_that_of_a_sample():
    assert mean_std(np.array([1.0, 3.0])) == pytest.approx((2.0, np.sqrt(2)))


def test_p_is_corrected_for_the_number_of_tests_that_gave_one():
    """Holm: the smallest times 3, the next times 2, the largest as it is, none below one before it."""
    assert holm([0.04, None, 0.01, 0.03]) == [pytest.approx(0.06), None, pytest.approx(0.03), pytest.approx(0.06)]
    assert holm([None]) == [None]
    assert holm([]) == []
