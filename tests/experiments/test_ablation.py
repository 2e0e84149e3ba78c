from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pathup.errors import PathUpError
from pathup.experiments import ablation as module
from pathup.experiments.ablation import AblationRequest, ablation, jobs_of, memory_spread
from pathup.experiments.arms import ARMS, EXPERIMENTS, Experiment
from pathup.recipes import load_recipe


def asked(tiles: Path, output: Path, autoencoder: Path, **values: object) -> AblationRequest:
    told = {"name": "table2", "recipe": "tiny", "seeds": 2, "steps": 4, "count": 10, "device": "cpu", **values}
    return AblationRequest(data=tiles, output=output, autoencoder=str(autoencoder), **told)


@pytest.fixture(scope="module")
def done(some_tiles, tiny_autoencoder, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("ablation") / "out"
    ablation(asked(some_tiles, output, tiny_autoencoder))
    return output


def test_every_arm_and_seed_is_in_the_table(done):
    content = json.loads((done / "table2.json").read_text())
    arms = EXPERIMENTS["table2"].arms
    found = {(row["arm"], row["seed"], row["level"]) for row in content["rows"]}
    assert found == {(arm, seed, level) for arm in arms for seed in (0, 1) for level in ("overview", "patch")}
    assert {row["level"] for row in content["floor"]} == {"overview", "patch"}
    page = (done / "table2.md").read_text()
    for arm in arms:
        assert page.count(f"| {ARMS[arm].title} |") >= 2
    assert "0.592 ± 0.026" in page  # the paper's
    rows = page.split("## Training")[1].split("\n\n")[2].splitlines()[2:]
    told = {cells[1]: cells[2:6] for cells in ([cell.strip() for cell in row.split("|")] for row in rows)}
    for arm in arms:
        loss, entropy, spread, seconds = told[ARMS[arm].title]
        assert "±" in loss
        assert "±" in seconds
        has_memory = "beta" in arm or "unprompted" in arm
        assert bool(entropy) == bool(spread) == has_memory
    assert (done / "table2.png").stat().st_size > 10_000


def test_arms_differ_by_what_they_say_and_share_the_budget(done):
    def recipe_of(run: str) -> dict:
        import yaml

        return yaml.safe_load((done / "runs" / run / "recipe.yaml").read_text())["diffusion"]

    assert recipe_of("none_0_patch")["patho_align"] is False
    assert recipe_of("none_0_patch")["steps"] == recipe_of("none_0_overview")["steps"] == 2  # of 4: one model a level
    assert recipe_of("patho_align_1")["steps"] == 4
    assert recipe_of("patho_align_1")["feature_entropy"]["enabled"] is False
    assert recipe_of("beta_0.1_1")["feature_entropy"]["source"] == "prompted"
    assert recipe_of("unprompted_0.1_1")["feature_entropy"]["source"] == "unprompted"
    assert recipe_of("beta_0.1_1")["seed"] == 1
    told = json.loads((done / "figures/beta_0.1_0.json").read_text())
    assert {"L_r", "L_e"} == set(told["losses"]["None"])
    assert 0 < told["memory_spread"]["None"] < 2
    assert not (done / "runs/beta_0.1_0/checkpoints").exists()


def test_what_is_there_is_not_done_again_and_the_rest_is(done, some_tiles, tiny_autoencoder, tmp_path, monkeypatch):
    output = tmp_path / "copy"
    shutil.copytree(done, output)
    before = json.loads((output / "table2.json").read_text())["rows"]
    (output / "figures/patho_align_1.json").unlink()
    shutil.rmtree(output / "runs/patho_align_1")
    shutil.rmtree(output / "tiles/patho_align_1")
    trained, real = [], module.train_diffusion
    monkeypatch.setattr(module, "train_diffusion", lambda *a, **k: trained.append(a[1].name) or real(*a, **k))
    with pytest.raises(PathUpError, match="add --resume"):
        ablation(asked(some_tiles, output, tiny_autoencoder))
    again = ablation(asked(some_tiles, output, tiny_autoencoder, resume=True))
    assert trained == ["patho_align_1"]
    assert again["rows"] == before  # the same seeds give the same models, tiles and figures


def test_processes_share_the_jobs(done, some_tiles, tiny_autoencoder, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(done, output)
    before = json.loads((output / "table2.json").read_text())["rows"]
    for path in (output / "figures").glob("*_1.json"):
        path.unlink()
    code = (
        "import pathlib, sys; from pathup.experiments.ablation import AblationRequest, ablation; "
        "ablation(AblationRequest(name='table2', recipe='tiny', seeds=2, steps=4, count=10, device='cpu', resume=True, "
        "threads=1, data=pathlib.Path(sys.argv[1]), output=pathlib.Path(sys.argv[2]), autoencoder=sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, str(some_tiles), str(output), str(tiny_autoencoder)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    jobs = {job.name for job in jobs_of(EXPERIMENTS["table2"], 2)}
    assert {path.stem for path in (output / "figures").glob("*.json")} == jobs
    assert json.loads((output / "table2.json").read_text())["rows"] == before


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"seeds": 1}, "at least 2"),
        ({"name": "table9"}, "table2"),
    ],
)
def test_a_senseless_request_is_one_sentence(tmp_path, values, said):
    with pytest.raises(PathUpError, match=said):
        asked(tmp_path, tmp_path / "out", tmp_path, **values)
    assert not (tmp_path / "out").exists()


