from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pathup.model.pipeline import PathUpPipeline
from pathup.sampling.decoding import (
    band_count,
    decode_band,
    decode_bands,
    decode_image,
    decoder_halo,
    measure_decoder,
)
from pathup.sampling.mid_attention import fixed_statistics
from pathup.sampling.norms import NormStatistics, fixed_norms

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


class _Stored:
    """A canvas that gives copies of parts and has no other gift, as one on disk."""

    def __init__(self, latents: torch.Tensor) -> None:
        self._latents, self.shape, self.most = latents, tuple(latents.shape), 0

    def __getitem__(self, at: tuple[slice, slice, slice]) -> torch.Tensor:
        part = self._latents[at].clone()
        self.most = max(self.most, part[0].numel())
        return part


class _Blank:
    """Blank from a column on."""

    rgb = (250, 240, 245)

    def __init__(self, first: int) -> None:
        self._first = first

    def covers(self, top: int, left: int, bottom: int, right: int) -> bool:
        return left >= self._first


def test_a_band_is_decoded_alone_in_any_order_and_from_stored_latents(
    pipeline: PathUpPipeline, latents: torch.Tensor, tmp_path: Path
) -> None:
    measure_decoder(pipeline, latents, population=400).save(tmp_path / "statistics.safetensors")
    statistics = NormStatistics.load(tmp_path / "statistics.safetensors")
    stored = _Stored(latents)
    together = list(decode_bands(pipeline, latents, statistics=statistics, tile_latent=16))
    assert band_count(61, 16) == len(together) == 4
    for index in (3, 0, 2):
        alone = decode_band(pipeline, stored, index, statistics=statistics, tile_latent=16)
        assert np.array_equal(alone, together[index])
    assert stored.most <= (16 + 2 * decoder_halo(pipeline.vae)) ** 2  # never more than a tile and its halo at once
    with pytest.raises(IndexError):
        decode_band(pipeline, latents, 4, statistics=statistics, tile_latent=16)


def test_progress_counts_tiles_of_the_whole_canvas(pipeline: PathUpPipeline, latents: torch.Tensor) -> None:
    seen: list[tuple[str, int, int]] = []
    statistics = measure_decoder(pipeline, latents)
    decode_band(
        pipeline, latents, 2, statistics=statistics, tile_latent=16, progress=lambda *values: seen.append(values)
    )
    assert seen == [("decode", done, 12) for done in (7, 8, 9)]  # 3 tiles a band, two bands above


def test_blank_tiles_are_filled_and_change_nothing_else(pipeline: PathUpPipeline) -> None:
    latents = torch.randn(4, 20, 90, generator=torch.Generator().manual_seed(3))
    halo = decoder_halo(pipeline.vae)
    blank, statistics, factor = _Blank(48 - halo), measure_decoder(pipeline, latents), pipeline.factor
    plain = decode_image(pipeline, latents, statistics=statistics, tile_latent=16)
    calls = _counting_decodes(pipeline)
    with calls:
        filled = decode_image(pipeline, latents, statistics=statistics, tile_latent=16, blank=blank)
    assert np.array_equal(filled[:, : 48 * factor], plain[:, : 48 * factor])
    assert (filled[:, 48 * factor :] == blank.rgb).all()
    assert calls.count == 6  # of two bands, the three tiles left of the blank


class _counting_decodes:  # noqa: N801
    def __init__(self, pipeline: PathUpPipeline) -> None:
        self._decoder, self.count = pipeline.vae.decoder, 0

    def __enter__(self) -> None:
        self._hook = self._decoder.register_forward_hook(lambda *_: setattr(self, "count", self.count + 1))

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def test_a_small_canvas_is_decoded_once_and_not_measured_first(pipeline: PathUpPipeline, latents: torch.Tensor) -> None:
    calls = _counting_decodes(pipeline)
    with calls:
        bands = list(decode_bands(pipeline, latents, tile_latent=16))
    assert calls.count == 1
    assert [len(band) // pipeline.factor for band in bands] == [16, 16, 16, 13]


def test_a_decoder_is_as_it_was_between_bands(pipeline: PathUpPipeline, latents: torch.Tensor) -> None:
    before = pipeline.decode_latents(latents[None])
    bands = decode_bands(
        pipeline, latents, statistics=measure_decoder(pipeline, latents, population=400), tile_latent=16
    )
    next(bands)  # a caller may do anything between two bands, also decode something else
    assert pipeline.decode_latents(latents[None]).equal(before)


def test_bands_equal_one_piece_where_attention_sees_the_canvas(attentive: PathUpPipeline) -> None:
    latents = torch.randn(4, 40, 28, generator=torch.Generator().manual_seed(4))
    latents[:, 20:] *= 0.2  # what attention finds differs from place to place
    for keys in (2000, 400):  # every position of the 1,120, and a sample
        statistics = measure_decoder(attentive, latents, population=400, keys=keys)
        with fixed_statistics(attentive.vae, statistics):
            whole = _uint8(attentive.decode_latents(latents[None]))
        bands = decode_image(attentive, latents, statistics=statistics, tile_latent=16)
        assert np.abs(bands - whole).max() <= 1
    # what it cures: each tile attending to itself alone
    alone = NormStatistics(statistics.groups)
    assert np.abs(decode_image(attentive, latents, statistics=alone, tile_latent=16) - whole).max() > 8


def test_measured_whole_it_decodes_as_plain_diffusers_with_attention(attentive: PathUpPipeline) -> None:
    latents = torch.randn(4, 40, 28, generator=torch.Generator().manual_seed(5))
    plain = _uint8(attentive.decode_latents(latents[None]))
    statistics = measure_decoder(attentive, latents)
    assert np.abs(decode_image(attentive, latents, statistics=statistics, tile_latent=16) - plain).max() <= 1
