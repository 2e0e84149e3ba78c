from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pathup.model.pipeline import PathUpPipeline, load_pipeline
from pathup.sampling import measuring
from pathup.sampling.decoding import decode_band
from pathup.sampling.measuring import measure_decoder
from pathup.sampling.norms import NormStatistics

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("PATHUP_SHARED", ROOT.parent / "shared"))
REGION = SHARED / "data/regions/test/5_MLS/PA_myxoidliposarcoma_MLS_161.jpg"


@given(st.integers(4, 300), st.integers(4, 300), st.integers(1, 16), st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_sampled_cells_lie_in_the_canvas_and_are_no_more_than_asked(h: int, w: int, side: int, count: int) -> None:
    side = min(side, h, w)
    cells = measuring._spread(h, w, side, count)
    assert 1 <= len(set(cells)) == len(cells) <= count
    assert all(0 <= top <= h - side and 0 <= left <= w - side for top, left in cells)


def test_sampled_cells_meet_every_part_of_the_canvas_and_its_rim() -> None:
    cells = np.array(measuring._spread(600, 600, 6, 192))
    counts, _, _ = np.histogram2d(cells[:, 0], cells[:, 1], bins=6, range=[[0, 600], [0, 600]])
    assert counts.min() >= 192 / 36 / 3  # an even grid's share, by a third at least
    # drawn from all 100 rows of cells, of each of which a canvas that small has about two
    assert {0, 594} <= set(cells[:, 0])


def test_weights_bring_the_windows_to_the_moments_of_the_canvas() -> None:
    canvas = torch.randn(4, 200, 200, generator=torch.Generator().manual_seed(0))
    canvas[:, :, 120:] = 0.4  # no tissue; windows by chance see too much or too little of it
    canvas[:, :70] *= 2
    cells = measuring._spread(200, 200, 6, 60)
    weights = measuring._calibrated(canvas, cells, 6)
    assert float(weights.sum()) == pytest.approx(1)
    assert float(weights.min()) > 0
    whole = measuring._canvas_moments(canvas)
    each = torch.stack([measuring._moments(canvas[:, y : y + 6, x : x + 6].double()) / 36 for y, x in cells])
    error = (weights.double() @ each - whole).abs().sum() / (each.mean(0) - whole).abs().sum()
    assert error < 0.3  # what RIDGE leaves of the difference, and the weights' lower bound


def test_weights_of_a_constant_canvas_are_equal() -> None:
    weights = measuring._calibrated(torch.full((4, 100, 100), 0.3), measuring._spread(100, 100, 6, 50), 6)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / len(weights)))


def _apart(found: NormStatistics, exact: NormStatistics) -> tuple[float, float]:
    """Mean difference of means, in standard deviations, and of log variances."""
    means, logs = [], []
    for name, (mean, variance) in exact.groups.items():
        means.append(float(((found.groups[name][0] - mean).abs() / variance.sqrt()).mean()))
        logs.append(float((found.groups[name][1] / variance).log().abs().mean()))
    return float(np.mean(means)), float(np.mean(logs))


def test_windows_stand_for_the_canvas(pipeline: PathUpPipeline) -> None:
    canvas = torch.randn(4, 90, 110, generator=torch.Generator().manual_seed(0))
    canvas[:, :, 60:] *= 0.3
    exact = measure_decoder(pipeline, canvas)
    mean, log = _apart(measure_decoder(pipeline, canvas, population=400), exact)
    assert mean < 0.02  # 0.005 was found; windows without a margin, 0.04
    assert log < 0.05  # 0.009, and 0.10


def test_windows_without_a_margin_are_bent_by_their_rim(
    pipeline: PathUpPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    canvas = torch.randn(4, 90, 110, generator=torch.Generator().manual_seed(0)) + 0.5
    exact = measure_decoder(pipeline, canvas)
    good = _apart(measure_decoder(pipeline, canvas, population=400), exact)
    monkeypatch.setattr(measuring, "MARGINS", (0,))
    bent = _apart(measure_decoder(pipeline, canvas, population=400), exact)
    assert bent[0] > 2 * good[0]
    assert bent[1] > 2 * good[1]


def test_the_shipped_decoder_in_tiles_is_near_plain_decoding_of_the_whole() -> None:
    if not REGION.is_file() or not (ROOT / "models/atlas/vae").is_dir():
        pytest.skip("needs ../shared/data/regions (or PATHUP_SHARED) and models/atlas")
    shipped = load_pipeline(ROOT / "models/atlas")
    side = 576  # px: 20,736 latent positions, more than are measured whole
    image = np.array(Image.open(REGION).convert("RGB"))[:side, :side].astype(np.float32)
    image[:, side // 2 :] = 245  # half of it glass
    latents = shipped.encode_pixels(torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1)[0]
    plain = (shipped.decode_latents(latents[None])[0] / 2 + 0.5).clamp(0, 1).mul(255).round().permute(1, 2, 0).numpy()
    statistics = measure_decoder(shipped, latents)
    band = decode_band(shipped, latents, 0, statistics=statistics, tile_latent=72).astype(np.float32)
    difference = np.abs(band - plain[: len(band)])
    assert difference.mean() <= 1  # the bounds, in 255ths
    assert np.quantile(difference, 0.999) <= 4
    glass = band[:, side // 2 + 96 :]
    tiles = [
        glass[y : y + 64, x : x + 64].mean() for y in range(0, len(band), 64) for x in range(0, glass.shape[1], 64)
    ]
    assert np.std(tiles) <= 0.5
    assert math.isclose(np.mean(tiles), 245, abs_tol=10)  # it is the glass


def test_slicing_of_diffusers_does_not_split_the_population(pipeline: PathUpPipeline) -> None:
    latents = torch.randn(4, 40, 30, generator=torch.Generator().manual_seed(0))
    plain = measure_decoder(pipeline, latents, population=200)
    pipeline.vae.enable_slicing()
    try:
        sliced = measure_decoder(pipeline, latents, population=200)
        assert pipeline.vae.use_slicing
    finally:
        pipeline.vae.disable_slicing()
    assert all(sliced.groups[name][0].equal(mean) for name, (mean, _) in plain.groups.items())
