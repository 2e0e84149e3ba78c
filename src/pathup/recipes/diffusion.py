"""How the diffusion model of a recipe is trained: patho-align and the feature entropy loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pathup.recipes.section import Fraction, Positive, Precision, Section

__all__ = ["DiffusionRecipe", "FeatureEntropyRecipe"]


class FeatureEntropyRecipe(Section):
    """Eq. 3 and 4 of the paper."""

    enabled: bool = Field(True, description="off: L = L_r alone")
    beta: float = Field(0.1, ge=0, description="weight of the loss")
    temperature: float = Field(0.07, gt=0, description="tau")
    momentum: float = Field(0.99, ge=0, le=1, description="a of the memory's moving average")
    source: Literal["prompted", "unprompted"] = Field(
        "prompted", description="whether z has attended to the prompt (the paper's) or to the empty one"
    )


class DiffusionRecipe(Section):
    """Patho-align training."""

    patho_align: bool = Field(True, description="prompts carry class and level; off: one neutral prompt for all tiles")
    feature_entropy: FeatureEntropyRecipe = Field(FeatureEntropyRecipe(), description="the feature entropy loss")
    steps: Positive = Field(description="optimiser steps of the whole run")
    batch_size: Positive = Field(description="tiles a process and forward pass")
    gradient_accumulation: Positive = Field(1, description="forward passes an optimiser step")
    learning_rate: float = Field(gt=0, description="AdamW's")
    muon_learning_rate: float | None = Field(
        None,
        gt=0,
        description="Muon's (Jordan et al. 2024), for the matrices of the U-Net's levels without attention; unset: "
        "AdamW steps them too",
    )
    adam_8bit: bool = Field(False, description="AdamW keeps its moments in 8 bits (bitsandbytes): less memory")
    lora_rank: Positive | None = Field(
        None,
        description="train adapters of this rank (LoRA: Hu et al. 2022) in a pretrained U-Net's attentions, the rest "
        "frozen; unset: all its weights",
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW's")
    muon_weight_decay: float = Field(0.1, ge=0, description="Muon's")
    warmup_steps: int = Field(0, ge=0, description="the first steps, over which the learning rate rises linearly")
    decay_steps: int = Field(0, ge=0, description="the last steps over which the learning rate falls linearly to 0")
    clip_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    prompt_dropout: Fraction = Field(0.1, description="share of samples trained on the empty prompt, for guidance")
    min_snr_gamma: float | None = Field(None, gt=0, description="Hang et al. 2023; unset: every step weighs the same")
    min_snr_offset: float = Field(
        0.0,
        ge=0,
        description="added to the signal-to-noise ratio before `min_snr_gamma` caps it; 1: errors of v count whole at "
        "high noise, where the layout is decided",
    )
    multiscale_weight: float = Field(
        0.0,
        ge=0,
        description="of the errors of the prediction averaged over 2, 4, 8, ... positions (Hoogeboom et al. 2023): "
        "more say for the layout beside the texture",
    )
    timestep_shift: float = Field(
        1.0,
        gt=0,
        description="how many times stronger than even draws' the noise of the trained timesteps is (Hoogeboom et al. "
        "2023); above 1: more tiles at high noise",
    )
    orientations: int = Field(
        1,
        ge=1,
        le=8,
        description="how many of the 8 flips and quarter turns of a tile are encoded and cached",
    )
    balance_levels: bool = Field(False, description="draw levels and classes equally often instead of tiles")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="of the averaged weights, which are the ones written out")
    precision: Precision = Field("fp32", description="of the forward and backward passes; weights stay fp32")
    encode_batch: Positive = Field(16, description="tiles at once when the latent cache is filled")
    checkpoint_every: Positive = Field(500, description="steps between checkpoints")
    keep_checkpoints: Positive = Field(2, description="how many of the newest checkpoints stay")
    sample_every: Positive = Field(1000, description="steps between sample sheets")
    log_every: Positive = Field(20, description="steps between lines of losses.jsonl")
    seed: int = Field(0, description="of weights, order, noise and timesteps")

    @model_validator(mode="after")
    def _check(self) -> DiffusionRecipe:
        if self.muon_learning_rate and self.precision == "fp16":
            raise ValueError("Muon steps in bfloat16, so with muon_learning_rate the precision is to be bf16 or fp32")
        return self
