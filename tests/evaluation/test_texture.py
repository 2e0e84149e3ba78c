from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from pathup.errors import PathUpError
from pathup.evaluation.texture import GREY_LEVELS, texture
from tests.tiles.made import tissue


def noise(exponent: float, side: int = 128, seed: int = 0) -> np.ndarray:
    """Grey noise of power spectrum ``frequency ** exponent``, uint8 RGB."""
    draws = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :])
    frequency[0, 0] = 1
    values = np.fft.ifft2(np.fft.fft2(draws.normal(size=(side, side))) * frequency ** (exponent / 2)).real
    return np.repeat(np.clip(128 + 40 * values / values.std(), 0, 255).round().astype(np.uint8)[..., None], 3, 2)


def blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(pixels, (sigma, sigma, 0))


def test_blur_moves_every_measure_one_way() -> None:
    rows = [texture(blurred(noise(-1.5), sigma)) for sigma in (0.01, 0.7, 1.2, 2.0)]
    for name, sign in {
        "sharpness": -1,
        "spectrum_slope": -1,
        "local_contrast": -1,
        "cooccurrence_contrast": -1,
        "cooccurrence_homogeneity": 1,
        "cooccurrence_entropy": -1,
    }.items():
        assert (sign * np.diff([row[name] for row in rows]) > 0).all(), name


@pytest.mark.parametrize("exponent", [-1.0, -2.0, -3.0])
def test_the_slope_of_a_known_spectrum(exponent: float) -> None:
    slopes = [texture(noise(exponent, seed=seed))["spectrum_slope"] for seed in range(4)]
    assert np.mean(slopes) == pytest.approx(exponent, abs=0.15)  # radial means of one field scatter by about 0.1


@pytest.mark.parametrize("turn", range(8))
def test_flips_and_right_turns_change_nothing(turn: int) -> None:
    pixels = blurred(tissue(96, 96, 5), 1.0)
    turned = np.rot90(pixels if turn < 4 else pixels[::-1], turn)
    for name, value in texture(pixels).items():
        assert texture(np.ascontiguousarray(turned))[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_cooccurrence_of_a_case_worked_by_hand() -> None:
    # rows of two greys by turns, one step apart: pairs along rows are equal, down and aslant they differ by one
    step = 256 // GREY_LEVELS
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[::2] = step + step // 2
    pixels[1::2] = step // 2
    found = texture(pixels)
    along, down, aslant = 128 * 127, 127 * 128, 2 * 127 * 127
    differ = (down + aslant) / (along + down + aslant)
    assert found["cooccurrence_contrast"] == pytest.approx(differ)
    assert found["cooccurrence_homogeneity"] == pytest.approx(1 - differ / 2)
    same = (1 - differ) / 2
    entropy = -2 * same * np.log2(same) - differ * np.log2(differ / 2)
    assert found["cooccurrence_entropy"] == pytest.approx(entropy, rel=1e-3)


def test_glass_and_a_tile_of_one_grey() -> None:
    white = texture(np.full((64, 64, 3), 255, np.uint8))
    assert white["glass"] == 1 and np.isnan(white["sharpness"]) and np.isnan(white["spectrum_slope"])
    assert white["local_contrast"] == white["cooccurrence_contrast"] == white["cooccurrence_entropy"] == 0
    half = np.full((64, 64, 3), 255, np.uint8)
    half[:32] = (180, 90, 150)
    assert texture(half)["glass"] == 0.5


def test_tiny_tiles_have_no_slope_and_other_pixels_are_refused() -> None:
    assert np.isnan(texture(tissue(8, 8))["spectrum_slope"])
    with pytest.raises(PathUpError, match="8-bit RGB"):
        texture(np.zeros((8, 8), np.uint8))
