"""The shipped encoder's figures move the way damage goes: on real tissue where it is at hand, else on made tissue."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from pathup.evaluation.encoders import load_features
from pathup.evaluation.fidelity import fidelity
from tests.tiles.made import SHARED

REGIONS = SHARED / "data" / "regions" / "test"
needs_regions = pytest.mark.skipif(not REGIONS.is_dir(), reason=f"real regions are not at hand ({REGIONS})")
SIDE = 128


@pytest.fixture(scope="module")
def tiles() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two halves of the same regions' tiles: 15 of each of the 32 test regions a half, drawn by a seed."""
    halves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for number, path in enumerate(sorted(REGIONS.glob("*/*.jpg"))):
        pixels = np.asarray(Image.open(path))
        places = np.random.default_rng(number).permutation(16 * 16)[:30]
        for place, at in enumerate(places):
            top, left = SIDE * (at // 16), SIDE * (at % 16)
            halves[place % 2].append(pixels[top : top + SIDE, left : left + SIDE])
    return halves


@pytest.fixture(scope="module")
def measured(tiles: tuple[list[np.ndarray], list[np.ndarray]]) -> Callable[[Callable[..., np.ndarray]], dict[str, Any]]:
    encoder = load_features("atlas")

    def features(pixels: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(
            [
                encoder.features(torch.stack([encoder.prepared(tile) for tile in pixels[first : first + 64]]))
                for first in range(0, len(pixels), 64)
            ]
        )

    real = features(tiles[0])

    def against(damage: Callable[..., np.ndarray]) -> dict[str, Any]:
        other = [damage(tile, np.random.default_rng(i)) for i, tile in enumerate(tiles[1])]
        return fidelity(real, features(other), replicates=0, subset_size=100, subsets=2)

    return against


def blur(amount: float) -> Callable[..., np.ndarray]:
    return lambda tile, draw: np.asarray(Image.fromarray(tile).filter(ImageFilter.GaussianBlur(amount)))


def noise(amount: float) -> Callable[..., np.ndarray]:
    return lambda tile, draw: np.clip(tile + draw.normal(0, amount, tile.shape), 0, 255).round().astype(np.uint8)


def jpeg(quality: float) -> Callable[..., np.ndarray]:
    def damage(tile: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        stream = io.BytesIO()
        Image.fromarray(tile).save(stream, "JPEG", quality=int(quality))
        return np.asarray(Image.open(stream))

    return damage


def colour(amount: float) -> Callable[..., np.ndarray]:
    shift = np.array([amount, -amount / 2, amount / 3])
    return lambda tile, draw: np.clip(tile + shift, 0, 255).round().astype(np.uint8)


def shuffle(parts: float) -> Callable[..., np.ndarray]:
    n, side = int(parts), SIDE // int(parts)

    def damage(tile: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        blocks = tile.reshape(n, side, n, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)[draw.permutation(n * n)]
        return blocks.reshape(n, n, side, side, 3).swapaxes(1, 2).reshape(tile.shape)

    return damage


@needs_regions
@pytest.mark.parametrize(
    ("damage", "amounts"),
    [
        (blur, (0.5, 1, 2, 4)),
        (noise, (8, 16, 32, 64)),
        (jpeg, (90, 70, 50, 30, 10)),
        (colour, (4, 8, 16, 32)),
        (shuffle, (4, 8, 16)),
    ],
)
def test_more_damage_is_less_fidelity_and_the_floor_is_best(
    measured: Callable[..., dict[str, Any]], damage: Callable[..., Any], amounts: tuple[float, ...]
) -> None:
    rows = [measured(lambda tile, draw: tile), *(measured(damage(amount)) for amount in amounts)]
    for metric, sign in (("fid", 1), ("kid", 1)):
        values = [sign * row[metric]["value"] for row in rows]
        assert values == sorted(values), f"{metric}: {values}"
    for metric in ("precision", "recall", "density", "coverage"):
        assert rows[0][metric]["value"] > rows[-1][metric]["value"]
    assert rows[-1]["coverage"]["value"] < 0.5 * rows[0]["coverage"]["value"]  # the worst is far from real


@needs_regions
def test_mode_collapse_raises_precision_and_lowers_recall(
    tiles: tuple[list[np.ndarray], list[np.ndarray]], measured: Callable[..., dict[str, Any]]
) -> None:
    worn = measured(noise(16))
    # a generator that keeps to a tenth of the modes, and those the easy ones: copies of real tiles with faint noise
    chosen = [tiles[1][i] for i in range(0, len(tiles[1]), 10)]
    numbers = iter(range(len(tiles[1])))
    collapsed = measured(lambda tile, draw: noise(1)(chosen[next(numbers) % len(chosen)], draw))
    assert collapsed["precision"]["value"] > worn["precision"]["value"]
    assert collapsed["recall"]["value"] < 0.5 * worn["recall"]["value"]
