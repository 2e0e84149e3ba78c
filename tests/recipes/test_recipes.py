"""Recipes: strict, typed, and the paper's numbers in `bracs`."""

from __future__ import annotations

import pytest
import yaml

from pathup.errors import PathUpError
from pathup.recipes import load_recipe, recipe_from_dict, recipe_text, save_recipe, shipped_recipes


def changed(place: str, value: object, *, rename: str | None = None) -> dict:
    values = load_recipe("tiny").model_dump()
    *path, key = place.split(".")
    section = values
    for part in path:
        section = section[int(part)] if part.isdigit() else section[part]
    if rename:
        section[rename] = section.pop(key)
    else:
        section[key] = value
    return values


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_come_back_resolved(tmp_path, name):
    recipe = load_recipe(name)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert "temperature" in recipe_text(recipe)  # defaults are written out


def test_bracs_holds_the_papers_numbers():
    recipe = load_recipe("bracs")
    overview, patch = recipe.tiles.levels
    assert (recipe.tiles.tile_px, patch.field_px, patch.overlap_px, patch.max_per_class) == (512, 512, 64, 6000)
    assert (overview.field_px, overview.overlap_px) == (2048, 256)
    assert len(recipe.labels) * len(recipe.level_names) == 14
    training = recipe.diffusion
    assert (training.learning_rate, training.batch_size, training.steps) == (5e-6, 4, 50_000)
    assert training.feature_entropy.beta == 0.1
    sampling = recipe.sampling
    assert (sampling.scheduler, sampling.window_latent, sampling.overlap_latent) == ("ddim", 64, 32)
    assert sampling.size_px == 2048


def test_levels_know_their_scale():
    recipe = load_recipe("bracs")
    assert [recipe.tiles.level_mpp(level) for level in recipe.tiles.levels] == [1.0, 0.25]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (changed("diffusion.steps", 0, rename="stepz"), r"unknown key 'diffusion.stepz'; did you mean 'steps'\?"),
        (
            changed("tiles.levels.0.field_px", 0, rename="feild_px"),
            r"'tiles.levels.0.feild_px'; did you mean 'field_px'",
        ),
        (changed("sampling.guidance", "high"), "'sampling.guidance' is 'high'"),
        (changed("diffusion.feature_entropy.source", "both"), "'diffusion.feature_entropy.source' is 'both'"),
        (changed("tiles.levels.1.field_px", 40), "field_px 40 is no multiple of tile_px 32"),
        (changed("sampling.overlap_latent", 8), "overlap_latent 8 is not less than window_latent 8"),
        (changed("classes.1.label", "A"), "labels repeat"),
        (changed("model.prompt", "tissue"), "lacks {name}"),
        (changed("tiles.splits", {"train": 0.5, "val": 0.1, "test": 0.1}), "shares sum to 0.7"),
        (["a list"], "holds list, but a mapping"),
    ],
)
def test_a_wrong_key_type_or_value_is_one_sentence(values, sentence):
    with pytest.raises(PathUpError, match=sentence) as error:
        recipe_from_dict(values)
    assert "\n" not in str(error.value)


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(PathUpError, match="did you mean 'atlas'"):
        load_recipe("atlass")
    (tmp_path / "broken.yaml").write_text("a: [1,\n")
    with pytest.raises(PathUpError, match="is not valid YAML"):
        load_recipe(tmp_path / "broken.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PathUpError, match="is not readable text"):
        load_recipe(tmp_path / "binary.yaml")


def test_a_recipe_cannot_run_code(tmp_path):
    (tmp_path / "evil.yaml").write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(PathUpError, match="is not valid YAML"):
        load_recipe(tmp_path / "evil.yaml")
    assert yaml.safe_load(recipe_text(load_recipe("tiny")))["name"] == "tiny"
