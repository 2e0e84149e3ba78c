from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from pathup.cli import main as cli
from tests.tiles.made import save, tissue


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return save(tmp_path / "a.png", tissue(96, 64))


def _pathup(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pathup", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_it_tells_its_address_serves_and_ends_with_ctrl_c(image: Path) -> None:
    command = [sys.executable, "-m", "pathup", "view", str(image), str(image), "--mpp", "0.5", "--no-open"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:") and address.endswith("/")
        with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310  (the address is checked above)
            page = answer.read().decode()
        assert page.count("96 × 64 px · 0.5 µm/px") == 2
    finally:
        process.send_signal(signal.SIGINT)
        said, complaints = process.communicate(timeout=20)
    assert process.returncode == 0, complaints
    assert said == "" and complaints == ""


def test_the_browser_is_shown_the_address_unless_told_otherwise(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("pathup.study.viewer.serve", lambda _, listening: listening.close())
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for display, option, times in (("", "--open", 0), (":0", "--no-open", 0), (":0", "--open", 1)):
        monkeypatch.setenv("DISPLAY", display)
        assert _pathup(monkeypatch, "view", image, option) == 0
        assert len(opened) == times
    assert opened[0].startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.svs"], "none.svs does not exist"),
        (["{image}", "none.png"], "none.png does not exist"),
        (["{text}"], "not an image that can be read"),
        (["{image}", "--mpp", "0"], "--mpp is 0, but micrometres a pixel"),
        (["{image}", "--mpp", "1", "--mpp", "2"], "--mpp was given 2 times"),
        (["{image}", "--layout", "none.geojson"], "none.geojson does not exist"),
        (["{image}", "--layout", "{text}"], "not readable JSON"),
        (["{image}", "--layout", "{text}", "--layout-unit", "mm"], "unknown --layout-unit 'mm'"),
        (["{image}", "--port", "{taken}"], "is in use; name another with --port"),
        (["{image}", "--host", "192.0.2.1"], "cannot listen at 192.0.2.1"),  # an address that nobody has (RFC 5737)
    ],
)
def test_a_mistake_is_one_sentence_and_code_1(
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("no image")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        filled = [argument.format(image=image, text=text, taken=port) for argument in arguments]
        assert _pathup(monkeypatch, "view", "--no-open", *filled) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("pathup: ") and sentence in said and len(said.splitlines()) == 1


def test_help_names_every_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert _pathup(monkeypatch, "view", "--help") == 0
    said = capsys.readouterr().out
    documented = (Path(__file__).parents[2] / "docs" / "viewer.md").read_text()
    for option in ("mpp", "layout", "layout-unit", "host", "port", "no-open"):
        assert f"--{option}" in said
        assert f"--{option}" in documented
