from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathup.errors import PathUpError
from pathup.evaluation.crops import MIN_TISSUE, are_tiles, cut_crops, needs_crops
from pathup.evaluation.tile_sets import load_tile_set
from pathup.tiles.cutting import tissue_fraction
from tests.tiles.made import SHARED, needs_slides, save, save_slide, tissue


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_crops_are_the_images_own_pixels_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    pixels = [tissue(200, 150, seed) for seed in range(2)]
    for number, own in enumerate(pixels):
        save(tmp_path / "large" / f"{number}.png", own)
    folders = [
        cut_crops(tmp_path / "large", tmp_path / name, side_px=32, count=9, seed=seed)
        for name, seed in (("one", 0), ("again", 0), ("other", 1))
    ]
    found = rows(folders[0])
    assert len(found) == 9 and found == rows(folders[1]) and found != rows(folders[2])
    assert sorted(row["slide"] for row in found) == ["0.png"] * 5 + ["1.png"] * 4
    for row in found:
        x, y, own = row["x"], row["y"], pixels[int(str(row["slide"])[0])]
        crop = np.asarray(Image.open(folders[0] / row["file_name"]))
        assert np.array_equal(crop, own[y : y + 32, x : x + 32])
    tiles = load_tile_set(folders[0], "real")
    assert len(tiles) == 9 and tiles.size_px == 32 and set(tiles.regions) == {"0.png", "1.png"}


def test_glass_is_passed_over_and_an_image_of_glass_alone_is_one_sentence(tmp_path: Path) -> None:
    pixels = np.full((256, 256, 3), 245, np.uint8)
    save(tmp_path / "glass.png", pixels)
    with pytest.raises(PathUpError, match=r"no tissue was found in .*glass\.png \(1 images"):
        cut_crops(tmp_path / "glass.png", tmp_path / "none", side_px=32, count=3, seed=0)
    pixels[:128] = tissue(256, 128)
    save(tmp_path / "half.png", pixels)
    folder = cut_crops(tmp_path / "half.png", tmp_path / "crops", side_px=32, count=20, seed=0)
    crops = [np.asarray(Image.open(folder / str(row["file_name"]))) for row in rows(folder)]
    assert len(crops) == 20 and min(map(tissue_fraction, crops)) >= MIN_TISSUE


def test_slides_are_cropped_at_the_scale_asked_for(tmp_path: Path) -> None:
    slide = save_slide(tmp_path / "slide.tif", tissue(512, 512), 0.25, levels=2)
    assert needs_crops(slide) and needs_crops(tmp_path)
    assert not needs_crops(save(tmp_path / "x" / "a.png", tissue(8, 8)))
    found = rows(cut_crops(slide, tmp_path / "crops", side_px=64, count=4, seed=0, mpp=0.5))
    assert len(found) == 4 and {row["mpp"] for row in found} == {0.5}
    assert max(int(str(row["x"])) for row in found) <= 512 - 128  # 64 px at 0.5 are 128 at 0.25
    own = rows(cut_crops(slide, tmp_path / "own", side_px=64, count=4, seed=0))
    assert [row["mpp"] for row in own] == pytest.approx([0.25] * 4)
    unscaled = save_slide(tmp_path / "u" / "slide.tif", tissue(512, 512), None)
    with pytest.raises(PathUpError, match="records no micrometres per pixel"):
        cut_crops(unscaled, tmp_path / "u2", side_px=64, count=4, seed=0, mpp=0.5)


def test_what_cannot_be_cropped_is_one_sentence(tmp_path: Path) -> None:
    save(tmp_path / "small" / "a.png", tissue(32, 32))
    with pytest.raises(PathUpError, match="32 x 32 px, smaller than a crop of 64 x 64 px"):
        cut_crops(tmp_path / "small", tmp_path / "crops", side_px=64, count=4, seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PathUpError, match="holds no images"):
        cut_crops(tmp_path / "empty", tmp_path / "crops2", side_px=64, count=4, seed=0)
    with pytest.raises(PathUpError, match="does not exist"):
        cut_crops(tmp_path / "gone", tmp_path / "crops3", side_px=64, count=4, seed=0)
    assert are_tiles(tmp_path / "small", 32) and not are_tiles(tmp_path / "small", 16)


@needs_slides
def test_a_real_slide_gives_crops_of_tissue(tmp_path: Path) -> None:
    slide = SHARED / "data" / "slides" / "CMU-1-Small-Region.svs"
    folder = cut_crops(slide, tmp_path / "crops", side_px=128, count=6, seed=0, mpp=0.5)
    tiles = load_tile_set(folder, "real")
    assert len(tiles) == 6 and tiles.mpp_of(None) == 0.5
