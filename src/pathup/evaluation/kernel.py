"""The kernel distance of two sets of features (KID, where the features are those of Inception)."""

from __future__ import annotations

import numpy as np
import torch

from pathup.evaluation.intervals import Units
from pathup.evaluation.pairs import BLOCK, Pairs, sweep

__all__ = ["KernelSums", "kernel_distance", "paired_kernel_distance", "subset_draws"]


class KernelSums:
    """Sums of the kernel over pairs, for the whole sets, for subsets and for resampled sets at once.

    Binkowski et al., 2018, Demystifying MMD GANs: the squared maximum mean discrepancy with the kernel
    k(x, y) = (x . y / D + 1)^3, by its unbiased U-statistic

        sum_{i != j} k(x_i, x_j) / (n (n - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1)) - 2 sum_ij k(x_i, y_j) / (n m).

    A subset or a resampled set is a column of weights w, so that all are one matrix product a block: w^T K w.
    In a resampled set, the pairs of two copies of one unit are left out (they are no pairs of different regions), and
    the pairs inside a unit count once for each copy; both keep the statistic unbiased.

    Parameters
    ----------
    pairs
        The features.
    units
        The units of both sets, for `multiplicities`.
    subsets
        (S, m) int: the images of each subset, of both sets.
    multiplicities
        (G, B) of both sets: how often each unit is drawn in each replicate.
    """

    def __init__(
        self,
        pairs: Pairs,
        units: tuple[Units, Units],
        subsets: tuple[np.ndarray, np.ndarray],
        multiplicities: tuple[np.ndarray, np.ndarray],
    ) -> None:
        self._pairs, self._units, self._drawn = pairs, units, multiplicities
        self._shift = [features @ pairs.mean + pairs.mean @ pairs.mean / 2 for features in pairs.sets]
        self._single = [_columns(len(x), subset) for x, subset in zip(pairs.sets, subsets, strict=True)]
        self._weights = [
            torch.cat([single, torch.from_numpy(drawn)[torch.from_numpy(unit.index_N)]], 1)
            for single, unit, drawn in zip(self._single, units, multiplicities, strict=True)
        ]
        columns = self._weights[0].shape[1]
        self._within = [torch.zeros(columns, dtype=torch.float64) for _ in range(2)]
        self._across = torch.zeros(columns, dtype=torch.float64)

    def within(self, side: int, rows: slice, columns: slice, products: torch.Tensor) -> None:
        """See `PairReader`."""
        kernel = self._kernel(products, self._shift[side][rows], self._shift[side][columns])
        weights = self._weights[side]
        total = (kernel @ weights[columns]).mul_(weights[rows]).sum(0)
        self._within[side] += total if rows == columns else 2 * total

    def across(self, rows: slice, columns: slice, products: torch.Tensor) -> None:
        """See `PairReader`."""
        kernel = self._kernel(products, self._shift[0][rows], self._shift[1][columns])
        self._across += (kernel @ self._weights[1][columns]).mul_(self._weights[0][rows]).sum(0)

    def distances(self) -> tuple[float, np.ndarray, np.ndarray]:
        """The distance of the whole sets, of each subset (S,) and of each replicate (B,).

        A replicate in which one single image was drawn every time is NaN.
        """
        singles = self._single[0].shape[1]
        total = torch.zeros_like(self._across)
        for side in range(2):
            sums, counts = self._without_own(side)
            total += sums / counts
        images = [weights.sum(0) for weights in self._weights]
        total -= 2 * self._across / (images[0] * images[1])
        return float(total[0]), total[1:singles].numpy(), total[singles:].numpy()

    def _without_own(self, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over pairs of different images or units, and the number of these pairs, for each column."""
        own_N = self._own(side)
        single, drawn = self._single[side], torch.from_numpy(self._drawn[side])
        inside_G, diagonal_G = self._inside(side, own_N)
        sizes_G = torch.from_numpy(self._units[side].sizes)
        taken = torch.cat([own_N @ single, inside_G @ drawn.square() - (inside_G - diagonal_G) @ drawn])
        pairs_G = sizes_G.square()
        absent = torch.cat([single.sum(0), pairs_G @ drawn.square() - (pairs_G - sizes_G) @ drawn])
        return self._within[side] - taken, self._weights[side].sum(0).square() - absent

    def _own(self, side: int) -> torch.Tensor:
        """k(x, x) of each image."""
        return self._cube(self._pairs.squares[side] + 2 * self._shift[side])

    def _inside(self, side: int, own_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each unit, the sum of the kernel over all its pairs, own ones too, and over own ones alone."""
        unit, features, shift = self._units[side], self._pairs.sets[side], self._shift[side]
        index = torch.from_numpy(unit.index_N)
        diagonal_G = torch.zeros(unit.count, dtype=torch.float64).index_add_(0, index, own_N)
        if unit.count == len(features) or not self._drawn[side].shape[1]:
            return diagonal_G, diagonal_G
        inside_G = torch.zeros_like(diagonal_G)
        order = np.argsort(unit.index_N, kind="stable")
        for number, members in enumerate(np.split(order, np.cumsum(unit.sizes).astype(int)[:-1])):
            for start in range(0, len(members), BLOCK):
                part = members[start : start + BLOCK]
                products = features[part] @ features[members].T
                inside_G[number] += self._kernel(products, shift[part], shift[members]).sum()
        return inside_G, diagonal_G

    def _kernel(self, products: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """The kernel, of features as they were given: x . y = (x - c) . (y - c) + x . c + y . c - c . c."""
        return self._cube(products + columns + rows[:, None])

    def _cube(self, products: torch.Tensor) -> torch.Tensor:
        base = products.div_(self._pairs.dimension).add_(1)
        return base.square().mul_(base)


def kernel_distance(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """The kernel distance of two whole sets, at least two images each; may be below 0, as it is unbiased."""
    none = np.zeros((0, 0), dtype=np.int64)
    units = Units.of(len(a_ND), None, "a"), Units.of(len(b_MD), None, "b")
    empty = np.zeros((len(a_ND), 0)), np.zeros((len(b_MD), 0))
    pairs = Pairs(a_ND, b_MD)
    sums = KernelSums(pairs, units, (none, none), empty)
    sweep(pairs, [sums])
    return sums.distances()[0]


def paired_kernel_distance(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """The kernel distance of a set to what became of each of its own images, in the same order, two at least.

    As in `KernelSums`, but the pairs of an image and what became of it are left out of the third sum too:

        sum_{i != j} (k(x_i, x_j) + k(y_i, y_j) - 2 k(x_i, y_j)) / (n (n - 1)).

    An image is nearer to its own reconstruction than to others, so that with these pairs the distance of a set to
    itself is below 0, all the more the fewer images there are; without them it is 0.
    """
    a_ND, b_ND = (np.asarray(features, dtype=np.float64) for features in (a_ND, b_ND))
    if a_ND.shape != b_ND.shape or len(a_ND) < 2:
        raise ValueError(f"pairs of images wanted, two at least, not features of shape {a_ND.shape} and {b_ND.shape}")
    n, dimension = a_ND.shape
    total = 0.0
    for first in range(0, n, BLOCK):
        rows = slice(first, first + BLOCK)
        kernels = [(x[rows] @ y.T / dimension + 1) ** 3 for x, y in ((a_ND, a_ND), (b_ND, b_ND), (a_ND, b_ND))]
        difference = kernels[0] + kernels[1] - 2 * kernels[2]
        total += difference.sum() - np.trace(difference, offset=first)
    return float(total / (n * (n - 1)))


def subset_draws(real: int, synthetic: int, subsets: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The images of each subset, (subsets, size) int of both sets: the very ones that torch-fidelity draws.

    torch-fidelity 0.4 draws them, without replacement, from NumPy's legacy generator, first of its first input (the
    synthetic images), then of its second. With the same images, a difference in KID can only be one of arithmetic.
    """
    generator = np.random.RandomState(seed)
    drawn_real, drawn_synthetic = (np.empty((subsets, size), dtype=np.int64) for _ in range(2))
    for number in range(subsets):
        drawn_synthetic[number] = generator.choice(synthetic, size, replace=False)
        drawn_real[number] = generator.choice(real, size, replace=False)
    return drawn_real, drawn_synthetic


def _columns(images: int, subsets: np.ndarray) -> torch.Tensor:
    """(images, 1 + S) weights of 0 and 1: the whole set, then each subset."""
    weights = torch.zeros(images, 1 + len(subsets), dtype=torch.float64)
    weights[:, 0] = 1
    for number, members in enumerate(subsets):
        weights[torch.from_numpy(members), 1 + number] = 1
    return weights
