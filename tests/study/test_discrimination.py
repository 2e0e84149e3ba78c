"""AUC is scikit-learn's; intervals are DeLong's and cover; published figures; missing answers; who is not inferior."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from pathup import draws
from pathup.errors import PathUpError
from pathup.study.discrimination import (
    auc,
    delong_interval,
    expected_half_width,
    hanley_mcneil_error,
    mean_auc,
    mean_difference,
    non_inferiority,
    reader_aucs,
)
from pathup.study.resampling import case_counts
from tests.study.made_scores import CLASSES, binormal, binormal_auc, study, whole

ABNORMAL = np.repeat([1.0, 2, 3, 4, 5], [3, 2, 2, 11, 33])
NORMAL = np.repeat([1.0, 2, 3, 4, 5], [33, 6, 6, 11, 2])
"""Hanley and McNeil (1982), table I: one reader's ratings of 51 abnormal and 58 normal CT images."""

arms = st.tuples(*[st.lists(st.integers(1, 10).map(float), min_size=1, max_size=30).map(np.array) for _ in range(2)])


def mirrored(scores):
    """The study with real and synthetic in each other's place."""
    return study(scores.values, ~scores.synthetic, scores.labels)


@given(arms)
def test_auc_is_scikit_learns_and_a_count_of_pairs(both):
    real, synthetic = both
    truth = np.repeat([1, 0], [len(real), len(synthetic)])
    assert auc(real, synthetic) == pytest.approx(roc_auc_score(truth, np.concatenate(both)))
    pairs = [1.0 if one > other else 0.5 if one == other else 0.0 for one in real for other in synthetic]
    assert auc(real, synthetic) == pytest.approx(sum(pairs) / len(pairs))


@given(arms)
def test_auc_knows_order_alone_and_turns_round_with_the_arms(both):
    real, synthetic = both
    assert auc(real**3, synthetic**3) == auc(real, synthetic)
    assert auc(np.log(real), np.log(synthetic)) == auc(real, synthetic)
    assert auc(synthetic, real) == pytest.approx(1 - auc(real, synthetic))
    low, high = delong_interval(real, synthetic)
    assert delong_interval(synthetic, real) == pytest.approx((1 - high, 1 - low), nan_ok=True)


def test_a_missing_score_is_left_out_and_an_empty_arm_has_no_auc():
    assert auc(np.array([5, np.nan, 9]), np.array([np.nan, 7])) == auc(np.array([5, 9]), np.array([7.0])) == 0.5
    assert math.isnan(auc(np.array([np.nan]), np.array([3.0])))
    assert np.isnan(delong_interval(np.array([4.0]), np.array([1.0, 2.0]))).all()


def test_delong_by_hand():
    # real 3, 5 against synthetic 1, 4: shares won 1/2, 1 and 1, 1/2; each has variance 1/8, over 2 in either arm
    low, high = delong_interval(np.array([3.0, 5.0]), np.array([1.0, 4.0]), level=0.5)
    half = stats.norm.ppf(0.75) * math.sqrt(1 / 16 + 1 / 16)
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half))


def test_delong_on_published_ratings():
    assert auc(ABNORMAL, NORMAL) == pytest.approx(0.893, abs=5e-4)  # the paper's area
    # Stata's manual, [R] roctab, on the same ratings: area 0.8932, DeLong interval 0.83295 to 0.95339
    assert auc(ABNORMAL, NORMAL) == pytest.approx(0.8932, abs=5e-5)
    assert delong_interval(ABNORMAL, NORMAL) == pytest.approx((0.83295, 0.95339), abs=5e-6)


def test_hanley_and_mcneil_on_their_ratings_and_at_chance():
    assert hanley_mcneil_error(0.893, 51, 58) == pytest.approx(0.032, abs=1e-3)  # printed, from the ratings themselves
    # at A = 0.5 it is the variance of Mann and Whitney's U under the null hypothesis, (m + n + 1) / (12 m n)
    assert hanley_mcneil_error(0.5, 70, 50) == pytest.approx(math.sqrt(121 / (12 * 70 * 50)))
    assert hanley_mcneil_error(0.2, 30, 60) == pytest.approx(hanley_mcneil_error(0.8, 60, 30))
    # 70 and 70 images at chance: 1.96 sqrt(141 / 58800)
    assert expected_half_width(0.5, 70, 70) == pytest.approx(0.09598, abs=5e-6)
    assert expected_half_width(0.5, 280, 280) == pytest.approx(0.09598 / 2, rel=0.01)  # four times as many: half


def test_the_half_width_that_is_expected_is_what_delong_finds():
    found = [np.diff(delong_interval(*split(binormal(seed, 0.5, readers=1))))[0] / 2 for seed in range(50)]
    # normal scores are not exponential ones: a few per cent apart at an AUC of 0.64
    assert expected_half_width(binormal_auc(0.5), 70, 70) == pytest.approx(np.mean(found), rel=0.05)


