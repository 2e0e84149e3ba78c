"""``pathup study`` as it is typed."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pathup.cli.main import app, main
from pathup.study.folder import StudyFolder
from tests.study.made import made_study, two_arms


def ran(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in ("study", *words)])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_study_is_made_and_says_what_it_is(tmp_path):
    real, synthetic = two_arms(tmp_path, 4)
    told = ran("new", tmp_path / "s", "--real", real, "--synthetic", synthetic, "--per-class", 3, "--readers",
               "anna, ben", "--mpp", 0.5, "--practice", 6)  # fmt: skip
    assert "12 images of 96 x 96 px at 0.5 um a pixel, 4 for practice; each reader sees 13" in told
    assert "6 images for practice were asked for, but no more are left over" in told
    assert StudyFolder(tmp_path / "s").readers == ("anna", "ben")


def test_answers_are_exported_before_the_report_is_made(tmp_path):
    study = made_study(tmp_path)
    assert "0 answers written" in ran("export", study.path, tmp_path / "answers.csv")
    assert (tmp_path / "answers.csv").read_text().startswith("reader,round,place,score")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("serve", "none"), "holds no study"),
        (("report", "none"), "holds no study"),
        (("new", "s", "--real", "none", "--synthetic", "none", "--readers", "a"), "is no folder"),
        (("new", "s", "--real", ".", "--synthetic", ".", "--readers", ","), "needs readers"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pathup", "study", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code not in (0, None)
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not list(Path(tmp_path).iterdir())


def test_a_port_that_is_taken_is_one_sentence(tmp_path, monkeypatch, capsys):
    study = made_study(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        monkeypatch.setattr("sys.argv", ["pathup", "study", "serve", str(study.path), "--port", port])
        with pytest.raises(SystemExit):
            main()
    assert "is in use; name another with --port" in capsys.readouterr().err
