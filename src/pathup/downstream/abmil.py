"""Attention-based multiple-instance learning (Ilse et al. 2018) with several classes.

A bag of patch features h_1, ..., h_N, each brought to x_n = ReLU(W h_n + b), is pooled with gated attention

    z = sum_n a_n x_n,   a = softmax_n( w^T (tanh(V x_n) * sigmoid(U x_n)) ),

and a linear layer names the class from z.
"""

from __future__ import annotations

import torch
from torch import nn
from torchmil.nn import AttentionPool

from pathup.recipes import ABMILRecipe

__all__ = ["ABMIL", "padded"]


class ABMIL(nn.Module):
    """The classifier.

    Parameters
    ----------
    features
        Channels of a patch's features.
    classes
        How many.
    spec
        Its sizes.
    """

    def __init__(self, features: int, classes: int, spec: ABMILRecipe) -> None:
        super().__init__()
        self.normalise = nn.LayerNorm(features)
        self.embed = nn.Sequential(nn.Linear(features, spec.embedding), nn.ReLU(), nn.Dropout(spec.dropout))
        self.pool = AttentionPool(in_dim=spec.embedding, att_dim=spec.attention, gated=True)
        self.head = nn.Linear(spec.embedding, classes)

    def forward(self, bags_BND: torch.Tensor, mask_BN: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) of bags; the mask is 1 where there is a patch, and 0 where a bag was filled up."""
        return self._pooled(bags_BND, mask_BN)[0]

    def attention(self, bags_BND: torch.Tensor, mask_BN: torch.Tensor) -> torch.Tensor:
        """The weights a, (B, N): they add up to 1 over a bag's patches, and are 0 elsewhere."""
        return self._pooled(bags_BND, mask_BN)[1].masked_fill(mask_BN == 0, -torch.inf).softmax(1)

    def _pooled(self, bags_BND: torch.Tensor, mask_BN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = self.embed(self.normalise(bags_BND))
        pooled, scores = self.pool(embedded, mask_BN, return_att=True)
        return self.head(pooled), scores


def padded(bags: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Bags (N_b, D) of different sizes as one tensor (B, N, D), and the mask (B, N)."""
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(bag)) for bag in bags], batch_first=True)
    return nn.utils.rnn.pad_sequence(bags, batch_first=True), mask
