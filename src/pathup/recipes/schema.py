"""The typed recipe: every number of an experiment, with its unit and where its default comes from.

Lengths end in their unit: ``_px`` are image pixels, ``_latent`` are positions of the latent (image pixels
divided by the autoencoder's factor), ``mpp`` is micrometres per pixel.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from pathup.recipes.baselines import BaselinesRecipe
from pathup.recipes.diffusion import DiffusionRecipe
from pathup.recipes.downstream import DownstreamRecipe
from pathup.recipes.sampling import SamplingRecipe
from pathup.recipes.section import Fraction, Positive, Precision, Section


def folded(name: str) -> str:
    """A name as it is compared: upper and lower case, spaces, hyphens and underscores count the same."""
    return re.sub(r"[\s_-]+", " ", name.strip()).casefold()


def _check_divides(field: str, divisor: int, channels: list[int]) -> None:
    wrong = [width for width in channels if width % divisor]
    if wrong:
        raise ValueError(f"{field} {divisor} does not divide {wrong[0]}, one of block_channels {channels}")


class ClassSpec(Section):
    """One lesion or tissue class of the taxonomy."""

    label: str = Field(
        min_length=1,
        pattern=r"^[A-Za-z0-9_-]+$",
        description="short name in files and on the command line",
    )
    name: str = Field(min_length=1, description="the name that the prompt uses")


class LevelSpec(Section):
    """One spatial level: a square field of tissue, shrunk to the tile size."""

    name: str = Field(min_length=1, pattern=r"^[a-z0-9_]+$", description="'overview' or 'patch'")
    word: str = Field(min_length=1, description="the word that the prompt uses")
    field_px: Positive = Field(description="side of the field, in pixels at `tiles.mpp`")
    overlap_px: int = Field(0, ge=0, description="overlap of neighbouring fields, in pixels at `tiles.mpp`")
    max_per_class: Positive | None = Field(None, description="at most this many tiles a class and split")


class TilesRecipe(Section):
    """How regions and slides are cut."""

    tile_px: Positive = Field(description="side of a tile (and of the model's window), in pixels")
    mpp: float = Field(gt=0, description="physical scale at which a field is measured, micrometres per pixel")
    levels: list[LevelSpec] = Field(min_length=1, description="the spatial levels")
    assume_mpp: float | None = Field(
        None, gt=0, description="mpp of region images that record none; whole slides that record none need `--mpp`"
    )
    min_tissue: Fraction = Field(0.25, description="least stained fraction of a tile; less is background")
    min_inside: Fraction = Field(0.5, description="least fraction of a tile inside its annotation")
    split_by: Literal["patient", "slide", "region"] = Field(
        "slide", description="what must not be on both sides of a split"
    )
    splits: dict[Literal["train", "val", "test"], Fraction] = Field(
        default={"train": 0.8, "val": 0.1, "test": 0.1},
        description="shares of a source that has no splits of its own",
    )
    seed: int = Field(0, description="of the splits and of the draw that `max_per_class` makes")

    @model_validator(mode="after")
    def _check(self) -> TilesRecipe:
        for level in self.levels:
            if level.field_px % self.tile_px:
                raise ValueError(
                    f"level '{level.name}': field_px {level.field_px} is no multiple of tile_px {self.tile_px}"
                )
            if level.overlap_px >= level.field_px:
                raise ValueError(f"level '{level.name}': overlap_px must be less than field_px {level.field_px}")
        names = [level.name for level in self.levels]
        if len(set(names)) != len(names):
            raise ValueError(f"levels: names repeat ({', '.join(names)})")
        words = [level.word for level in self.levels]
        if len({folded(word) for word in words}) != len(words):
            raise ValueError(f"levels: words repeat ({', '.join(words)}), so their prompts could not be told apart")
        if abs(sum(self.splits.values()) - 1) > 1e-6:
            raise ValueError(f"splits: shares sum to {sum(self.splits.values()):g}, but must sum to 1")
        return self

    def level_mpp(self, level: LevelSpec) -> float:
        """Micrometres per pixel of this level's tiles."""
        return self.mpp * level.field_px / self.tile_px


