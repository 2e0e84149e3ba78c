from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from pathup.cli import main as cli
from pathup.model.pipeline import build_pipeline
from pathup.recipes import load_recipe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    build_pipeline(load_recipe("tiny")).save_pretrained(folder)
    return folder


def _pathup(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pathup", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_an_image(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.ome.tiff"
    code = _pathup(monkeypatch, "generate", model, out, "--label", "A", "--size", "64x48", "--steps", 2, "--threads", 1)
    said = capsys.readouterr().out
    assert code == 0 and out.is_file()
    assert f"1 image of 64 x 48 px, 0.5 mpp: {out}" in said
    assert "16 U-Net forwards on" in said and "peak memory" in said


def test_a_dry_run_says_what_it_costs_and_draws_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--label", "A", "--size", "64x48", "--steps", 2, "--threads", 1, "--dry-run"]
    assert _pathup(monkeypatch, "generate", model, tmp_path / "a.ome.tiff", *asked) == 0
    said = capsys.readouterr().out
    assert "U-Net forwards  16 (overview 4, canvas 12); 2.0 coverages" in said
    assert all(word in said for word in ("time", "memory", "disk"))
    asked = ["--label", "all", "--level", "patch", "--count", "5", "--steps", 2, "--threads", 1, "--dry-run"]
    assert _pathup(monkeypatch, "generate", model, tmp_path / "tiles", *asked) == 0
    said = capsys.readouterr().out
    assert "10 tiles of 32 x 32 px, 4 at once" in said and "U-Net forwards  40" in said  # 2 steps, guided
    assert list(tmp_path.iterdir()) == []


def test_tiles_of_every_class(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "tiles"
    arguments = ["generate", model, out, "--label", "all", "--level", "patch", "--steps", 2, "--threads", 1]
    assert _pathup(monkeypatch, *arguments, "--count", 1) == 0
    assert _pathup(monkeypatch, *arguments, "--count", 2) == 1  # begun: --resume is needed
    assert _pathup(monkeypatch, *arguments, "--count", 2, "--resume") == 0
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["A_0000.png", "A_0001.png", "B_0000.png", "B_0001.png"]
    assert all((out / row["file_name"]).is_file() for row in rows)


def test_datasets_reads_the_folder_as_it_is(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the check of imagefolder needs the datasets package")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = tmp_path / "tiles"
    arguments = ["--label", "all", "--level", "overview", "--count", 2, "--steps", 1, "--threads", 1]
    assert _pathup(monkeypatch, "generate", model, out, *arguments) == 0
    loaded = datasets.load_dataset("imagefolder", data_dir=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["label"] == ["A", "A", "B", "B"]
    assert loaded[0]["image"].size == (32, 32)
    assert loaded[0]["text"] == "histopathology of alpha tissue, overall"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--label", "C"], "unknown label 'C'"),
        (["--label", "A", "--size", "70x64"], "multiples of 4 px"),
        (["--label", "A", "--guidance", "-2"], "guidance -2"),
        (["--label", "A", "--reference", "none.png"], "none.png does not exist"),
        (["--label", "A", "--layout", "none.geojson"], "none.geojson does not exist"),
        (["--label", "glass"], "unknown label 'glass'"),
        (["--label", "A", "--windows", "shift"], "windows 'shift'"),
        (["--label", "A", "--no-weights", "--window-weight", "hann"], "leave one out"),
    ],
)
def test_a_mistake_is_one_sentence_and_code_1(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    assert _pathup(monkeypatch, "generate", model, tmp_path / "a.png", *arguments) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("pathup: ") and sentence in said
    assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert _pathup(monkeypatch, "generate", "--help") == 0
    said = capsys.readouterr().out
    # the command line's surface, frozen: a new option belongs in docs/sampling.md as well
    options = ["label", "size", "seed", "count", "steps", "guidance", "strength", "scheduler", "reference", "level"]
    options += ["window-batch", "no-weights", "format", "device", "threads", "resume", "overwrite", "windows"]
    options += ["window-weight", "overlap", "layout", "layout-unit", "preview", "dry-run", "shard-size", "index"]
    documented = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text()
    for option in options:
        assert f"--{option}" in said
        assert f"--{option}" in documented
