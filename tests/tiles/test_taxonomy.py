from __future__ import annotations

import pytest

from pathup.errors import PathUpError
from pathup.recipes import load_recipe
from pathup.tiles.taxonomy import all_prompts, label_of, level_of, prompt_text


@pytest.mark.parametrize(
    ("written", "label"),
    [
        ("0_N", "N"), ("N", "N"), ("3_DCIS", "DCIS"), ("dcis", "DCIS"), ("6 IC", "IC"), ("2-UDH", "UDH"),
        ("Ductal carcinoma in situ", "DCIS"), ("ductal_carcinoma_in_situ", "DCIS"), ("5_Flat Epithelial Atypia", "FEA"),
        (" normal tissue ", "N"),
    ],
)  # fmt: skip
def test_ways_to_write_a_class(written: str, label: str) -> None:
    assert label_of(load_recipe("bracs"), written, where="a test") == label


def test_every_class_of_every_recipe_is_known_by_label_and_name() -> None:
    for name in ("bracs", "atlas", "tiny"):
        recipe = load_recipe(name)
        for spec in recipe.classes:
            assert label_of(recipe, spec.label, where="x") == label_of(recipe, spec.name, where="x") == spec.label


def test_an_unknown_class_names_the_nearest_and_the_place() -> None:
    with pytest.raises(PathUpError, match=r"folder 4_DCSI.*'DCSI'; did you mean 'DCIS'"):
        label_of(load_recipe("bracs"), "4_DCSI", where="folder 4_DCSI")
    with pytest.raises(PathUpError, match="did you mean 'invasive carcinoma'"):
        label_of(load_recipe("bracs"), "invasive carcinom", where="x")


def test_prompts_are_class_major_and_one_each() -> None:
    recipe = load_recipe("bracs")
    prompts = all_prompts(recipe)
    assert len({text for *_, text in prompts}) == 14  # 7 classes x 2 levels, as the paper has it
    assert [p[:2] for p in prompts[:3]] == [("N", "overview"), ("N", "patch"), ("PB", "overview")]
    assert prompt_text(recipe, "DCIS", "overview") == "histopathology of ductal carcinoma in situ, overall"


def test_unknown_label_and_level() -> None:
    recipe = load_recipe("bracs")
    with pytest.raises(PathUpError, match="did you mean 'patch'"):
        level_of(recipe, "pach")
    with pytest.raises(PathUpError, match="unknown label 'X'"):
        prompt_text(recipe, "X", "patch")
