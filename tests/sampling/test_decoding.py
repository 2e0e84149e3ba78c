from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from pathup.model.pipeline import PathUpPipeline, build_pipeline
from pathup.recipes import load_recipe
from pathup.sampling import decoding
from pathup.sampling.decoding import (
    decode_bands,
    decode_image,
    decoder_halo,
    encode_canvas,
    encoder_halo,
    measure_decoder,
    measure_encoder,
)
from pathup.sampling.norms import fixed_norms

SHAPE = (4, 61, 45)  # more than one tile and no multiple of one


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 2


def _uint8(pixels: torch.Tensor) -> np.ndarray:
    return (pixels[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1).mul(255).round().numpy().astype(np.int16)


def test_bands_equal_one_piece_with_the_same_statistics(pipeline: PathUpPipeline, latents: torch.Tensor) -> None:
    statistics = measure_decoder(pipeline, latents, population=400)  # sampled windows: 61 x 45 is more than 400
    with fixed_norms(pipeline.vae, statistics):
        whole = _uint8(pipeline.decode_latents(latents[None]))
    bands = list(decode_bands(pipeline, latents, statistics=statistics, tile_latent=16))
    factor = pipeline.factor
    assert [len(band) for band in bands] == [16 * factor] * 3 + [13 * factor]
    assert all(band.dtype == np.uint8 and band.shape[1:] == (45 * factor, 3) for band in bands)
    assert np.abs(np.concatenate(bands) - whole).max() <= 1  # a rounding's worth: the halo is all that counts
    assert whole.std() > 10  # there is a picture to compare


def test_a_small_canvas_decodes_as_plain_diffusers_does(pipeline: PathUpPipeline, latents: torch.Tensor) -> None:
    plain = _uint8(pipeline.decode_latents(latents[None]))
    assert np.abs(decode_image(pipeline, latents, tile_latent=16) - plain).max() <= 1


def test_a_plain_background_keeps_its_tone_from_tile_to_tile(pipeline: PathUpPipeline) -> None:
    # left: strong tissue; right: plain background, in tiles that hold nothing else
    canvas = torch.full((4, 16, 96), 0.3)
    canvas[:, :, :32] = torch.randn(4, 16, 32, generator=torch.Generator().manual_seed(1)) * 3
    halo, factor = decoder_halo(pipeline.vae), pipeline.factor
    ours = decode_image(pipeline, canvas, tile_latent=16).astype(int)
    row = ours[8 * factor, (32 + halo) * factor : (96 - halo) * factor]
    # constant latents decode to a pattern of one latent's period: compare like phases
    period = row[: len(row) // factor * factor].reshape(-1, factor, 3)
    assert np.ptp(period, axis=0).max() <= 1

    def naive(left: int) -> np.ndarray:
        return _uint8(pipeline.decode_latents(canvas[None, :, :, left : left + 16]))[8 * factor, 8 * factor]

    # what it cures: the same background decoded beside tissue and alone differs
    beside = _uint8(pipeline.decode_latents(canvas[None, :, :, 24:48]))[8 * factor, 16 * factor]
    assert np.abs(beside - naive(64)).max() > 2


@pytest.mark.parametrize("blocks", [(8, 8), (8, 16, 16), (8, 8, 16, 16)])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_halo_is_as_wide_as_the_network_sees(blocks: tuple[int, ...], layers: int) -> None:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(blocks),
        up_block_types=("UpDecoderBlock2D",) * len(blocks),
        block_out_channels=blocks,
        layers_per_block=layers,
        norm_num_groups=4,
        mid_block_add_attention=False,
    ).eval()
    for layer in vae.modules():  # without normalisation, dependence is the convolutions' alone
        if isinstance(layer, torch.nn.GroupNorm):
            layer.forward = lambda x: x
    factor, halo = 2 ** (len(blocks) - 1), decoder_halo(vae)
    length = 2 * halo + 9
    latents = torch.randn(1, 4, 3, length, requires_grad=True)
    middle = length // 2
    vae.decode(latents).sample[..., middle * factor : (middle + 1) * factor].abs().sum().backward()
    reached = latents.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    reach = max(middle - int(reached.min()), int(reached.max()) - middle)
    assert halo - 2 <= reach <= halo  # enough, and not much more

    halo = encoder_halo(vae)
    length = 2 * halo + 9
    pixels = torch.randn(1, 3, 2 * factor, length * factor, requires_grad=True)
    middle = length // 2
    vae.encode(pixels).latent_dist.mean[..., middle].abs().sum().backward()
    reached = pixels.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    first, last = int(reached.min()) // factor, int(reached.max()) // factor
    reach = max(middle - first, last - middle)
    assert halo - 3 <= reach <= halo


def test_tiled_encoding_equals_one_piece(pipeline: PathUpPipeline) -> None:
    factor = pipeline.factor
    image = torch.rand(3, 40 * factor, 27 * factor, generator=torch.Generator().manual_seed(2)) * 2 - 1

    def source(top: int, left: int, height: int, width: int) -> torch.Tensor:
        return image[:, top : top + height, left : left + width]

    whole = pipeline.encode_pixels(image[None])[0]
    tiled = encode_canvas(pipeline, source, (40, 27), tile_latent=16)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))
    statistics = measure_encoder(pipeline, source, (40, 27), population=300)
    with fixed_norms(pipeline.vae, statistics):
        whole = pipeline.encode_pixels(image[None])[0]
    tiled = encode_canvas(pipeline, source, (40, 27), tile_latent=10, statistics=statistics)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))


def test_an_autoencoder_with_attention_is_tiled_too() -> None:
    recipe = load_recipe("tiny")
    attentive = recipe.model_copy(update={"autoencoder": recipe.autoencoder.model_copy(update={"mid_attention": True})})
    pipeline = build_pipeline(attentive)
    latents = torch.randn(4, 20, 20)
    assert decode_image(pipeline, latents, tile_latent=16).shape == (80, 80, 3)
    whole = _uint8(pipeline.decode_latents(latents[None]))
    one_tile = decode_image(pipeline, latents, tile_latent=20)  # one tile: attention sees all, so nothing differs
    assert np.abs(one_tile - whole).max() <= 1


def test_slicing_of_diffusers_does_not_split_the_population(pipeline: PathUpPipeline, latents: torch.Tensor) -> None:
    plain = measure_decoder(pipeline, latents, population=200)
    pipeline.vae.enable_slicing()
    try:
        sliced = measure_decoder(pipeline, latents, population=200)
        assert pipeline.vae.use_slicing
    finally:
        pipeline.vae.disable_slicing()
    assert all(sliced.groups[name][0].equal(mean) for name, (mean, _) in plain.groups.items())


@pytest.mark.parametrize(("height", "width"), [(200, 300), (30, 4000), (8192, 2), (100, 100)])
def test_sampled_areas_lie_in_the_canvas_and_keep_to_the_population(height: int, width: int) -> None:
    areas = decoding._spread(height, width, 16, 8192)
    assert sum(h * w for _, _, h, w in areas) <= max(8192, 16 * 16) or len(areas) == 1
    for top, left, h, w in areas:
        assert 0 <= top <= height - h and 0 <= left <= width - w
    assert len(set(areas)) == len(areas)
