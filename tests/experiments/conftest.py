from __future__ import annotations

from pathlib import Path

import pytest

from pathup.recipes import Recipe
from pathup.tiles.making import make_tiles
from tests.tiles.made import save, tissue


@pytest.fixture(scope="session")
def some_tiles(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    """Tiles of two classes: 9 overviews and 40 patches of each class in each split."""
    root = tmp_path_factory.mktemp("experiments")
    for first, split in ((0, "train"), (10, "val"), (20, "test")):
        for number, label in enumerate(recipe.labels):
            pixels = tissue(384, 384, first + number)
            save(root / "regions" / split / f"{number}_{label}" / f"{split}_{label}_1.png", pixels)
    make_tiles(root / "regions", root / "tiles", recipe)
    return root / "tiles"
