"""How the systems that PathUp is compared with are built and trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pathup.recipes.section import Fraction, Positive, Section

__all__ = [
    "AdversarialTraining",
    "BSRGANRecipe",
    "BaselineTraining",
    "BaselinesRecipe",
    "CodesRecipe",
    "LDMSRRecipe",
    "StyleGAN2Recipe",
    "VQGANRecipe",
]


class BaselineTraining(Section):
    """What the training of every baseline has."""

    steps: Positive = Field(2000, description="optimiser steps of the whole run")
    batch_size: Positive = Field(16, description="tiles a step")
    learning_rate: float = Field(1e-3, gt=0, description="of every network of the run")
    warmup_steps: int = Field(100, ge=0, description="the first steps, over which the learning rate rises linearly")
    decay_share: Fraction = Field(
        0.0, description="share of the steps, the last ones, over which the learning rate falls linearly to 0"
    )
    ema_decay: float = Field(0.999, ge=0, lt=1, description="of the averaged weights, which are the ones written out")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the forward and backward passes")
    checkpoint_every: Positive = Field(500, description="steps between checkpoints")
    keep_checkpoints: Positive = Field(2, description="how many of the newest checkpoints stay")
    sample_every: Positive = Field(500, description="steps between sample sheets")
    log_every: Positive = Field(20, description="steps between lines of losses.jsonl")
    seed: int = Field(0, description="of weights, order and noise")


class AdversarialTraining(BaselineTraining):
    """What a reconstruction is trained by besides its pixels' errors."""

    pixel_weight: float = Field(
        4.0,
        ge=0,
        description="weight of the mean absolute error once the other terms have joined (with 1, colours drifted); "
        "before, it is 1",
    )
    perceptual_weight: float = Field(
        1.0, ge=0, description="weight of the error of features of a small classifier of the tiles, trained first"
    )
    perceptual_steps: Positive = Field(2000, description="optimiser steps of that classifier")
    adversarial_weight: float = Field(0.1, ge=0, description="weight of the hinge loss")
    adversarial_start: int = Field(1000, ge=0, description="step at which perceptual and adversarial terms join")
    discriminator_channels: Positive = Field(48, description="width of the discriminator's first layer")


class StyleGAN2Recipe(BaselineTraining):
    """StyleGAN2 (Karras et al. 2020), conditional on class and level, with adaptive discriminator augmentation."""

    learning_rate: float = Field(2.5e-3, gt=0, description="Adam's, of generator and discriminator")
    ema_decay: float = Field(0.998, ge=0, lt=1, description="of the averaged generator, which is the one written out")
    channels: list[Positive] = Field(
        [256, 256, 256, 128, 64, 32],
        min_length=2,
        description="of the resolutions 4, 8, 16, ... up to the tile's side",
    )
    latent_size: Positive = Field(256, description="channels of z and of the style w")
    mapping_layers: Positive = Field(2, description="fully connected layers from z to w")
    style_mixing: Fraction = Field(0.9, description="share of images whose styles are of two latents")
    r1_gamma: float = Field(
        0.2,
        ge=0,
        description="weight of the R1 penalty, half of it times the gradient's square; 0.2: 0.0002 times the pixels of "
        "a 128 px tile over the batch (Karras et al. 2020b)",
    )
    r1_every: Positive = Field(16, description="steps between R1 penalties, which then weigh as many times more")
    path_length_weight: float = Field(2.0, ge=0, description="weight of the path length penalty")
    path_length_every: Positive = Field(4, description="steps between path length penalties, which weigh more likewise")
    path_length_decay: float = Field(0.01, gt=0, le=1, description="rate of the mean path length's moving average")
    path_length_batch: Positive = Field(8, description="images of a path length penalty")
    minibatch_std: Positive = Field(4, description="images over which the discriminator sees the deviation")
    augmentation: Literal["adaptive", "none"] = Field(
        "adaptive", description="adaptive discriminator augmentation (Karras et al. 2020b), or none"
    )
    augmentation_target: float = Field(0.6, ge=-1, le=1, description="the sign of real verdicts, r_t, aimed at")
    augmentation_tiles: Positive = Field(
        100_000, description="real tiles seen while the augmentation's probability goes from 0 to 1 at most"
    )
    truncation: Fraction = Field(1.0, description="how far styles are from their mean when sampled; 1: as they are")


class CodesRecipe(BaselineTraining):
    """The transformer over a VQ-GAN's codes, conditional on class and level."""

    learning_rate: float = Field(6e-4, gt=0, description="AdamW's")
    decay_share: Fraction = Field(0.5, description="share of the steps over which the learning rate falls to 0")
    weight_decay: float = Field(0.05, ge=0, description="AdamW's, of matrices")
    layers: Positive = Field(6, description="transformer layers")
    heads: Positive = Field(6, description="attention heads")
    width: Positive = Field(192, description="channels of an embedding")
    dropout: Fraction = Field(
        0.0, description="of embeddings, attention and residuals; for runs that see every tile many times"
    )
    top_k: int = Field(0, ge=0, description="codes that are sampled from, the likeliest ones; 0: all")
    top_p: float = Field(
        0.95, gt=0, le=1, description="probability that the codes sampled from have together, at least"
    )
    temperature: float = Field(1.0, gt=0, description="of sampling; below 1 the likelier codes gain")

    @model_validator(mode="after")
    def _check(self) -> CodesRecipe:
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide width {self.width}")
        return self


