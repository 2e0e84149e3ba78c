from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention

from pathup.model.pipeline import PathUpPipeline
from pathup.sampling.measuring import SAMPLED_KEYS, measure_decoder, measure_encoder
from pathup.sampling.mid_attention import attend, fixed_statistics, keys_and_values
from pathup.sampling.norms import fixed_norms


def _layer(heads: int = 1) -> Attention:
    torch.manual_seed(0)
    return (
        Attention(
            8,
            heads=heads,
            dim_head=8 // heads,
            norm_num_groups=4,
            residual_connection=True,
            bias=True,
            rescale_output_factor=1.3,
            upcast_softmax=True,
            _from_deprecated_attn_block=True,
        )
        .eval()
        .requires_grad_(False)
    )


def test_with_its_own_keys_it_is_the_layer_of_diffusers() -> None:
    for heads in (1, 2):
        layer, x = _layer(heads), torch.randn(1, 8, 5, 7)
        torch.testing.assert_close(attend(layer, x, *keys_and_values(layer, x)), layer(x), rtol=1e-5, atol=1e-5)


def test_queries_are_of_one_position_each() -> None:
    layer, x = _layer(), torch.randn(1, 8, 6, 6)
    layer.group_norm = torch.nn.Identity()  # positions are then coupled by the keys alone
    keys = keys_and_values(layer, x)
    torch.testing.assert_close(attend(layer, x[..., 2:5], *keys), attend(layer, x, *keys)[..., 2:5])


def test_keys_of_tiles_are_those_of_the_whole_canvas(attentive: PathUpPipeline) -> None:
    latents = torch.randn(4, 70, 30, generator=torch.Generator().manual_seed(1))  # more than one tile of 64
    statistics = measure_decoder(attentive, latents, population=400)
    name = "decoder.mid_block.attentions.0"
    layer = attentive.vae.get_submodule(name)
    inputs = []
    hook = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with fixed_norms(attentive.vae, statistics):
        attentive.decode_latents(latents[None])
        hook.remove()
        keys, values = keys_and_values(layer, inputs[0])
    found = statistics.attention[name]
    assert found[0].shape == keys.shape
    for ours, theirs in zip(found, (keys, values), strict=True):  # tiles of one column: in the same order
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_keys_of_tiles_are_those_of_the_whole_image(attentive: PathUpPipeline) -> None:
    image = torch.rand(3, 70 * 4, 30 * 4, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def source(top: int, left: int, height: int, width: int) -> torch.Tensor:
        return image[:, top : top + height, left : left + width]

    statistics = measure_encoder(attentive, source, (70, 30), population=400)
    name = "encoder.mid_block.attentions.0"
    layer = attentive.vae.get_submodule(name)
    inputs = []
    hook = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with fixed_norms(attentive.vae, statistics):
        attentive.encode_pixels(image[None])
        hook.remove()
        expected = keys_and_values(layer, inputs[0])
    for ours, theirs in zip(statistics.attention[name], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_keys_of_a_large_canvas_stay_as_many(attentive: PathUpPipeline) -> None:
    latents = torch.randn(4, 80, 300, generator=torch.Generator().manual_seed(1))
    counts = []
    for width in (100, 300):
        statistics = measure_decoder(attentive, latents[..., :width], population=400, keys=2_000)
        counts.append(next(iter(statistics.attention.values()))[0].shape[1])
    assert 1_000 <= min(counts) <= max(counts) <= 2_000 < SAMPLED_KEYS


def test_forwards_are_put_back(attentive: PathUpPipeline) -> None:
    latents = torch.randn(4, 30, 20, generator=torch.Generator().manual_seed(1))
    before = attentive.decode_latents(latents[None])
    with fixed_statistics(attentive.vae, measure_decoder(attentive, latents, population=400)):
        pass
    assert all("forward" not in layer.__dict__ for layer in attentive.vae.modules())
    assert attentive.decode_latents(latents[None]).equal(before)
