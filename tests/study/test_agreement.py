"""Published worked examples, what agreement measures must not depend on, and what is undefined."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from statsmodels.formula.api import ols

from pathup.study.agreement import alpha_interval, icc, krippendorff_alpha, self_agreement
from tests.study.made_scores import study, whole

_ = np.nan
KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
)
"""Krippendorff (2011), section C: four observers, twelve units, the last of them with a single score."""

SHROUT_FLEISS = np.array([[9, 6, 8, 7, 10, 6], [2, 1, 4, 1, 5, 2], [5, 3, 6, 2, 6, 4], [8, 2, 8, 6, 9, 7]], dtype=float)
"""Shrout and Fleiss (1979), table 2: four judges, six targets."""

tables = st.lists(
    st.lists(st.one_of(st.integers(1, 10).map(float), st.just(math.nan)), min_size=3, max_size=3),
    min_size=1,
    max_size=12,
).map(lambda rows: np.array(rows).T)
"""Three readers, up to twelve images, missing answers anywhere."""


@pytest.mark.parametrize(("metric", "printed"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_krippendorffs_example(metric, printed):
    assert krippendorff_alpha(KRIPPENDORFF, metric) == pytest.approx(printed, abs=5e-4)  # printed with three digits


def slow_alpha(values, metric):
    """Krippendorff's definition, pair by pair, with the ordinal difference as its sum over scores between."""
    units = [[v for v in unit if not math.isnan(v)] for unit in values.T]
    units = [unit for unit in units if len(unit) > 1]
    pool = [v for unit in units for v in unit]

    def square(one, other):
        if metric == "nominal":
            return float(one != other)
        if metric == "interval":
            return (one - other) ** 2
        low, high = min(one, other), max(one, other)
        between = sum(low <= v <= high for v in pool) - (pool.count(low) + pool.count(high)) / 2
        return between**2 if one != other else 0.0

    observed = sum(square(a, b) / (len(unit) - 1) for unit in units for a in unit for b in unit)
    expected = sum(square(a, b) for a in pool for b in pool)
    return 1 - (len(pool) - 1) * observed / expected if expected else math.nan


@settings(deadline=None)
@given(tables, st.sampled_from(["nominal", "ordinal", "interval"]))
def test_alpha_is_its_definition(values, metric):
    assert krippendorff_alpha(values, metric) == pytest.approx(slow_alpha(values, metric), nan_ok=True)


@settings(deadline=None)
@given(tables, st.randoms(use_true_random=False), st.sampled_from(["nominal", "ordinal", "interval"]))
def test_alpha_knows_no_order_of_images_or_readers(values, random, metric):
    images, readers = list(range(values.shape[1])), [0, 1, 2]
    random.shuffle(images)
    random.shuffle(readers)
    shuffled = values[np.ix_(readers, images)]
    assert krippendorff_alpha(shuffled, metric) == pytest.approx(krippendorff_alpha(values, metric), nan_ok=True)


@settings(deadline=None)
@given(tables)
def test_alpha_depends_on_no_more_than_its_scale_says(values):
    assert krippendorff_alpha(values**3) == pytest.approx(krippendorff_alpha(values), nan_ok=True)  # order is kept
    assert krippendorff_alpha(7 - 2 * values, "interval") == pytest.approx(
        krippendorff_alpha(values, "interval"), nan_ok=True
    )
    other_names = (values * 3) % 11  # 11 is prime: ten names for ten scores
    assert krippendorff_alpha(other_names, "nominal") == pytest.approx(
        krippendorff_alpha(values, "nominal"), nan_ok=True
    )


@pytest.mark.parametrize("metric", ["nominal", "ordinal", "interval"])
def test_perfect_agreement_is_one_with_certainty(metric):
    values = np.tile(np.arange(1.0, 11.0), (3, 1))
    values[0, 4] = np.nan
    assert krippendorff_alpha(values, metric) == 1
    assert alpha_interval(values, metric, replicates=100) == (1, 1)


@pytest.mark.parametrize(
    "values",
    [
        np.full((3, 8), 7.0),  # all scores equal
        np.array([[1.0, 2.0, 3.0]]),  # one reader
        np.array([[1.0, np.nan], [np.nan, 2.0]]),  # no image with two scores
        np.full((2, 3), np.nan),
        np.empty((2, 0)),
    ],
)
def test_alpha_is_undefined_where_nothing_can_be_compared(values):
    assert math.isnan(krippendorff_alpha(values))
    assert np.isnan(alpha_interval(values, replicates=10)).all()


def test_an_image_with_one_score_changes_nothing():
    assert krippendorff_alpha(KRIPPENDORFF[:, :11]) == krippendorff_alpha(KRIPPENDORFF)


def test_interval_alpha_compares_spread_within_images_with_all_spread():
    values = whole(0).values
    within, everything = values.var(axis=0, ddof=1).mean(), values.var(ddof=1)
    assert krippendorff_alpha(values, "interval") == pytest.approx(1 - within / everything)


