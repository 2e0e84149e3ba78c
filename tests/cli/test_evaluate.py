from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from pathup.cli import main as cli
from pathup.model.encoder import TissueEncoder, save_encoder
from tests.evaluation.test_runs import synthetic


def _pathup(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pathup", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    torch.manual_seed(0)
    save_encoder(TissueEncoder([8, 8, 8, 8], 32), folder, {})
    return folder


def test_a_report_from_the_command_line(
    tmp_path: Path,
    tiny_tiles: Path,
    features: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATHUP_CACHE", str(tmp_path / "cache"))
    fake, again = (synthetic(tmp_path / f"run{seed}", seed) for seed in range(2))
    code = _pathup(
        monkeypatch, "evaluate", tiny_tiles, fake, "--runs", again, "--output", tmp_path / "report",
        "--features", features, "--replicates", 10, "--only", "fidelity", "--only", "consistency", "--threads", 1,
    )  # fmt: skip
    said = capsys.readouterr().out
    assert code == 0
    assert "overall: 16 synthetic beside" in said and "Fréchet distance" in said and "(floor in brackets)" in said
    assert "class consistency, patch, grey: synthetic" in said and "index.html" in said
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert len(results["sets"]["synthetic"]) == 2 and "morphology" not in results
    assert list((tmp_path / "cache" / "features").iterdir())  # kept where the environment says


def test_a_mistake_is_one_sentence_and_exit_code_1(
    tmp_path: Path, tiny_tiles: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = synthetic(tmp_path / "fake", 0)
    for arguments, said in (
        ((tiny_tiles, tmp_path / "none"), "synthetic tiles"),
        ((tiny_tiles, fake, "--features", "inceptoin"), "did you mean 'inception'"),
        ((tiny_tiles, fake, "--only", "seam"), "did you mean 'seams'"),
    ):
        assert _pathup(monkeypatch, "evaluate", *arguments, "--output", tmp_path / "report") == 1
        error = capsys.readouterr().err
        assert error.startswith("pathup: ") and said in error and error.count("\n") == 1
        assert not (tmp_path / "report").exists()