class AutoencoderRecipe(Section):
    """`AutoencoderKL` and its training, for those without a pretrained one."""

    latent_channels: Positive = Field(4, description="channels of a latent")
    block_channels: list[Positive] = Field(
        min_length=1,
        description="channels from full resolution down; each block after the first halves it",
    )
    layers_per_block: Positive = Field(1, description="residual layers a block")
    norm_groups: Positive = Field(8, description="groups of each group normalisation")
    mid_attention: bool = Field(False, description="self-attention in the middle block, as Stable Diffusion has it")
    steps: Positive = Field(1, description="optimiser steps of the whole run")
    batch_size: Positive = Field(16, description="crops a step")
    crop_px: Positive = Field(128, description="side of a training crop")
    learning_rate: float = Field(3e-4, gt=0, description="AdamW's, for autoencoder and discriminator")
    decoder_learning_rate: float | None = Field(
        None, gt=0, description="of the decoder and the discriminator from `freeze_encoder_at` on; unset: the same"
    )
    warmup_steps: int = Field(100, ge=0, description="the first steps, over which the learning rate rises linearly")
    kl_weight: float = Field(
        1e-3,
        ge=0,
        description="weight of the mean KL a latent dimension, beside the mean absolute error a value in [-1, 1]",
    )
    gradient_weight: float = Field(
        1.0, ge=0, description="weight of the error of image gradients (at three scales), before `adversarial_start`"
    )
    texture_weight: float = Field(
        0.0, ge=0, description="weight of the error of the log amplitude of local detail, from `adversarial_start` on"
    )
    perceptual_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the error of features of a small classifier of the tiles, trained first, from "
        "`adversarial_start` on",
    )
    perceptual_steps: Positive = Field(4000, description="optimiser steps of that classifier")
    adversarial_weight: float = Field(0.1, ge=0, description="weight of the hinge loss; 0: no discriminator")
    feature_matching_weight: float = Field(
        1.0, ge=0, description="weight of the error of the discriminator's features (the perceptual term)"
    )
    adversarial_start: int = Field(0, ge=0, description="step at which the discriminator joins")
    freeze_encoder_at: int | None = Field(
        None,
        ge=0,
        description="step from which only the decoder is trained, so that latents stay what they are",
    )
    whitening: float = Field(
        1.0,
        ge=0,
        le=1,
        description="how far the latents' principal components are brought to one deviation at `freeze_encoder_at`: "
        "1 wholly, 0 not at all (faint ones stay faint)",
    )
    decoder_noise: float = Field(
        0.0,
        ge=0,
        description="standard deviation of noise on the normalised latents from `freeze_encoder_at` on, so that the "
        "decoder bears the small errors of sampled latents",
    )
    discriminator_channels: Positive = Field(48, description="width of the discriminator's first layer")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="of the averaged weights, which are the ones written out")
    precision: Precision = Field("fp32", description="of the forward and backward passes; weights stay fp32")
    checkpoint_every: Positive = Field(500, description="steps between checkpoints")
    sample_every: Positive = Field(500, description="steps between sample sheets")
    log_every: Positive = Field(20, description="steps between lines of losses.jsonl")
    seed: int = Field(0, description="of weights, crops and noise")

    @model_validator(mode="after")
    def _check(self) -> AutoencoderRecipe:
        _check_divides("norm_groups", self.norm_groups, self.block_channels)
        if self.crop_px % self.factor:
            raise ValueError(f"crop_px {self.crop_px} is no multiple of {self.factor}, by which the blocks shrink")
        if self.crop_px % 2:
            raise ValueError(f"crop_px {self.crop_px} is odd, but the discriminator takes pixels in squares of 2 x 2")
        return self

    @property
    def factor(self) -> int:
        """Image pixels a latent position, in each direction."""
        return int(2 ** (len(self.block_channels) - 1))


