from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pathup import __version__
from pathup.cli import main as cli
from pathup.errors import PathUpError
from tests.tiles.made import class_tree


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pathup", *arguments], capture_output=True, text=True, timeout=60)


def test_version_and_help_start_without_torch() -> None:
    assert _run("--version").stdout == f"pathup {__version__}\n"
    code = (
        "import sys; sys.argv = ['pathup', '--help']; from pathup.cli.main import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "False"
    for word in ("Usage: pathup", "--version", "tiles", "pathup VERB --help"):
        assert word in result.stdout


def test_every_verb_that_is_there_is_listed_and_loads() -> None:
    listed = _run("--help").stdout
    folder = Path(cli.__file__).parent
    for verb, line in cli.VERBS.items():
        there = (folder / f"{verb}.py").exists()
        assert (f"  {verb} " in listed) is there
        assert line.split()[0] in listed or not there
        if there:
            assert cli.load_verb(verb).name == verb
            help_text = _run(verb, "--help")
            assert help_text.returncode == 0, help_text.stderr
            assert f"pathup {verb}" in help_text.stdout


def test_no_verb_shows_the_help_and_an_unknown_one_the_nearest() -> None:
    assert "Usage: pathup" in _run().stderr
    result = _run("tile", "x")
    assert result.returncode == 1
    assert result.stderr.startswith("pathup: unknown verb 'tile'; did you mean 'tiles'?")


@pytest.mark.parametrize("arguments", [("--nonsense",), ("a", "b"), ("a", "b", "--recipe", "tiny", "--workers", "x")])
def test_a_command_line_that_cannot_be_read_ends_with_2(arguments: tuple[str, ...]) -> None:
    result = _run("tiles", *arguments)
    assert result.returncode == 2
    assert "Usage: " in result.stderr and "Traceback" not in result.stderr
    assert "exit code 2" in (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (PathUpError("the lamp is off"), 1, "pathup: the lamp is off\n"),
        (PermissionError(13, "Permission denied", "/some/file"), 1, "pathup: Permission denied: /some/file\n"),
        (KeyboardInterrupt(), 130, "pathup: interrupted\n"),
    ],
)
def test_what_becomes_of_errors(
    raised: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise raised

    monkeypatch.setattr(cli, "load_verb", broken)
    monkeypatch.setattr(sys, "argv", ["pathup", "tiles", "a", "b"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert capsys.readouterr().err.endswith(said)


def test_a_fault_of_ours_is_not_dressed_up_as_a_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "load_verb", broken)
    monkeypatch.setattr(sys, "argv", ["pathup", "tiles", "a", "b"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_with_130_and_no_traceback(tmp_path: Path, workers: str) -> None:
    source, out = class_tree(tmp_path / "source", count=8, side=600), tmp_path / "out"
    command = [sys.executable, "-m", "pathup", "tiles", str(source), str(out), "--recipe", "tiny", "--workers", workers]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )  # fmt: skip
    for _ in range(1000):
        if out.exists() or process.poll() is not None:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.endswith("pathup: interrupted\n")
