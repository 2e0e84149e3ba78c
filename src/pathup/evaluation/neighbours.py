"""Precision and recall, density and coverage: which images lie in the balls about those of the other set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pathup.evaluation.pairs import Pairs, sweep

__all__ = ["DENSITY_NEIGHBOURS", "PRECISION_NEIGHBOURS", "Manifold", "Neighbours", "manifold"]

PRECISION_NEIGHBOURS = 3
"""k of precision and recall: the value of Kynkaanniemi et al., and torch-fidelity's."""

DENSITY_NEIGHBOURS = 5
"""k of density and coverage: the value of Naeem et al."""

_KEPT = 64
"""Nearest neighbours that are kept of each image, from which the radii in random halves are read."""

_TIE = 1e-12
"""Squared distances that differ by less than this part of the squared norms are equal. Rounding is about 1e-15."""


@dataclass(frozen=True)
class Manifold:
    """Which images lie in which balls. An image's ball reaches to its k-th nearest other image of the same set.

    Parameters
    ----------
    precise_M
        (M,) bool: the synthetic image lies in the ball (k = 3) of a real one. Their share is the precision.
    recalled_N
        (N,) bool: the real image lies in the ball (k = 3) of a synthetic one. Their share is the recall.
    density_M
        (M,) float64, 0 or more: the number of real balls (k = 5) that the synthetic image lies in, over 5. Their mean
        is the density.
    covered_N
        (N,) bool: the real image's ball (k = 5) holds a synthetic one. Their share is the coverage.
    halves
        The four figures (``precision``, ``recall``, ``density``, ``coverage``) in each pair of random halves: (B,).
    """

    precise_M: np.ndarray
    recalled_N: np.ndarray
    density_M: np.ndarray
    covered_N: np.ndarray
    halves: dict[str, np.ndarray]

    @property
    def figures(self) -> dict[str, float]:
        """``precision``, ``recall``, ``density`` and ``coverage``."""
        means = {"precision": self.precise_M, "recall": self.recalled_N, "density": self.density_M}
        return {name: float(values.mean()) for name, values in {**means, "coverage": self.covered_N}.items()}


