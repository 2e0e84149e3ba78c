"""Low-rank adapters (LoRA: Hu et al. 2022) in place of all of a pretrained U-Net's weights, by peft."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from pathup.draws import seed_of
from pathup.errors import PathUpError

__all__ = ["ATTENTION", "add_adapters", "has_adapters", "merge_adapters", "save_adapters", "trained_state"]

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
"""The layers that get adapters: the projections of every attention, as in diffusers' own examples."""


def add_adapters(unet: UNet2DConditionModel, rank: int, seed: int) -> None:
    """Freeze a U-Net and give its attentions' layers ``W x + B A x``, A (rank, in) drawn and B (out, rank) zero.

    Parameters
    ----------
    unet
        Changed in place; predicts what it did.
    rank
        Rank of each adapter.
    seed
        Of the weights A.

    Raises
    ------
    PathUpError
        peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise PathUpError("adapters (lora_rank) need peft; install it: pip install 'pathup[finetune]'") from None
    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "weights", "adapters"))
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=ATTENTION))


def has_adapters(unet: UNet2DConditionModel) -> bool:
    """Whether `add_adapters` was here."""
    return bool(getattr(unet, "_hf_peft_config_loaded", False))


def merge_adapters(unet: UNet2DConditionModel) -> None:
    """Turn ``W`` into ``W + B A``, in place: a plain U-Net again, which any diffusers pipeline takes."""
    unet.fuse_lora()
    unet.unload_lora()


def save_adapters(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write the adapters alone, ``pytorch_lora_weights.safetensors``, as diffusers' ``load_lora_weights`` reads it."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    adapters = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=adapters, safe_serialization=True)


def trained_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A module's state without its frozen weights: what a run changes, keeps and averages."""
    frozen = {name for name, weight in module.named_parameters() if not weight.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}
