from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pathup.study.order import APART, repeated_images, viewing_order

ARMS = st.lists(st.booleans(), min_size=2, max_size=60).map(lambda half: half + [not one for one in half])


@given(ARMS, st.floats(0, 0.5), st.integers(0, 5), st.integers(0, 3))
def test_every_image_comes_and_repeats_come_once_more_far_from_the_first(arms, share, seed, reader):
    order, repeats = viewing_order(arms, share, seed, reader), repeated_images(arms, share, seed, reader)
    assert len(repeats) == round(share * len(arms)) == len(set(repeats))
    assert sorted(order) == sorted([*range(len(arms)), *repeats])
    for image in repeats:
        first = order.index(image)
        assert order.index(image, first + 1) - first >= APART * len(arms)
    made = sum(arms[image] for image in repeats)
    assert abs(2 * made - len(repeats)) <= 1  # as many of each arm, or one more


def test_orders_are_a_function_of_seed_and_reader():
    arms = [False, True] * 40
    assert viewing_order(arms, 0.1, 3, 0) == viewing_order(arms, 0.1, 3, 0)
    assert len({tuple(viewing_order(arms, 0.1, seed, reader)) for seed in (3, 4) for reader in (0, 1)}) == 4


def test_places_tell_nothing_of_the_arm():
    """Over many readers each place holds synthetic images half of the time; 400 draws of a half lie within 0.4 to 0.6
    but for one in 16,000 (binomial), and there are 44 places."""
    arms = [False] * 20 + [True] * 20
    orders = [viewing_order(arms, 0.1, 0, reader) for reader in range(400)]
    for place in range(len(orders[0])):
        assert 0.4 <= sum(arms[order[place]] for order in orders) / 400 <= 0.6
