"""``pathup baseline``: values given on the command line, and a run that is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pathup.baselines import systems
from pathup.baselines.rrdb import RRDBNet
from pathup.cli.baseline import app, changed
from pathup.errors import PathUpError
from tests.processes import PathUpProcess, run_pathup


def test_options_become_changes_of_the_baselines_own_section(monkeypatch):
    asked: list[tuple[str, systems.TrainRequest]] = []
    monkeypatch.setattr(systems, "train_baseline", lambda name, request: asked.append((name, request)) or Path("model"))
    given = ["--tiles", "t", "--output", "o", "--recipe", "tiny", "--steps", "7", "--seed", "3"]
    for name, more in (
        ("stylegan2", ["--set", "baselines.stylegan2.augmentation=none", "--minutes", "2"]),
        ("ldm", ["--autoencoder", "vae"]),
    ):
        result = CliRunner().invoke(app, ["train", name, *given, *more])
        assert result.exit_code == 0, result.output
    assert asked[0][1].changes == {
        "baselines.stylegan2.steps": 7, "baselines.stylegan2.seed": 3, "baselines.stylegan2.augmentation": "none",
    }  # fmt: skip
    assert asked[0][1].minutes == 2
    assert asked[1][1].changes == {"diffusion.steps": 7, "diffusion.seed": 3}
    assert asked[1][1].autoencoder == "vae"


def test_weights_in_the_published_format_become_a_model_that_enlarges(tmp_path):
    """They stand for BSRGAN's own file, which cannot be fetched here."""
    from PIL import Image

    network = RRDBNet(channels=8, growth=32, blocks=1)  # in spandrel's eyes the growth is always 32
    save_file(network.state_dict(), tmp_path / "BSRGAN.safetensors")
    Image.new("RGB", (16, 12), (200, 120, 160)).save(tmp_path / "small.png")
    for line in (
        ["import", f"{tmp_path}/BSRGAN.safetensors", f"{tmp_path}/model", "--recipe", "tiny"],
        ["generate", f"{tmp_path}/model", f"{tmp_path}/large", "--images", f"{tmp_path}/small.png", "--device", "cpu"],
    ):
        result = CliRunner().invoke(app, line)
        assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "large/small.png").size == (64, 48)


def test_values_are_read_as_yaml():
    found = changed(["a.b=0.5", "a.c=[1, 2]", "a.d=null", "a.e=text", "a.f=x=y"])
    assert found == {"a.b": 0.5, "a.c": [1, 2], "a.d": None, "a.e": "text", "a.f": "x=y"}
    for text in ("a.b", "=1", "a.b=[1"):
        with pytest.raises(PathUpError, match="--set"):
            changed([text])


@pytest.mark.parametrize("name", list(systems.BASELINES))
def test_a_run_that_is_killed_goes_on_to_the_very_weights_of_an_unbroken_one(
    name, tiny_tiles, tiny_autoencoder, tmp_path
):
    system = systems.BASELINES[name]

    def command(output: Path, *more: str) -> list[str]:
        options: dict[str, Any] = {"tiles": tiny_tiles, "output": output, "recipe": "tiny", "steps": 12}
        if system.takes_autoencoder:
            options["autoencoder"] = tiny_autoencoder
        flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
        return ["baseline", "train", name, "--cpu", *flags, *more]

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with PathUpProcess(*command(killed)) as process:
        assert process.kill_once_there(killed, "**/step-*"), "there was no checkpoint to be killed after"
    assert not (killed / "model").exists()
    if name == "stylegan2":  # one is enough for what all share
        assert "add --resume" in run_pathup(*command(killed), code=1)
    for line in (command(killed, "--resume"), command(whole)):
        run_pathup(*line)
    weights = sorted((whole / "model").glob("**/*.safetensors"))
    assert weights
    for path in weights:
        own, other = load_file(path), load_file(killed / path.relative_to(whole))
        assert all(torch.equal(own[key], other[key]) for key in own), path.name
    for path in whole.glob("**/losses.jsonl"):
        assert path.read_text() == (killed / path.relative_to(whole)).read_text()
