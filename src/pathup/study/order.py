"""In which order a reader sees the images: a function of the study's seed and the reader's place.

Some images come a second time, far from the first, so that every reader can be measured against themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pathup import draws

__all__ = ["repeated_images", "viewing_order"]

APART = 0.25
"""A repeat comes after at least this share of the images since the first time."""


def repeated_images(synthetic: Sequence[bool], share: float, seed: int, reader: int) -> list[int]:
    """Which images a reader sees twice: a share of all, from each arm as many (or one more), drawn by seed."""
    count = round(share * len(synthetic))
    arms = [[place for place, made in enumerate(synthetic) if made == arm] for arm in (False, True)]
    draw = draws.numpy_generator(seed, "repeats", reader)
    first = int(draw.integers(2))  # which arm has one more, where the number is odd
    numbers = {first: -(-count // 2), 1 - first: count // 2}
    return sorted(int(place) for arm, own in enumerate(arms) for place in draw.permutation(own)[: numbers[arm]])


def viewing_order(synthetic: Sequence[bool], share: float, seed: int, reader: int) -> list[int]:
    """The images that a reader sees, by index, repeats among them.

    Parameters
    ----------
    synthetic
        Of each image, whether it is.
    share
        Of the images that come twice, 0 to 0.5.
    seed
        Of the study.
    reader
        The reader's place among the readers: all have orders of their own.
    """
    draw, count = draws.numpy_generator(seed, "order", reader), len(synthetic)
    repeats = repeated_images(synthetic, share, seed, reader)
    apart = int(np.ceil(APART * count))
    early = draw.permutation(count - apart)  # where the first of two may stand
    order = [int(image) for image in draw.permutation(count)]
    for image, place in zip(repeats, early, strict=False):  # swapped there, so all other places stay as drawn
        now = order.index(image)
        order[now], order[place] = order[place], order[now]
    for image in draw.permutation(repeats):
        first = order.index(int(image))
        order.insert(int(draw.integers(first + 1 + apart, len(order) + 1)), int(image))
    return order
