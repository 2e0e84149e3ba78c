"""Features by two processes: the same report as by one, and an image that is damaged is told by either."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.test_runs import features, synthetic
from tests.processes import run_pathup

__all__ = ["features"]  # the fixture


def _two(*arguments: object) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pathup"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*launcher, *map(str, arguments)], env=environment, capture_output=True, text=True)


def _asked(real: Path, fake: Path, output: Path, features: str) -> list[object]:
    return [
        "evaluate", real, fake, "--output", output, "--features", features, "--only", "fidelity", "--replicates", 0,
        "--subsets", 2, "--no-cache", "--device", "cpu", "--threads", 1,
    ]  # fmt: skip


def test_two_processes_make_the_report_of_one(tmp_path: Path, tiny_tiles: Path, features: str) -> None:
    fake = synthetic(tmp_path / "fake", 1)
    done = _two(*_asked(tiny_tiles, fake, tmp_path / "two", features))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("report: ") == 1
    run_pathup(*_asked(tiny_tiles, fake, tmp_path / "one", features))

    def numbers(value: object) -> list[float]:
        if isinstance(value, dict):
            return [number for key in sorted(value) for number in numbers(value[key])]
        if isinstance(value, list):
            return [number for one in value for number in numbers(one)]
        return [float(value)] if isinstance(value, int | float) else []

    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert len(numbers(one)) > 20
    # a network's last digits depend on how many images are in its batch
    assert numbers(two) == pytest.approx(numbers(one), rel=1e-3, abs=1e-5)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )


def test_what_the_second_process_meets_is_told(tmp_path: Path, tiny_tiles: Path, features: str) -> None:
    fake = synthetic(tmp_path / "fake", 1)
    victim = sorted(fake.glob("*.png"))[1]  # the second of every two is the second process's
    victim.write_bytes(victim.read_bytes()[:60])
    done = _two(*_asked(tiny_tiles, fake, tmp_path / "report", features))
    assert done.returncode != 0 and not (tmp_path / "report").exists()
    sentences = [line for line in done.stderr.splitlines() if "pathup: " in line]
    assert len(sentences) == 1 and victim.name in sentences[0]