def test_the_spread_of_a_memory(tmp_path):
    for rows, spread in ((torch.eye(4), 1.0), (torch.ones(4, 3), 0.0), (torch.eye(2)[[0, 0, 1, 1]], 2 / 3)):
        save_file({"memory_KD": rows}, tmp_path / "feature_memory.safetensors")
        assert memory_spread(tmp_path) == pytest.approx(spread)


@pytest.mark.parametrize("name", sorted(ARMS))
def test_an_arm_changes_the_recipe_as_it_says_and_nothing_else(name):
    recipe, arm = load_recipe("atlas"), ARMS[name]

    def flat(values: dict, stem: str = "") -> dict:
        inner = [
            flat(value, f"{stem}{key}.") if isinstance(value, dict) else {stem + key: value}
            for key, value in values.items()
        ]
        return {key: value for part in inner for key, value in part.items()}

    before, after = flat(recipe.model_dump()), flat(arm.changed(recipe).model_dump())
    assert {key: after[key] for key in arm.changes} == arm.changes
    changed = {key for key in after if after[key] != before[key]}
    assert changed <= set(arm.changes)
    if name in EXPERIMENTS["denoiser"].arms:  # one factor at a time: an arm that is the recipe itself would say nothing
        assert len(changed) == (0 if name == "recipe" else 1)


def test_arms_of_several_orientations_have_latents_of_their_own(some_tiles, tiny_autoencoder, tmp_path, monkeypatch):
    """Each seed turns tiles another way, so that seeds cannot share a cache of turned tiles."""
    asked_for = Experiment("denoiser", "two arms", ("recipe", "orientations"))
    monkeypatch.setitem(EXPERIMENTS, "denoiser", asked_for)
    found = ablation(asked(some_tiles, tmp_path / "out", tiny_autoencoder, name="denoiser"))
    assert {(row["arm"], row["seed"]) for row in found["rows"]} == {
        (arm, seed) for arm in asked_for.arms for seed in (0, 1)
    }
    assert "What was predicted" in (tmp_path / "out" / "denoiser.md").read_text()


def test_an_arm_that_does_not_fit_the_recipe_is_told_before_training(some_tiles, tiny_autoencoder, tmp_path):
    with pytest.raises(PathUpError, match=r"arm narrow: model\.unet"):
        ablation(asked(some_tiles, tmp_path / "out", tiny_autoencoder, name="denoiser"))
    assert not (tmp_path / "out").exists()
