"""Recipes: strict, typed, and the paper's numbers in `bracs`."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import yaml

from pathup.errors import PathUpError
from pathup.recipes import SamplingRecipe, load_recipe, recipe_from_dict, recipe_text, save_recipe, shipped_recipes


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
    assert (sampling.windows, sampling.window_weight) == ("overlapped", "equation_6")
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
        (changed("diffusion.steps", "6"), "'diffusion.steps' is '6': input should be a valid integer"),
        (changed("diffusion.steps", 6.0), "'diffusion.steps' is 6.0: input should be a valid integer"),
        (changed("diffusion.batch_size", True), "'diffusion.batch_size' is True"),
        (changed("diffusion.balance_levels", 1), "'diffusion.balance_levels' is 1: input should be a valid boolean"),
        (changed("sampling.guidance", float("nan")), "'sampling.guidance' is nan: input should be a finite number"),
        (changed("tiles.mpp", float("inf")), "'tiles.mpp' is inf: input should be a finite number"),
        (changed("diffusion.learning_rate", "5e-6"), r"is '5e-6'.*so write 5\.0e-6"),
        (changed("diffusion.learning_rate", "1.5e6"), r"is '1.5e6'.*so write 1\.5e\+6"),
        (changed("model.unet.norm_groups", 7), "norm_groups 7 does not divide 16"),
        (changed("autoencoder.norm_groups", 3), "norm_groups 3 does not divide 8"),
        (changed("model.unet.head_channels", 6), r"head_channels 6 does not divide \[32\]"),
        (changed("model.text_encoder.heads", 3), "heads 3 does not divide hidden_size 16"),
        (changed("autoencoder.crop_px", 30), "crop_px 30 is no multiple of 4"),  # three blocks shrink by 4
        (changed("autoencoder.crop_px", 64), r"crop_px 64 is larger than tiles\.tile_px 32"),
        (changed("model.noise.beta_start", 0.5), "beta_start 0.5 and beta_end 0.012 must be between"),
        (changed("model.noise.beta_start", 0), "beta_start 0 and"),
        (changed("model.noise.beta_end", 1), "beta_end 1 must"),
        (changed("tiles.levels.1.word", "Overall"), r"words repeat \(overall, Overall\)"),
        (changed("classes.1.label", "a"), r"labels repeat \(A, a\)"),
        (changed("classes.1.label", "All"), "no label may be 'all'"),
        (changed("classes.1.name", "Alpha_Tissue"), "names repeat"),
        (changed("classes.1.name", "a"), "'a' is the name of B and the label of another"),
    ],
)
def test_a_wrong_key_type_or_value_is_one_sentence(values, sentence):
    with pytest.raises(PathUpError, match=sentence) as error:
        recipe_from_dict(values)
    assert "\n" not in str(error.value)


def test_a_whole_number_is_a_number_and_a_class_may_be_named_as_its_own_label():
    assert recipe_from_dict(changed("diffusion.learning_rate", 1)).diffusion.learning_rate == 1.0
    assert recipe_from_dict(changed("classes.1.name", "b")).classes[1].name == "b"


def test_a_key_given_twice_is_named_with_its_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("name: x\nclasses:\n  - {label: A, name: a, label: B}\nname: y\n")
    with pytest.raises(PathUpError, match="line 4: key 'name' is given a second time"):
        load_recipe(path)
    path.write_text("name: x\nclasses:\n  - {label: A, name: a, label: B}\n")
    with pytest.raises(PathUpError, match="line 3: key 'label' is given a second time"):
        load_recipe(path)
    path.write_text("a: &again {b: 1}\nc: {<<: *again, b: 2}\nd: *again\n")  # merged and reused, nothing twice
    with pytest.raises(PathUpError, match="unknown key 'a'"):
        load_recipe(path)


def test_bracs_normalises_its_latents_and_says_what_the_paper_leaves_open():
    recipe = load_recipe("bracs")
    assert recipe.autoencoder.freeze_encoder_at == 0.8 * recipe.autoencoder.steps
    written = (resources.files("pathup.recipes") / "bracs.yaml").read_text()
    for key in ("warmup_steps", "decay_steps", "clip_norm"):
        assert any(key in line and "not stated" in line for line in written.splitlines()), key


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(PathUpError, match="did you mean 'atlas'"):
        load_recipe("atlass")
    for content in ("a: [1,\n", "a: \x01\n", "a: 2001-13-01\n"):  # unclosed; a control character; no such month
        (tmp_path / "broken.yaml").write_text(content)
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


def test_recipes_of_before_window_weight_are_still_read() -> None:
    plain = load_recipe("tiny").sampling.model_dump(exclude={"window_weight"})
    assert SamplingRecipe.model_validate({**plain, "weighted": True}).window_weight == "hann"
    assert SamplingRecipe.model_validate({**plain, "weighted": False}).window_weight == "hard"


def test_the_ablation_has_the_classes_and_scales_of_atlas():
    small, atlas = load_recipe(str(Path(__file__).parents[2] / "benchmarks" / "ablation.yaml")), load_recipe("atlas")
    assert small.classes == atlas.classes
    shrinks = [
        {level.name: level.field_px / made.tiles.tile_px for level in made.tiles.levels} for made in (small, atlas)
    ]
    assert shrinks[0] == shrinks[1] == {"overview": 4, "patch": 1}
    assert small.tiles.mpp == atlas.tiles.mpp
    assert small.model.noise == atlas.model.noise
    assert small.autoencoder.block_channels == atlas.autoencoder.block_channels