class TextEncoderRecipe(Section):
    """The text encoder made when training from scratch: a small frozen CLIP text model over the taxonomy's words."""

    hidden_size: Positive = Field(128, description="width of a prompt's embeddings")
    layers: Positive = Field(1, description="transformer layers")
    heads: Positive = Field(4, description="attention heads")
    max_tokens: Positive = Field(16, description="length that prompts are padded to, start and end tokens included")

    @model_validator(mode="after")
    def _check(self) -> TextEncoderRecipe:
        if self.hidden_size % self.heads:
            raise ValueError(f"heads {self.heads} does not divide hidden_size {self.hidden_size}")
        return self


class UNetRecipe(Section):
    """`UNet2DConditionModel` made when training from scratch."""

    block_channels: list[Positive] = Field(min_length=1, description="channels from the window's resolution down")
    attention: list[bool] = Field(description="whether each block attends to the prompt")
    layers_per_block: Positive = Field(1, description="residual layers a block")
    head_channels: Positive = Field(32, description="channels of an attention head")
    norm_groups: Positive = Field(32, description="groups of each group normalisation")
    pooled_prompt: bool = Field(
        False,
        description="the prompt, pooled, is added to the embedding of time: levels without attention then know it too",
    )

    @model_validator(mode="after")
    def _check(self) -> UNetRecipe:
        if len(self.attention) != len(self.block_channels):
            raise ValueError(f"attention has {len(self.attention)} entries, block_channels {len(self.block_channels)}")
        _check_divides("norm_groups", self.norm_groups, self.block_channels)
        attending = [*self.attention[:-1], True]  # the middle block, as wide as the last, always attends
        wide = [width for width, attends in zip(self.block_channels, attending, strict=True) if attends]
        if any(width % self.head_channels for width in wide):
            raise ValueError(f"head_channels {self.head_channels} does not divide {wide}, the channels of attention")
        return self


class NoiseRecipe(Section):
    """The training noise schedule, as diffusers' schedulers name it."""

    schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = Field(
        "scaled_linear", description="how the noise grows; squaredcos_cap_v2 is the cosine schedule"
    )
    beta_start: float = Field(0.00085, description="variance added at the first step (not of the cosine schedule)")
    beta_end: float = Field(0.012, description="variance added at the last step (not of the cosine schedule)")
    steps: Positive = Field(1000, description="timesteps of the forward process")
    prediction: Literal["epsilon", "v_prediction", "sample"] = Field(
        "epsilon", description="what the U-Net predicts: the noise, the velocity or the clean latent"
    )

    @model_validator(mode="after")
    def _check(self) -> NoiseRecipe:
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start {self.beta_start:g} and beta_end {self.beta_end:g} must be between 0 and 1, "
                "and beta_start not the larger"
            )
        return self


class ModelRecipe(Section):
    """What is built when training from scratch, and the words of the prompt."""

    prompt: str = Field(
        "histopathology of {name}, {word}",
        description="template; {name} is the class's, {word} the level's",
    )
    neutral_prompt: str = Field("histopathology", description="the one prompt of a run without patho-align")
    text_encoder: TextEncoderRecipe = Field(TextEncoderRecipe(), description="used without --pretrained")
    unet: UNetRecipe = Field(description="used without --pretrained")
    noise: NoiseRecipe = Field(NoiseRecipe(), description="used without --pretrained")
    scale_conditioning: bool = Field(
        False, description="tell the U-Net each tile's micrometres a pixel as a number too, beside the level's word"
    )

    @model_validator(mode="after")
    def _check(self) -> ModelRecipe:
        for word in ("{name}", "{word}"):
            if word not in self.prompt:
                raise ValueError(f"prompt '{self.prompt}' lacks {word}: class and level must both be in it")
        return self


