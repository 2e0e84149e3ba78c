"""The canvas: the latent of the whole large image, a plain float32 array (C, H, W) on the CPU."""

from __future__ import annotations

import torch

from pathup import draws
from pathup.sampling.windows import WindowGrid

__all__ = ["NOISE_BLOCK", "CanvasFusion", "canvas_noise"]

NOISE_BLOCK = 64
"""Side of the blocks in which canvas noise is drawn. Part of what a seed means: changing it changes every image."""


def canvas_noise(shape_CHW: tuple[int, int, int], seed: int, *keys: int | str) -> torch.Tensor:
    """Standard normal noise whose value at a position depends on (seed, keys, channel, row, column) alone.

    Drawn block by block, so a larger canvas of the same seed continues a smaller one and no order matters.

    Returns
    -------
    torch.Tensor
        noise_CHW, float32 on the CPU.
    """
    channels, height, width = shape_CHW
    noise = torch.empty(shape_CHW)
    for top in range(0, height, NOISE_BLOCK):
        for left in range(0, width, NOISE_BLOCK):
            part = noise[:, top : top + NOISE_BLOCK, left : left + NOISE_BLOCK]
            block = draws.normal(
                (channels, NOISE_BLOCK, NOISE_BLOCK), seed, *keys, "canvas", top // NOISE_BLOCK, left // NOISE_BLOCK
            )
            part.copy_(block[:, : part.shape[1], : part.shape[2]])
    return noise


class CanvasFusion:
    """Fuses overlapping windows' values into one canvas: the weighted mean at each position.

    Windows are added in a fixed order, so the result does not depend on how they were batched.

    Parameters
    ----------
    grid
        The windows.
    channels
        C.
    weighted
        Equation 6's weights, or hard tiles.
    """

    def __init__(self, grid: WindowGrid, channels: int, *, weighted: bool = True) -> None:
        self.grid = grid
        self.weighted = weighted
        self._total_CHW = torch.zeros(channels, grid.height, grid.width)
        self._weight_HW = grid.weight_sum(weighted=weighted)

    def clear(self) -> None:
        """Forget what was added; the weights stay."""
        self._total_CHW.zero_()

    def add(self, index: int, values_CHW: torch.Tensor) -> None:
        """Add window `index`'s values, (C, L, L) float32 on the CPU."""
        rows, columns = self.grid[index]
        self._total_CHW[:, rows, columns] += values_CHW * self.grid.weight(index, weighted=self.weighted)

    def result(self) -> torch.Tensor:
        """The fused canvas (C, H, W): sum of weighted values divided by the sum of weights. A new array."""
        return self._total_CHW / self._weight_HW
