"""The discrete autoencoder of VQ-GAN: images to codes of a codebook and back, and how its codes are kept in use."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from diffusers import VQModel

from pathup import draws
from pathup.errors import PathUpError
from pathup.recipes import Recipe

__all__ = [
    "Quantised",
    "build_autoencoder",
    "check_sizes",
    "codes_of",
    "dead_codes",
    "images_of",
    "perplexity",
    "quantise",
    "reseeds",
]

DISCRIMINATOR_FACTOR = 8  # the patch discriminator and the tissue features halve so far
MOST_CODES = 2**16  # what the cache keeps a code in


class Quantised(NamedTuple):
    """What `quantise` gives: `latents_BCHW` of the codebook, the quantiser's `loss`, and `codes_BL` in raster order."""

    latents_BCHW: torch.Tensor
    loss: torch.Tensor
    codes_BL: torch.Tensor


def check_sizes(recipe: Recipe) -> None:
    """Check that a VQ-GAN can be built by the recipe.

    Raises
    ------
    PathUpError
        The tile's side is no multiple of what the networks halve it by, `norm_groups` does not divide the channels, or
        there are too many codes.
    """
    spec, side = recipe.baselines.vqgan, recipe.tiles.tile_px
    needed = math.lcm(spec.factor, DISCRIMINATOR_FACTOR)
    if side % needed:
        raise PathUpError(
            f"tile_px is {side}, but a multiple of {needed} was needed: baselines.vqgan.block_channels has "
            f"{len(spec.block_channels)} blocks, whose codes are of {spec.factor} px, and the discriminator's verdicts "
            f"are of {DISCRIMINATOR_FACTOR}; take fewer blocks or other tiles"
        )
    wrong = [width for width in spec.block_channels if width % spec.norm_groups]
    if wrong:
        raise PathUpError(
            f"baselines.vqgan.norm_groups is {spec.norm_groups}, which does not divide {wrong[0]}, one of "
            f"block_channels {spec.block_channels}; change either"
        )
    if spec.codes > MOST_CODES:
        raise PathUpError(f"baselines.vqgan.codes is {spec.codes}, but at most {MOST_CODES} can be kept; take fewer")


def build_autoencoder(recipe: Recipe) -> VQModel:
    """A `VQModel` with random weights, drawn from the recipe's seed.

    Its quantiser follows Eq. 3 of van den Oord et al. 2017, ``|sg(z) - e|^2 + beta |z - sg(e)|^2`` (means), with beta
    the recipe's `commitment`. diffusers' own setting multiplies the other term by it and fixes it at 0.25.
    """
    spec = recipe.baselines.vqgan
    blocks = len(spec.block_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws.seed_of(spec.seed, "weights", "vqgan autoencoder"))
        autoencoder = VQModel(
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=tuple(spec.block_channels),
            layers_per_block=spec.layers_per_block,
            latent_channels=spec.code_channels,
            sample_size=recipe.tiles.tile_px,
            num_vq_embeddings=spec.codes,
            norm_num_groups=spec.norm_groups,
            vq_embed_dim=spec.code_channels,
            mid_block_add_attention=spec.mid_attention,
        )
    autoencoder.quantize.legacy, autoencoder.quantize.beta = False, spec.commitment
    return autoencoder


def quantise(autoencoder: VQModel, latents_BCHW: torch.Tensor) -> Quantised:
    """The nearest code of each latent, in float32 whatever autocast says.

    Gradients of the quantised latents go to `latents_BCHW` as they are: the straight-through estimator (Bengio et al.
    2013).
    """
    with torch.autocast(latents_BCHW.device.type, enabled=False):
        latents, loss, (_, _, codes) = autoencoder.quantize(latents_BCHW.float())
    return Quantised(latents, loss, codes.reshape(len(latents_BCHW), -1))


@torch.no_grad()
def codes_of(autoencoder: VQModel, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """The codes (B, L) of images in [-1, 1], in raster order."""
    return quantise(autoencoder, autoencoder.encode(pixels_BCHW).latents).codes_BL


@torch.no_grad()
def images_of(autoencoder: VQModel, codes_BL: torch.Tensor) -> torch.Tensor:
    """The images (B, 3, H, W), about in [-1, 1], of square grids of codes in raster order."""
    side = math.isqrt(codes_BL.shape[1])
    latents = autoencoder.quantize.embedding(codes_BL).reshape(len(codes_BL), side, side, -1).permute(0, 3, 1, 2)
    return autoencoder.decode(latents.contiguous(), force_not_quantize=True).sample.float()


def perplexity(counts_K: torch.Tensor) -> torch.Tensor:
    """How many codes are in use: the exponential of the entropy (nats) of how often each was chosen; a scalar."""
    shares = counts_K.double() / counts_K.sum().clamp_min(1)
    return torch.exp(-torch.xlogy(shares, shares).sum()).float()


def dead_codes(chosen_K: torch.Tensor) -> torch.Tensor:
    """The codes that were never chosen, in order, of how often each was."""
    return torch.nonzero(chosen_K == 0).flatten()


def reseeds(latents_BCHW: torch.Tensor, count: int, seed: int, step: int) -> torch.Tensor:
    """New places (count, C) for dead codes: latents of the batch, a function of it and of (seed, step).

    Codes that no latent chose for several batches are put where one of the current batch is (Zeghidour et al. 2021;
    the random restarts of Dhariwal et al. 2020): a code far from every latent gets no gradient and would stay there.
    No latent is taken twice before all were.
    """
    flat_NC = latents_BCHW.detach().float().permute(0, 2, 3, 1).flatten(0, 2)
    order = draws.numpy_generator(seed, "reseeds", step).permutation(len(flat_NC))
    picked = torch.from_numpy(order)[torch.arange(count) % len(flat_NC)]
    return flat_NC[picked.to(flat_NC.device)]
