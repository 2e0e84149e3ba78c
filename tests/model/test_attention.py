from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from pathup.model.attention import fast_attention, most_positions


def unet(side: int, kinds: tuple[str, ...]) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=side,
        block_out_channels=(8,) * len(kinds),
        down_block_types=kinds,
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(kinds)),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
    ).eval()


PLAIN, ATTENDING = "DownBlock2D", "CrossAttnDownBlock2D"


@pytest.mark.parametrize(
    ("side", "kinds", "positions"),
    [
        (64, (ATTENDING, ATTENDING, PLAIN), 64 * 64),  # as Stable Diffusion
        (32, (PLAIN, ATTENDING), 16 * 16),
        (32, (PLAIN, PLAIN), 16 * 16),  # the middle block always attends
    ],
)
def test_the_longest_rows_of_attention_are_counted(side, kinds, positions):
    assert most_positions(unet(side, kinds)) == positions


def test_short_rows_take_the_plain_product_and_long_ones_torchs_choice():
    before = torch.backends.cuda.flash_sdp_enabled()  # the flag of all devices, despite its name
    with fast_attention(unet(32, (PLAIN, ATTENDING)), torch.device("cpu")):
        assert not torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() == before
    for model, device in (
        (unet(64, (ATTENDING, PLAIN)), "cpu"),
        (unet(32, (PLAIN, ATTENDING)), "cuda"),
    ):
        with fast_attention(model, torch.device(device)):
            assert torch.backends.cuda.flash_sdp_enabled() == before


@torch.no_grad()
def test_the_prediction_is_the_same():
    model = unet(32, (PLAIN, ATTENDING))
    latents, prompt = torch.randn(2, 4, 32, 32), torch.randn(2, 5, 8)
    plain = model(latents, 10, prompt).sample
    with fast_attention(model, torch.device("cpu")):
        fast = model(latents, 10, prompt).sample
    assert (fast - plain).abs().max() < 1e-5  # sums in another order, in float32
