from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathup.errors import PathUpError
from pathup.evaluation.seam_reference import moved_grid, ratios_at_random_lines
from pathup.evaluation.seams import SeamGrid, gradient_ratios, measure_seams
from tests.tiles.made import tissue


@given(st.integers(0, 511), st.integers(0, 383))
@settings(max_examples=60, deadline=None)
def test_a_moved_grid_has_the_same_pattern(across: int, down: int) -> None:
    grid = SeamGrid.regular(512, 384, 64)
    moved = moved_grid(grid, 512, 384, (across, down))
    assert {x % 64 for x in moved.xs} == {across % 64} and {y % 64 for y in moved.ys} == {down % 64}
    # a line that comes to lie on the rim is none
    assert len(grid.xs) - 1 <= len(moved.xs) <= len(grid.xs) and len(grid.ys) - 1 <= len(moved.ys) <= len(grid.ys)


def test_real_lines_are_near_one_and_a_seam_lies_outside_their_interval() -> None:
    images = [(f"{seed}", lambda seed=seed: tissue(512, 512, seed=seed)) for seed in range(6)]
    grid = SeamGrid.regular(512, 512, 128)
    ratios = ratios_at_random_lines(images, grid)
    assert set(ratios) == {"intensity", "haematoxylin", "eosin", "residual"}
    assert all(len(values) == 24 for values in ratios.values())
    low, high = np.percentile(ratios["intensity"], [2.5, 97.5])
    assert low < 1 < high
    bright = (np.arange(512)[:, None] // 128 + np.arange(512) // 128) % 2
    stepped = np.clip(tissue(512, 512, seed=9).astype(int) + 12 * bright[..., None], 0, 255).astype(np.uint8)
    assert gradient_ratios(stepped, grid)["intensity"] > high
    assert gradient_ratios(stepped, grid) == {
        name: channel.ratio for name, channel in measure_seams(stepped, grid, replicates=1).channels.items()
    }


def test_images_too_small_are_one_sentence() -> None:
    with pytest.raises(PathUpError, match=r"no real image holds enough lines .* --large-real"):
        ratios_at_random_lines([("a", lambda: tissue(64, 64))], SeamGrid.regular(2048, 2048, 2))
