"""Which windows cover a canvas, and how much each counts at each position (equation 6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from pathup.errors import PathUpError

__all__ = ["WindowGrid", "window_weights"]


def window_weights(size: int) -> torch.Tensor:
    """Equation 6's map, as the project reads it: ``1 - max(|p - p'|, |q - q'|) / L``.

    Printed, the equation is 0 at the centre and at most 0.5, against its own text ("the range [0.5, 1]").
    Positions are taken at the middle of their cell, so the centre p', q' is at (L - 1) / 2.

    Parameters
    ----------
    size
        L, the side of a window in latent positions.

    Returns
    -------
    torch.Tensor
        weight_HW, (L, L) float32 in [0.5, 1]: 1 at the centre (to half a position), least at the rim.
    """
    distance = torch.arange(size, dtype=torch.float32).sub((size - 1) / 2).abs()
    return 1 - torch.maximum(distance[:, None], distance[None, :]) / size


@dataclass(frozen=True)
class WindowGrid:
    """All windows of one size that cover a canvas, neighbours overlapping by at least `overlap`.

    Windows stand at multiples of ``size - overlap``; the last of a row or column is moved back to be flush
    with the rim, so that a canvas which the stride does not divide is covered as well. Windows are numbered
    row by row. All lengths are latent positions.

    Parameters
    ----------
    height, width
        The canvas.
    size
        Side of a window.
    overlap
        Overlap of neighbouring windows, 0 to ``size - 1``.

    Raises
    ------
    PathUpError
        The canvas is smaller than a window, or the overlap leaves no stride.
    """

    height: int
    width: int
    size: int
    overlap: int

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.size:
            raise PathUpError(
                f"windows of {self.size} cannot overlap by {self.overlap}; 0 to {self.size - 1} was needed"
            )
        if min(self.height, self.width) < self.size:
            raise PathUpError(
                f"a canvas of {self.width} x {self.height} latent positions is smaller than a window of {self.size}; "
                "ask for a larger image"
            )

    @property
    def stride(self) -> int:
        """Distance of neighbouring windows."""
        return self.size - self.overlap

    @cached_property
    def tops(self) -> list[int]:
        """First row of each row of windows."""
        return _starts(self.height, self.size, self.stride)

    @cached_property
    def lefts(self) -> list[int]:
        """First column of each column of windows."""
        return _starts(self.width, self.size, self.stride)

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def __getitem__(self, index: int) -> tuple[slice, slice]:
        """The rows and columns of window `index`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        row, column = divmod(index, len(self.lefts))
        top, left = self.tops[row], self.lefts[column]
        return slice(top, top + self.size), slice(left, left + self.size)

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        return (self[index] for index in range(len(self)))

    def batches(self, size: int) -> Iterator[range]:
        """The window numbers in runs of `size`; the last run may be shorter."""
        return (range(first, min(first + size, len(self))) for first in range(0, len(self), size))

    def weight(self, index: int, *, weighted: bool) -> torch.Tensor:
        """weight_HW of one window, (L, L) float32, before normalisation.

        Parameters
        ----------
        index
            The window's number.
        weighted
            True: `window_weights`, the same for every window. False: 1 where this window's centre is nearest
            (per axis; of two equally near, the earlier) and 0 elsewhere, so that each position has one window.
            This is the paper's "w/o w".
        """
        if weighted:
            return self._weights
        row, column = divmod(index, len(self.lefts))
        rows = self._owners[0] == row
        columns = self._owners[1] == column
        at = self[index]
        return torch.from_numpy(np.outer(rows[at[0]], columns[at[1]]).astype(np.float32))

    def weight_sum(self, *, weighted: bool) -> torch.Tensor:
        """Sum of all windows' weights at each position, (H, W) float32; never 0."""
        total = torch.zeros(self.height, self.width)
        for index in range(len(self)):
            total[self[index]] += self.weight(index, weighted=weighted)
        return total

    def lines(self, *, weighted: bool) -> tuple[list[int], list[int]]:
        """Where a seam could be: columns and rows, in latent positions, each before which the windows change.

        With weights, those are the rims of all windows; without, the borders between the windows' own shares.
        """
        if weighted:
            return _rims(self.lefts, self.size, self.width), _rims(self.tops, self.size, self.height)
        rows, columns = self._owners
        return (np.flatnonzero(np.diff(columns)) + 1).tolist(), (np.flatnonzero(np.diff(rows)) + 1).tolist()

    @cached_property
    def _weights(self) -> torch.Tensor:
        return window_weights(self.size)

    @cached_property
    def _owners(self) -> tuple[np.ndarray, np.ndarray]:
        return _owner(self.tops, self.size, self.height), _owner(self.lefts, self.size, self.width)


def _starts(length: int, size: int, stride: int) -> list[int]:
    starts = list(range(0, length - size + 1, stride))
    if starts[-1] + size < length:
        starts.append(length - size)
    return starts


def _rims(starts: list[int], size: int, length: int) -> list[int]:
    """Where windows begin or end within one axis, sorted."""
    return sorted({at for start in starts for at in (start, start + size) if 0 < at < length})


def _owner(starts: list[int], size: int, length: int) -> np.ndarray:
    """The window whose centre is nearest to each position of one axis."""
    centres = np.asarray(starts) + (size - 1) / 2
    borders = (centres[:-1] + centres[1:]) / 2
    return np.searchsorted(borders, np.arange(length), side="left")
