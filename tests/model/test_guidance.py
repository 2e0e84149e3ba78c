from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from pathup.model.guidance import guided

PLAIN, ATTENDING, OF_ITSELF = "DownBlock2D", "CrossAttnDownBlock2D", "AttnDownBlock2D"


def unet(*kinds: str, **values: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16, 24)[: len(kinds)],
        down_block_types=kinds,
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(kinds)),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        **values,
    ).eval()


def given(count: int) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(count)
    latents = torch.randn(count, 4, 16, 16, generator=draw)
    prompted, empty = (torch.randn(count, 5, 8, generator=draw) for _ in range(2))
    return latents, torch.tensor(321), prompted, empty


def by_two_passes(model: UNet2DConditionModel, latents, timestep, prompted, empty, guidance) -> torch.Tensor:
    """Ho and Salimans 2022, word for word."""
    without, with_prompt = (model(latents, timestep, told, return_dict=False)[0] for told in (empty, prompted))
    return without + guidance * (with_prompt - without)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    "kinds",
    [
        (PLAIN, PLAIN, ATTENDING),  # two blocks are shared
        (ATTENDING, ATTENDING, PLAIN),  # as Stable Diffusion: its first convolution is
        (OF_ITSELF, ATTENDING),
        (PLAIN, PLAIN),  # the prompt is seen in the middle alone
    ],
)
@torch.no_grad()
def test_one_pass_equals_two(kinds, count):
    model, inputs = unet(*kinds), given(count)
    expected = by_two_passes(model, *inputs, 2.5)
    assert (expected - model(*inputs[:3], return_dict=False)[0]).abs().max() > 1e-3  # guidance does something here
    # single precision: sums of another batch size are rounded elsewhere
    torch.testing.assert_close(guided(model, *inputs, 2.5), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_comes_before_the_prompt_is_computed_once():
    model, seen = unet(PLAIN, ATTENDING), {}
    for name, part in model.named_modules():
        part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    guided(model, *given(3), 2.0)
    parts = ("conv_in", "down_blocks.0.resnets.0", "down_blocks.1.resnets.0", "conv_out")
    assert [len(seen[name]) for name in parts] == [3, 3, 6, 6]


@torch.no_grad()
def test_a_u_net_that_mixes_the_prompt_into_its_timesteps_is_given_all_twice():
    model = unet(PLAIN, ATTENDING, addition_embed_type="text", addition_embed_type_num_heads=2, encoder_hid_dim=8)
    inputs = given(2)
    torch.testing.assert_close(guided(model, *inputs, 3.0), by_two_passes(model, *inputs, 3.0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_u_net_is_left_as_it_was_after_a_failure_too():
    model, inputs = unet(PLAIN, ATTENDING), given(2)
    before = model(*inputs[:3], return_dict=False)[0]
    with pytest.raises(RuntimeError):
        guided(model, *inputs[:2], inputs[2][..., :3], inputs[3][..., :3], 2.0)  # of another width than it wants
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert torch.equal(model(*inputs[:3], return_dict=False)[0], before)
