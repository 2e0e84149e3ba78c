"""What `pathup doctor` says of machines, of which most are stood in for."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from pathup import doctor
from pathup.cli.doctor import told
from pathup.cli.main import app
from pathup.doctor import Finding, examine

GIB = 2**30


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


def test_this_machine_has_what_pathup_needs(tmp_path: Path) -> None:
    found = by_name(examine(tmp_path / "not made yet"))
    assert not [finding for finding in found.values() if finding.state == "missing"]
    assert found["torch"].told.startswith(torch.__version__)
    assert found["slides: OpenSlide"].state == found["slides: tifffile"].state == "good"
    assert found["disk for runs"].told.endswith(f"free at {tmp_path}"), "the nearest folder that is there"
    assert not (tmp_path / "not made yet").exists(), "it only looks"
    if not torch.cuda.is_available():
        assert "bf16 on the CPU" in found
        assert "bf16 on the CPU" not in by_name(examine(tmp_path, probe=False))


def test_whatever_is_slow_or_missing_comes_with_what_mends_it() -> None:
    for finding in (
        doctor.cores_of(2, 64, None), doctor.cores_of(8, 1, "1"), doctor.memory_of(2 * GIB, 4 * GIB),
        doctor.shared_memory_of(Path("/no/such/place")), doctor.bfloat16_of(0.2),
    ):  # fmt: skip
        assert finding.state in ("slow", "note") and finding.mend
    assert doctor.cores_of(2, 64, None).mend == "export OMP_NUM_THREADS=2"
    assert doctor.cores_of(8, 8, None).state == doctor.memory_of(64 * GIB, 64 * GIB).state == "good"
    assert doctor.bfloat16_of(1.9).state == "good" and "1/1.9 of its time" in doctor.bfloat16_of(1.9).told
    assert "5.0 times as long" in doctor.bfloat16_of(0.2).told


def test_a_machine_whose_torch_does_not_use_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert doctor._torch(False, nvidia=True).state == "slow"
    assert "the build for its CUDA version" in doctor._torch(False, nvidia=True).mend
    assert doctor._torch(False, nvidia=False).state == "note"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "nvidia-smi" in doctor._torch(False, nvidia=True).mend


def test_gpus_with_and_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (70 * GIB, 80 * GIB))
    for major, state, mend in ((9, "good", ""), (7, "note", "use --precision fp32")):
        facts = SimpleNamespace(major=major, name="a card")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index, facts=facts: facts)
        finding = doctor._gpu(0)
        assert (finding.state, finding.mend) == (state, mend)
        assert "a card, 70 of 80 GiB free" in finding.told


def test_a_disk_that_is_full_or_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=GIB, total=100 * GIB, used=99 * GIB)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda place: usage)
        assert doctor.disk_of("disk for runs", tmp_path).state == "slow"
        assert "TMPDIR" in doctor.disk_of("disk for temporary files", tmp_path).mend
    monkeypatch.setattr(os, "access", lambda place, how: False)
    assert doctor.disk_of("disk for runs", tmp_path).state == "missing"


def test_a_slide_library_that_does_not_load_is_missing_and_the_exit_code_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken() -> str:
        raise OSError("libopenslide.so.1: cannot open\nshared object file")

    monkeypatch.setattr(doctor, "_openslide", broken)
    result = CliRunner().invoke(app, ["doctor", "--no-probe", "--folder", str(tmp_path)])
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith("MISSING")]
    assert "libopenslide.so.1: cannot open shared object file" in line
    assert "pip install --force-reinstall openslide-python openslide-bin" in result.output
    assert "1 missing" in result.output.splitlines()[-1]


def test_the_command_says_the_same_in_words_and_in_json(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--no-probe", "--json", "--folder", str(tmp_path)])
    assert result.exit_code == 0
    rows = json.loads(result.output)
    assert {"what", "state", "told", "mend"} == set(rows[0])
    lines = told([Finding(**row) for row in rows])
    for row in rows:
        assert any(row["what"] in line and row["told"] in line for line in lines)
    assert told([Finding("a", "good", "b")])[-1] == "all that PathUp needs is here"


def test_weights_that_are_not_there_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found = by_name(doctor._weights())
    assert found["weights: inception"].state == "note"
    assert "--features inception,weights=FILE" in found["weights: inception"].mend
    place = Path(found["weights: inception"].told.removeprefix("not at "))
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    assert by_name(doctor._weights())["weights: inception"].state == "good"
