"""Empty glass beside the tissue: its latent, its colour, and which tiles hold nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pathup.sampling.norms import NormStatistics, fixed_norms
from pathup.sampling.overview import GLASS_RGB

if TYPE_CHECKING:
    from pathup.model.pipeline import PathUpPipeline
    from pathup.sampling.layouts import Layout

__all__ = ["GlassTiles", "glass_latent"]

_SIDE = 48
"""Latent positions of the plain area that is encoded; its middle lies beyond the reach of the padding at its rim."""


_CELL, _REACH = 8, 8
"""Latent positions: side of the squares that are painted, and how far from tissue they must be."""


@torch.inference_mode()
def glass_latent(pipeline: PathUpPipeline, statistics: NormStatistics) -> torch.Tensor:
    """The latent of plain glass, (C,), by the encoder's statistics for the canvas that it is part of."""
    side = _SIDE * pipeline.factor
    pixels = (
        torch.tensor(GLASS_RGB, dtype=torch.float32).div(127.5).sub(1)[None, :, None, None].expand(1, 3, side, side)
    )
    with fixed_norms(pipeline.vae, statistics):
        latents = pipeline.encode_pixels(pixels)[0].float().cpu()
    middle = slice(_SIDE // 2 - 4, _SIDE // 2 + 4)
    return latents[:, middle, middle].mean(dim=(1, 2))


class GlassTiles:
    """Tells encoding and decoding which tiles are glass alone, and what stands in their place.

    Parameters
    ----------
    pipeline, layout
        The model, and which class lies where.
    latent_C
        The latent of glass.
    """

    rgb = GLASS_RGB

    def __init__(self, pipeline: PathUpPipeline, layout: Layout, latent_C: torch.Tensor) -> None:
        self._factor, self._layout = pipeline.factor, layout
        self.latent_C = latent_C

    def paint(self, pixels: np.ndarray, top: int) -> None:
        """Give decoded pixels the colour of glass where they and all near them are glass, in place.

        What lies at the image's rim is decoded beside zero padding, which shows on a plain background.

        Parameters
        ----------
        pixels
            uint8 RGB (rows, W, 3), rows of the image.
        top
            The first of them.
        """
        side, reach = _CELL * self._factor, _REACH * self._factor
        tops, lefts = range(top, top + len(pixels), side), range(0, pixels.shape[1], side)
        boxes = [(y - reach, x - reach, y + side + reach, x + side + reach) for y in tops for x in lefts]
        bare = self._layout.glass(np.asarray(boxes, np.float64)).reshape(len(tops), len(lefts))
        for row, column in np.argwhere(bare):
            y, x = row * side, column * side
            pixels[y : y + side, x : x + side] = self.rgb

    def covers(self, top: int, left: int, bottom: int, right: int) -> bool:
        """Whether an area, in latent positions, is glass alone."""
        return bool(self._layout.glass(np.asarray([[top, left, bottom, right]], np.float64) * self._factor)[0])