def test_readers_who_guess_agree_by_chance_alone():
    values = np.random.default_rng(0).integers(1, 11, size=(3, 140)).astype(float)
    assert abs(krippendorff_alpha(values)) < 0.15  # 3 pairs of readers, each with a spread of 1 / sqrt(140) = 0.085
    low, high = alpha_interval(values, replicates=300)
    assert low < 0 < high


def test_the_interval_of_alpha_is_of_the_seed_and_as_wide_as_alpha_varies():
    values = whole(1).values
    low, high = alpha_interval(values, seed=3, replicates=500)
    assert (low, high) == alpha_interval(values, seed=3, replicates=500)
    assert low < krippendorff_alpha(values) < high
    varied = [krippendorff_alpha(whole(seed).values) for seed in range(100)]
    # of 100 draws a standard deviation is known to 7 %; each study has its own readers, which widens theirs a little
    assert (high - low) / 3.92 == pytest.approx(np.std(varied), rel=0.4)


def test_shrout_and_fleiss_example():
    found = icc(SHROUT_FLEISS)
    ours = [found.icc11, found.icc21, found.icc31, found.icc1k, found.icc2k, found.icc3k]
    assert ours == pytest.approx([0.17, 0.29, 0.71, 0.44, 0.62, 0.91], abs=5e-3)  # printed with two digits
    assert found.interval21 == pytest.approx((0.019, 0.761), abs=5e-4)  # as R's psych and irr give on these data
    assert (found.readers, found.images) == (4, 6)


def test_mean_squares_are_those_of_statsmodels():
    values = whole(2).values[:, :30]
    table = pd.DataFrame({"score": values.ravel(), "reader": np.repeat(range(3), 30), "image": np.tile(range(30), 3)})
    squares = sm.stats.anova_lm(ols("score ~ C(image) + C(reader)", table).fit())
    mean = squares["sum_sq"] / squares["df"]
    between, readers, rest = mean["C(image)"], mean["C(reader)"], mean["Residual"]
    found = icc(values)
    assert found.icc21 == pytest.approx((between - rest) / (between + 2 * rest + 3 * (readers - rest) / 30))
    assert found.icc3k == pytest.approx((between - rest) / between)


def test_a_shift_between_readers_counts_as_error_in_21_but_not_in_31():
    values = np.array([[1.0, 3, 5, 7], [3.0, 5, 7, 9]])
    found = icc(values)
    assert found.icc31 == pytest.approx(1)
    assert found.icc21 < 0.85


def test_icc_takes_complete_images_and_is_undefined_without_any_difference():
    gap = SHROUT_FLEISS.copy()
    gap[0, 2] = np.nan
    assert icc(gap) == icc(np.delete(SHROUT_FLEISS, 2, axis=1))
    for values in (np.full((3, 5), 4.0), SHROUT_FLEISS[:1], SHROUT_FLEISS[:, :1], np.full((2, 4), np.nan)):
        found = icc(values)
        assert np.isnan([found.icc11, found.icc21, found.icc31, found.icc1k, *found.interval21]).all()


def test_perfect_agreement_has_an_icc_of_one():
    found = icc(np.tile([2.0, 5.0, 9.0], (3, 1)))
    assert (found.icc21, found.interval21) == (1, (1, 1))


def test_readers_against_themselves():
    first = np.array([[2, 4, 6, 8, 10, 1], [5, 5, 5, 5, 5, 5], [1, 2, 3, 4, 5, 6]], dtype=float)
    again = np.array([[2, 5, 6, 9, np.nan, np.nan], [5, 5, np.nan, np.nan, np.nan, np.nan], [np.nan] * 6])
    one, even, none = self_agreement(study(first, [0, 0, 0, 1, 1, 1], repeats=again), replicates=200)
    assert (one.images, one.mean_absolute_difference, one.mean_change) == (4, 0.5, 0.5)
    assert one.alpha == krippendorff_alpha(np.array([[2, 4, 6, 8], [2, 5, 6, 9]], dtype=float))
    assert one.interval[0] <= one.alpha <= one.interval[1]
    assert (even.images, even.mean_absolute_difference) == (2, 0)
    assert math.isnan(even.alpha)  # all scores are equal
    assert none.images == 0
    assert np.isnan([none.alpha, none.mean_absolute_difference, none.mean_change, *none.interval]).all()


def test_interval_alpha_is_near_the_quadratic_weighted_kappa():
    rng = np.random.default_rng(0)
    first = rng.integers(2, 10, size=400)
    pair = np.stack([first, first + rng.integers(-1, 2, size=400)])
    kappa = cohen_kappa_score(*pair, weights="quadratic")
    assert krippendorff_alpha(pair.astype(float), "interval") == pytest.approx(
        kappa, abs=2 / 400
    )  # they differ by 1 / n
