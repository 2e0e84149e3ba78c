from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathup.errors import PathUpError
from pathup.evaluation.encoders import load_features
from pathup.evaluation.tile_sets import load_tile_set
from pathup.experiments.yardstick import Yardstick, balanced


@pytest.fixture(scope="module")
def yardstick(some_tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Yardstick:
    return Yardstick(some_tiles, [load_features("atlas")], 12, tmp_path_factory.mktemp("features"))


def test_each_level_is_balanced_by_its_own_rarest_class(some_tiles):
    tiles = load_tile_set(some_tiles, "train", split="train")
    uneven = tiles.at(np.delete(np.arange(len(tiles)), tiles.cells()["overview", "A"][:3]))
    counts = {cell: len(own) for cell, own in balanced(uneven, 12, "test").cells().items()}
    assert counts == {("overview", "A"): 6, ("overview", "B"): 6, ("patch", "A"): 12, ("patch", "B"): 12}


def test_the_test_tiles_themselves_are_as_near_as_can_be_and_noise_is_not(yardstick, tmp_path):
    encoder, real = yardstick.encoders[0], yardstick.real("patch")
    same = yardstick.figures(real, encoder, "patch")
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    assert same["kid"] < 0  # unbiased: the pairs of a tile with itself are left out of one side alone
    assert same["fid"] == pytest.approx(0, abs=1e-6)
    draw = np.random.default_rng(0)
    files = []
    for place in range(len(real)):
        files.append(tmp_path / f"{place}.png")
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(files[-1])
    noise = yardstick.figures(replace(real, files=tuple(files)), encoder, "patch")
    assert noise["precision"] == noise["recall"] == 0
    assert noise["kid"] > 100  # real training tiles, of other tissue, are at some 10
    assert noise["grey"] < same["grey"]
    floor = yardstick.figures(yardstick.floor(), encoder, "patch")
    assert same["kid"] < floor["kid"] < noise["kid"]


def test_a_set_without_the_level_is_refused(yardstick):
    with pytest.raises(PathUpError, match="no tiles of level 'overview'"):
        yardstick.figures(yardstick.real("patch"), yardstick.encoders[0], "overview")
