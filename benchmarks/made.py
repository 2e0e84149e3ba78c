"""Made tissue for benchmarks that are given none: blurred noise in two stains, as hard to decode as the real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from pathup.recipes import Recipe
from pathup.tiles.making import make_tiles as cut

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])  # haematoxylin, eosin: optical density a channel


def stained(side: int, draw: np.random.Generator) -> Image.Image:
    """A square of `side` pixels."""
    amounts = gaussian_filter(draw.normal(size=(2, side, side)), (0, 3, 3)) * 4 + 0.6
    density = np.einsum("shw,sc->hwc", amounts.clip(0, 2), STAINS)
    return Image.fromarray((255 * np.exp(-density)).astype(np.uint8))


def make_tiles(folder: Path, count: int, side: int, seed: int) -> None:
    """A folder of tiles."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    for number in range(count):
        stained(side, draw).save(folder / f"{number:05d}.png", compress_level=1)


def make_regions(folder: Path, recipe: Recipe, *, side: int = 1024, train: int = 2) -> None:
    """Region images of every class, as BRACS lays them out: `train` in the training split, one in each other."""
    draw = np.random.default_rng(0)
    for split, count in (("train", train), ("val", 1), ("test", 1)):
        for number, label in enumerate(recipe.labels):
            place = folder / split / f"{number}_{label}"
            place.mkdir(parents=True)
            for region in range(count):
                stained(side, draw).save(place / f"made_{split}_{label}_{region}.jpg", quality=90)


def made_tiles(folder: Path, recipe: Recipe) -> Path:
    """Tiles that ``pathup tiles`` cuts from made regions."""
    make_regions(folder / "regions", recipe)
    cut(folder / "regions", folder / "tiles", recipe)
    return folder / "tiles"
