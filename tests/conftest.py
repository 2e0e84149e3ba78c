"""What several stages' tests share: made tiles and a made autoencoder, of the recipe `tiny`."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test never asks a hub

import pytest
import torch

from pathup.model.components import build_autoencoder
from pathup.recipes import Recipe, load_recipe
from pathup.tiles.making import make_tiles
from tests.tiles.made import save, tissue

torch.set_num_threads(1)  # tests run in parallel processes


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return load_recipe("tiny")


@pytest.fixture(scope="session")
def tiny_tiles(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    """Tiles of two classes, cut from made regions of 160 px: 1 overview and 25 patches a region."""
    root = tmp_path_factory.mktemp("tiny")
    for first, split in ((0, "train"), (10, "val"), (20, "test")):
        for number, label in enumerate(recipe.labels):
            pixels = tissue(160, 160, first + number)  # no two alike: the same tissue in two splits is refused
            save(root / "regions" / split / f"{number}_{label}" / f"{split}_{label}_1.png", pixels)
    make_tiles(root / "regions", root / "tiles", recipe)
    return root / "tiles"


@pytest.fixture(scope="session")
def tiny_autoencoder(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    """An autoencoder with random weights, as a diffusers folder."""
    folder = tmp_path_factory.mktemp("vae") / "autoencoder"
    build_autoencoder(recipe.autoencoder).save_pretrained(folder)
    return folder
