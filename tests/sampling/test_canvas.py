from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pathup.sampling.canvas import NOISE_BLOCK, CanvasFusion, canvas_noise
from pathup.sampling.windows import WindowGrid


@given(st.integers(1, 150), st.integers(1, 150), st.integers(1, 150), st.integers(1, 150))
@settings(max_examples=25, deadline=None)
def test_noise_at_a_position_does_not_depend_on_the_canvas(h1: int, w1: int, h2: int, w2: int) -> None:
    one, two = canvas_noise((2, h1, w1), 5, "A"), canvas_noise((2, h2, w2), 5, "A")
    height, width = min(h1, h2), min(w1, w2)
    assert one[:, :height, :width].equal(two[:, :height, :width])


def test_noise_is_standard_normal_and_differs_by_seed_and_keys() -> None:
    noise = canvas_noise((4, 200, 200), 0, "A", "patch", 0)
    # 160,000 draws: the mean's standard error is 0.0025, the deviation's 0.0018; five of each
    assert abs(noise.mean()) < 0.0125
    assert abs(noise.std() - 1) < 0.009
    for other in (canvas_noise((4, 200, 200), 1, "A", "patch", 0), canvas_noise((4, 200, 200), 0, "B", "patch", 0)):
        correlation = torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation) < 0.0125  # standard error 0.0025
    block = noise[:, :NOISE_BLOCK, :NOISE_BLOCK]
    assert not block.equal(noise[:, NOISE_BLOCK : 2 * NOISE_BLOCK, :NOISE_BLOCK])  # blocks do not repeat


@pytest.mark.parametrize("weighted", [True, False])
def test_fusing_cut_windows_gives_the_canvas_back(weighted: bool) -> None:
    canvas = torch.randn(3, 29, 41)  # no stride divides these
    grid = WindowGrid(29, 41, 8, 4)
    fusion = CanvasFusion(grid, 3, weighted=weighted)
    for _ in range(2):  # a second round after clear() starts from nothing
        fusion.clear()
        for index, (rows, columns) in enumerate(grid):
            fusion.add(index, canvas[:, rows, columns])
        torch.testing.assert_close(fusion.result(), canvas, rtol=0, atol=1e-6)  # rounding of four products and a sum


def test_fusion_is_the_weighted_mean() -> None:
    grid = WindowGrid(4, 6, 4, 2)  # two windows that share two columns
    fusion = CanvasFusion(grid, 1)
    fusion.add(0, torch.zeros(1, 4, 4))
    fusion.add(1, torch.ones(1, 4, 4))
    # row 1, column 2: in window 0 the cell (1, 2), 0.5 from the centre: weight 1 - 0.5/4 = 0.875;
    # in window 1 the cell (1, 0), 1.5 from it: weight 1 - 1.5/4 = 0.625
    assert fusion.result()[0, 1, 2] == pytest.approx(0.625 / (0.625 + 0.875), abs=1e-6)
    assert fusion.result()[0, :, :2].eq(0).all()
    assert fusion.result()[0, :, 4:].eq(1).all()
