from __future__ import annotations

import numpy as np
import pytest

from pathup.errors import PathUpError
from pathup.evaluation.stains import RUIFROK_JOHNSTON, estimate_stains, optical_density, stain_channels, tissue_mask

UNIT = RUIFROK_JOHNSTON / np.linalg.norm(RUIFROK_JOHNSTON, axis=1, keepdims=True)


def mixed(vectors: np.ndarray, side: int = 64, seed: int = 0, noise: float = 2) -> np.ndarray:
    """Pixels of random amounts of stains, a tenth of them of one stain alone, uint8."""
    draws = np.random.default_rng(seed)
    amounts = draws.uniform(0.2, 1.2, (side, side, len(vectors)))
    alone = draws.random((side, side)) < 0.1
    amounts[alone] *= np.eye(len(vectors))[draws.integers(0, len(vectors), alone.sum())]
    light = 256 * np.exp(-amounts @ vectors) - 1
    return np.clip(light + draws.normal(0, noise, light.shape), 0, 255).round().astype(np.uint8)


def angle(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))))


def test_optical_density_of_known_light() -> None:
    density = optical_density(np.array([[[255, 127, 0]]], np.uint8))
    np.testing.assert_allclose(density[0, 0], [0, np.log(2), np.log(256)], rtol=1e-6)
    assert density.dtype == np.float32


def test_pure_stains_are_separated() -> None:
    for number in (0, 1, 2):
        pixels = np.clip(256 * np.exp(-0.8 * UNIT[number]) - 1, 0, 255).round().astype(np.uint8)
        channels = stain_channels(np.tile(pixels, (4, 4, 1)))
        assert channels.dtype == np.float32 and channels.shape == (4, 4, 3)
        np.testing.assert_allclose(channels[0, 0], 0.8 * np.eye(3)[number], atol=0.02)  # of rounding to 8 bits


@pytest.mark.parametrize(
    ("haematoxylin", "eosin"),
    [
        ([0.65, 0.70, 0.29], [0.07, 0.99, 0.11]),  # Ruifrok and Johnston
        ([0.55, 0.76, 0.35], [0.20, 0.88, 0.43]),  # a redder slide, nearer vectors
    ],
)
def test_a_sets_own_stains_are_recovered(haematoxylin: list[float], eosin: list[float]) -> None:
    true = np.array([haematoxylin, eosin])
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    found = estimate_stains(mixed(true))
    assert found.vectors is not None and not found.reason
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1)
    assert max(angle(found.vectors[i], true[i]) for i in (0, 1)) < 3  # degrees; percentiles and noise cost 1 to 2
    assert found.angle == pytest.approx(angle(true[0], true[1]), abs=5)


def test_the_estimate_does_not_depend_on_the_place_of_pixels() -> None:
    pixels = mixed(UNIT[:2])
    one, other = estimate_stains(pixels), estimate_stains(pixels[::-1].transpose(1, 0, 2))
    np.testing.assert_allclose(one.vectors, other.vectors, atol=1e-6)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((64, 64, 3), 255, np.uint8), "stained pixels"),
        (np.full((64, 64, 3), 240, np.uint8), "stained pixels"),
        (np.full((64, 64, 3), (200, 90, 160), np.uint8), "one stain"),
        (np.repeat(np.random.default_rng(0).integers(20, 150, (64, 64, 1)), 3, 2).astype(np.uint8), "one stain"),
        (np.zeros((4, 4, 3), np.uint8), "stained pixels"),
    ],
)
def test_no_estimate_has_a_reason(pixels: np.ndarray, reason: str) -> None:
    found = estimate_stains(pixels)
    assert found.vectors is None and np.isnan(found.angle) and reason in found.reason


def test_glass_is_no_tissue() -> None:
    pixels = np.full((4, 8, 3), 245, np.uint8)
    pixels[:, 4:] = (220, 150, 190)
    assert (tissue_mask(pixels) == (np.arange(8) >= 4)).all()


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_other_pixels_are_refused(pixels: np.ndarray) -> None:
    for function in (stain_channels, estimate_stains):
        with pytest.raises(PathUpError, match="8-bit RGB"):
            function(pixels)
