"""No tissue that is held back comes into training: each way in is refused, with the pair named."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pathup.downstream.fields import labelled_regions, region_fields
from pathup.downstream.leaks import check_judged, check_start, check_synthetic
from pathup.downstream.synthetic import synthetic_fields
from pathup.errors import PathUpError
from pathup.recipes import recipe_with
from pathup.tiles.provenance import SOURCES_FILE, read_sources, write_sources
from tests.downstream import made
from tests.tiles.made import nuclei, save


def held(source, recipe):
    return [own for own in labelled_regions(source, recipe) if own.split != "train"]


def test_what_a_generator_of_the_training_split_drew_is_well(drawn, source, recipe, tmp_path):
    fields = synthetic_fields(drawn, recipe.labels)
    check_synthetic(held(source, recipe), drawn, fields, tmp_path / "checked.json")
    assert len((tmp_path / "checked.json").read_text()) > 100


def test_a_generator_that_has_seen_a_held_back_region_is_refused(drawn, source, recipe, tmp_path):
    """Under a new name, and though its file was saved anew."""
    copy, known = tmp_path / "copy", held(source, recipe)
    shutil.copytree(drawn, copy)
    planted = next(own for own in known if own.region.name == "test_B_0").source
    write_sources(copy, [*(read_sources(copy) or []), replace(planted, region="harmless", sha256="0" * 64)])
    with pytest.raises(PathUpError, match=r"trained on region 'harmless', .* region 'test_B_0' of split 'test'"):
        check_synthetic(known, copy, synthetic_fields(copy, recipe.labels))


@pytest.mark.parametrize("side", [None, 96])
def test_a_held_back_region_among_the_images_is_refused(drawn, source, recipe, tmp_path, side):
    copy = tmp_path / "copy"
    shutil.copytree(drawn, copy)
    made.replant(source / "val/1_B/val_B_1.png", copy / "B_0001.png", side)
    with pytest.raises(PathUpError, match=r"'copy/B_0001.png' is region 'val_B_1' of split 'val', or a part"):
        check_synthetic(held(source, recipe), copy, synthetic_fields(copy, recipe.labels))


@pytest.mark.parametrize("listed", [False, True])
def test_a_generator_that_does_not_say_what_it_has_seen_is_refused(drawn, source, recipe, tmp_path, listed):
    copy = tmp_path / "copy"
    shutil.copytree(drawn, copy)
    (copy / SOURCES_FILE).unlink()
    if listed:
        write_sources(copy, [])  # of none
    with pytest.raises(PathUpError, match="does not say which regions its generator was trained on"):
        check_synthetic(held(source, recipe), copy, synthetic_fields(copy, recipe.labels))


def test_what_was_found_well_once_is_looked_at_again_when_it_changes(drawn, source, recipe, tmp_path):
    copy, cache = tmp_path / "copy", tmp_path / "checked.json"
    shutil.copytree(drawn, copy)
    known = held(source, recipe)
    check_synthetic(known, copy, synthetic_fields(copy, recipe.labels), cache)
    made.replant(source / "test/0_A/test_A_0.png", copy / "A_0000.png")
    for _ in range(2):  # a refusal is not remembered as well
        with pytest.raises(PathUpError, match=r"'copy/A_0000.png' is region 'test_A_0' of split 'test'"):
            check_synthetic(known, copy, synthetic_fields(copy, recipe.labels), cache)


@pytest.fixture(scope="module")
def large(tmp_path_factory, recipe):
    """Regions that are large enough for landmarks, and their recipe."""
    root = tmp_path_factory.mktemp("large")
    for seed, (split, number, label) in enumerate(
        (split, number, label) for split in ("train", "val", "test") for number, label in enumerate("AB")
    ):
        save(root / split / f"{number}_{label}" / f"{split}_{label}.png", np.asarray(nuclei(seed, 768)))
    own = recipe_with(recipe, {"downstream.field_px": 0, "tiles.mpp": 2.0, "tiles.assume_mpp": 2.0}, source="test")
    return root, own


def cut_out(source, target):
    """A quarter of a region, turned and compressed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as image:
        image.crop((300, 200, 684, 584)).rotate(90).save(target, quality=70)


def planted(region, target):
    """Some region whose landmarks are those of a cut-out of another."""
    return replace(region, region=target, sha256="0" * 64, area=(0, 0, 9, 9), perceptual_hash="")


def test_a_cut_out_of_a_test_region_is_refused_wherever_it_is_planted(large, drawn, tmp_path):
    source, recipe = large
    copy = tmp_path / "regions"
    shutil.copytree(source, copy)
    cut_out(source / "test/0_A/test_A.png", copy / "train/1_B/harmless.jpg")
    with pytest.raises(PathUpError, match=r"'harmless' \(split 'train'\) and region 'test_A' \(split 'test'\)"):
        labelled_regions(copy, recipe)

    images = tmp_path / "images"
    shutil.copytree(drawn, images)
    cut_out(source / "val/1_B/val_B.png", images / "B_0001.png")
    known = held(source, recipe)
    fields = [replace(field, mpp=(2.0, 2.0)) for field in synthetic_fields(images, recipe.labels)]
    with pytest.raises(PathUpError, match=r"'images/B_0001.png' is region 'val_B' of split 'val', or a part"):
        check_synthetic(known, images, fields)

    seen = planted(next(own.source for own in known if own.region.name == "test_B"), "elsewhere")
    write_sources(images, [seen])
    with pytest.raises(PathUpError, match=r"generator .* region 'elsewhere', .* region 'test_B' of split 'test'"):
        check_synthetic(known, images, [])
    with pytest.raises(PathUpError, match=r"vit\.safetensors was trained on region 'elsewhere'.* 'test_B'"):
        check_start(known, images / "vit.safetensors")
    with pytest.raises(PathUpError, match=r"classifier .* was trained on region 'elsewhere'.* 'test_B'"):
        check_judged(known, images)


def test_weights_and_classifiers_that_do_not_say_what_they_saw_are_taken(source, recipe, tmp_path):
    """Of weights from elsewhere (ImageNet) nobody asks for a list; older classifiers have none."""
    check_start(held(source, recipe), tmp_path / "vit.safetensors")
    check_judged(held(source, recipe), tmp_path)
    assert region_fields(held(source, recipe), recipe)
