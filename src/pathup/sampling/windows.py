"""Which windows cover a canvas, and how much each counts at each position (equation 6).

Windows are the product of spans of rows and spans of columns. `WindowGrid` has neighbours overlap, the paper's way;
`WindowPartition` covers each position exactly once. Which of them a step takes is `pathup.sampling.schedule`'s.
All lengths are latent positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
import torch

from pathup.errors import PathUpError

__all__ = [
    "WEIGHTINGS",
    "Span",
    "Weighting",
    "WindowGrid",
    "WindowPartition",
    "Windows",
    "hann_weights",
    "window_weights",
]

Weighting = Literal["hann", "equation_6", "hard"]
WEIGHTINGS: tuple[Weighting, ...] = ("hann", "equation_6", "hard")

Span = tuple[int, int]
"""First position of a window along one axis, and the one behind its last."""


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


def hann_weights(size: int) -> torch.Tensor:
    """Weights that fall to zero at the rim, ``sin^2(pi (p + 1/2) / L) sin^2(pi (q + 1/2) / L)`` (von Hann's window).

    Equation 6's weight is still 0.5 at a window's rim, so that what a window says ends there at once: a seam, faint but
    measurable. These weights end smoothly, and sum to a constant where windows overlap by half.

    Returns
    -------
    torch.Tensor
        weight_HW, (L, L) float32 in (0, 1].
    """
    along = torch.sin(torch.pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size).square().float()
    return along[:, None] * along[None, :]


class Windows:
    """Windows that cover a canvas: every row span with every column span, numbered row by row.

    Attributes
    ----------
    height, width
        The canvas.
    rows, columns
        The spans along each axis, by rising start.
    """

    height: int
    width: int

    @property
    def rows(self) -> list[Span]:
        """Spans of rows."""
        raise NotImplementedError

    @property
    def columns(self) -> list[Span]:
        """Spans of columns."""
        raise NotImplementedError

    @property
    def positions(self) -> int:
        """Latent positions of all windows together: what a step costs."""
        tall, wide = (sum(end - start for start, end in spans) for spans in (self.rows, self.columns))
        return tall * wide

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __getitem__(self, index: int) -> tuple[slice, slice]:
        """The rows and columns of window `index`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        row, column = divmod(index, len(self.columns))
        return slice(*self.rows[row]), slice(*self.columns[column])

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        return (self[index] for index in range(len(self)))

    def weight(self, index: int, weighting: Weighting) -> torch.Tensor:
        """weight_HW of one window, float32 of its shape, before normalisation; never 0 but for ``hard``."""
        raise NotImplementedError

    def lines(self, weighting: Weighting) -> tuple[list[int], list[int]]:
        """Where a seam could be: columns and rows, each before which the windows change."""
        raise NotImplementedError


@dataclass(frozen=True)
class WindowGrid(Windows):
    """All windows of one size that cover a canvas, neighbours overlapping by at least `overlap`.

    Windows stand at multiples of ``size - overlap``; the last of a row or column is moved back to be flush
    with the rim, so that a canvas which the stride does not divide is covered as well.

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
        _check_canvas(self.height, self.width, self.size)

    @property
    def stride(self) -> int:
        """Distance of neighbouring windows."""
        return self.size - self.overlap

    @cached_property
    def rows(self) -> list[Span]:
        """Spans of rows, each of `size`."""
        return _strided(self.height, self.size, self.stride)

    @cached_property
    def columns(self) -> list[Span]:
        """Spans of columns, each of `size`."""
        return _strided(self.width, self.size, self.stride)

    def weight(self, index: int, weighting: Weighting) -> torch.Tensor:
        """weight_HW of one window, (L, L) float32, before normalisation.

        ``hann`` and ``equation_6`` are the same for every window. ``hard`` is 1 where this window's centre is nearest
        (per axis; of two equally near, the earlier) and 0 elsewhere, so that each position has one window. This is the
        paper's "w/o w".
        """
        if weighting != "hard":
            return _smooth(self.size, weighting)
        row, column = divmod(index, len(self.columns))
        at = self[index]
        rows, columns = self._owners[0][at[0]] == row, self._owners[1][at[1]] == column
        return torch.from_numpy(np.outer(rows, columns).astype(np.float32))

    def lines(self, weighting: Weighting) -> tuple[list[int], list[int]]:
        """Columns and rows before which the windows change.

        With weights, those are the rims of all windows; without, the borders between the windows' own shares.
        """
        if weighting != "hard":
            return _rims(self.columns, self.width), _rims(self.rows, self.height)
        rows, columns = self._owners
        return (np.flatnonzero(np.diff(columns)) + 1).tolist(), (np.flatnonzero(np.diff(rows)) + 1).tolist()

    @cached_property
    def _owners(self) -> tuple[np.ndarray, np.ndarray]:
        return _owner(self.rows, self.height), _owner(self.columns, self.width)


@dataclass(frozen=True)
class WindowPartition(Windows):
    """Windows that cover each position of a canvas exactly once, as a grid of one size that is shifted.

    The grid's lines lie at ``offset + k size``. What they leave at the rim is a window of its own where it is at least
    half a window wide, else its neighbour reaches to the rim. So windows inside are `size` wide, and those at the
    rim at least half and less than one and a half times that: the U-Net is convolutional, but a thin strip
    would tell it little.

    Parameters
    ----------
    height, width
        The canvas, at least one window each way.
    size
        Side of a window.
    offset
        Row and column of the first line, each 0 to ``size - 1``.
    """

    height: int
    width: int
    size: int
    offset: tuple[int, int]

    def __post_init__(self) -> None:
        _check_canvas(self.height, self.width, self.size)

    @cached_property
    def rows(self) -> list[Span]:
        """Spans of rows, one behind the other."""
        return _shifted(self.height, self.size, self.offset[0])

    @cached_property
    def columns(self) -> list[Span]:
        """Spans of columns, one behind the other."""
        return _shifted(self.width, self.size, self.offset[1])

    def weight(self, index: int, weighting: Weighting) -> torch.Tensor:
        """1 everywhere: each position has one window."""
        rows, columns = self[index]
        return torch.ones(rows.stop - rows.start, columns.stop - columns.start)

    def lines(self, weighting: Weighting) -> tuple[list[int], list[int]]:
        """Columns and rows before which the windows change."""
        return [start for start, _ in self.columns[1:]], [start for start, _ in self.rows[1:]]


def _check_canvas(height: int, width: int, size: int) -> None:
    if min(height, width) < size:
        raise PathUpError(
            f"a canvas of {width} x {height} latent positions is smaller than a window of {size}; ask for a larger "
            f"image"
        )


def _strided(length: int, size: int, stride: int) -> list[Span]:
    starts = list(range(0, length - size + 1, stride))
    if starts[-1] + size < length:
        starts.append(length - size)
    return [(start, start + size) for start in starts]


def _shifted(length: int, size: int, offset: int) -> list[Span]:
    lines = [at for at in range(offset, length + 1, size) if size <= 2 * at and size <= 2 * (length - at)]
    edges = [0, *lines, length]
    return list(pairwise(edges))


@lru_cache(maxsize=16)
def _smooth(size: int, weighting: Weighting) -> torch.Tensor:
    return hann_weights(size) if weighting == "hann" else window_weights(size)


def _rims(spans: list[Span], length: int) -> list[int]:
    """Where windows begin or end within one axis, sorted."""
    return sorted({at for span in spans for at in span if 0 < at < length})


def _owner(spans: list[Span], length: int) -> np.ndarray:
    """The window whose centre is nearest to each position of one axis."""
    centres = np.asarray([(start + end - 1) / 2 for start, end in spans])
    borders = (centres[:-1] + centres[1:]) / 2
    return np.searchsorted(borders, np.arange(length), side="left")