def split(scores):
    """One reader's real and synthetic scores."""
    return scores.values[0, ~scores.synthetic], scores.values[0, scores.synthetic]


@pytest.mark.parametrize("wrong", [(1.1, 5, 5), (0.7, 0, 5), (float("nan"), 5, 5)])
def test_a_plan_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(PathUpError):
        hanley_mcneil_error(*wrong)


def test_replicates_are_the_auc_of_images_counted_as_often_as_drawn():
    scores = whole(0, missing=0.1)
    strata = 2 * scores.class_indices + scores.synthetic
    counts = case_counts(strata, 15, draws.numpy_generator(7, "cases of readers"))
    slow = []
    for row in counts:
        figures = []
        for values in scores.values:
            known = ~np.isnan(values)
            figures.append(roc_auc_score(~scores.synthetic[known], values[known], sample_weight=row[known]))
        slow.append(np.mean(figures))
    found = mean_auc(scores, replicates=15, seed=7)
    assert found.fixed_readers == pytest.approx(np.quantile(slow, [0.025, 0.975]))
    assert found.value == pytest.approx(reader_aucs(scores).mean())


def test_readers_who_are_one_have_delongs_interval():
    own = whole(3, missing=0.1, readers=1)
    one_class = study(np.tile(own.values, (3, 1)), own.synthetic)
    # no spread over readers and, with one class, no strata: what is left is the variance from images
    assert mean_auc(one_class, replicates=10).analytic == pytest.approx(delong_interval(*split(own)))


def test_readers_who_are_one_have_the_two_sample_interval_of_means_within_classes():
    own = whole(4, readers=1)
    found = mean_difference(study(np.tile(own.values, (3, 1)), own.synthetic, own.labels), replicates=10)
    variance = 0.0
    for label in CLASSES:
        real, synthetic = split(own.of_class(label))
        variance += (real.var(ddof=1) / 10 + synthetic.var(ddof=1) / 10) / len(CLASSES) ** 2
    assert np.ptp(found.analytic) / 2 == pytest.approx(stats.norm.ppf(0.975) * math.sqrt(variance))
    assert found.value == pytest.approx(split(own)[1].mean() - split(own)[0].mean())


@pytest.mark.parametrize("statistic", [mean_auc, mean_difference])
def test_bootstrap_and_analytic_interval_agree_where_they_should(statistic):
    # many like readers: both are about the variance from images; resampled strata of ten have 9/10 of it, so 5 %
    # narrower, and of 1,000 replicates a half-width is known to 3 %
    found = statistic(binormal(5, 0.5, readers=12), replicates=1000)
    assert np.ptp(found.bootstrap) == pytest.approx(np.ptp(found.analytic), rel=0.15)


@pytest.mark.parametrize("statistic", [mean_auc, mean_difference])
def test_figures_know_no_order_of_images(statistic):
    scores = whole(6, missing=0.1)
    order = np.random.default_rng(0).permutation(len(scores.images))
    labels = np.array(scores.labels)[order]
    one = statistic(scores, replicates=10)
    other = statistic(study(scores.values[:, order], scores.synthetic[order], labels), replicates=10)
    assert other.value == pytest.approx(one.value)
    assert other.analytic == pytest.approx(one.analytic)
    assert statistic(scores, replicates=50, seed=1) == statistic(scores, replicates=50, seed=1)
    assert statistic(scores, replicates=50, seed=1).bootstrap != statistic(scores, replicates=50, seed=2).bootstrap


def test_swapped_arms_turn_every_interval_round():
    scores = whole(8, missing=0.1)
    one, other = mean_auc(scores, replicates=10), mean_auc(mirrored(scores), replicates=10)
    assert other.analytic == pytest.approx((1 - one.analytic[1], 1 - one.analytic[0]))
    one, other = mean_difference(scores, replicates=10), mean_difference(mirrored(scores), replicates=10)
    assert other.analytic == pytest.approx((-one.analytic[1], -one.analytic[0]))


STUDIES = 60
FEWEST = int(stats.binom.ppf(0.005, STUDIES, 0.95))  # 52: with 95 % coverage, fewer happen in 0.3 % of runs


@pytest.mark.parametrize(
    ("separation", "spread", "trusted"),
    [
        (0.5, 0.2, ["bootstrap", "analytic"]),  # AUC 0.64, spread over readers 0.05
        (0.0, 0.0, ["bootstrap", "analytic", "fixed_readers"]),  # guessing
        (0.5, 1.0, ["analytic"]),  # readers differ much (0.23): the bootstrap of three readers is too narrow
    ],
)
def test_intervals_cover_the_true_auc(separation, spread, trusted):
    true = binormal_auc(separation, spread)
    covered = dict.fromkeys(["bootstrap", "analytic", "fixed_readers"], 0)
    for seed in range(STUDIES):
        found = mean_auc(binormal(seed, separation, spread), replicates=300, seed=seed)
        for name in covered:
            low, high = getattr(found, name)
            covered[name] += low <= true <= high
    fewest = FEWEST if spread < 1 else int(stats.binom.ppf(0.005, STUDIES, 0.9))  # 90 % in larger simulations
    assert all(covered[name] >= fewest for name in trusted), covered
    if spread == 1:
        assert covered["fixed_readers"] < covered["bootstrap"] < covered["analytic"]


