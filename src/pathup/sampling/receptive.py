"""How far an autoencoder sees, and how to leave out what no pixel of a tile's core depends on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

__all__ = [
    "attention_halo",
    "changed_block_inputs",
    "decoder_halo",
    "encoder_halo",
    "trimmed_decoder",
    "trimmed_encoder",
]

FALLBACK_HALO = 16
"""Halo in latent positions for an autoencoder whose layout is not `AutoencoderKL`'s."""

AFTER_ATTENTION = 3
"""Radius, in latent positions, of the encoder's convolutions after its attention: a residual block and the last."""


def decoder_halo(vae: Any) -> int:
    """How far, in latent positions, a decoded pixel depends on the latent: the radius of the convolutions.

    Each 3 x 3 convolution reaches one position further at its own resolution; the sum is rounded up, with one
    position to spare for the nearest-neighbour upsampling.
    """
    stages = _decoder_stages(vae)
    return math.ceil(1 + stages[0].radius) + 1 if stages else FALLBACK_HALO  # 1: conv_in


def encoder_halo(vae: Any) -> int:
    """How far, in latent positions, a latent depends on the pixels; counted as in `decoder_halo`."""
    stages = _encoder_stages(vae)
    return math.ceil(1 / stages[0].scale + stages[0].radius) + 1 if stages else FALLBACK_HALO  # conv_in


def attention_halo(vae: Any, *, encoder: bool) -> int:
    """How far, in latent positions, the input of the attention in the middle depends on the network's."""
    if not _layout(vae)[1]:
        return FALLBACK_HALO
    # the decoder: conv_in, and a residual block of two convolutions
    return encoder_halo(vae) - AFTER_ATTENTION if encoder else 3


@contextmanager
def trimmed_decoder(vae: Any, margins: list[int]) -> Iterator[None]:
    """Within the context the decoder drops what is left of a tile's halo as soon as no further layer needs it.

    The halo is as wide as all layers together see. Most of the work is done by the last layers, at full resolution,
    which see little: they are spared the halo of those before. The core's pixels are the same.

    Parameters
    ----------
    vae
        The autoencoder.
    margins
        The tile's halo at the top, bottom, left and right, in latent positions, 0 at the canvas's rim. Afterwards
        it holds what of it the decoded tile still has.
    """
    with _trimmed(_decoder_stages(vae), margins):
        yield


@contextmanager
def trimmed_encoder(vae: Any, margins: list[int]) -> Iterator[None]:
    """Within the context the encoder drops a tile's halo as `trimmed_decoder` does; its first layers see farthest."""
    with _trimmed(_encoder_stages(vae), margins):
        yield


@contextmanager
def changed_block_inputs(vae: Any, change: Callable[[int, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Within the context up block b of the decoder is given ``change(b, x)`` for its input x.

    Its resolution is 2^b times the latent's. An autoencoder whose layout is not `AutoencoderKL`'s is left as it is.
    """
    handles = []

    def hook_of(block: int) -> Any:
        return lambda _, inputs: (change(block, inputs[0]), *inputs[1:])

    try:
        for block in range(_layout(vae)[1]):
            handles.append(vae.decoder.up_blocks[block].register_forward_pre_hook(hook_of(block)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _Stage:
    """A residual block of an autoencoder, and how far the network sees from its input on.

    Attributes
    ----------
    block
        The block; two convolutions.
    scale
        Its resolution over the latent's.
    radius
        Of the convolutions from its input on, in latent positions.
    """

    block: torch.nn.Module
    scale: int
    radius: float


def _decoder_stages(vae: Any) -> list[_Stage]:
    """The decoder's residual blocks in the order of computing; none when its layout is not `AutoencoderKL`'s."""
    _, blocks = _layout(vae)
    if not blocks:
        return []
    found: list[_Stage] = []
    radius = 1 / 2 ** (blocks - 1)  # conv_out
    for index in reversed(range(blocks)):
        scale = 2**index
        radius += 1 / (2 * scale) if index < blocks - 1 else 0  # upsampling's convolution
        radius = _add_blocks(found, vae.decoder.up_blocks[index].resnets, scale, radius)
    _add_blocks(found, vae.decoder.mid_block.resnets, 1, radius)
    return found[::-1]


def _encoder_stages(vae: Any) -> list[_Stage]:
    """The encoder's residual blocks, as `_decoder_stages`."""
    _, blocks = _layout(vae)
    if not blocks:
        return []
    found: list[_Stage] = []
    radius = _add_blocks(found, vae.encoder.mid_block.resnets, 1, 1.0)  # conv_out
    for index in reversed(range(blocks)):
        scale = 2 ** (blocks - 1 - index)
        radius += 2 / scale if index < blocks - 1 else 0  # downsampling's convolution, which is padded at one end only
        radius = _add_blocks(found, vae.encoder.down_blocks[index].resnets, scale, radius)
    return found[::-1]


def _add_blocks(found: list[_Stage], blocks: Any, scale: int, radius: float) -> float:
    """Append residual blocks from the last to the first; the radius before them."""
    for block in reversed(blocks):
        radius += 2 / scale
        found.append(_Stage(block, scale, radius))
    return radius


@contextmanager
def _trimmed(stages: list[_Stage], margins: list[int]) -> Iterator[None]:
    handles = []

    def hook_of(stage: _Stage) -> Any:
        keep = math.ceil(stage.radius) + 1  # one to spare, as in the halo

        def hook(_: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            cuts = [max(0, margin - keep) for margin in margins]
            margins[:] = [margin - cut for margin, cut in zip(margins, cuts, strict=True)]
            top, bottom, left, right = (cut * stage.scale for cut in cuts)
            x = inputs[0]
            return (x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right], *inputs[1:])

        return hook

    try:
        for stage in stages:
            handles.append(stage.block.register_forward_pre_hook(hook_of(stage)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layout(vae: Any) -> tuple[int, int]:
    """Layers a block and number of blocks; (0, 0) when its layout is not `AutoencoderKL`'s."""
    known = all(name.endswith("Block2D") for name in vae.config.get("up_block_types", ["?"]))
    return (int(vae.config.layers_per_block), len(vae.config.block_out_channels)) if known else (0, 0)
