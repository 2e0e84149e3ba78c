"""The pipeline: what it knows, that its images depend on (seed, label, level, index) alone, and its errors."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
import transformers

from pathup import PathUpPipeline
from pathup.errors import PathUpError
from pathup.model.components import (
    build_components,
    check_tokenizer,
)
from pathup.model.pipeline import build_pipeline, load_pipeline
from pathup.model.schedulers import SCHEDULERS
from pathup.recipes import Recipe, recipe_from_dict


@pytest.fixture(scope="module")
def pipeline(recipe: Recipe) -> PathUpPipeline:
    return build_pipeline(recipe)


def test_it_survives_saving_and_loading(tmp_path, pipeline):
    pipeline.save_pretrained(tmp_path / "model", safe_serialization=True)
    again = PathUpPipeline.from_pretrained(tmp_path / "model")
    assert again.labels == ["A", "B"]
    assert again.level_names == ["overview", "patch"]
    assert again.level("overview")["mpp"] == 2.0  # 128 px at 0.5 um shrunk to 32 px
    assert again.sampling == pipeline.sampling
    one, other = (p(["A", "B"], "patch", 2, seed=3, output_type="pt") for p in (pipeline, again))
    assert torch.equal(one, other)
    assert not list((tmp_path / "model").rglob("*.bin"))  # safetensors only


@pytest.fixture(scope="module")
def scaled(recipe: Recipe) -> PathUpPipeline:
    """A model that takes in the scale, with weights as if it had learnt something of it."""
    model = recipe.model.model_copy(update={"scale_conditioning": True})
    made = build_pipeline(recipe.model_copy(update={"model": model}))
    torch.nn.init.normal_(made.scale_encoder.out.weight, generator=torch.Generator().manual_seed(0))
    return made


def test_loading_shows_no_bars_of_libraries_and_leaves_them_on_for_others(tmp_path, pipeline, capfd):
    pipeline.save_pretrained(tmp_path / "model")
    capfd.readouterr()
    load_pipeline(tmp_path / "model")
    assert capfd.readouterr().err == ""
    assert diffusers.utils.logging.is_progress_bar_enabled()
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_a_model_that_takes_in_the_scale_draws_at_any_and_survives_saving(tmp_path, scaled):
    scaled.save_pretrained(tmp_path / "model", safe_serialization=True)
    again = load_pipeline(tmp_path / "model")
    own = again.level("patch")["mpp"]
    drawn = {mpp: again("A", "patch", seed=3, mpp=mpp, output_type="pt") for mpp in (None, own, 1.3 * own, 9.0)}
    assert torch.equal(drawn[None], drawn[own])
    # loaded, its convolutions take channels last, whose sums are rounded elsewhere
    torch.testing.assert_close(drawn[9.0], scaled("A", "patch", seed=3, mpp=9.0, output_type="pt"), rtol=0, atol=1e-4)
    for mpp in (1.3 * own, 9.0):
        assert not torch.allclose(drawn[mpp], drawn[own], atol=1e-3)


def test_a_scale_that_cannot_be_drawn_is_refused(pipeline, scaled):
    assert pipeline.scale_of("patch", 0.5) == 0.5  # its own: nothing to be told
    with pytest.raises(PathUpError, match=r"1 micrometres a pixel .* takes in no scale .* 'patch' at 0.5"):
        pipeline("A", "patch", mpp=1.0)
    for mpp in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(PathUpError, match="above 0"):
            scaled.scale_of("patch", mpp)


def test_an_image_depends_on_seed_label_level_and_index_alone(pipeline):
    alone = pipeline("B", "patch", 1, seed=7, first_index=2, output_type="latent")
    among = pipeline(["A", "B"], "patch", 3, seed=7, output_type="latent")
    assert torch.allclose(alone[0], among[5], atol=1e-5)  # batched convolutions differ in the last bits
    assert not torch.allclose(among[0], among[1], atol=1e-2)
    assert not torch.allclose(among[0], among[3], atol=1e-2)


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_every_scheduler_draws(pipeline, scheduler):
    image = pipeline("A", "overview", seed=1, scheduler=scheduler, num_inference_steps=4, output_type="np")
    assert image.shape == (1, 32, 32, 3)
    assert np.isfinite(image).all()


def test_guidance_1_is_the_prompted_prediction_and_0_the_empty_one(pipeline):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prompted = pipeline.encode_prompts([pipeline.prompt("A", "patch")] * 2)
    empty = pipeline.encode_prompts(["", ""])
    time = torch.tensor(300)
    at = {g: pipeline.predict(latents, time, prompted, empty, g) for g in (0.0, 1.0, 2.0)}
    assert torch.allclose(at[0.0], pipeline.predict(latents, time, empty, empty, 1.0), atol=1e-5)
    assert torch.allclose(at[2.0] - at[1.0], at[1.0] - at[0.0], atol=1e-4)  # linear in guidance


def test_the_callback_sees_every_step_and_can_change_the_latents(pipeline):
    seen = []

    def zero(pipe, step, timestep, values):
        seen.append(int(timestep))
        return {"latents": torch.zeros_like(values["latents"])}

    latents = pipeline("A", seed=0, num_inference_steps=3, output_type="latent", callback_on_step_end=zero)
    assert len(seen) == 3
    assert seen == sorted(seen, reverse=True)
    assert latents.abs().max() == 0


def test_prompts_are_far_enough_apart_to_be_told_from_each_other(pipeline):
    texts = [pipeline.prompt(label, level) for label in pipeline.labels for level in pipeline.level_names]
    embeddings = pipeline.encode_prompts([*texts, ""])
    for i in range(len(embeddings)):
        for j in range(i):
            cosine = torch.nn.functional.cosine_similarity(embeddings[i], embeddings[j], dim=-1)
            assert cosine.min() < 0.8  # at some word: random directions in 16 dimensions, three deviations of 0.25


@pytest.mark.parametrize(
    ("label", "level", "sentence"),
    [("a1", "patch", "unknown label 'a1'"), ("A", "overviw", "did you mean 'overview'")],
)
def test_unknown_names_are_told_with_the_nearest(pipeline, label, level, sentence):
    with pytest.raises(PathUpError, match=sentence):
        pipeline(label, level)


def test_a_folder_that_is_no_model_is_one_sentence(tmp_path):
    with pytest.raises(PathUpError, match="holds no model"):
        load_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(PathUpError, match="does not load"):
        load_pipeline(tmp_path)


def test_any_diffusers_scheduler_goes_by_its_class(recipe):
    pipeline = build_pipeline(recipe)
    drawn = pipeline("A", seed=1, scheduler="HeunDiscreteScheduler", num_inference_steps=3, output_type="pt")
    assert drawn.shape == (1, 3, 32, 32)
    assert torch.isfinite(drawn).all()
    assert not torch.equal(drawn, pipeline("A", seed=1, scheduler="euler", num_inference_steps=3, output_type="pt"))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"scheduler": "dpmp_2m"}, "did you mean 'dpmpp_2m'"),
        ({"scheduler": "AutoencoderKL"}, "scheduler 'AutoencoderKL'"),
        ({"scheduler": "EulerAncestralDiscreteScheduler"}, "draws noise of its own"),
        ({"scheduler": "SASolverScheduler"}, "draws noise of its own"),  # its name does not say so
        ({"scheduler": "FlowMatchEulerDiscreteScheduler"}, "such a noise schedule"),
        ({"scheduler": "PNDMScheduler"}, "cannot begin in the middle"),
        (
            {"num_inference_steps": 61, "scheduler": "ddim"},
            "61 steps cannot be spread .* 60 can",
        ),  # would end at t = -1
        ({"output_type": "pill"}, "did you mean 'pil'"),
        ({"num_inference_steps": 1001, "scheduler": "ddim"}, "noise schedule has 1 to 1000"),
        ({"num_inference_steps": 0}, "noise schedule has 1 to 1000"),
    ],
)
def test_a_scheduler_or_number_of_steps_that_cannot_be_is_one_sentence(recipe, asked, sentence):
    with pytest.raises(PathUpError, match=sentence):
        build_pipeline(recipe)("A", seed=1, **asked)


def test_a_pipeline_in_half_precision_keeps_its_latents_whole(recipe):
    # Euler begins with noise of deviation 2 * 10^4 here, of which float16 (at most 65,504) would lose some
    whole, half = build_pipeline(recipe), build_pipeline(recipe)
    half.unet.to(torch.bfloat16)
    drawn = [p("A", seed=1, scheduler="euler", num_inference_steps=3, output_type="latent") for p in (whole, half)]
    assert drawn[1].dtype == torch.float32
    assert float((drawn[0] - drawn[1]).std() / drawn[0].std()) < 0.1  # bfloat16 keeps 8 bits of each prediction


def test_predictions_that_overflow_are_told_instead_of_a_black_tile(recipe):
    with pytest.raises(PathUpError, match=r"overflowed in float32; .* lower the guidance"):
        build_pipeline(recipe)("A", seed=1, num_inference_steps=4, guidance_scale=1e38)


def test_braces_in_a_prompt_are_text(recipe):
    values = recipe.model_dump()
    values["model"]["prompt"] = "H&E {20x} {} of {name}, {word}"
    pipeline = build_pipeline(recipe_from_dict(values, source="test"))
    assert pipeline.prompt("A", "patch").startswith("H&E {20x} {} of ")


def test_a_model_whose_vocabulary_is_lost_is_refused(tmp_path, pipeline):
    pipeline.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (tmp_path / "model/tokenizer" / name).unlink(missing_ok=True)
    with pytest.raises(PathUpError, match=r"same tokens of every prompt|does not load"):
        load_pipeline(tmp_path / "model")


def test_prompts_that_two_classes_share_are_told(recipe):
    parts = build_components(recipe)
    with pytest.warns(UserWarning, match="cannot tell 1 of 3 prompts"):
        check_tokenizer(parts.tokenizer, parts.text_encoder, ["histopathology", "histopathology "], "x")
