"""Statistics of a whole canvas, held fixed: those of group normalisation, and the keys of attention.

`torch.nn.GroupNorm` normalises each piece it is given by that piece's own mean and variance. An image that is
decoded in tiles is then normalised tile by tile, and the same white background comes out in another tone
in each. Overlap hides the edges of such tiles, not their tone. Here the statistics of every
layer are measured once, over pieces from the whole canvas taken as one population, and then held fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pathup.errors import PathUpError
from pathup.storage import atomic_path

__all__ = ["NormStatistics", "fixed_norms", "measure_norms", "replaced_forwards"]

Forward = Callable[..., torch.Tensor]
Layer = TypeVar("Layer", bound=nn.Module)
Pair = tuple[torch.Tensor, torch.Tensor]

KINDS = {"groups": ("mean", "variance"), "attention": ("keys", "values")}


@dataclass(frozen=True)
class NormStatistics:
    """What the layers of an autoencoder need to know of a whole canvas.

    Attributes
    ----------
    groups
        Mean and variance of each group of each `GroupNorm`, by the layer's name: (G,) and (G,), float32.
    attention
        Keys and values of each attention in the middle of the network, by the layer's name: (heads, N, D) each,
        of N positions of the canvas (`pathup.sampling.mid_attention`). Empty for convolutions alone.
    """

    groups: dict[str, Pair] = field(default_factory=dict)
    attention: dict[str, Pair] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write to a safetensors file, atomically; a PathUpError where that fails."""
        tensors = {
            f"{kind}/{name}/{part}": tensor.detach().cpu().contiguous()
            for kind, parts in KINDS.items()
            for name, pair in getattr(self, kind).items()
            for part, tensor in zip(parts, pair, strict=True)
        }
        with atomic_path(path) as temporary:
            save_file(tensors, temporary)

    @classmethod
    def load(cls, path: Path) -> NormStatistics:
        """Read what `save` wrote, onto the CPU.

        Raises
        ------
        PathUpError
            The file is missing, damaged, or holds something else.
        """
        found: dict[str, dict[str, Pair]] = {kind: {} for kind in KINDS}
        try:
            tensors = load_file(path)
            for key in tensors:
                kind, name, part = key.split("/")
                if part == KINDS[kind][0]:
                    found[kind][name] = tensors[key], tensors[f"{kind}/{name}/{KINDS[kind][1]}"]
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise PathUpError(
                f"{path} holds no statistics of a canvas ({error}); remove it, and they are measured again"
            ) from error
        return cls(**found)


def measure_norms(
    module: nn.Module,
    run: Callable[[], object],
    *,
    counted: Callable[[torch.Tensor], torch.Tensor] | None = None,
    weights_B: torch.Tensor | None = None,
    statistics: NormStatistics | None = None,
) -> NormStatistics:
    """Record the statistics of every `GroupNorm` of `module` that `run` passes through.

    During the run each layer normalises its batch jointly (over batch, height and width), so the later layers
    are measured on what they will see once the earlier ones are fixed.

    Parameters
    ----------
    module
        The network.
    run
        Passes one batch through it.
    counted
        The part of a layer's input (B, C, H, W) that its statistics are of: the network sees zeros beyond a piece,
        where the canvas goes on, and the piece's rim is bent by them. Unset: all of it.
    weights_B
        How much each piece of the batch counts; they add up to 1. Unset: all the same.
    statistics
        Filled as the run goes, for a run that needs the earlier layers'; a new one when unset.

    Returns
    -------
    NormStatistics
        `statistics`.
    """
    statistics = NormStatistics() if statistics is None else statistics

    def joint(name: str, layer: nn.GroupNorm) -> Forward:
        def forward(x: torch.Tensor) -> torch.Tensor:
            pair = _moments(counted(x) if counted else x, layer.num_groups, weights_B)
            statistics.groups[name] = pair
            return _normalised(layer, x, *pair)

        return forward

    with replaced_forwards(module, nn.GroupNorm, joint):
        run()
    return statistics


@contextmanager
def fixed_norms(module: nn.Module, statistics: NormStatistics) -> Iterator[None]:
    """Within the context every measured `GroupNorm` of `module` uses `statistics`, whatever it is given.

    The activations behind them, whose input nothing else needs, work in place meanwhile: a tenth less memory.
    """

    def fixed(name: str, layer: nn.GroupNorm) -> Forward | None:
        if name not in statistics.groups:
            return None
        mean, variance = statistics.groups[name]
        return lambda x: _normalised(layer, x, mean, variance)

    def in_place(_: str, __: nn.SiLU) -> Forward:
        return lambda x: nn.functional.silu(x, inplace=True)

    with replaced_forwards(module, nn.GroupNorm, fixed), replaced_forwards(module, nn.SiLU, in_place):
        yield


@contextmanager
def replaced_forwards(
    module: nn.Module, kind: type[Layer], make: Callable[[str, Layer], Forward | None]
) -> Iterator[None]:
    """Swap the forward of each layer of a kind, and put back what was there (also another library's hook)."""
    before: list[tuple[Layer, Any]] = []
    try:
        for name, layer in module.named_modules():
            if not isinstance(layer, kind):
                continue
            forward = make(name, layer)
            if forward is not None:
                before.append((layer, layer.__dict__.get("forward")))
                layer.forward = forward  # type: ignore[method-assign]
        yield
    finally:
        for layer, forward_before in before:
            if forward_before is None:
                del layer.forward
            else:
                layer.forward = forward_before  # type: ignore[method-assign]


def _moments(x: torch.Tensor, groups: int, weights_B: torch.Tensor | None) -> Pair:
    """Mean and variance of each group over the batch, each piece by its weight."""
    x_BGN = x.float().reshape(x.shape[0], groups, -1)
    if weights_B is None:
        variance_G, mean_G = torch.var_mean(x_BGN, dim=(0, 2), correction=0)
        return mean_G, variance_G
    variance_BG, mean_BG = torch.var_mean(x_BGN, dim=2, correction=0)
    weights_B1 = weights_B.to(x_BGN.device, x_BGN.dtype)[:, None]
    mean_G = (weights_B1 * mean_BG).sum(0)
    return mean_G, (weights_B1 * (variance_BG + (mean_BG - mean_G).square())).sum(0)


def _normalised(layer: nn.GroupNorm, x: torch.Tensor, mean_G: torch.Tensor, variance_G: torch.Tensor) -> torch.Tensor:
    repeat = layer.num_channels // layer.num_groups
    scale_C = (variance_G.to(x.device) + layer.eps).rsqrt().repeat_interleave(repeat)
    shift_C = -mean_G.to(x.device).repeat_interleave(repeat) * scale_C
    if layer.affine:
        scale_C = scale_C * layer.weight.float()
        shift_C = shift_C * layer.weight.float() + layer.bias.float()
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return torch.addcmul(shift_C.reshape(shape), x.float(), scale_C.reshape(shape)).to(x.dtype)
