"""Synthetic images for training: how they are mixed in; bad folders."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathup.downstream.fields import labelled_regions, region_fields
from pathup.downstream.synthetic import allotted, mixed, synthetic_fields
from pathup.errors import PathUpError


def test_a_folder_of_generated_images_is_a_set_of_fields(drawn, source, recipe):
    fields = synthetic_fields(drawn, recipe.labels)
    assert [field.name for field in fields] == [f"synthetic/{label}_000{n}.png" for label in "AB" for n in (0, 1)]
    assert all(field.synthetic and field.box == (0, 0, 64, 64) and field.mpp == (0.5, 0.5) for field in fields)


def test_folders_that_cannot_be_used_are_one_sentence(drawn, recipe, tmp_path):
    def damaged(name, **values):
        copy = tmp_path / name
        shutil.copytree(drawn, copy)
        rows = [json.loads(line) for line in (copy / "metadata.jsonl").read_text().splitlines()]
        rows[1] |= values
        (copy / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return copy

    cases = {
        "line 2 says no label": damaged("unlabelled", label=None),
        "line 2 says no mpp": damaged("unscaled", mpp=None),
        "is of class 'C', but one of A, B": damaged("unknown", label="C"),
        "which is not there": damaged("gone", file_name="A_0009.png"),
        "so its images have no labels": tmp_path,
    }
    for sentence, folder in cases.items():
        with pytest.raises(PathUpError, match=sentence):
            synthetic_fields(folder, recipe.labels)
    (tmp_path / "gone" / "metadata.jsonl").write_text("")
    with pytest.raises(PathUpError, match="lists no images"):
        synthetic_fields(tmp_path / "gone", recipe.labels)


counts = st.dictionaries(st.sampled_from("ABCDE"), st.integers(0, 30), min_size=1)


@given(counts, st.integers(0, 60))
def test_every_synthetic_image_is_given_to_a_class(real, total):
    for mixing in ("equal", "rare_first"):
        found = allotted(real, total, mixing)
        assert sum(found.values()) == total
        assert min(found.values()) >= 0
    equal = allotted(real, total, "equal").values()
    assert max(equal) - min(equal) <= 1


@given(counts, st.integers(0, 60))
def test_rare_classes_are_filled_first(real, total):
    found = allotted(real, total, "rare_first")
    sums = {label: real[label] + found[label] for label in real}
    for label, given_ in found.items():  # a class that got one had, before it, no more than any other has now
        if given_:
            assert sums[label] - 1 <= min(sums.values())


def test_mixing_takes_the_first_images_of_each_class_and_tells_when_they_are_too_few(drawn, source, recipe):
    real = region_fields([own for own in labelled_regions(source, recipe) if own.split == "train"], recipe)
    made_up = synthetic_fields(drawn, recipe.labels)
    found = mixed(real, made_up, 2, "equal", recipe.labels)
    assert Counter((field.label, field.synthetic) for field in found) == {
        ("A", False): 12, ("B", False): 12, ("A", True): 1, ("B", True): 1,
    }  # fmt: skip
    assert [field.file.name for field in found if field.synthetic] == ["A_0000.png", "B_0000.png"]
    few = [field for field in real if field.label == "A"] + [field for field in real if field.label == "B"][:10]
    rare = mixed(few, made_up, 2, "rare_first", recipe.labels)
    assert [field.label for field in rare if field.synthetic] == ["B", "B"]
    with pytest.raises(PathUpError, match="3 synthetic images of class A are to be mixed in, but there are 2"):
        mixed(real, made_up, 6, "equal", recipe.labels)
