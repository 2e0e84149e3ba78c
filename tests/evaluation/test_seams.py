from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import kstest

from pathup.errors import PathUpError
from pathup.evaluation import seam_profiles, seam_search, seams
from pathup.evaluation.seam_profiles import CHANNELS, TAPS, step_profile
from pathup.evaluation.seam_search import search_grid
from pathup.evaluation.seams import SeamGrid, measure_seams
from pathup.evaluation.stains import RUIFROK_JOHNSTON, optical_density, stain_channels
from tests.tiles.made import SHARED

REGIONS = sorted((SHARED / "data" / "regions").glob("*/*/*.jpg"))
needs_regions = pytest.mark.skipif(not REGIONS, reason=f"real tissue is not at hand ({SHARED}/data/regions)")


def _texture(width: int, height: int, seed: int) -> np.ndarray:
    """Blobs of three sizes and some noise, in the colours of H&E: mostly brightness, as in tissue."""
    draws = np.random.default_rng(seed)
    shape = (height, width, 1)
    blobs = sum(gaussian_filter(draws.normal(0, 20 * size, shape), (size, size, 0)) for size in (1, 3, 8))
    pixels = np.array([170, 110, 160]) + blobs * [1, 1.2, 0.7] + draws.normal(0, 3, (height, width, 3))
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _planted(pixels: np.ndarray, grid: SeamGrid, seed: int, *, stain: int = 0, step: float = 2 / 255) -> np.ndarray:
    """Some windows have more of one stain, drawn at random, at least one of them and not all."""
    draws = np.random.default_rng(seed)
    chosen = draws.integers(0, 2, (len(grid.ys) + 1, len(grid.xs) + 1))
    chosen.flat[0], chosen.flat[1] = 0, 1
    rows = np.searchsorted(grid.ys, np.arange(grid.height), side="right")
    columns = np.searchsorted(grid.xs, np.arange(grid.width), side="right")
    vector = RUIFROK_JOHNSTON[stain] / np.linalg.norm(RUIFROK_JOHNSTON[stain])
    density = optical_density(pixels) + step * chosen[rows][:, columns, None] * vector
    return np.clip(np.rint(256 * np.exp(-density) - 1), 0, 255).astype(np.uint8)


def _jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _auc(planted: list[float], plain: list[float]) -> float:
    above = np.subtract.outer(planted, plain)
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


def _sentence(error: pytest.ExceptionInfo[PathUpError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert not text.endswith(".")
    return text


def test_regular_lines_lie_inside() -> None:
    grid = SeamGrid.regular(512, 300, 128)
    assert (grid.xs, grid.ys) == ((128, 256, 384), (128, 256))
    grid = SeamGrid.regular(512, 300, 128, (140, -20))
    assert (grid.xs, grid.ys) == ((12, 140, 268, 396), (108, 236))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(8, 40))
def test_windows_without_overlap_meet_at_regular_lines(across: int, down: int, pitch: int) -> None:
    windows = [(row * pitch, column * pitch, pitch, pitch) for row in range(down) for column in range(across)]
    if across == down == 1:
        with pytest.raises(PathUpError, match="no line inside"):
            SeamGrid.from_windows(pitch, pitch, windows)
    else:
        found = SeamGrid.from_windows(across * pitch, down * pitch, windows)
        assert found == SeamGrid.regular(across * pitch, down * pitch, pitch)


def test_overlapping_windows_have_two_lines_a_border() -> None:
    grid = SeamGrid.from_windows(100, 64, [(0, 0, 64, 64), (0, 36, 64, 64)])
    assert (grid.xs, grid.ys) == ((36, 64), ())


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: SeamGrid(100, 100, (100,), ()), "x = 100 is not inside an image of 100 x 100 px"),
        (lambda: SeamGrid(100, 100, (), (0,)), "y = 0 is not inside"),
        (lambda: SeamGrid(100, 100, (50, 20), ()), "not ascending"),
        (lambda: SeamGrid(100, 100, (20, 20), ()), "not ascending"),
        (lambda: SeamGrid(100, 100, (), ()), "no line inside"),
        (lambda: SeamGrid.regular(100, 100, 51), "smaller than two periods of 51 px"),
        (lambda: SeamGrid.regular(100, 100, 1), "at least 2 px"),
        (lambda: SeamGrid.from_windows(100, 100, [(0, 50, 64, 64)]), "is not inside the image of 100 x 100 px"),
        (lambda: SeamGrid.from_windows(100, 100, [(0, 50, 64)]), "four numbers"),
    ],
)
def test_grids_that_cannot_be(make: Any, told: str) -> None:
    with pytest.raises(PathUpError, match=told) as error:
        make()
    _sentence(error)


