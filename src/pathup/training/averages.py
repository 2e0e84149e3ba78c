"""Exponential moving averages of weights."""

from __future__ import annotations

import torch
from torch import nn

from pathup.training.adapters import trained_state
from pathup.training.schedules import ema_decay
from pathup.training.sharding import placed_like

__all__ = ["Average"]


class Average:
    """The moving average of a module's weights and buffers, but for frozen weights, beside it on its device.

    Parameters
    ----------
    module
        Averaged from its state at this moment on.
    decay
        Of the average; less in its first steps (`ema_decay`).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay = module, decay
        self.tensors = {name: value.detach().clone() for name, value in trained_state(module).items()}
        """By the names of the module's state."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the module as it is after `step` (counted from 0); counters are copied."""
        weight, current = 1 - ema_decay(step, self._decay), self._module.state_dict()
        smooth = [name for name, value in self.tensors.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.tensors[name] for name in smooth], [current[name] for name in smooth], weight)
        for name in self.tensors.keys() - smooth:
            self.tensors[name].copy_(current[name])

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Go on from tensors that were kept."""
        self.tensors = {name: placed_like(value, self.tensors[name]) for name, value in tensors.items()}
