"""Random augmentation: repeatable, each part seen, and tissue is left recognisable."""

from __future__ import annotations

import numpy as np
import pytest

from pathup.downstream.augmentation import augmented
from tests.downstream.made import region

PARTS = ["geometry", "colour", "stain", "randaugment"]


@pytest.mark.parametrize("parts", [[part] for part in PARTS] + [PARTS])
def test_an_image_is_changed_by_its_seed_and_keys_alone(parts):
    pixels = region("B", 1, 64)
    found = [augmented(pixels, parts, 0, key) for key in range(12)]
    assert all(image.shape == pixels.shape and image.dtype == np.uint8 for image in found)
    again = [augmented(pixels, parts, 0, key) for key in range(12)]
    assert all(np.array_equal(one, other) for one, other in zip(found, again, strict=True))
    assert sum(not np.array_equal(image, pixels) for image in found) >= 9  # some draws change nothing
    assert len({image.tobytes() for image in found}) >= 9
    assert not np.array_equal(augmented(pixels, parts, 1, 0), found[0])


def test_nothing_is_changed_without_parts_and_the_original_never():
    pixels = region("A", 2, 64)
    before = pixels.copy()
    assert np.array_equal(augmented(pixels, [], 0, 0), pixels)
    augmented(pixels, PARTS, 0, 0)
    assert np.array_equal(pixels, before)


def test_stain_moves_colour_and_keeps_form():
    pixels = region("B", 3, 64)
    for key in range(5):
        image = augmented(pixels, ["stain"], 0, key)
        assert 0.5 < np.abs(image.astype(float) - pixels).mean() < 40  # grey levels
        one, other = (part.astype(float).mean(-1).ravel() for part in (pixels, image))
        assert np.corrcoef(one, other)[0, 1] > 0.95
