"""The cache of codes: what it holds is what the autoencoder makes, however often filling it is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pathup.baselines import code_cache
from pathup.baselines.code_cache import CodeCache
from pathup.baselines.codebook import build_autoencoder, codes_of
from pathup.errors import PathUpError
from pathup.recipes import Recipe
from pathup.tiles.dataset import TileFolder
from pathup.training.crops import oriented

CPU = torch.device("cpu")


class StoppedError(Exception):
    """What a test raises in the middle of filling."""


def cache_of(folder: Path, tiles: Path, recipe: Recipe, **changes: Any) -> CodeCache:
    data = TileFolder.load(tiles, "train", recipe)
    options = {"autoencoder_sha256": "one", "seed": 0, **changes}
    return CodeCache(folder, data, build_autoencoder(recipe).eval(), **options)


def fill(cache: CodeCache, positions: int) -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    cache.fill(positions, CPU, lambda done, total: told.append((done, total)))
    return told


def test_cached_codes_are_those_that_the_autoencoder_makes(tmp_path, tiny_tiles, recipe):
    cache = cache_of(tmp_path / "codes", tiny_tiles, recipe)
    fill(cache, 40)
    groups, turns = [], set()
    for position in range(40):
        tile, turn = cache.place(position)
        groups.append((cache.tiles.records[tile].label, cache.tiles.records[tile].level))
        turns.add(turn)
        pixels = oriented(cache.tiles.pixels(tile), turn)[None].float() / 127.5 - 1
        assert torch.equal(cache[position], codes_of(cache.autoencoder, pixels)[0])
    assert {groups.count(group) for group in set(groups)} == {10}  # 4 classes and levels, each equally often
    assert turns == set(range(8))  # 40 draws of 8 leave one out with a chance of 8 (7/8)^40 = 4 %; this seed does not


def test_a_cache_goes_on_where_it_stopped_and_grows_without_changing(tmp_path, tiny_tiles, recipe, monkeypatch):
    monkeypatch.setattr(code_cache, "CHUNK", 16)
    whole = cache_of(tmp_path / "whole", tiny_tiles, recipe)
    assert fill(whole, 100)[-1] == (len(whole._rows), len(whole._rows))
    fill(cache_of(tmp_path / "part", tiny_tiles, recipe), 50)  # not a multiple of a chunk
    stopping, encoded = cache_of(tmp_path / "part", tiny_tiles, recipe), []

    def counting(self: CodeCache, places: Any, device: Any) -> Any:
        encoded.append(len(places))
        if len(encoded) == 2:
            raise StoppedError
        return CodeCache._encoded(self, places, device)

    stopping._encoded = counting.__get__(stopping)
    with pytest.raises(StoppedError):
        fill(stopping, 100)
    (tmp_path / "part/000000.npy").write_bytes(b"damaged")
    again = cache_of(tmp_path / "part", tiny_tiles, recipe)
    fill(again, 100)
    assert all(torch.equal(again[position], whole[position]) for position in range(100))
    assert again.seconds > 0
    with pytest.raises(PathUpError, match="made by another autoencoder"):
        fill(cache_of(tmp_path / "part", tiny_tiles, recipe, autoencoder_sha256="other"), 10)
    with pytest.raises(PathUpError, match="in another order"):
        fill(cache_of(tmp_path / "part", tiny_tiles, recipe, seed=1), 10)
