"""The feature entropy loss (eq. 3) and its memory of one anchor a prompt."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from pathup.draws import normal


class FeatureEntropyLoss(nn.Module):
    r"""Contrast a tile's mid-block feature with the memory of all prompts.

    .. math:: L_e = E_z [-\log \frac{\exp(z \cdot k^+ / \tau)}{\sum_i \exp(z \cdot k_i / \tau)}]

    the cross-entropy of :math:`z k^T / \tau` against the tile's own prompt (eq. 3). z is the output of the U-Net's
    middle block, averaged over height and width, of length 1. After each optimiser step the anchors of the prompts
    in the batch move, :math:`k_c \leftarrow norm(a k_c + (1 - a) \bar z_c)`; the others stay.

    Parameters
    ----------
    prompts
        K, the number of prompts: classes x levels.
    width
        D, the channels of the U-Net's middle block.
    temperature
        tau. The paper states none; 0.07 is momentum contrast's.
    momentum
        a, in [0, 1]. The paper states none.
    seed
        For the anchors at the start, which are random directions.
    """

    memory_KD: torch.Tensor

    def __init__(self, prompts: int, width: int, *, temperature: float, momentum: float, seed: int) -> None:
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        self.register_buffer("memory_KD", normalize(normal((prompts, width), seed, "feature memory"), dim=1))

    def forward(self, z_BD: torch.Tensor, prompt_B: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar, for features of length 1 and their prompts' indices in 0..K-1."""
        return self.terms(z_BD, prompt_B).mean()

    def terms(self, z_BD: torch.Tensor, prompt_B: torch.Tensor) -> torch.Tensor:
        """What the loss is the mean of: one term a feature, (B,)."""
        return cross_entropy(z_BD.float() @ self.memory_KD.T / self.temperature, prompt_B, reduction="none")

    @torch.no_grad()
    def update(self, z_ND: torch.Tensor, prompt_N: torch.Tensor) -> None:
        """Move the anchors of the prompts among the N features of one optimiser step (of **all** processes).

        A feature whose prompt is -1 moves none. Nothing is read back from a GPU, which would wait for it.
        """
        member_KN = (prompt_N == torch.arange(len(self.memory_KD), device=prompt_N.device)[:, None]).float()
        count_K1 = member_KN.sum(1, keepdim=True)
        mean_KD = member_KN @ z_ND.float() / count_K1.clamp_min(1)
        moved_KD = normalize(self.momentum * self.memory_KD + (1 - self.momentum) * mean_KD, dim=1)
        self.memory_KD.copy_(torch.where(count_K1 > 0, moved_KD, self.memory_KD))


def pooled(features_BDHW: torch.Tensor) -> torch.Tensor:
    """The feature z of eq. 3: the mean over height and width, scaled to length 1; (B, D)."""
    return normalize(features_BDHW.float().mean((2, 3)), dim=1)
