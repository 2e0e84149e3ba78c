from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pathup.sampling.fusion import BandFusion, window_bands
from pathup.sampling.windows import WEIGHTINGS, Weighting, Windows
from tests.sampling.test_windows import grids, partitions


@given(st.one_of(grids(), partitions()), st.integers(1, 3000))
@settings(max_examples=100, deadline=None)
def test_bands_hold_every_window_once_and_end_where_the_next_begins(windows: Windows, positions: int) -> None:
    bands = list(window_bands(windows, positions))
    assert [index for band in bands for index in band.indices] == list(range(len(windows)))
    assert bands[-1].done == windows.height
    for band in bands:
        rows = [windows[index][0] for index in band.indices]
        assert all(rows_.start >= band.done for later in bands[bands.index(band) + 1 :] for rows_ in
                   [windows[index][0] for index in later.indices])  # fmt: skip
        tall = max(r.stop for r in rows) - min(r.start for r in rows)
        assert tall * windows.width <= positions or len({r.start for r in rows}) == 1


@given(st.one_of(grids(), partitions()), st.sampled_from(WEIGHTINGS), st.integers(1, 3000))
@settings(max_examples=60, deadline=None)
def test_fusing_in_bands_equals_the_weighted_mean_at_each_position(
    windows: Windows, weighting: Weighting, positions: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(2, r.stop - r.start, c.stop - c.start, generator=generator) for r, c in windows]
    total = torch.zeros(2, windows.height, windows.width, dtype=torch.float64)
    weights = torch.zeros(windows.height, windows.width, dtype=torch.float64)
    for index, at in enumerate(windows):
        weight = windows.weight(index, weighting).double()
        total[:, at[0], at[1]] += values[index].double() * weight
        weights[at] += weight
    fusion, found = BandFusion(windows, 2, weighting), []
    for band in window_bands(windows, positions):
        for index in band.indices:
            fusion.add(index, values[index])
        found.append(fusion.take(band.done))
    torch.testing.assert_close(torch.cat(found, dim=1).double(), total / weights, rtol=0, atol=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_constant_is_kept_and_rows_without_windows_are_0(weighting: Weighting) -> None:
    from pathup.sampling.windows import WindowGrid

    windows = WindowGrid(24, 16, 8, 4)
    fusion = BandFusion(windows, 1, weighting)
    across = len(windows.columns)
    for index in range(across):
        fusion.add(index, torch.full((1, 8, 8), 3.5))
    torch.testing.assert_close(fusion.take(4), torch.full((1, 4, 16), 3.5))
    fusion.take(8)
    assert fusion.take(24).equal(torch.zeros(1, 16, 16))
