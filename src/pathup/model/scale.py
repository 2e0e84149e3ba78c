"""The physical scale, in micrometres per pixel, as a number that the model takes in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

__all__ = ["ScaleEncoder"]

_WAVES = 6
"""Sines and cosines by which a scale is told, each half an octave slower than the one before."""


class ScaleEncoder(ModelMixin, ConfigMixin):
    r"""What is added to the embedding of a prompt's first token, by the scale of the tile.

    .. math:: e(s) = W_2 \, SiLU(W_1 \, [\sin \omega_i \log_2 s, \cos \omega_i \log_2 s]_i), \quad
              \omega_i = \pi \, 2^{-i/2}, i = 0..5

    The first token marks the start of every text, that of the empty prompt too, so guidance leaves the scale as it is.
    Its place makes the encoder fit any U-Net that attends to text, Stable Diffusion's among them; and since :math:`W_2`
    is zero at the start, such a U-Net begins as it was.

    Parameters
    ----------
    width
        D, of the prompts' embeddings.
    """

    @register_to_config
    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(2 * _WAVES, width), nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, mpp_B: torch.Tensor) -> torch.Tensor:
        """Scales in micrometres per pixel, (B,), above 0, to what is added, (B, D)."""
        omega = math.pi * 2 ** (-torch.arange(_WAVES, device=mpp_B.device) / 2)
        angles = mpp_B.float().log2()[:, None] * omega
        waves = torch.cat([angles.sin(), angles.cos()], dim=1).to(self.hidden.weight.dtype)
        told: torch.Tensor = self.out(nn.functional.silu(self.hidden(waves)))
        return told

    def told(self, prompts_BLD: torch.Tensor, mpp_B: torch.Tensor | Sequence[float]) -> torch.Tensor:
        """Embeddings of prompts that know their scales too, (B, L, D)."""
        scales = torch.as_tensor(mpp_B, dtype=torch.float32, device=prompts_BLD.device)
        first = prompts_BLD[:, :1] + self(scales)[:, None].to(prompts_BLD.dtype)
        return torch.cat([first, prompts_BLD[:, 1:]], dim=1)
