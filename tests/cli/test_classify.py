"""``pathup classify`` from the command line: its three commands one after the other, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pathup.cli.classify import app
from pathup.recipes import load_recipe
from tests.downstream import made
from tests.processes import run_pathup

GIVEN = ("--recipe", "tiny", "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("classify")
    made.regions(root / "regions")
    made.synthetic(root / "synthetic", root / "regions", load_recipe("tiny"))
    return root


def ran(*words: str) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def test_pretrain_train_and_evaluate_with_nothing_but_what_they_need(place):
    """Every command makes its own folder, its cache within."""
    regions = ("--regions", f"{place}/regions")
    told = ran("pretrain", *regions, "--output", f"{place}/start", *GIVEN)
    assert f"weights written to {place}/start/model/vit.safetensors" in told.replace("\n", "")
    for name, more in (
        ("vit", ("--pretrained", f"{place}/start/model/vit.safetensors", "--augment")),
        ("abmil", ("--synthetic", f"{place}/synthetic", "--per-class", "1")),
    ):
        ran("train", name, *regions, "--output", f"{place}/{name}", *GIVEN, *more)
        ran("train", name, *regions, "--output", f"{place}/{name}", *GIVEN, *more, "--resume")
        told = ran(
            "evaluate", f"{place}/{name}", *regions, "--output", f"{place}/{name}_scores", "--device", "cpu",
            *(["--attention"] if name == "abmil" else []),
        )  # fmt: skip
        assert "F-scores of 4 regions: A " in told
        assert (place / f"{name}_scores/predictions.csv").read_text().startswith("region,")
    assert len(list((place / "abmil_scores/attention").glob("*.png"))) == 4
    notes = json.loads((place / "abmil/model/classifier.json").read_text())
    assert notes["synthetic_fields"] == {"A": 1, "B": 1}


def test_a_leak_is_one_sentence_and_exit_code_1(place, tmp_path):
    shutil.copytree(place / "synthetic", tmp_path / "synthetic")
    made.replant(place / "regions/test/0_A/test_A_0.png", tmp_path / "synthetic/A_0000.png")
    said = run_pathup(
        "classify", "train", "vit", "--regions", place / "regions", "--output", tmp_path / "run", "--recipe", "tiny",
        "--synthetic", tmp_path / "synthetic", code=1,
    )  # fmt: skip
    assert "'synthetic/A_0000.png' is region 'test_A_0' of split 'test', or a part of it" in " ".join(said.split())
    assert "Traceback" not in said
    assert not (tmp_path / "run/model").exists()
