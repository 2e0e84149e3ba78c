"""One pass over all pairs of images: inner products, block by block, that every metric on pairs reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

__all__ = ["BLOCK", "PairReader", "Pairs", "sweep"]

BLOCK = 1024
"""Images on a side of a block; a block of products is then 8 MB, whatever the number of images."""


class Pairs:
    """Two sets of features, moved so that their common mean is 0: distances from inner products then lose no digits.

    Parameters
    ----------
    real_ND, synthetic_MD
        Finite features of one D.

    Attributes
    ----------
    sets
        The moved features of both, (N, D) and (M, D) float64.
    squares
        Their squared norms, (N,) and (M,).
    mean
        What was taken off, (D,).
    """

    def __init__(self, real_ND: np.ndarray, synthetic_MD: np.ndarray) -> None:
        copies = [torch.from_numpy(np.array(features, dtype=np.float64)) for features in (real_ND, synthetic_MD)]
        self.mean: torch.Tensor = (copies[0].sum(0) + copies[1].sum(0)) / (len(copies[0]) + len(copies[1]))
        self.sets: list[torch.Tensor] = [copy.sub_(self.mean) for copy in copies]
        self.squares: list[torch.Tensor] = [torch.einsum("nd,nd->n", x, x) for x in self.sets]

    @property
    def dimension(self) -> int:
        """D."""
        return len(self.mean)


class PairReader(Protocol):
    """What is read off the products; `sweep` calls all of `within` before any of `across`."""

    def within(self, side: int, rows: slice, columns: slice, products: torch.Tensor) -> None:
        """Products of images of one set (0: real, 1: synthetic), of the upper triangle of blocks only."""

    def across(self, rows: slice, columns: slice, products: torch.Tensor) -> None:
        """Products of real (rows) and synthetic (columns) images."""


def sweep(pairs: Pairs, readers: Sequence[PairReader]) -> None:
    """Show every block of inner products to every reader, which must not change it."""
    for side, features in enumerate(pairs.sets):
        for rows in _slices(len(features)):
            for columns in _slices(len(features), rows.start):
                products = features[rows] @ features[columns].T
                for reader in readers:
                    reader.within(side, rows, columns, products)
    real, synthetic = pairs.sets
    for rows in _slices(len(real)):
        for columns in _slices(len(synthetic)):
            products = real[rows] @ synthetic[columns].T
            for reader in readers:
                reader.across(rows, columns, products)


def _slices(count: int, first: int = 0) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, count)) for start in range(first, count, BLOCK))
