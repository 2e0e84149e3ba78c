"""Overlapping windows' values become one canvas: the weighted mean at each position, from the top down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pathup.sampling.windows import Weighting, Windows

__all__ = ["BandFusion", "WindowBand", "window_bands"]

BAND_POSITIONS = 2**20
"""Latent positions that are fused at once, at most, but for one row of windows: 24 MB at four channels. A smaller
canvas is fused whole."""


@dataclass(frozen=True)
class WindowBand:
    """Some rows of windows.

    Attributes
    ----------
    indices
        Numbers of the windows.
    rows
        The rows of the canvas that they reach.
    done
        The first row of the canvas that windows of later bands still reach; its height after the last band.
    """

    indices: range
    rows: slice
    done: int


def window_bands(windows: Windows, positions: int = BAND_POSITIONS) -> Iterator[WindowBand]:
    """Rows of windows in bands of at most `positions` latent positions, or one row, from the top down."""
    rows, across = windows.rows, len(windows.columns)
    first = 0
    while first < len(rows):
        last = first
        while last + 1 < len(rows) and (rows[last + 1][1] - rows[first][0]) * windows.width <= positions:
            last += 1
        done = rows[last + 1][0] if last + 1 < len(rows) else windows.height
        reached = slice(rows[first][0], rows[last][1])
        yield WindowBand(range(first * across, (last + 1) * across), reached, done)
        first = last + 1


class BandFusion:
    """Sum of weighted values over sum of weights, held only for the rows that are not yet done.

    Windows are added in a fixed order, so the result does not depend on how they were batched.

    Parameters
    ----------
    windows
        The windows of one step.
    channels
        C.
    weighting
        How much a window counts at each of its positions.
    """

    def __init__(self, windows: Windows, channels: int, weighting: Weighting) -> None:
        self._windows, self._weighting = windows, weighting
        self._top = 0
        self._sums = torch.zeros(channels + 1, 0, windows.width)  # the last channel is the sum of weights

    def add(self, index: int, values_CHW: torch.Tensor) -> None:
        """Add window `index`'s values, (C, h, w) float32 on the CPU."""
        rows, columns = self._windows[index]
        missing = rows.stop - self._top - self._sums.shape[1]
        if missing > 0:
            more = self._sums.new_zeros(self._sums.shape[0], missing, self._sums.shape[2])
            self._sums = torch.cat([self._sums, more], dim=1)
        weight_HW = self._windows.weight(index, self._weighting)
        place = self._sums[:, rows.start - self._top : rows.stop - self._top, columns]
        place[:-1].addcmul_(values_CHW, weight_HW)
        place[-1] += weight_HW

    def take(self, bottom: int) -> torch.Tensor:
        """The fused rows from those taken before to `bottom`, (C, rows, W); 0 where no window was added."""
        count = bottom - self._top
        missing = count - self._sums.shape[1]
        if missing > 0:  # no window reached so far down
            self._sums = torch.cat(
                [self._sums, self._sums.new_zeros(self._sums.shape[0], missing, self._sums.shape[2])], 1
            )
        done, self._sums = self._sums[:, :count], self._sums[:, count:].clone()
        self._top = bottom
        return done[:-1] / done[-1].clamp_min(torch.finfo(torch.float32).tiny)
