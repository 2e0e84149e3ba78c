"""Learning rate, EMA and the order of tiles, as functions of the step alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathup.training.schedules import TileOrder, ema_decay, learning_rate


def test_the_learning_rate_rises_holds_and_falls():
    rates = [learning_rate(step, peak=2.0, warmup=4, total=20, decay=5) for step in range(20)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert set(rates[4:16]) == {2.0}
    assert rates[16:] == pytest.approx([1.6, 1.2, 0.8, 0.4])


def test_the_ema_follows_quickly_at_first_and_then_at_its_decay():
    assert ema_decay(0, 0.999) == 0.1
    assert ema_decay(10**6, 0.999) == 0.999


@given(count=st.integers(1, 50), epoch=st.integers(0, 5), seed=st.integers(0, 9))
def test_an_epoch_sees_every_tile_once(count, epoch, seed):
    order = TileOrder([("A", "patch")] * count, seed=seed, balanced=False)
    assert sorted(order[epoch * count + i] for i in range(count)) == list(range(count))


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_balanced_order_draws_every_group_equally_often_and_each_groups_tiles_in_epochs(sizes, seed):
    groups = [number for number, size in enumerate(sizes) for _ in range(size)]
    order = TileOrder(groups, seed=seed, balanced=True)
    rounds = 3 * max(sizes)
    seen = [order[position] for position in range(rounds * len(sizes))]
    assert set(Counter(groups[tile] for tile in seen).values()) == {rounds}
    for number, size in enumerate(sizes):
        of_group = [tile for tile in seen if groups[tile] == number]
        assert len(set(of_group[:size])) == size  # none twice before all once


def test_the_order_is_a_function_of_seed_and_position():
    groups = list("aabbbc")
    one, other = (TileOrder(groups, seed=4, balanced=True) for _ in range(2))
    forward = [one[p] for p in range(40)]
    backward = [other[p] for p in reversed(range(40))]
    assert forward == backward[::-1]
    assert forward != [TileOrder(groups, seed=5, balanced=True)[p] for p in range(40)]
