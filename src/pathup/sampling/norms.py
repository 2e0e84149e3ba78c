"""Group normalisation with statistics that are fixed for a whole canvas.

`torch.nn.GroupNorm` normalises each piece it is given by that piece's own mean and variance. An image that is
decoded in tiles is then normalised tile by tile, and the same white background comes out in another tone
in each. Overlap hides the edges of such tiles, not their tone. Here the statistics of every
layer are measured once, over pieces from the whole canvas taken as one population, and then held fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["NormStatistics", "fixed_norms", "measure_norms"]

Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class NormStatistics:
    """Mean and variance of each group of each `GroupNorm`, by the layer's name: (G,) and (G,), float32."""

    groups: dict[str, tuple[torch.Tensor, torch.Tensor]]


def measure_norms(module: nn.Module, run: Callable[[], object]) -> NormStatistics:
    """Record the statistics of every `GroupNorm` of `module` that `run` passes through.

    During the run each layer normalises its batch jointly (over batch, height and width), so the later layers
    are measured on what they will see once the earlier ones are fixed.
    """
    groups: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def joint(name: str, layer: nn.GroupNorm) -> Forward:
        def forward(x: torch.Tensor) -> torch.Tensor:
            grouped = x.float().reshape(x.shape[0], layer.num_groups, -1)
            variance, mean = torch.var_mean(grouped, dim=(0, 2), correction=0)
            groups[name] = mean, variance
            return _normalised(layer, x, mean, variance)

        return forward

    with _replaced(module, joint):
        run()
    return NormStatistics(groups)


@contextmanager
def fixed_norms(module: nn.Module, statistics: NormStatistics) -> Iterator[None]:
    """Within the context every measured `GroupNorm` of `module` uses `statistics`, whatever it is given."""

    def fixed(name: str, layer: nn.GroupNorm) -> Forward | None:
        if name not in statistics.groups:
            return None
        mean, variance = statistics.groups[name]
        return lambda x: _normalised(layer, x, mean, variance)

    with _replaced(module, fixed):
        yield


def _normalised(layer: nn.GroupNorm, x: torch.Tensor, mean_G: torch.Tensor, variance_G: torch.Tensor) -> torch.Tensor:
    repeat = layer.num_channels // layer.num_groups
    scale_C = (variance_G.to(x.device) + layer.eps).rsqrt().repeat_interleave(repeat)
    shift_C = -mean_G.to(x.device).repeat_interleave(repeat) * scale_C
    if layer.affine:
        scale_C = scale_C * layer.weight.float()
        shift_C = shift_C * layer.weight.float() + layer.bias.float()
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return torch.addcmul(shift_C.reshape(shape), x.float(), scale_C.reshape(shape)).to(x.dtype)


@contextmanager
def _replaced(module: nn.Module, make: Callable[[str, nn.GroupNorm], Forward | None]) -> Iterator[None]:
    """Swap the forward of each `GroupNorm`, and put back what was there (also another library's hook)."""
    before: list[tuple[nn.GroupNorm, object | None]] = []
    try:
        for name, layer in module.named_modules():
            if not isinstance(layer, nn.GroupNorm):
                continue
            forward = make(name, layer)
            if forward is not None:
                before.append((layer, layer.__dict__.get("forward")))
                layer.forward = forward  # type: ignore[method-assign, assignment]
        yield
    finally:
        for layer, forward_before in before:
            if forward_before is None:
                del layer.forward
            else:
                layer.forward = forward_before  # type: ignore[method-assign, assignment]
