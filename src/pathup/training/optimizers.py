"""Muon beside AdamW: the weights of fine levels are stepped as matrices, all others one number at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from pathup.errors import PathUpError
from pathup.recipes import DiffusionRecipe


class MatrixMuon(torch.optim.Muon):
    """Muon (Jordan et al. 2024) for weights of two and more axes: a convolution's counts as the matrix (out, in k k).

    PyTorch's own takes matrices alone. Here each weight W has a twin, the same numbers as a matrix, and it is the twins
    that are stepped, whatever order the weights lie in memory in: ``M <- 0.95 M + 0.05 G``, then
    ``W <- (1 - lr wd) W - lr 0.2 sqrt(max(rows, columns)) O``, O being the nearest orthogonal matrix (five
    Newton-Schulz iterations, in bfloat16) of ``0.05 G + 0.95 M``. The factor brings steps to the size of AdamW's (Liu
    et al. 2025), so that learning rates of both are comparable.

    Parameters
    ----------
    weights
        Parameters of two and more axes, on the device where they stay.
    lr, weight_decay
        Of every step.

    Raises
    ------
    ValueError
        A weight has one axis, or none.
    """

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        self._weights = list(weights)
        if any(weight.ndim < 2 for weight in self._weights):
            raise ValueError("Muon steps matrices, and a weight here has fewer than two axes")
        twins = [nn.Parameter(weight.detach().flatten(1).clone()) for weight in self._weights]
        super().__init__(twins, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step by the gradients that the weights have now; clearing these is left to their module."""
        twins = self.param_groups[0]["params"]
        for twin, weight in zip(twins, self._weights, strict=True):
            twin.copy_(weight.flatten(1))
            twin.grad = None if weight.grad is None else weight.grad.flatten(1)
        loss = super().step(closure)
        for twin, weight in zip(twins, self._weights, strict=True):
            weight.copy_(twin.view(weight.shape))
            twin.grad = None
        return loss


def fine_weights(unet: UNet2DConditionModel) -> list[nn.Parameter]:
    """What Muon steps: every weight of two and more axes in the U-Net's levels without attention.

    The levels that attend to the prompt stay with AdamW, as do the middle, the first and last convolution, the
    embedding of time, biases and norms: with Muon there, prompts lost their say (docs/results/fidelity.md).
    """
    blocks = [*unet.down_blocks, *unet.up_blocks]
    fine = [block for block in blocks if not getattr(block, "has_cross_attention", False)]
    return [weight for block in fine for weight in block.parameters() if weight.ndim >= 2 and weight.requires_grad]


def build_optimizers(model: nn.Module, unet: UNet2DConditionModel, spec: DiffusionRecipe) -> dict[str, Any]:
    """The optimisers of all of a model's parameters that are trained, by the names that checkpoints keep them under.

    AdamW, and Muon for the `fine_weights` where the recipe gives it a learning rate.

    Raises
    ------
    PathUpError
        `adam_8bit` is asked for and bitsandbytes is not installed.
    """
    matrices = fine_weights(unet) if spec.muon_learning_rate else []
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in chosen]
    values: dict[str, Any] = {"lr": spec.learning_rate, "weight_decay": spec.weight_decay}
    adamw = _adamw_8bit()(others, **values) if spec.adam_8bit else torch.optim.AdamW(others, **values, fused=True)
    if not matrices or spec.muon_learning_rate is None:
        return {"optimizer": adamw}
    return {"optimizer": adamw, "muon": MatrixMuon(matrices, spec.muon_learning_rate, spec.muon_weight_decay)}


def _adamw_8bit() -> Any:
    """AdamW with moments of 8 bits (Dettmers et al. 2022): 2 bytes a weight in place of 8."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise PathUpError("adam_8bit needs bitsandbytes; install it: pip install 'pathup[finetune]'") from None
    return AdamW8bit
