"""Tissue that benchmarks make themselves: every class and split of a recipe, stained enough to be cut into tiles."""

from __future__ import annotations

from pathlib import Path

from benchmarks.made import make_regions
from pathup.recipes import Recipe
from pathup.tiles.making import make_tiles


def test_made_regions_are_cut_into_tiles_of_every_class_level_and_split(tmp_path: Path, recipe: Recipe) -> None:
    make_regions(tmp_path / "regions", recipe, side=200, train=2)
    tiles = make_tiles(tmp_path / "regions", tmp_path / "tiles", recipe)["tiles"]
    assert set(tiles) == {"train", "val", "test"}
    assert all(tiles[split][level][label] for split in tiles for level in recipe.level_names for label in recipe.labels)
    assert not any((tmp_path / "tiles").rglob("*.partial.*"))