class VQGANRecipe(AdversarialTraining):
    """VQ-GAN (Esser et al. 2021): a discrete autoencoder, and a transformer over its codes."""

    batch_size: Positive = Field(8, description="tiles a step")
    learning_rate: float = Field(4e-4, gt=0, description="Adam's, of autoencoder and discriminator")
    decay_share: Fraction = Field(0.2, description="share of the steps over which the learning rate falls to 0")
    block_channels: list[Positive] = Field(
        [16, 32, 64, 128],
        min_length=1,
        description="channels from full resolution down; each block after the first halves it",
    )
    layers_per_block: Positive = Field(1, description="residual layers a block")
    norm_groups: Positive = Field(8, description="groups of each group normalisation")
    mid_attention: bool = Field(False, description="self-attention in the middle block")
    codes: Positive = Field(1024, description="entries of the codebook")
    code_channels: Positive = Field(32, description="channels of a code")
    commitment: float = Field(0.25, ge=0, description="weight of the encoder's distance to its codes")
    gradient_weight: float = Field(0.5, ge=0, description="weight of the error of image gradients")
    transformer: CodesRecipe = Field(CodesRecipe(), description="the transformer over the codes")

    @property
    def factor(self) -> int:
        """Image pixels a code, in each direction."""
        return int(2 ** (len(self.block_channels) - 1))


class LDMSRRecipe(BaselineTraining):
    """Latent super-resolution (Rombach et al. 2022): the enlarged low-resolution image beside the noised latent."""

    learning_rate: float = Field(4e-4, gt=0, description="AdamW's")
    decay_share: Fraction = Field(0.5, description="share of the steps over which the learning rate falls to 0")
    block_channels: list[Positive] = Field(
        [64, 64, 96, 128], min_length=1, description="the U-Net's channels from the latent's resolution down"
    )
    attention: list[bool] = Field([False, False, False, True], description="whether each block attends to itself")
    layers_per_block: Positive = Field(1, description="residual layers a block")
    head_channels: Positive = Field(32, description="channels of an attention head")
    norm_groups: Positive = Field(16, description="groups of each group normalisation")
    min_snr_gamma: float | None = Field(50.0, gt=0, description="Hang et al. 2023; unset: every step weighs the same")
    orientations: int = Field(
        2, ge=1, le=8, description="how many of the 8 flips and quarter turns of a patch are encoded and cached"
    )
    condition_noise: float = Field(
        0.1,
        ge=0,
        description="largest deviation of noise on the low-resolution image in training, of values in [-1, 1]",
    )
    scheduler: str = Field("ddim", description="the sampler, as of `sampling.scheduler`")
    sampling_steps: Positive = Field(30, description="timesteps of the sampler")

    @model_validator(mode="after")
    def _check(self) -> LDMSRRecipe:
        if len(self.attention) != len(self.block_channels):
            raise ValueError(f"attention has {len(self.attention)} entries, block_channels {len(self.block_channels)}")
        for width in self.block_channels:
            if width % self.norm_groups:
                raise ValueError(f"norm_groups {self.norm_groups} does not divide {width}, one of block_channels")
        attending = [width for width, attends in zip(self.block_channels, self.attention, strict=True) if attends]
        for width in (*attending, self.block_channels[-1]):  # the middle block attends, too
            if width % self.head_channels:
                raise ValueError(f"head_channels {self.head_channels} does not divide {width}, one of block_channels")
        return self


class BSRGANRecipe(AdversarialTraining):
    """BSRGAN (Zhang et al. 2021): an RRDB network trained on shuffled degradations."""

    steps: Positive = Field(5000, description="optimiser steps of the whole run")
    batch_size: Positive = Field(8, description="crops a step")
    learning_rate: float = Field(2e-4, gt=0, description="Adam's, of generator and discriminator")
    decay_share: Fraction = Field(0.2, description="share of the steps over which the learning rate falls to 0")
    channels: Positive = Field(32, description="of the network's features")
    growth: Positive = Field(16, description="channels that each convolution of a dense block adds")
    blocks: Positive = Field(6, description="residual-in-residual dense blocks")
    crop_px: Positive = Field(96, description="side of a training crop at high resolution, a multiple of 8")
    adversarial_start: int = Field(2500, ge=0, description="step at which perceptual and adversarial terms join")
    adversarial_weight: float = Field(0.05, ge=0, description="weight of the hinge loss")


class BaselinesRecipe(Section):
    """The systems that PathUp is compared with. The LDM baseline is of `diffusion`, without its class and level."""

    stylegan2: StyleGAN2Recipe = Field(StyleGAN2Recipe(), description="a generative adversarial network")
    vqgan: VQGANRecipe = Field(VQGANRecipe(), description="a transformer over the codes of a discrete autoencoder")
    ldm_sr: LDMSRRecipe = Field(LDMSRRecipe(), description="enlarges by 4 with a latent diffusion model")
    bsrgan: BSRGANRecipe = Field(BSRGANRecipe(), description="enlarges by 4 with an adversarially trained network")
