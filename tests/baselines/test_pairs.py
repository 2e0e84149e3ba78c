"""Pairs of overview and patch: where a crop lies is known, and it shows the same tissue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pathup.baselines.pairs import Pairs, find_pairs, level0_mpp, likeness, paired_levels
from pathup.errors import PathUpError
from pathup.recipes import Recipe
from pathup.tiles.dataset import TileFolder, TileRecord
from pathup.tiles.making import make_tiles
from tests.tiles.made import save, tiny, tissue

LEVELS = [
    {"name": "overview", "word": "overall", "field_px": 128, "overlap_px": 0},
    {"name": "patch", "word": "patch", "field_px": 32, "overlap_px": 0},
]


@pytest.fixture(scope="module")
def tiles(tiny_tiles, recipe) -> TileFolder:
    return TileFolder.load(tiny_tiles, "train", recipe)


def textured(side: int) -> np.ndarray:
    """Made tissue with blobs of some 10 px: what shrinking by 4 leaves visible."""
    coarse = Image.fromarray(tissue(-(-side // 10), -(-side // 10), 3))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def cut(folder: Path, recipe: Recipe, side: int) -> TileFolder:
    """Tiles of one made region of `side` pixels."""
    save(folder / "regions/train/0_A/train_A_1.png", textured(side))
    make_tiles(folder / "regions", folder / "tiles", recipe)
    return TileFolder.load(folder / "tiles", "train", recipe)


def moved(tiles: TileFolder, change, level: str = "patch") -> TileFolder:
    """The folder with other metadata: `change` of each record of a level."""
    records = [change(record) if record.level == level else record for record in tiles.records]
    return TileFolder(tiles.folder, tiles.split, tiles.recipe, records)


def correlations(pairs: Pairs) -> list[float]:
    """Of every patch and each of its crops."""
    found = []
    for patch in range(len(pairs)):
        for choice in range(len(pairs.places(patch))):
            together, apart = likeness(pairs.patches.pixels(patch), pairs.low(patch, choice))
            found.append(together / apart)
    return found


def test_patches_within_an_overview_are_paired_and_their_places_are_known(tiles):
    pairs = find_pairs(tiles)
    # a region of 160 px: 25 patches, of which the overview at (0, 0), 128 px wide, shows 4 x 4; two regions
    assert (len(pairs), pairs.left_out, pairs.low_px) == (32, 18, 8)
    for index, record in enumerate(pairs.patches.records):
        (place,) = pairs.places(index)
        overview = tiles.records[place.overview]
        assert (overview.level, overview.region) == ("overview", record.region)
        assert (place.left, place.top) == (record.x // 4, record.y // 4)
        assert pairs.low(index).shape == (3, 8, 8)


def test_a_crop_is_the_patch_shrunk(tiles):
    pairs = find_pairs(tiles)
    reference = [pairs.patches.pixels(index).double().reshape(3, 8, 4, 8, 4).mean((2, 4)) for index in range(32)]
    for index, shrunk in enumerate(reference):
        errors = [float((shrunk - pairs.low(other).double()).abs().mean()) for other in range(32)]
        assert int(np.argmin(errors)) == index  # no other crop is as near


@pytest.mark.parametrize(("mpp", "side"), [(0.25, 320), (0.4, 200), (0.35, 240), (0.513, 160)])
def test_a_file_of_another_scale_is_paired_as_well(tmp_path, mpp, side):
    tiles = cut(tmp_path, tiny(assume_mpp=mpp, levels=LEVELS), side)
    (found,) = level0_mpp(tiles).values()
    assert found == pytest.approx(mpp, rel=1 / 128)  # a pixel of the grid's extent, for rounding
    pairs = find_pairs(tiles)
    assert len(pairs) == 16  # 4 x 4 within the one overview, whatever the scale
    tops = {(place.top, place.left) for index in range(16) for place in pairs.places(index)}
    assert tops == {(8 * row, 8 * column) for row in range(4) for column in range(4)}
    assert min(correlations(pairs)) > 0.9  # other places have about 0


def test_of_several_overviews_each_shows_the_patch(tmp_path):
    levels = [{**LEVELS[0], "overlap_px": 64}, LEVELS[1]]
    tiles = cut(tmp_path, tiny(levels=levels), 192)  # overviews at 0 and 64, both ways
    pairs = find_pairs(tiles)
    assert (len(pairs), pairs.left_out) == (36, 0)
    counts = {(r.x, r.y): len(pairs.places(i)) for i, r in enumerate(pairs.patches.records)}
    assert counts[0, 0] == 1  # a corner
    assert counts[64, 0] == 2  # shown by both along the top
    assert counts[64, 64] == 4
    assert min(correlations(pairs)) > 0.95
    for index, record in enumerate(pairs.patches.records):
        for place in pairs.places(index):
            overview = tiles.records[place.overview]
            assert (overview.x + 4 * place.left, overview.y + 4 * place.top) == (record.x, record.y)


def test_pairs_off_whole_pixels_are_left_out_and_counted(tiles):
    region = tiles.records[-1].region

    def by(pixels: int):
        def change(record: TileRecord) -> TileRecord:
            return replace(record, x=record.x + pixels) if record.region == region else record

        return change

    assert len(find_pairs(moved(tiles, by(1)))) == 32  # a quarter of an overview's pixel
    half = find_pairs(moved(tiles, by(2)))
    assert (len(half), half.left_out) == (16, 34)
    assert {record.region for record in half.patches.records} != {region}


def test_tiles_that_cannot_be_paired_are_one_sentence(tiles, tmp_path):
    with pytest.raises(PathUpError, match=r"holds 50 tiles of level 'patch', but none that lies whole"):
        find_pairs(moved(tiles, lambda record: replace(record, x=record.x + 2)))
    with pytest.raises(PathUpError, match=r"have a correlation of -?0\.\d\d, but one near 1 was needed"):
        find_pairs(moved(tiles, lambda record: replace(record, x=record.y, y=record.x)))
    with pytest.raises(PathUpError, match="but none that lies whole"):
        find_pairs(tiles.only("patch"))


def test_levels_that_are_not_4_apart_are_refused():
    with pytest.raises(PathUpError, match=r"level 'overview' are 2 times coarser than those of level 'patch'"):
        paired_levels(tiny(levels=[{**LEVELS[0], "field_px": 64}, LEVELS[1]]))
    with pytest.raises(PathUpError, match="1 times coarser"):
        paired_levels(tiny(levels=LEVELS[:1]))
    fine, coarse = paired_levels(tiny(levels=[*LEVELS, {**LEVELS[0], "name": "mid", "word": "mid", "field_px": 64}]))
    assert (fine.name, coarse.name) == ("patch", "overview")


def test_likeness_is_the_correlation_of_the_shrunk_patch():
    generator = torch.Generator().manual_seed(1)
    patch = torch.randint(0, 256, (1, 8, 8), generator=generator, dtype=torch.uint8)
    low = torch.randint(0, 256, (1, 2, 2), generator=generator, dtype=torch.uint8)
    together, apart = likeness(patch, low)
    shrunk = [float(patch[0, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].double().mean()) for y in (0, 1) for x in (0, 1)]
    assert together / apart == pytest.approx(np.corrcoef(shrunk, low.double().flatten().numpy())[0, 1])
