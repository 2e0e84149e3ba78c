"""How lesion classifiers are built and trained: what synthetic tissue is measured by (table 6)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pathup.recipes.section import Fraction, Positive, Section

__all__ = ["ABMILRecipe", "ClassifierTraining", "DistillationRecipe", "DownstreamRecipe", "ViTRecipe"]


class ClassifierTraining(Section):
    """What the training of both classifiers has."""

    steps: Positive = Field(1500, description="optimiser steps at most")
    batch_size: Positive = Field(16, description="images, or bags, a step; every class comes equally often")
    learning_rates: list[float] = Field(
        [1e-4, 3e-4, 1e-3], min_length=1, description="AdamW's; the one with the lowest loss on 'val' is kept"
    )
    weight_decay: float = Field(0.05, ge=0, description="AdamW's")
    warmup_steps: int = Field(50, ge=0, description="the first steps, over which the learning rate rises linearly")
    evaluate_every: Positive = Field(25, description="steps between looks at 'val', and between checkpoints")
    patience: Positive = Field(12, description="looks at 'val' without a lower loss after which training stops")
    label_smoothing: Fraction = Field(0.0, description="probability that the true class gives to the others")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the forward and backward passes")
    seed: int = Field(0, description="of weights, order and augmentation")


class DistillationRecipe(Section):
    """How a vision transformer is taught a frozen network's features of tissue, where no pretrained one is at hand."""

    steps: Positive = Field(20000, description="optimiser steps")
    batch_size: Positive = Field(32, description="crops a step")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW's, falling to 0 at the end")
    weight_decay: float = Field(0.05, ge=0, description="AdamW's")
    warmup_steps: int = Field(200, ge=0, description="the first steps, over which the learning rate rises linearly")
    evaluate_every: Positive = Field(500, description="steps between looks at 'val', and between checkpoints")
    least_side: float = Field(0.5, gt=0, le=1, description="least side of a crop, as a share of the field's side")
    seed: int = Field(0, description="of weights, order and crops")


class ViTRecipe(ClassifierTraining):
    """A vision transformer (Dosovitskiy et al. 2020) on whole fields, resized to its input."""

    model: str = Field("vit_large_patch16_224", description="timm's name of it")
    input_px: Positive = Field(512, description="side of what it sees; a multiple of its patches")
    depth: Positive | None = Field(None, description="transformer blocks; unset: as timm's model has")
    width: Positive | None = Field(None, description="channels; unset: as timm's model has")
    heads: Positive | None = Field(None, description="attention heads; unset: as timm's model has")
    drop_path: Fraction = Field(0.1, description="stochastic depth")
    distillation: DistillationRecipe = Field(DistillationRecipe(), description="of `pathup classify pretrain`")

    @model_validator(mode="after")
    def _check(self) -> ViTRecipe:
        if self.width and self.heads and self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide width {self.width}")
        return self


class ABMILRecipe(ClassifierTraining):
    """Attention-based multiple-instance learning (Ilse et al. 2018) over features of a field's patches."""

    patch_px: Positive = Field(128, description="side of a patch, in pixels at `tiles.mpp`")
    embedding: Positive = Field(128, description="channels that features are brought to first")
    attention: Positive = Field(64, description="hidden channels of the attention")
    dropout: Fraction = Field(0.25, description="of embedded patches")
    variants: Positive = Field(4, description="augmented copies of a training field that features are kept of")


class DownstreamRecipe(Section):
    """Lesion classifiers."""

    field_px: int = Field(
        0,
        ge=0,
        description="side of the fields that regions are cut into, in pixels at `tiles.mpp`, side by side; 0: regions "
        "as they are; a region's class is that of the mean probability of its fields",
    )
    view: Literal["colour", "grey"] = Field(
        "colour",
        description="what classifiers see; 'grey': luminance of the same mean and deviation in every image, for sets "
        "in which the stain gives a class away",
    )
    min_tissue: Fraction = Field(0.1, description="least stained fraction of a field that a region is cut into")
    augmentations: list[Literal["geometry", "colour", "stain", "randaugment"]] = Field(
        ["geometry", "colour", "stain", "randaugment"], description="what random augmentation consists of"
    )
    augmented_share: Fraction = Field(
        0.5,
        description="probability that random augmentation changes a training image; the others are shown as they are",
    )
    mixing: Literal["equal", "rare_first"] = Field(
        "equal",
        description="how many synthetic images each class gets of their number in all: as many, or first those classes "
        "that have the fewest real ones",
    )
    vit: ViTRecipe = Field(ViTRecipe(), description="a vision transformer")
    abmil: ABMILRecipe = Field(ABMILRecipe(), description="attention-based multiple-instance learning")
