from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

from pathup.model.attention import PlainProduct, fast_attention, most_positions


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


def kinds_of(model: UNet2DConditionModel) -> set[type]:
    return {type(processor) for processor in model.attn_processors.values()}


def test_short_rows_take_the_plain_product_and_long_ones_diffusers_choice():
    model = unet(32, (PLAIN, ATTENDING))
    before = kinds_of(model)
    with fast_attention(model, torch.device("cpu")):
        assert kinds_of(model) == {PlainProduct}
    assert kinds_of(model) == before == {AttnProcessor2_0}
    for other, device in ((unet(64, (ATTENDING, PLAIN)), "cpu"), (model, "cuda")):
        with fast_attention(other, torch.device(device)):
            assert kinds_of(other) == before


def test_an_attention_with_a_processor_of_its_own_keeps_it():
    model = unet(32, (PLAIN, ATTENDING))
    own = AttnProcessor()
    name = next(iter(model.attn_processors))
    model.set_attn_processor({**model.attn_processors, name: own})
    with pytest.raises(RuntimeError, match="stop"), fast_attention(model, torch.device("cpu")):
        assert model.attn_processors[name] is own
        assert PlainProduct in kinds_of(model)
        raise RuntimeError("stop")
    assert kinds_of(model) == {AttnProcessor, AttnProcessor2_0}  # put back after an error as well


@torch.no_grad()
def test_the_prediction_is_the_same():
    model = unet(32, (PLAIN, ATTENDING))
    latents, prompt = torch.randn(2, 4, 32, 32), torch.randn(2, 5, 8)
    plain = model(latents, 10, prompt).sample
    with fast_attention(model, torch.device("cpu")):
        fast = model(latents, 10, prompt).sample
    assert (fast - plain).abs().max() < 1e-5  # sums in another order, in float32


def test_gradients_are_the_same():
    model = unet(32, (PLAIN, ATTENDING)).double()
    latents, prompt = torch.randn(2, 4, 32, 32).double(), torch.randn(2, 5, 8).double()
    found = []
    for device in ("cuda", "cpu"):  # the first leaves the model as it is
        model.zero_grad()
        with fast_attention(model, torch.device(device)):
            model(latents, 10, prompt).sample.square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


def test_a_mask_is_heeded():
    attention = next(part for part in unet(32, (PLAIN, ATTENDING)).modules() if isinstance(part, Attention))
    x = torch.randn(2, 4, 8)
    mask = torch.tensor([[0.0, 0.0, 0.0, -1e9]]).expand(2, 4, 4).repeat_interleave(attention.heads, 0)
    plain = attention(x, attention_mask=mask)
    attention.processor = PlainProduct()
    torch.testing.assert_close(attention(x, attention_mask=mask), plain)
