"""Regions and their fields: splits, hashes, squares, patches, and what is refused."""

from __future__ import annotations

import shutil
from collections import Counter

import numpy as np
import pytest

from pathup.downstream import fields as module
from pathup.downstream.fields import labelled_regions, read_field, read_patches, region_fields
from pathup.errors import PathUpError
from pathup.recipes import recipe_with
from pathup.slides.images import read_image
from tests.downstream import made
from tests.tiles.made import save


def sized(recipe, **values):
    return recipe_with(recipe, {f"downstream.{name}": value for name, value in values.items()}, source="test")


def test_regions_have_the_splits_of_their_folders_and_are_looked_at_once(source, recipe, tmp_path, monkeypatch):
    found = labelled_regions(source, recipe, tmp_path / "cache/regions.json")
    assert Counter((own.split, own.region.label) for own in found) == {
        (split, label): count for split, count in made.COUNTS.items() for label in "AB"
    }
    assert all(own.source.area == (0, 0, 128, 128) and own.mpp == (0.5, 0.5) for own in found)
    monkeypatch.setattr(module, "open_slide", lambda *a: pytest.fail("it is known already"))
    assert labelled_regions(source, recipe, tmp_path / "cache/regions.json") == found


def test_a_class_that_is_absent_from_a_split_is_named(source, recipe, tmp_path):
    for split, label in (("train", "B"), ("val", "A")):
        copy = tmp_path / split
        shutil.copytree(source, copy)
        shutil.rmtree(next((copy / split).glob(f"*_{label}")))
        with pytest.raises(PathUpError, match=rf"split '{split}' .* holds no regions of class {label}"):
            labelled_regions(copy, recipe)


def test_a_test_region_planted_in_training_under_a_new_name_is_refused_with_the_pair_named(source, recipe, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    made.replant(copy / "test/0_A/test_A_1.png", copy / "train/0_A/harmless.jpg", side=100)
    with pytest.raises(PathUpError, match=r"'harmless' \(split 'train'\) and region 'test_A_1' \(split 'test'\)"):
        labelled_regions(copy, recipe)


def test_fields_are_squares_side_by_side_or_the_region_as_it_is(source, recipe):
    regions = labelled_regions(source, recipe)
    squares = region_fields(regions, sized(recipe, field_px=64))
    assert len(squares) == 4 * len(regions)
    own = [field for field in squares if field.region == "train_A_0"]
    assert [field.box for field in own] == [(0, 0, 64, 64), (64, 0, 64, 64), (0, 64, 64, 64), (64, 64, 64, 64)]
    assert len({field.name for field in squares}) == len(squares)
    assert len({field.identity() for field in squares}) == len(squares)
    pixels = read_image(own[2].file)
    assert np.array_equal(read_field(own[2], 64), pixels[64:, :64])
    for side in (0, 1000):  # none fits into it
        whole = region_fields(regions, sized(recipe, field_px=side))
        assert [field.name for field in whole] == [own.region.name for own in regions]
        assert whole[0].box == (0, 0, 128, 128)


def test_background_is_left_out_but_no_region_is_lost(source, recipe, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    half = made.region("A", 777)
    half[:, 64:] = 245
    glass = np.full((128, 128, 3), 245, np.uint8)
    glass[:20, :20] = (200, 80, 150)
    save(copy / "train/0_A/half.png", half)
    save(copy / "train/0_A/glass.png", glass)
    fields = region_fields(labelled_regions(copy, recipe), sized(recipe, field_px=64, min_tissue=0.5))
    assert [field.box[:2] for field in fields if field.region == "half"] == [(0, 0), (0, 64)]
    assert [field.box[:2] for field in fields if field.region == "glass"] == [(0, 0)]


def test_squares_are_looked_at_once(source, recipe, tmp_path, monkeypatch):
    regions = labelled_regions(source, recipe)
    found = region_fields(regions, sized(recipe, field_px=64), tmp_path / "fields.json")
    monkeypatch.setattr(module, "open_slide", lambda *a: pytest.fail("it is known already"))
    assert region_fields(regions, sized(recipe, field_px=64), tmp_path / "fields.json") == found


def test_patches_are_the_fields_pixels_and_background_is_none_of_them(source, recipe, tmp_path):
    field = region_fields(labelled_regions(source, recipe), sized(recipe, field_px=0))[0]
    patches, boxes = read_patches(field, 32, 0.5, 0.1)
    pixels = read_image(field.file)
    assert patches.shape == (16, 32, 32, 3)
    for patch, (x, y, wide, high) in zip(patches, boxes, strict=True):
        assert np.array_equal(patch, pixels[y : y + high, x : x + wide])
    coarse, wider = read_patches(field, 32, 1.0, 0.1)  # half as fine: 64 px of the file
    assert coarse.shape == (4, 32, 32, 3)
    assert wider[0] == (0, 0, 64, 64)
    with pytest.raises(PathUpError, match="smaller than a patch of 32 px at 4 micrometres"):
        read_patches(field, 32, 4.0, 0.1)
    with pytest.raises(PathUpError, match=r"none of the patches of .* holds tissue"):
        read_patches(field, 32, 0.5, 1.01)
