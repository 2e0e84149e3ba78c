"""How far an autoencoder sees, and how to leave out what no pixel of a tile's core depends on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["attention_halo", "changed_block_inputs", "decoder_halo", "encoder_halo", "trimmed_decoder"]

FALLBACK_HALO = 16
"""Halo in latent positions for an autoencoder whose layout is not `AutoencoderKL`'s."""

AFTER_ATTENTION = 3
"""Radius, in latent positions, of the encoder's convolutions after its attention: a residual block and the last."""


def decoder_halo(vae: Any) -> int:
    """How far, in latent positions, a decoded pixel depends on the latent: the radius of the convolutions.

    Each 3 x 3 convolution reaches one position further at its own resolution; the sum is rounded up, with one
    position to spare for the nearest-neighbour upsampling.
    """
    layers, blocks = _layout(vae)
    if not blocks:
        return FALLBACK_HALO
    # conv_in, and two residual blocks of two convolutions in the middle
    return math.ceil(5 + _radius_from(0, layers, blocks)) + 1


def encoder_halo(vae: Any) -> int:
    """How far, in latent positions, a latent depends on the pixels; counted as in `decoder_halo`."""
    layers, blocks = _layout(vae)
    if not blocks:
        return FALLBACK_HALO
    factor = 2 ** (blocks - 1)
    radius_px = 1.0
    for block in range(blocks):
        step = 2**block
        radius_px += 2 * layers * step + (2 * step if block < blocks - 1 else 0)
    return math.ceil(radius_px / factor + 4 + 1) + 1


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
    layers, blocks = _layout(vae)

    def trim(block: int, x: torch.Tensor) -> torch.Tensor:
        keep = math.ceil(_radius_from(block, layers, blocks)) + 1
        cuts = [max(0, margin - keep) for margin in margins]
        margins[:] = [margin - cut for margin, cut in zip(margins, cuts, strict=True)]
        top, bottom, left, right = (cut * 2**block for cut in cuts)
        return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]

    with changed_block_inputs(vae, trim):
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


def _radius_from(first: int, layers: int, blocks: int) -> float:
    """Radius, in latent positions, of the decoder's convolutions from up block `first` on."""
    radius = 0.0
    for block in range(first, blocks):
        scale = 2**block
        radius += 2 * (layers + 1) / scale
        radius += 1 / (2 * scale) if block < blocks - 1 else 1 / scale  # upsampling's convolution, or conv_out
    return radius


def _layout(vae: Any) -> tuple[int, int]:
    """Layers a block and number of blocks; (0, 0) when its layout is not `AutoencoderKL`'s."""
    known = all(name.endswith("Block2D") for name in vae.config.get("up_block_types", ["?"]))
    return (int(vae.config.layers_per_block), len(vae.config.block_out_channels)) if known else (0, 0)
