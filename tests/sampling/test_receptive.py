from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL

from pathup.model.pipeline import PathUpPipeline
from pathup.sampling.norms import fixed_norms, measure_norms
from pathup.sampling.receptive import decoder_halo, encoder_halo, trimmed_decoder


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


def test_a_trimmed_tile_has_the_same_core(pipeline: PathUpPipeline) -> None:
    vae, halo, factor = pipeline.vae, decoder_halo(pipeline.vae), pipeline.factor
    latents = torch.randn(1, 4, 8 + 2 * halo, 8 + halo, generator=torch.Generator().manual_seed(0))
    statistics = measure_norms(vae, lambda: pipeline.decode_latents(latents))
    margins = [halo, halo, 0, halo]  # at the canvas's left rim
    with fixed_norms(vae, statistics):
        full = pipeline.decode_latents(latents)
        with trimmed_decoder(vae, margins):
            trimmed = pipeline.decode_latents(latents)
        assert pipeline.decode_latents(latents).equal(full)  # and the decoder is as it was
    assert margins[2] == 0
    assert max(margins) < halo / 2
    core = full[..., halo * factor : (halo + 8) * factor, : 8 * factor]
    first = margins[0] * factor
    torch.testing.assert_close(trimmed[..., first : first + 8 * factor, : 8 * factor], core, rtol=0, atol=1e-5)
    assert trimmed.shape[-2] == (8 + margins[0] + margins[1]) * factor
