"""Draws keep the strata; intervals with one reader, with readers that differ, and with figures that are missing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pathup.study.resampling import analytic_interval, case_counts, estimate, percentile_interval


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(0, 100))
def test_every_stratum_is_drawn_at_its_own_size(strata, seed):
    strata = np.array(strata)
    counts = case_counts(strata, 5, np.random.default_rng(seed))
    for stratum in set(strata.tolist()):
        assert (counts[:, strata == stratum].sum(1) == (strata == stratum).sum()).all()


def test_a_percentile_interval_leaves_out_what_is_unknown():
    known = np.linspace(0, 1, 101)
    assert percentile_interval(np.append(known, np.nan), 0.9) == pytest.approx((0.05, 0.95))
    assert np.isnan(percentile_interval(np.array([np.nan]), 0.9)).all()


def test_without_common_images_the_analytic_interval_is_students_t_over_readers():
    figures = np.array([0.6, 0.7, 0.9])
    ours = analytic_interval(figures, np.diag([0.01, 0.02, 0.03]), 0.95)
    theirs = stats.t.interval(0.95, 2, loc=figures.mean(), scale=stats.sem(figures))
    assert ours == pytest.approx(theirs)
    negative = analytic_interval(figures, -np.ones((3, 3)), 0.95)  # counts as none
    assert negative == pytest.approx(theirs)


def test_the_analytic_interval_by_hand():
    # MS = 0.02, c = 0.01, R = 2: variance 0.02 / 2 + 0.01 = 0.02, degrees of freedom (0.02 + 0.02)^2 / 0.02^2 = 4
    low, high = analytic_interval(np.array([0.5, 0.7]), np.full((2, 2), 0.01), 0.95)
    assert (low, high) == pytest.approx((0.6 - 2.776445 * np.sqrt(0.02), 0.6 + 2.776445 * np.sqrt(0.02)))


def made(values, influence=None, level=0.9, **kwargs):
    """An estimate whose figures do not depend on images."""
    values = np.array(values, dtype=float)
    influence = np.zeros((len(values), 4)) if influence is None else influence
    settings = {"replicates": 500, "seed": 0, "level": level, **kwargs}
    return estimate(values, influence, lambda counts: np.tile(values, (len(counts), 1)), np.zeros(4, int), **settings)


def test_one_reader_cannot_be_generalised_over():
    found = made([0.7])
    assert (found.value, found.readers, found.generalises) == (0.7, 1, False)
    assert np.isnan([*found.bootstrap, *found.analytic]).all()
    assert found.widest == found.fixed_readers == (0.7, 0.7)


def test_readers_without_a_figure_are_left_out():
    assert made([0.5, np.nan, 0.7]) == made([0.5, 0.7])
    none = made([np.nan, np.nan])
    assert (none.readers, none.generalises) == (0, False)
    assert np.isnan([none.value, *none.widest]).all()


def test_the_bootstrap_of_few_readers_stays_within_them_and_the_analytic_interval_does_not():
    found = made([0.5, 0.6, 0.8], level=0.95, replicates=5000)
    assert found.bootstrap == pytest.approx((0.5, 0.8))  # a reader is drawn three times in 1 of 27, above 2.5 %
    assert found.analytic[0] < 0.5
    assert found.analytic[1] > 0.8
    assert found.fixed_readers == pytest.approx((found.value, found.value))
    assert found.widest == found.analytic


def test_a_replicate_that_a_reader_lacks_goes_by_the_others():
    def recount(counts):
        figures = np.tile([0.2, 0.4], (len(counts), 1))
        figures[:, 1] = np.nan
        return figures

    found = estimate(
        np.array([0.2, 0.4]), np.zeros((2, 4)), recount, np.zeros(4, int), replicates=50, seed=0, level=0.9
    )
    assert found.fixed_readers == pytest.approx((0.2, 0.2))
    assert found.bootstrap == pytest.approx((0.2, 0.2))
