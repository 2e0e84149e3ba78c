from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pathup.errors import PathUpError
from pathup.sampling.windows import WindowGrid, window_weights
from tests.sampling.reference import equation_6


@st.composite
def grids(draw: st.DrawFn) -> WindowGrid:
    size = draw(st.integers(1, 12))
    overlap = draw(st.integers(0, size - 1))
    return WindowGrid(draw(st.integers(size, 40)), draw(st.integers(size, 40)), size, overlap)


@pytest.mark.parametrize("size", [2, 7, 8, 16, 64])
def test_equation_6_is_read_as_its_text_says(size: int) -> None:
    weights = window_weights(size)
    assert weights.shape == (size, size)
    assert weights.min() >= 0.5
    assert weights.max() <= 1
    # 1 at the centre to half a position: the cell that holds it is at most half a cell away
    assert weights[size // 2, size // 2] >= 1 - 0.5 / size
    assert weights[0].allclose(weights[:, 0])
    assert weights.flip(0).equal(weights)
    assert weights[0].allclose(torch.full((size,), 1 - (size - 1) / 2 / size))  # Chebyshev: the rim is one value
    assert weights.double().allclose(equation_6(size), atol=1e-6)


@given(grids())
@settings(max_examples=100, deadline=None)
def test_every_position_is_covered_and_no_window_leaves_the_canvas(grid: WindowGrid) -> None:
    count = torch.zeros(grid.height, grid.width, dtype=torch.int)
    for rows, columns in grid:
        assert rows.start >= 0 and rows.stop <= grid.height and rows.stop - rows.start == grid.size
        assert columns.start >= 0 and columns.stop <= grid.width and columns.stop - columns.start == grid.size
        count[rows, columns] += 1
    assert count.min() >= 1
    for starts in (grid.tops, grid.lefts):
        gaps = [b - a for a, b in pairwise(starts)]
        assert all(0 < gap <= grid.stride for gap in gaps)  # neighbours overlap by at least `overlap`
    assert len(list(grid)) == len(grid)


@given(grids())
@settings(max_examples=60, deadline=None)
def test_normalised_weights_sum_to_one(grid: WindowGrid) -> None:
    total = torch.zeros(grid.height, grid.width)
    weight_sum = grid.weight_sum(weighted=True)
    for index, at in enumerate(grid):
        total[at] += grid.weight(index, weighted=True) / weight_sum[at]
    assert total.allclose(torch.ones_like(total), atol=1e-5)  # a sum of at most 12 x 12 float32 terms


@given(grids())
@settings(max_examples=60, deadline=None)
def test_without_weighting_each_position_has_exactly_one_window_the_nearest(grid: WindowGrid) -> None:
    total = grid.weight_sum(weighted=False)
    assert total.equal(torch.ones_like(total))
    centres = torch.tensor(grid.tops) + (grid.size - 1) / 2
    for row in range(grid.height):
        index = next(
            i for i in range(len(grid)) if row in range(grid[i][0].start, grid[i][0].stop)
            and grid.weight(i, weighted=False)[row - grid[i][0].start].any()
        )  # fmt: skip
        mine = abs(row - (grid[index][0].start + (grid.size - 1) / 2))
        assert mine == (centres - row).abs().min()


def test_the_papers_canvas_has_49_windows() -> None:
    # 2048 px at a factor of 8 are 256 positions; 64 x 64 windows with 32 overlap
    assert len(WindowGrid(256, 256, 64, 32)) == 49
    assert len(WindowGrid(256, 256, 64, 0)) == 16


@given(grids(), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_batches_hold_every_window_once_in_order(grid: WindowGrid, size: int) -> None:
    batches = list(grid.batches(size))
    assert [index for batch in batches for index in batch] == list(range(len(grid)))
    assert max(len(batch) for batch in batches) <= size


def test_what_cannot_be_a_grid_is_one_sentence() -> None:
    with pytest.raises(PathUpError, match="smaller than a window of 16"):
        WindowGrid(15, 40, 16, 8)
    with pytest.raises(PathUpError, match="cannot overlap by 16"):
        WindowGrid(40, 40, 16, 16)
    with pytest.raises(IndexError):
        WindowGrid(16, 16, 16, 8)[1]


def test_lines_are_where_the_windows_change():
    grid = WindowGrid(40, 56, 16, 8)
    assert grid.lines(weighted=True) == ([8, 16, 24, 32, 40, 48], [8, 16, 24, 32])
    # centres at 7.5, 15.5, ...: nearest from 12 on, 20 on, ...
    assert grid.lines(weighted=False) == ([12, 20, 28, 36, 44], [12, 20, 28])
    xs, ys = grid.lines(weighted=False)
    shares = [grid.weight(index, weighted=False) for index in range(len(grid))]
    owner = torch.zeros(40, 56)
    for index, share in enumerate(shares):
        owner[grid[index]] += share * index
    assert [x for x in range(1, 56) if (owner[:, x] != owner[:, x - 1]).any()] == xs
    assert [y for y in range(1, 40) if (owner[y] != owner[y - 1]).any()] == ys
    assert WindowGrid(16, 16, 16, 8).lines(weighted=True) == ([], [])