def test_one_reader_has_an_interval_of_their_own_alone():
    found = mean_auc(whole(0, readers=1), replicates=200)
    assert not found.generalises
    assert np.isnan([*found.bootstrap, *found.analytic]).all()
    assert found.fixed_readers[0] < found.value < found.fixed_readers[1]


def test_readers_who_tell_all_apart_leave_no_doubt():
    found = mean_auc(study(np.tile([9.0, 8.0, 9.0, 2.0, 1.0, 3.0], (3, 1)), [0, 0, 0, 1, 1, 1]), replicates=50)
    assert (found.value, found.bootstrap, found.analytic) == (1, (1, 1), (1, 1))


def test_a_reader_of_one_arm_is_left_out():
    scores = whole(1)
    values = scores.values.copy()
    values[2, scores.synthetic] = np.nan
    partly = study(values, scores.synthetic, scores.labels)
    two = study(scores.values[:2], scores.synthetic, scores.labels)
    assert math.isnan(reader_aucs(partly)[2])
    for statistic in (mean_auc, mean_difference):
        assert statistic(partly, replicates=20) == statistic(two, replicates=20)


def test_a_class_of_one_arm_is_left_out_of_the_difference():
    labels, synthetic = ["N", "N", "IC", "IC"], [False, True, False, True]
    scores = study([[8, 6, 9, np.nan], [8, 6, 9, 8]], synthetic, labels)
    assert mean_difference(scores, replicates=10).value == pytest.approx((-2 + (-2 - 1) / 2) / 2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([[5, np.nan], [6, np.nan]], "a synthetic image"),
        ([[np.nan, 5], [np.nan, 6]], "a real image"),
        ([[5, np.nan], [np.nan, 6]], "real and synthetic images both"),
    ],
)
def test_without_answers_to_both_arms_there_is_nothing_to_compare(values, said):
    for statistic in (mean_auc, mean_difference, non_inferiority):
        with pytest.raises(PathUpError, match=said):
            statistic(study(values, [False, True]))


def test_a_difference_needs_a_class_with_both_arms():
    with pytest.raises(PathUpError, match="of one class"):
        mean_difference(study([[5, 6]], [False, True], ["N", "IC"]))


def shifted(by, seed=0, readers=3):
    """Synthetic images that score `by` points lower, with noise of one point."""
    rng = np.random.default_rng(seed)
    synthetic = np.tile([False, True], 70)
    values = 6 - by * synthetic + np.clip(rng.standard_normal((readers, 140)), -3, 3)
    return study(values, synthetic, np.repeat(CLASSES, 20))


def test_who_is_not_inferior():
    # a mean of 3 x 70 scores of spread 1 against as many: standard error about 0.1, so a bound about 0.2 below
    same = non_inferiority(shifted(0.0), replicates=300)
    assert same.non_inferior
    assert same.lower == min(same.difference.bootstrap[0], same.difference.analytic[0])
    assert same.difference.level == 0.9
    assert not non_inferiority(shifted(1.0), replicates=300).non_inferior
    assert not non_inferiority(shifted(2.0), replicates=300).non_inferior
    assert non_inferiority(shifted(1.0), margin=1.6, replicates=300).non_inferior
    assert non_inferiority(shifted(-1.0), margin=0.1, replicates=300).non_inferior


def test_readers_who_differ_much_prove_nothing_about_others():
    scores = shifted(0.0)
    values = np.clip(scores.values + np.array([[0.0], [-0.2], [-2.0]]) * scores.synthetic, 1, 10)
    found = non_inferiority(study(values, scores.synthetic, scores.labels), margin=2.2, replicates=300)
    assert found.difference.bootstrap[0] > -2.2
    assert not found.non_inferior  # the analytic bound, of two degrees of freedom, is far lower


def test_one_readers_verdict_is_of_that_reader():
    found = non_inferiority(shifted(0.0, readers=1), replicates=300)
    assert (found.difference.generalises, found.lower) == (False, found.difference.fixed_readers[0])
    assert found.non_inferior


def test_a_margin_is_above_zero():
    with pytest.raises(PathUpError, match="above 0"):
        non_inferiority(shifted(0.0), margin=-1)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.floats(0, 0.9))
def test_however_many_answers_are_missing_figures_stay_in_range(seed, missing):
    scores = whole(seed, missing=missing)
    found = mean_auc(scores, replicates=20)
    assert 0 <= found.value <= 1
    for low, high in (found.bootstrap, found.analytic, found.fixed_readers):
        assert 0 <= low <= high <= 1
    assert np.isfinite(mean_difference(scores, replicates=20).widest).all()
