"""The LDM baseline: a plain model a level, resumed exactly, and drawn from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pathup import PathUpPipeline
from pathup.baselines.model_folder import read_model
from pathup.baselines.systems import TrainRequest, load_baseline, train_baseline
from pathup.errors import PathUpError
from pathup.training.checkpoints import newest_checkpoint
from pathup.training.patho_align import PathoAlignTrainer

LEVELS = ("overview", "patch")


def request(tiles: Path, output: Path, recipe, autoencoder: Path, **more) -> TrainRequest:
    changes = {f"diffusion.{name}": value for name, value in more.pop("changes", {}).items()}
    asked = {"tiles": tiles, "output": output, "recipe": recipe, "autoencoder": str(autoencoder), "changes": changes}
    return TrainRequest(**{**asked, "cpu": True, **more})


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_tiles, tiny_autoencoder, recipe) -> Path:
    run = tmp_path_factory.mktemp("ldm") / "run"
    return train_baseline("ldm", request(tiny_tiles, run, recipe, tiny_autoencoder))


def test_each_level_has_a_plain_model_of_its_own(trained, tiny_tiles, recipe):
    found, _ = load_baseline(trained)
    # 6 steps of 4 tiles, of two levels
    assert (found.notes["steps"], found.notes["tiles_seen"]) == (12, 48)
    assert {level: found.notes["levels"][level]["steps"] for level in LEVELS} == {"overview": 6, "patch": 6}
    parts = [found.notes["levels"][level]["seconds"] for level in LEVELS]
    assert min(parts) > 0
    assert found.notes["seconds"] == pytest.approx(sum(parts), abs=0.11)  # each is rounded to a tenth
    assert not found.recipe.diffusion.patho_align
    assert not found.recipe.diffusion.feature_entropy.enabled
    for level in LEVELS:
        pipeline = PathUpPipeline.from_pretrained(trained / level)
        assert pipeline.level_names == [level]
        assert pipeline.prompt("A", level) == pipeline.prompt("B", level) == recipe.model.neutral_prompt
        assert "L_e" not in (trained.parent / level / "losses.jsonl").read_text()
    unets = [load_file(trained / level / "unet/diffusion_pytorch_model.safetensors") for level in LEVELS]
    assert not torch.equal(unets[0]["conv_in.weight"], unets[1]["conv_in.weight"])


def test_a_tile_is_a_function_of_seed_label_level_and_index(trained):
    _, system = load_baseline(trained.parent)  # the run's folder will do
    tiles = system.draw("A", "patch", range(3), 1)
    assert tiles.shape == (3, 32, 32, 3)
    assert tiles.dtype == np.uint8
    # whichever others are drawn with it; of another batch, kernels may round otherwise
    for indices, own in ((range(2, 3), [2]), (range(0, 3, 2), [0, 2]), (range(1, 3), [1, 2])):
        assert np.abs(system.draw("A", "patch", indices, 1).astype(int) - tiles[own]).max() <= 1
    for label, level, seed in (("B", "patch", 1), ("A", "overview", 1), ("A", "patch", 2)):
        assert not np.array_equal(system.draw(label, level, range(3), seed), tiles)
    # the label is the key of the noise and nothing else
    pipeline = PathUpPipeline.from_pretrained(trained / "patch")
    assert torch.equal(pipeline.encode_prompts([pipeline.prompt("A", "patch")]),
                       pipeline.encode_prompts([pipeline.prompt("B", "patch")]))  # fmt: skip
    with pytest.raises(PathUpError, match="unknown level 'pach'; did you mean 'patch'"):
        system.draw("A", "pach", range(1), 0)
    with pytest.raises(PathUpError, match="unknown label 'C'"):
        system.draw("C", "patch", range(1), 0)


def test_a_run_broken_off_and_resumed_ends_bit_for_bit_like_an_unbroken_one(
    tmp_path, tiny_tiles, tiny_autoencoder, recipe, trained, monkeypatch
):
    asked = request(tiny_tiles, tmp_path / "run", recipe, tiny_autoencoder)
    step, taken, breaks = PathoAlignTrainer._train_step, [], [("overview", 5), ("patch", 3)]

    def broken(self, *details):
        at = (self.folder.name, self.step)
        if breaks and at == breaks[0]:
            breaks.pop(0)
            raise KeyboardInterrupt
        taken.append(at)
        return step(self, *details)

    monkeypatch.setattr(PathoAlignTrainer, "_train_step", broken)
    for again in (False, True):
        with pytest.raises(KeyboardInterrupt):
            train_baseline("ldm", replace(asked, resume=again))
    train_baseline("ldm", replace(asked, resume=True))
    overview = [*range(5), 4, 5]  # checkpoints are every 2 steps: step 4 is taken again
    assert taken == [("overview", at) for at in overview] + [("patch", at) for at in (0, 1, 2, 2, 3, 4, 5)]
    for level in LEVELS:
        whole, resumed = (newest_checkpoint(run / level / "checkpoints") for run in (trained.parent, tmp_path / "run"))
        assert whole is not None and resumed is not None
        for path in sorted(whole.folder.glob("*.safetensors")):
            a, b = load_file(path), load_file(resumed.folder / path.name)
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a), path.name
        losses = [(run / level / "losses.jsonl").read_text() for run in (trained.parent, tmp_path / "run")]
        assert losses[0] == losses[1]
        name = f"model/{level}/unet/diffusion_pytorch_model.safetensors"
        assert (trained.parent / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_a_finished_run_goes_on_to_more_steps_and_is_otherwise_left_alone(
    tmp_path, tiny_tiles, tiny_autoencoder, recipe, monkeypatch
):
    asked = request(tiny_tiles, tmp_path / "run", recipe, tiny_autoencoder, changes={"steps": 1})
    train_baseline("ldm", asked)
    step, taken = PathoAlignTrainer._train_step, []
    monkeypatch.setattr(PathoAlignTrainer, "_train_step", lambda self, *a: taken.append(self.step) or step(self, *a))
    train_baseline("ldm", replace(asked, resume=True))
    assert taken == []
    model = train_baseline("ldm", replace(asked, resume=True, changes={"diffusion.steps": 2}))
    assert taken == [1, 1]
    assert json.loads((model / "baseline.json").read_text())["steps"] == 4


def test_another_runs_folder_is_refused(trained, tiny_tiles, tiny_autoencoder, recipe):
    with pytest.raises(PathUpError, match="holds another run"):
        train_baseline("ldm", request(tiny_tiles, trained.parent, recipe, tiny_autoencoder, changes={"seed": 3}))
    with pytest.raises(PathUpError, match="add --resume"):
        train_baseline("ldm", request(tiny_tiles, trained.parent, recipe, tiny_autoencoder))


def test_what_cannot_be_trained_is_one_sentence_and_leaves_nothing(tmp_path, tiny_tiles, tiny_autoencoder, recipe):
    def asked(**more) -> TrainRequest:
        return request(tiny_tiles, tmp_path / "run", recipe, more.pop("autoencoder", tiny_autoencoder), **more)

    with pytest.raises(PathUpError, match="is not a folder"):
        train_baseline("ldm", asked(autoencoder=Path("/nowhere/at/all")))
    with pytest.raises(PathUpError, match="fp16 needs a GPU"):
        train_baseline("ldm", asked(changes={"precision": "fp16"}))
    with pytest.raises(PathUpError, match=r"'diffusion\.precision' is 'fp8'"):
        train_baseline("ldm", asked(changes={"precision": "fp8"}))
    assert not (tmp_path / "run").exists()  # a corrected command is not another run
    levels = recipe.model_dump(mode="json")["tiles"]["levels"]
    named = [{**levels[0], "name": "model"}, levels[1]]
    with pytest.raises(PathUpError, match="a level is named 'model'"):
        train_baseline("ldm", replace(asked(), changes={"tiles.levels": named}))


def test_minutes_are_shared_by_the_levels_and_a_finished_level_is_kept(tiny_tiles, tiny_autoencoder, recipe, tmp_path):
    asked = TrainRequest(
        tiles=tiny_tiles, output=tmp_path / "run", recipe=recipe, changes={}, autoencoder=str(tiny_autoencoder),
        minutes=0.02, cpu=True,
    )  # fmt: skip
    found = read_model(train_baseline("ldm", asked))
    for level in LEVELS:
        plan = json.loads((tmp_path / "run" / level / "budget.json").read_text())
        assert plan["minutes"] == 0.01
        assert found.notes["levels"][level]["steps"] == plan["steps"] > 72  # the first steps, by which it is planned
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*/checkpoints/*")}
    train_baseline("ldm", replace(asked, resume=True))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*/checkpoints/*")} == before
