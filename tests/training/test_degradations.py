from __future__ import annotations

import numpy as np
import pytest

from pathup.training.degradations import DEGRADATIONS, degraded
from tests.tiles.made import tissue


@pytest.mark.parametrize("kind", list(DEGRADATIONS))
def test_each_keeps_shape_and_type_and_grows_with_severity(kind: str) -> None:
    tile = tissue(64, 64)
    changes = []
    for severity in (0.05, 0.5, 1.0):
        worse = degraded(tile, kind, severity, np.random.default_rng(0))
        assert worse.shape == tile.shape and worse.dtype == np.uint8
        changes.append(np.abs(worse.astype(int) - tile).mean())
    # shuffled blocks of noise differ from what was there by as much, whatever their size
    assert changes[0] > 0 and (kind == "shuffle" or changes == sorted(changes))


def test_shuffling_moves_pixels_and_changes_none() -> None:
    tile = tissue(64, 64)
    worse = degraded(tile, "shuffle", 0.9, np.random.default_rng(0))
    assert not np.array_equal(worse, tile)
    flat = [np.sort(pixels.reshape(-1, 3), axis=0) for pixels in (tile, worse)]
    assert np.array_equal(*flat)


def test_the_same_draw_gives_the_same_tile() -> None:
    for kind in DEGRADATIONS:
        one, other = (degraded(tissue(32, 32), kind, 0.5, np.random.default_rng(3)) for _ in range(2))
        assert np.array_equal(one, other)
