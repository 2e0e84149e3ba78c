"""Draws are functions of (seed, keys)."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pathup import draws


def test_the_same_keys_draw_the_same_and_others_draw_others():
    one = draws.normal((4, 3), 7, "noise", 12)
    torch.randn(100)  # a running generator has no say
    assert torch.equal(one, draws.normal((4, 3), 7, "noise", 12))
    assert not torch.equal(one, draws.normal((4, 3), 7, "noise", 13))
    assert not torch.equal(one, draws.normal((4, 3), 8, "noise", 12))


def test_seeds_are_fixed_for_ever():
    # images made today must be the same after any release: a changed value here breaks every kept seed
    assert draws.seed_of(0, "noise", 1) == 4426277747127000467


@given(seed=st.integers(0, 2**40), keys=st.lists(st.one_of(st.integers(0, 99), st.text(max_size=3)), max_size=3))
def test_seeds_fit_every_generator(seed, keys):
    assert 0 <= draws.seed_of(seed, *keys) < 2**63


@given(count=st.integers(1, 60), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_an_epoch_is_a_permutation(count, seed, epoch):
    places = [draws.shuffled_index(seed, epoch * count + i, count) for i in range(count)]
    assert sorted(places) == list(range(count))
