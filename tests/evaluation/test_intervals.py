from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathup.errors import PathUpError
from pathup.evaluation.intervals import Units, about, mean_deviations, proportion, relative, unknown_interval


def test_units_are_images_or_groups() -> None:
    single = Units.of(3, None, "real")
    assert single.index_N.tolist() == [0, 1, 2] and single.count == 3 and not single.grouped
    grouped = Units.of(4, ["b", "a", "b", "b"], "real")
    assert grouped.index_N.tolist() == [0, 1, 0, 0] and grouped.sizes.tolist() == [3, 1] and grouped.grouped
    with pytest.raises(PathUpError, match="2 groups were given for 3 real images"):
        Units.of(3, ["a", "b"], "real")


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 30), st.integers(1, 20), st.integers(0, 99))
def test_draws_are_of_whole_units_and_of_the_seed(count: int, replicates: int, seed: int) -> None:
    units = Units.of(3 * count, np.arange(3 * count) % count, "real")
    drawn = units.multiplicities(replicates, seed, "x")
    assert drawn.shape == (count, replicates) and (drawn.sum(0) == count).all()
    assert np.array_equal(drawn, units.multiplicities(replicates, seed, "x"))
    halves = units.halves(replicates, seed, "x")
    assert halves.shape == (replicates, 3 * count)
    for half in halves:
        assert set(np.bincount(units.index_N[half], minlength=count)) <= {0, 3}
        assert half.sum() in (3 * (count // 2), 3 * ((count + 1) // 2))


def test_the_mean_of_single_values_varies_as_theory_says() -> None:
    values = np.random.default_rng(0).normal(size=400)
    units = Units.of(400, None, "real")
    moved = mean_deviations(values, units, units.multiplicities(4000, 0))
    # the standard error of a mean; 4,000 replicates know it to 1.1 % (1 / sqrt(2 B)), so 4 % is far out
    assert moved.std() == pytest.approx(values.std(ddof=1) / 20, rel=0.04)
    assert abs(moved.mean()) < 4 * moved.std() / 4000**0.5


def test_groups_that_are_alike_widen_an_interval() -> None:
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 20)
    values = generator.normal(size=20)[groups] + 0.1 * generator.normal(size=400)
    widths = []
    for given_groups in (None, groups):
        units = Units.of(400, given_groups, "real")
        interval = about(values.mean(), mean_deviations(values, units, units.multiplicities(1000, 0)))
        assert interval["low"] is not None and interval["high"] is not None
        widths.append(interval["high"] - interval["low"])
    assert 3 < widths[1] / widths[0] < 6  # 20 images of a region count as one: about sqrt(20) = 4.5


def test_an_interval_stands_about_the_figure() -> None:
    interval = about(5.0, 100 + np.random.default_rng(0).normal(size=20_000))  # a centre that is not the figure
    assert interval == pytest.approx({"value": 5, "low": 5 - 1.96, "high": 5 + 1.96}, abs=0.1)
    assert about(5.0, np.array([])) == about(5.0, np.array([np.nan])) == unknown_interval(5.0)
    assert unknown_interval(5.0) == {"value": 5, "low": None, "high": None}


def test_a_share_stays_a_share() -> None:
    # in the middle, angles are shares but for a factor: a standard deviation of 0.02 to each side 1.96 times
    interval = proportion(0.5, 0.3 + 0.02 * np.random.default_rng(0).normal(size=20_000), 50)
    # ... of a half with the share 0.3, as sqrt(0.3 * 0.7) is to sqrt(0.5 * 0.5)
    spread = 1.96 * 0.02 * (0.25 / 0.21) ** 0.5
    assert interval == pytest.approx({"value": 0.5, "low": 0.5 - spread, "high": 0.5 + spread}, abs=2e-3)
    near = proportion(0.99, np.array([0.9, 0.95, 1.0]), 50)
    assert 0 < near["low"] < 0.9 and near["high"] == 1
    # 50 of 50: Clopper and Pearson's lower end is 0.025^(1/50) = 0.9289
    assert proportion(1.0, np.ones(4), 50) == pytest.approx({"value": 1, "low": 0.9289, "high": 1}, abs=1e-4)
    assert proportion(0.0, np.zeros(4), 50) == pytest.approx({"value": 0, "low": 0, "high": 0.0711}, abs=1e-4)


def test_a_figure_without_limit_spreads_in_proportion() -> None:
    halves = np.array([1.0, 2.0, 3.0])  # mean 2, standard deviation 1
    assert relative(10.0, halves) == pytest.approx({"value": 10, "low": 10 - 9.8, "high": 10 + 9.8}, abs=0.01)
    assert relative(0.0, np.zeros(3)) == {"value": 0, "low": 0, "high": 0}
