"""How much memory an autoencoder takes, and so how large a part of a canvas it is given at once."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch

__all__ = ["Autoencoding", "LatentDecoder", "bytes_a_position", "tile_side"]


class Autoencoding(Protocol):
    """Who brings an autoencoder: a `PathUpPipeline`, and whatever else decodes canvases."""

    @property
    def vae(self) -> Any:
        """Diffusers' `AutoencoderKL`."""

    @property
    def factor(self) -> int:
        """Image pixels a latent position, in each direction."""


class LatentDecoder(Autoencoding, Protocol):
    """Who also brings latents to its device and back."""

    def decode_latents(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """RGB pixels in [-1, 1] (not clipped), (B, 3, H*f, W*f), of scaled latents."""


BYTES_A_VALUE = 36
"""Peak memory for each value of a layer at full resolution: nine tensors of float32 (measured)."""

TILE_BYTES = 384 * 2**20
"""What a tile may take, its halo left aside."""

MOST_SIDE = 128
"""Side of a tile at most, in latent positions. The larger a tile, the less of it is halo: of 2048 px at a factor of 4,
halo adds 40 % to the work in tiles of 64, and 18 % in tiles of 128."""

LEAST_SIDE, LEAST_PX = 64, 512
"""Side of a tile at least, in latent positions, unless that is more pixels: a wide autoencoder, as Stable Diffusion's,
takes tiles of this side whatever they take, since most of a smaller one would be halo."""


def bytes_a_position(pipeline: Autoencoding) -> int:
    """Peak memory of decoding or encoding, for each latent position taken at once."""
    return int(pipeline.factor**2 * int(pipeline.vae.config.block_out_channels[0]) * BYTES_A_VALUE)


def tile_side(pipeline: Autoencoding) -> int:
    """Side of a tile's core in latent positions, and rows of a band, when none is asked for."""
    least = max(1, min(LEAST_SIDE, LEAST_PX // pipeline.factor))
    return max(least, min(MOST_SIDE, math.isqrt(TILE_BYTES // bytes_a_position(pipeline))))
