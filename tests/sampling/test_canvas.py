from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pathup.errors import PathUpError
from pathup.sampling.canvas import NOISE_BLOCK, FileCanvas, canvas_noise, row_slices


@given(st.integers(1, 150), st.integers(1, 150), st.integers(1, 150), st.integers(1, 150))
@settings(max_examples=25, deadline=None)
def test_noise_at_a_position_does_not_depend_on_the_canvas(h1: int, w1: int, h2: int, w2: int) -> None:
    one, two = canvas_noise((2, h1, w1), 5, "A"), canvas_noise((2, h2, w2), 5, "A")
    height, width = min(h1, h2), min(w1, w2)
    assert one[:, :height, :width].equal(two[:, :height, :width])


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_noise_of_a_part_is_that_part_of_the_noise(data: st.DataObject) -> None:
    shape = (2, data.draw(st.integers(1, 150)), data.draw(st.integers(1, 150)))
    rows, columns = (
        slice(*sorted(data.draw(st.lists(st.integers(0, side), min_size=2, max_size=2)))) for side in shape[1:]
    )
    part = canvas_noise(shape, 5, "A", rows=rows, columns=columns)
    assert part.equal(canvas_noise(shape, 5, "A")[:, rows, columns])


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


def test_a_canvas_in_a_file_reads_what_was_written(tmp_path: Path) -> None:
    expected = torch.randn(3, 70, 41)
    canvas = FileCanvas(tmp_path / "canvas", (3, 70, 41), create=True)
    for rows in row_slices(70):
        canvas[:, rows, :] = expected[:, rows]
    again = FileCanvas(tmp_path / "canvas", (3, 70, 41))
    assert again.shape == (3, 70, 41)
    assert again[1:2, 60:70, 3:40].equal(expected[1:2, 60:70, 3:40])
    part = again[:, 0:5, :]
    part.zero_()  # a copy: the file stays as it is
    assert again[:, 0:5, :].equal(expected[:, :5])


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_part_of_a_canvas_in_a_file_is_that_of_the_tensor(data: st.DataObject) -> None:
    shape = (3, 9, 7)
    expected = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def part() -> tuple[slice, ...]:
        return tuple(slice(*sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2)))) for n in shape[:2])

    with tempfile.TemporaryDirectory() as folder:
        canvas = FileCanvas(Path(folder) / "canvas", shape, create=True)
        canvas[:, :, :] = expected
        for columns in (slice(None), slice(2, 5)):  # whole rows are read and written in another way than parts of them
            at = (*part(), columns)
            assert canvas[at].equal(expected[at])
            expected[at] = torch.full(expected[at].shape, 7.0)
            canvas[at] = expected[at]
            assert canvas[:, :, :].equal(expected)


def test_values_that_do_not_fill_the_rows_are_refused_and_a_shortened_file_is_named(tmp_path: Path) -> None:
    canvas = FileCanvas(tmp_path / "canvas", (2, 4, 3), create=True)
    with pytest.raises(ValueError, match="do not fill 2 channels of 4 rows"):
        canvas[:, :, :] = torch.zeros(2, 1, 3)
    with (tmp_path / "canvas").open("r+b") as handle:
        handle.truncate(50)
    with pytest.raises(PathUpError, match=r"canvas.*shorter"):
        canvas[:, :, :]