@pytest.mark.parametrize(
    ("image", "how", "told"),
    [
        (np.zeros((128, 128), np.uint8), {}, "8-bit RGB"),
        (np.zeros((128, 128, 3), np.float32), {}, "8-bit RGB"),
        (np.zeros((128, 128, 4), np.uint8), {}, "8-bit RGB"),
        (np.zeros((128, 60, 3), np.uint8), {}, "at least 64 px a side"),
        (np.zeros((128, 160, 3), np.uint8), {}, "the grid is of an image of 128 x 128 px"),
        (np.zeros((128, 128, 3), np.uint8), {"channels": ("eosine",)}, "did you mean 'eosin'"),
        (np.zeros((128, 128, 3), np.uint8), {"channels": ()}, "no channel"),
        (np.zeros((128, 128, 3), np.uint8), {"replicates": 0}, "at least 1 was needed"),
    ],
)
def test_images_that_cannot_be_measured(image: np.ndarray, how: dict[str, Any], told: str) -> None:
    with pytest.raises(PathUpError, match=told) as error:
        measure_seams(image, SeamGrid.regular(128, 128, 64), **how)
    _sentence(error)


def test_a_grid_that_leaves_no_other_lines() -> None:
    with pytest.raises(PathUpError, match="too few others"):
        measure_seams(np.zeros((64, 64, 3), np.uint8), SeamGrid(64, 64, tuple(range(4, 62)), ()))


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_blank_image_has_no_seam(value: int) -> None:
    blank = np.full((128, 128, 3), value, np.uint8)
    found = measure_seams(blank, SeamGrid.regular(128, 128, 64))
    assert (found.p_value, found.score) == (1, 0)
    assert {channel.p_value for channel in found.channels.values()} == {1}
    assert {channel.ratio for channel in found.channels.values()} == {1}
    assert search_grid(blank).p_value == 1


def test_one_grey_level_on_a_blank_image_is_found() -> None:
    blank = np.full((256, 256, 3), 240, np.uint8)
    blank[:, 128:] -= 1
    found = measure_seams(blank, SeamGrid(256, 256, (128,), ()))
    assert found.p_value < 0.1  # one line among some 15 of its remainder
    assert found.score > 10
    assert found.channels["intensity"].ratio == np.inf


def test_gradients_are_those_of_the_plain_formula() -> None:
    pixels = _texture(150, 130, 1)
    grid = SeamGrid(150, 130, (40, 90), (70,))
    found = measure_seams(pixels, grid, replicates=9)
    planes = np.dstack([pixels.mean(2) / 255, stain_channels(pixels)])
    for channel, name in enumerate(CHANNELS):
        across = [np.abs(planes[:, x, channel] - planes[:, x - 1, channel]).mean() for x in range(1, 150)]
        down = [np.abs(planes[y, :, channel] - planes[y - 1, :, channel]).mean() for y in range(1, 130)]
        at = np.mean([across[39], across[89], down[69]])
        # each line beside the others of its axis with the same remainder, 8 px or more from the rim
        assert found.modulus == 8  # by 16 there are fewer than 12 others
        others = [
            np.mean([length[i - 1] for i in range(8, len(length) + 1 - 7) if i % 8 == line % 8 and i not in own])
            for length, line, own in ((across, 40, (40, 90)), (across, 90, (40, 90)), (down, 70, (70,)))
        ]
        rest = np.mean(others)
        one = found.channels[name]
        # float32 sums
        np.testing.assert_allclose([one.at_lines, one.elsewhere, one.ratio], [at, rest, at / rest], rtol=1e-4)


