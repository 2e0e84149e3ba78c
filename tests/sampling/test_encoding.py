from __future__ import annotations

import torch

from pathup.model.pipeline import PathUpPipeline
from pathup.sampling.encoding import encode_canvas
from pathup.sampling.measuring import PixelSource, measure_encoder
from pathup.sampling.mid_attention import fixed_statistics
from pathup.sampling.norms import fixed_norms
from pathup.sampling.receptive import encoder_halo


def _source(image: torch.Tensor) -> PixelSource:
    return lambda top, left, height, width: image[:, top : top + height, left : left + width]


def test_tiled_encoding_equals_one_piece(pipeline: PathUpPipeline) -> None:
    factor = pipeline.factor
    image = torch.rand(3, 40 * factor, 27 * factor, generator=torch.Generator().manual_seed(2)) * 2 - 1
    source = _source(image)

    whole = pipeline.encode_pixels(image[None])[0]
    tiled = encode_canvas(pipeline, source, (40, 27), tile_latent=16)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))
    statistics = measure_encoder(pipeline, source, (40, 27), population=300)
    with fixed_norms(pipeline.vae, statistics):
        whole = pipeline.encode_pixels(image[None])[0]
    tiled = encode_canvas(pipeline, source, (40, 27), tile_latent=10, statistics=statistics)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))


def test_tiles_equal_one_piece_where_attention_sees_the_canvas(attentive: PathUpPipeline) -> None:
    factor = attentive.factor
    image = torch.rand(3, 36 * factor, 27 * factor, generator=torch.Generator().manual_seed(2)) * 2 - 1
    image[:, 18 * factor :] *= 0.2
    statistics = measure_encoder(attentive, _source(image), (36, 27), population=300)
    assert all(keys.shape[1] == 36 * 27 for keys, _ in statistics.attention.values())
    with fixed_statistics(attentive.vae, statistics):
        whole = attentive.encode_pixels(image[None])[0]
    tiled = encode_canvas(attentive, _source(image), (36, 27), tile_latent=10, statistics=statistics)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))


def test_latents_go_where_they_are_wanted_and_blank_ones_cost_nothing(pipeline: PathUpPipeline) -> None:
    factor, halo, asked = pipeline.factor, encoder_halo(pipeline.vae), []
    image = torch.rand(3, 12 * factor, 60 * factor, generator=torch.Generator().manual_seed(2)) * 2 - 1

    def source(top: int, left: int, height: int, width: int) -> torch.Tensor:
        asked.append(left // factor)
        return image[:, top : top + height, left : left + width]

    class Blank:
        latent_C = torch.tensor([1.0, 2.0, 3.0, 4.0])

        def covers(self, top: int, left: int, bottom: int, right: int) -> bool:
            return left >= 32 - halo

    statistics = measure_encoder(pipeline, source, (12, 60), population=300)
    plain = encode_canvas(pipeline, source, (12, 60), statistics=statistics, tile_latent=16)
    asked.clear()
    out = torch.full((4, 12, 60), torch.nan)
    found = encode_canvas(pipeline, source, (12, 60), statistics=statistics, tile_latent=16, out=out, blank=Blank())
    assert found is out
    assert out[:, :, :32].equal(plain[:, :, :32])
    assert out[:, :, 32:].equal(Blank.latent_C[:, None, None].expand(4, 12, 28))
    assert asked == [0, 16 - halo if halo < 16 else 0]  # no pixel of a blank tile is made