class Neighbours:
    """Reads `Manifold` off the products of pairs.

    Kynkaanniemi et al., 2019, Improved Precision and Recall Metric for Assessing Generative Models; Naeem et al., 2020,
    Reliable Fidelity and Diversity Metrics for Generative Models. A ball's rim belongs to it, and an image is not its
    own neighbour; a second, equal image is. Distances are float64, and equal ones stay equal (`_TIE`), so that exact
    duplicates count as they should.

    Every figure is taken of the whole sets (replicate 0) and of random halves of both, with the balls of the half. In a
    half, the k-th neighbour is looked for among the nearest 64; where fewer than k of these are in the half, the
    distance of the 64th stands in.

    Parameters
    ----------
    pairs
        The features, of more images than `DENSITY_NEIGHBOURS` in each set and half.
    halves
        Which images are in each half, (B, N) and (B, M) bool.
    """

    def __init__(self, pairs: Pairs, halves: tuple[np.ndarray, np.ndarray]) -> None:
        self._pairs = pairs
        self._present = [
            np.concatenate([np.ones((1, len(x)), dtype=bool), half]) for x, half in zip(pairs.sets, halves, strict=True)
        ]
        self._near: list[tuple[torch.Tensor, torch.Tensor]] = []
        for features in pairs.sets:
            shape = len(features), min(_KEPT, len(features) - 1)
            self._near.append(
                (torch.full(shape, torch.inf, dtype=torch.float64), torch.zeros(shape, dtype=torch.int64))
            )
        self._radii: dict[tuple[int, int], np.ndarray] = {}
        replicates = len(self._present[0])
        real, synthetic = (len(x) for x in pairs.sets)
        self._precise = np.zeros((replicates, synthetic), dtype=bool)
        self._recalled = np.zeros((replicates, real), dtype=bool)
        self._covered = np.zeros((replicates, real), dtype=bool)
        self._balls = np.zeros(replicates)
        self._density_M = np.zeros(synthetic)

    def within(self, side: int, rows: slice, columns: slice, products: torch.Tensor) -> None:
        """See `PairReader`."""
        squares = self._pairs.squares[side]
        distances = (squares[rows, None] + squares[columns]).sub_(products, alpha=2).clamp_(min=0)
        if rows == columns:
            distances.fill_diagonal_(torch.inf)
        self._keep(side, rows, columns, distances)
        if rows != columns:
            self._keep(side, columns, rows, distances.T)

    def across(self, rows: slice, columns: slice, products: torch.Tensor) -> None:
        """See `PairReader`."""
        if not self._radii:
            self._set_radii()
        real, synthetic = self._pairs.squares
        distances = (real[rows, None] + synthetic[columns]).mul_(1 - _TIE).sub_(products, alpha=2)
        for owner, member, distance in self._candidates(0, rows, columns, distances):
            narrow, wide = self._radii[0, PRECISION_NEIGHBOURS], self._radii[0, DENSITY_NEIGHBOURS]
            for replicate in range(len(self._precise)):
                held = distance <= wide[replicate, owner]
                inside = held & (distance <= narrow[replicate, owner])
                self._precise[replicate, member[inside]] = True
                if replicate:
                    held &= self._present[1][replicate, member]
                else:
                    self._density_M += np.bincount(member[held], minlength=len(self._density_M))
                self._balls[replicate] += np.count_nonzero(held)
                self._covered[replicate, owner[held]] = True
        for owner, member, distance in self._candidates(1, columns, rows, distances.T):
            for replicate, radii in enumerate(self._radii[1, PRECISION_NEIGHBOURS]):
                self._recalled[replicate, member[distance <= radii[owner]]] = True

    def manifold(self) -> Manifold:
        """What was found, after the sweep."""
        real, synthetic = self._present
        shares = {
            "precision": _share(self._precise, synthetic),
            "recall": _share(self._recalled, real),
            "density": self._balls / (DENSITY_NEIGHBOURS * synthetic.sum(1)),
            "coverage": _share(self._covered, real),
        }
        return Manifold(
            precise_M=self._precise[0],
            recalled_N=self._recalled[0],
            density_M=self._density_M / DENSITY_NEIGHBOURS,
            covered_N=self._covered[0],
            halves={name: share[1:] for name, share in shares.items()},
        )

    def _keep(self, side: int, rows: slice, columns: slice, distances: torch.Tensor) -> None:
        """Keep the nearest of what is kept and of a block."""
        kept, places = self._near[side]
        nearest = distances.topk(min(kept.shape[1], distances.shape[1]), dim=1, largest=False, sorted=False)
        joined = torch.cat([kept[rows], nearest.values], 1)
        best = joined.topk(kept.shape[1], dim=1, largest=False)
        kept[rows] = best.values
        places[rows] = torch.cat([places[rows], nearest.indices + columns.start], 1).gather(1, best.indices)

    def _set_radii(self) -> None:
        """Squared radii of each image's ball in each replicate, (1 + B, N); below 0 where the image is absent."""
        for side, present in enumerate(self._present):
            kept, places = (array.numpy() for array in self._near[side])
            wanted = sorted({PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS} if side == 0 else {PRECISION_NEIGHBOURS})
            for k in wanted:
                self._radii[side, k] = np.full(present.shape, -np.inf)
            for replicate, there in enumerate(present):
                count = np.cumsum(there[places], axis=1)
                for k in wanted:
                    reached = count >= k
                    place = np.where(reached[:, -1], reached.argmax(axis=1), kept.shape[1] - 1)
                    radii = np.take_along_axis(kept, place[:, None], 1)[:, 0]
                    self._radii[side, k][replicate, there] = radii[there]

    def _candidates(
        self, side: int, owners: slice, members: slice, distances: torch.Tensor
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The pairs of a block that are inside a ball in any replicate: owner, member, squared distance (one tuple)."""
        widest = self._radii[side, DENSITY_NEIGHBOURS if side == 0 else PRECISION_NEIGHBOURS][:, owners].max(axis=0)
        owner, member = (distances <= torch.from_numpy(widest)[:, None]).nonzero(as_tuple=True)
        if len(owner):
            yield (owner + owners.start).numpy(), (member + members.start).numpy(), distances[owner, member].numpy()


def manifold(real_ND: np.ndarray, synthetic_MD: np.ndarray) -> Manifold:
    """Precision, recall, density and coverage image by image, without intervals.

    Parameters
    ----------
    real_ND, synthetic_MD
        Finite features of one D; more than `DENSITY_NEIGHBOURS` images each.
    """
    pairs = Pairs(real_ND, synthetic_MD)
    none = np.zeros((0, len(real_ND)), dtype=bool), np.zeros((0, len(synthetic_MD)), dtype=bool)
    neighbours = Neighbours(pairs, none)
    sweep(pairs, [neighbours])
    return neighbours.manifold()


def _share(found: np.ndarray, present: np.ndarray) -> np.ndarray:
    return (found & present).sum(1) / present.sum(1)