def test_the_filter_is_that_of_the_slow_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seam_profiles, "_MODULUS", 1)
    steps = np.random.default_rng(0).normal(0, 1, (3, 5, 80)).astype(np.float32)
    steps[1] += 0.8 * steps[0]
    found = seam_profiles._filtered(steps)
    padded = np.pad(steps, ((0, 0), (0, 0), (TAPS, TAPS)), mode="reflect")
    seen = [padded[:, row, at : at + 2 * TAPS + 1].ravel() for row in range(5) for at in range(80)]
    covariance = np.mean([np.outer(one, one) for one in np.clip(seen, -4, 4)], 0)  # 4: outliers are cut there
    wanted = np.zeros((3, 2 * TAPS + 1))
    wanted[:, TAPS] = 3**-0.5  # intensity
    weights = np.linalg.solve(covariance, wanted.ravel())
    expected = np.array(seen) @ weights / np.sqrt(weights @ wanted.ravel())
    np.testing.assert_allclose(found[0].ravel(), expected, rtol=0.01, atol=0.01)  # a small ridge and float32


def test_rows_and_columns_are_treated_alike() -> None:
    pixels = _texture(200, 150, 2)
    found = measure_seams(pixels, SeamGrid(200, 150, (60, 130), (70,)), replicates=9)
    turned = measure_seams(pixels.transpose(1, 0, 2), SeamGrid(150, 200, (70,), (60, 130)), replicates=9)
    for name in CHANNELS:
        assert found.channels[name].score == pytest.approx(turned.channels[name].score)
        assert found.channels[name].ratio == pytest.approx(turned.channels[name].ratio)


def test_the_steps_do_not_depend_on_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = _texture(100, 200, 3)
    whole = step_profile(pixels, [90])
    monkeypatch.setattr(seam_profiles, "_STRIP_ROWS", 24)
    strips = step_profile(pixels, [90])
    np.testing.assert_allclose(strips.energy_CKL, whole.energy_CKL, rtol=1e-4)
    np.testing.assert_allclose(strips.gradient_CL, whole.gradient_CL, rtol=1e-5)


def test_a_report_is_json_and_a_function_of_the_seed() -> None:
    pixels, grid = _texture(160, 160, 4), SeamGrid.regular(160, 160, 64)
    first = measure_seams(pixels, grid, seed=5, replicates=99, channels=("eosin", "intensity"))
    told = json.loads(json.dumps(first.as_json()))
    assert told == measure_seams(pixels, grid, seed=5, replicates=99, channels=("eosin", "intensity")).as_json()
    assert list(told["channels"]) == ["eosin", "intensity"]
    assert told["grid"] == {"width": 160, "height": 160, "xs": [64, 128], "ys": [64, 128]}
    other = measure_seams(pixels, grid, seed=6, replicates=99, channels=("eosin", "intensity"))
    assert other.score == first.score  # no draw takes part in it
    json.dumps(search_grid(pixels, replicates=9).as_json())


@given(st.integers(1, 3), st.integers(80, 200), st.integers(2, 60), st.integers(1, 200))
@settings(deadline=None, max_examples=60)
def test_random_lines_share_the_remainder(count: int, length: int, pitch: int, first: int) -> None:
    lines = sorted({(first + k * pitch) % (length - 1) + 1 for k in range(count)})
    modulus, strata = seams._strata([(lines, length)])
    assert sorted(line for stratum in strata for line in stratum.own) == lines
    for stratum in strata:
        assert len({int(line) % modulus for line in [*stratum.own, *stratum.others]}) == 1
        assert not set(stratum.others) & set(lines)
        assert len(stratum.others) >= 12


def test_p_values_of_textures_are_uniform() -> None:
    p_values = []
    for seed in range(80):
        pitch, offset = (48, 64, 50)[seed % 3], (seed * 7 % 48, seed * 11 % 48)
        grid = SeamGrid.regular(160, 144, pitch, offset)
        p_values.append(measure_seams(_texture(160, 144, seed), grid, replicates=99).p_value)
    assert kstest(p_values, "uniform").pvalue > 0.005  # of 200 such tests on uniform values one would fall below


def test_jpeg_blocks_are_no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = SeamGrid.regular(256, 256, 64)
    images = [_jpeg(_texture(256, 256, seed), 60) for seed in range(6)]
    p_values = [measure_seams(image, grid, replicates=99).p_value for image in images]
    assert np.mean(p_values) > 0.2  # uniform: 0.5, with a deviation of 0.12
    monkeypatch.setattr(seams, "_MODULI", (1,))
    monkeypatch.setattr(seam_profiles, "_MODULUS", 1)
    p_values = [measure_seams(image, grid, replicates=99).p_value for image in images]
    assert np.mean(p_values) < 0.1  # without regard to blocks


