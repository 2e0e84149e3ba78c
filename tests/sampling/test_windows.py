from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pathup.errors import PathUpError
from pathup.sampling.windows import WindowGrid, WindowPartition, Windows, hann_weights, window_weights
from tests.sampling.reference import equation_6


@st.composite
def grids(draw: st.DrawFn) -> WindowGrid:
    size = draw(st.integers(1, 12))
    overlap = draw(st.integers(0, size - 1))
    return WindowGrid(draw(st.integers(size, 40)), draw(st.integers(size, 40)), size, overlap)


@st.composite
def partitions(draw: st.DrawFn) -> WindowPartition:
    size = draw(st.integers(1, 12))
    offset = draw(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)))
    return WindowPartition(draw(st.integers(size, 60)), draw(st.integers(size, 60)), size, offset)


def _covered(windows: Windows) -> torch.Tensor:
    count = torch.zeros(windows.height, windows.width, dtype=torch.int)
    for rows, columns in windows:
        assert 0 <= rows.start < rows.stop <= windows.height and 0 <= columns.start < columns.stop <= windows.width
        count[rows, columns] += 1
    return count


def _weight_sum(windows: Windows, weighting: str) -> torch.Tensor:
    total = torch.zeros(windows.height, windows.width)
    for index, at in enumerate(windows):
        total[at] += windows.weight(index, weighting)  # type: ignore[arg-type]
    return total


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


@pytest.mark.parametrize("size", [2, 8, 32, 64])
def test_hann_weights_vanish_at_the_rim_and_sum_to_one_at_half_overlap(size: int) -> None:
    weights = hann_weights(size)
    assert weights.min() > 0  # a position that one window alone sees must have a weight
    assert weights[0].max() <= (torch.pi / 2 / size) ** 2  # sin(x) <= x, half a position from the rim
    half = size // 2
    folded = weights[:half, :half] + weights[half:, :half] + weights[:half, half:] + weights[half:, half:]
    assert folded.allclose(torch.ones(half, half), atol=1e-6)


@given(grids())
@settings(max_examples=100, deadline=None)
def test_every_position_is_covered_and_no_window_leaves_the_canvas(grid: WindowGrid) -> None:
    count = _covered(grid)
    assert count.min() >= 1
    assert int(count.sum()) == grid.positions == len(grid) * grid.size**2
    assert all(rows.stop - rows.start == columns.stop - columns.start == grid.size for rows, columns in grid)
    for spans in (grid.rows, grid.columns):
        gaps = [b - a for (a, _), (b, _) in pairwise(spans)]
        assert all(0 < gap <= grid.stride for gap in gaps)  # neighbours overlap by at least `overlap`
    assert len(list(grid)) == len(grid)


@given(partitions())
@settings(max_examples=200, deadline=None)
def test_a_partition_covers_every_position_exactly_once(partition: WindowPartition) -> None:
    assert _covered(partition).eq(1).all()
    assert partition.positions == partition.height * partition.width
    assert _weight_sum(partition, "hann").eq(1).all()
    for axis, spans, length in ((0, partition.rows, partition.height), (1, partition.columns, partition.width)):
        sides = [end - start for start, end in spans]
        assert all(side == partition.size for side in sides[1:-1])
        if len(sides) > 1:
            assert all(partition.size <= 2 * side < 3 * partition.size for side in (sides[0], sides[-1]))
        assert all((end - partition.offset[axis]) % partition.size == 0 for _, end in spans if end < length)


@given(grids())
@settings(max_examples=60, deadline=None)
def test_without_weighting_each_position_has_exactly_one_window_the_nearest(grid: WindowGrid) -> None:
    assert _weight_sum(grid, "hard").eq(1).all()
    centres = torch.tensor([(start + end - 1) / 2 for start, end in grid.rows])
    for row in range(grid.height):
        index = next(
            i for i in range(len(grid)) if row in range(grid[i][0].start, grid[i][0].stop)
            and grid.weight(i, "hard")[row - grid[i][0].start].any()
        )  # fmt: skip
        mine = abs(row - (grid[index][0].start + (grid.size - 1) / 2))
        assert mine == (centres - row).abs().min()


def test_the_papers_canvas_has_49_windows() -> None:
    # 2048 px at a factor of 8 are 256 positions; 64 x 64 windows with 32 overlap
    assert len(WindowGrid(256, 256, 64, 32)) == 49
    assert len(WindowGrid(256, 256, 64, 0)) == 16
    assert len(WindowPartition(256, 256, 64, (0, 0))) == 16


def test_what_cannot_be_a_grid_is_one_sentence() -> None:
    with pytest.raises(PathUpError, match="smaller than a window of 16"):
        WindowGrid(15, 40, 16, 8)
    with pytest.raises(PathUpError, match="smaller than a window of 16"):
        WindowPartition(15, 40, 16, (0, 0))
    with pytest.raises(PathUpError, match="cannot overlap by 16"):
        WindowGrid(40, 40, 16, 16)
    with pytest.raises(IndexError):
        WindowGrid(16, 16, 16, 8)[1]


def test_lines_are_where_the_windows_change():
    grid = WindowGrid(40, 56, 16, 8)
    assert grid.lines("hann") == grid.lines("equation_6") == ([8, 16, 24, 32, 40, 48], [8, 16, 24, 32])
    # centres at 7.5, 15.5, ...: nearest from 12 on, 20 on, ...
    assert grid.lines("hard") == ([12, 20, 28, 36, 44], [12, 20, 28])
    xs, ys = grid.lines("hard")
    owner = torch.zeros(40, 56)
    for index in range(len(grid)):
        owner[grid[index]] += grid.weight(index, "hard") * index
    assert [x for x in range(1, 56) if (owner[:, x] != owner[:, x - 1]).any()] == xs
    assert [y for y in range(1, 40) if (owner[y] != owner[y - 1]).any()] == ys
    assert WindowGrid(16, 16, 16, 8).lines("hann") == ([], [])
    # 5 + 16 k; the first 5 and the last 3 are too thin to stand alone
    assert WindowPartition(40, 56, 16, (5, 5)).lines("hann") == ([21, 37], [21])
