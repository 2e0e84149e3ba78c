"""Empty glass on a canvas: its latent, and how noisy it is at each step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pathup.sampling.canvas import canvas_noise
from pathup.sampling.mid_attention import fixed_statistics
from pathup.sampling.norms import NormStatistics
from pathup.sampling.tissue import GLASS_RGB

if TYPE_CHECKING:
    from pathup.model.pipeline import PathUpPipeline

__all__ = ["Glass", "glass_latent"]

_SIDE = 48
"""Latent positions of the plain area that is encoded; its middle lies beyond the reach of the padding at its rim."""


class Glass:
    """Empty glass on a canvas: its latent (C,), and the canvas's noise."""

    def __init__(self, latent_C: torch.Tensor, shape_CHW: tuple[int, int, int], seed: int, *keys: int | str) -> None:
        self.latent_C = latent_C
        self._shape_CHW, self._seed, self._keys = shape_CHW, seed, keys

    def noise(self, rows: slice) -> torch.Tensor:
        """The canvas's noise in some rows."""
        return canvas_noise(self._shape_CHW, self._seed, *self._keys, rows=rows)


@torch.inference_mode()
def glass_latent(pipeline: PathUpPipeline, statistics: NormStatistics) -> torch.Tensor:
    """The latent of plain glass, (C,), by the encoder's statistics for the tissue that it lies beside."""
    side = _SIDE * pipeline.factor
    pixels = torch.tensor(GLASS_RGB, dtype=torch.float32).div(127.5).sub(1)[None, :, None, None]
    with fixed_statistics(pipeline.vae, statistics):
        latents = pipeline.encode_pixels(pixels.expand(1, 3, side, side))[0].float().cpu()
    middle = slice(_SIDE // 2 - 4, _SIDE // 2 + 4)
    return latents[:, middle, middle].mean(dim=(1, 2))