@pytest.mark.parametrize("stain", [0, 1])
def test_planted_seams_of_a_texture_are_found(stain: int) -> None:
    planted, plain = [], []
    for seed in range(8):
        pixels, grid = _texture(256, 256, seed), SeamGrid.regular(256, 256, 64, (seed * 9, seed * 5))
        plain.append(measure_seams(pixels, grid, replicates=99).score)
        planted.append(measure_seams(_planted(pixels, grid, seed, stain=stain), grid, replicates=99).score)
    assert _auc(planted, plain) >= 0.95  # the project's own bar


def test_the_stain_that_has_the_seam_is_told_by_the_ratio() -> None:
    pixels, grid = _texture(256, 256, 1), SeamGrid.regular(256, 256, 64)
    found = measure_seams(_planted(pixels, grid, 1, stain=1, step=0.2), grid)
    ratios = {name: channel.ratio for name, channel in found.channels.items()}
    assert max(ratios, key=lambda name: ratios[name]) == "eosin"
    assert found.p_value <= 0.002  # the least of 999 random grids is 0.001
    assert found.channels["eosin"].at_lines > found.channels["eosin"].elsewhere


def test_the_grid_is_found() -> None:
    pixels, grid = _texture(384, 320, 5), SeamGrid.regular(384, 320, 50, (13, 31))
    found = search_grid(_planted(pixels, grid, 5, step=0.05), max_pitch=110)
    assert (found.pitch, found.grid) == (50, grid)
    assert found.p_value == 1 / 200
    assert found.pitches == (32, 110)


def test_a_grid_of_one_axis_is_found() -> None:
    pixels, grid = _texture(384, 256, 6), SeamGrid(384, 256, tuple(range(20, 384, 60)), ())
    found = search_grid(_planted(pixels, grid, 3, step=0.08))
    assert found.pitch == 60
    assert found.grid.xs == grid.xs


def test_no_grid_is_found_in_textures_nor_in_jpeg_blocks() -> None:
    p_values = [search_grid(_jpeg(_texture(256, 256, seed), 60), replicates=39).p_value for seed in range(10)]
    p_values += [search_grid(_texture(256, 256, seed), replicates=39).p_value for seed in range(10)]
    assert sum(p <= 0.05 for p in p_values) <= 5  # by chance 1 of 20; more than 5 in one of 3,000 cases


def test_the_sums_of_the_search_are_those_of_the_slow_formula() -> None:
    jumps = np.random.default_rng(0).normal(0, 1, (2, 101)).astype(np.float32)
    jumps[:, 0] = 0
    for pitch in (7, 20, 50):
        found = seam_search._sums(jumps, pitch)
        for phase in range(pitch):
            lines = [x for x in range(phase, 101, pitch) if x > 0]
            np.testing.assert_allclose(found[:, phase], jumps[:, lines].sum(1) / np.sqrt(len(lines)), atol=1e-5)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"min_pitch": 60}, "pitches from 60 to 42 px"),
        ({"max_pitch": 65}, r"half the shorter side \(64\)"),
        ({"min_pitch": 1}, "ascend from at least 2"),
        ({"replicates": 1}, "at least 2 were needed"),
    ],
)
def test_searches_that_cannot_be(how: dict[str, Any], told: str) -> None:
    with pytest.raises(PathUpError, match=told) as error:
        search_grid(np.zeros((128, 200, 3), np.uint8), **how)
    _sentence(error)


@needs_regions
def test_planted_seams_of_real_tissue_are_found() -> None:
    planted, plain, p_values = [], [], []
    for seed, file in enumerate(REGIONS[:: len(REGIONS) // 8][:8]):
        pixels = np.asarray(Image.open(file).convert("RGB"))[600:1112, 700:1212]
        grid = SeamGrid.regular(512, 512, 128, (seed * 16 % 128, seed * 23 % 128))
        before = measure_seams(pixels, grid)
        after = measure_seams(_planted(pixels, grid, seed, stain=seed % 2), grid)
        plain.append(before.score)
        p_values.append(before.p_value)
        planted.append(after.score)
    assert _auc(planted, plain) >= 0.9  # 0.96 on 80 crops of this size; 8 give it to some 0.05
    assert kstest(p_values, "uniform").pvalue > 0.005
