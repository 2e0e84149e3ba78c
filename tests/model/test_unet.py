"""The U-Net made from scratch: what the pooled prompt reaches, and that it stays diffusers' own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from pathup.model.components import build_unet
from pathup.recipes import Recipe, recipe_with


def unet_of(recipe: Recipe, pooled: bool) -> UNet2DConditionModel:
    return build_unet(recipe_with(recipe, {"model.unet.pooled_prompt": pooled}, source="here"), 4, 16).eval()


@pytest.mark.parametrize("pooled", [False, True])
@torch.no_grad()
def test_the_pooled_prompt_reaches_levels_without_attention(recipe, pooled):
    unet = unet_of(recipe, pooled)
    first = unet.down_blocks[0]
    assert not getattr(first, "has_cross_attention", False)
    seen: list[torch.Tensor] = []
    first.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    side = recipe.sampling.window_latent
    noisy = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
    for seed in (1, 2):
        unet(noisy, 500, torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(*seen) != pooled


def test_it_loads_with_diffusers_alone_and_takes_nothing_more(recipe, tmp_path: Path):
    unet = unet_of(recipe, pooled=True)
    unet.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path).eval()
    side = recipe.sampling.window_latent
    noisy, prompt = torch.randn(2, 4, side, side), torch.randn(2, 8, 16)
    with torch.no_grad():
        assert torch.equal(unet(noisy, 500, prompt).sample, again(noisy, 500, prompt).sample)