class EncoderRecipe(Section):
    """The tissue encoder, by whose features tiles are compared, and its training."""

    channels: list[Positive] = Field(
        [48, 96, 192, 384], min_length=4, max_length=4, description="of the four stages; the last two are the features"
    )
    steps: Positive = Field(8000, description="optimiser steps of the whole run")
    batch_size: Positive = Field(64, description="tiles a step")
    learning_rate: float = Field(2e-3, gt=0, description="AdamW's; it falls to 0 over the second half")
    weight_decay: float = Field(0.05, ge=0, description="AdamW's")
    warmup_steps: int = Field(200, ge=0, description="the first steps, over which the learning rate rises linearly")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="of the classes and regions to be named")
    region_weight: float = Field(0.5, ge=0, description="weight of naming the region, beside naming class and level")
    degraded_share: float = Field(
        0.5, ge=0, le=1, description="share of tiles that are blurred, compressed and so on, 0 to 1"
    )
    ranking_share: float = Field(
        0.25, ge=0, le=1, description="tiles a step, as a share of the batch, that are seen whole and at two severities"
    )
    ranking_weight: float = Field(
        10.0, ge=0, description="weight of the error where the milder of the two lies further from the whole tile"
    )
    grey_share: float = Field(0.25, ge=0, le=1, description="share of tiles that are grey and normalised, 0 to 1")
    ema_decay: float = Field(0.998, ge=0, lt=1, description="of the averaged weights, which are the ones written out")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the forward and backward passes")
    checkpoint_every: Positive = Field(500, description="steps between checkpoints")
    log_every: Positive = Field(20, description="steps between lines of losses.jsonl")
    seed: int = Field(0, description="of weights, order, orientations and degradations")


class Recipe(Section):
    """Every number of an experiment."""

    name: str = Field(min_length=1, description="the recipe's name, in messages and in what a run writes")
    classes: list[ClassSpec] = Field(min_length=1, description="the taxonomy")
    tiles: TilesRecipe = Field(description="how regions and slides are cut")
    model: ModelRecipe = Field(description="what is built when training from scratch, and the prompt")
    autoencoder: AutoencoderRecipe = Field(description="for those without a pretrained one")
    diffusion: DiffusionRecipe = Field(description="patho-align training")
    encoder: EncoderRecipe = Field(EncoderRecipe(), description="the network that tiles are compared by")
    sampling: SamplingRecipe = Field(description="how images are drawn")
    baselines: BaselinesRecipe = Field(BaselinesRecipe(), description="the systems that PathUp is compared with")
    downstream: DownstreamRecipe = Field(DownstreamRecipe(), description="lesion classifiers")

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        labels = [spec.label for spec in self.classes]
        if len({folded(label) for label in labels}) != len(labels):
            raise ValueError(f"classes: labels repeat ({', '.join(labels)}); upper and lower case count the same")
        if "all" in (folded(label) for label in labels):
            raise ValueError("classes: no label may be 'all', which stands for every class ('pathup generate --label')")
        names = [spec.name for spec in self.classes]
        if len({folded(name) for name in names}) != len(names):
            raise ValueError(f"classes: names repeat ({', '.join(names)}), so their prompts could not be told apart")
        for spec in self.classes:
            for other in self.classes:
                if other is not spec and folded(spec.name) == folded(other.label):
                    raise ValueError(f"classes: '{spec.name}' is the name of {spec.label} and the label of another")
        if self.autoencoder.crop_px > self.tiles.tile_px:
            raise ValueError(
                f"autoencoder: crop_px {self.autoencoder.crop_px} is larger than tiles.tile_px {self.tiles.tile_px}, "
                "from which crops are taken"
            )
        return self

    @property
    def labels(self) -> list[str]:
        """The class labels in the taxonomy's order."""
        return [spec.label for spec in self.classes]

    @property
    def level_names(self) -> list[str]:
        """The names of the spatial levels."""
        return [level.name for level in self.tiles.levels]
