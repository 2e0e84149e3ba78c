"""Classifier-free guidance in one pass, in which what both halves have in common is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel

__all__ = ["guided"]


def guided(
    unet: Any,
    latents_BCHW: torch.Tensor,
    timestep: torch.Tensor | int,
    prompted_BLD: torch.Tensor,
    empty_BLD: torch.Tensor,
    guidance: float,
) -> torch.Tensor:
    """``empty + guidance * (prompted - empty)``, (B, C, H, W) (classifier-free guidance, Ho and Salimans 2022).

    Both predictions are of the same latents, so they differ from the first attention to the prompt on. What comes
    before it in the U-Net is computed for B samples, and what follows for 2 B.

    Parameters
    ----------
    unet
        A diffusers U-Net; of one that mixes the prompt into the timestep's embedding, or of another class than
        `UNet2DConditionModel`, all is computed for 2 B samples.
    latents_BCHW, timestep
        x_t, scaled as the U-Net wants it, and t.
    prompted_BLD, empty_BLD
        Embeddings of each sample's prompt and of the empty prompt.
    guidance
        Its scale.
    """
    prompts = torch.cat([empty_BLD, prompted_BLD])
    if _is_plain(unet):
        with _doubled_after_trunk(unet, len(latents_BCHW)):
            both = unet(latents_BCHW, timestep, prompts, return_dict=False)[0]
    else:
        both = unet(_doubled(latents_BCHW), timestep, prompts, return_dict=False)[0]
    empty, prompted = both.chunk(2)
    result: torch.Tensor = empty + guidance * (prompted - empty)
    return result


@contextmanager
def _doubled_after_trunk(unet: UNet2DConditionModel, count: int) -> Iterator[None]:
    """Within it, blocks from the first with attention on are given all that has `count` samples twice."""

    def double(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(map(told, args)), {name: told(value) for name, value in kwargs.items()}

    def told(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(told, value))
        return _doubled(value) if isinstance(value, torch.Tensor) and len(value) == count else value

    blocks = list(unet.down_blocks)
    trunk = next((place for place, block in enumerate(blocks) if _attends(block)), len(blocks))
    after = [*blocks[trunk:], *([] if unet.mid_block is None else [unet.mid_block]), *unet.up_blocks]
    hooks = [block.register_forward_pre_hook(double, with_kwargs=True) for block in after]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _is_plain(unet: Any) -> bool:
    mixing = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type")
    return type(unet) is UNet2DConditionModel and not any(getattr(unet.config, name, None) for name in mixing)


def _attends(block: Any) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


def _doubled(values: torch.Tensor) -> torch.Tensor:
    return torch.cat([values, values])
