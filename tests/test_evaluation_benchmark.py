"""The benchmark of evaluation on a few tiles: what it tells follows from what it timed, and it can be lost."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

import benchmarks.evaluation as bench


def test_both_are_timed_on_the_same_tiles(tmp_path: Path) -> None:
    asked = argparse.Namespace(count=8, side=64, features="atlas", real=None, fake=None, mpp=0.5)
    found = bench.measure(asked, tmp_path)
    assert found["tiles"] == [8, 8]
    assert (tmp_path / "report/results.json").is_file()
    assert 0 < found["extraction_s"] < found["evaluate_s"]  # which extracts, too
    # all three are rounded: seconds to 0.05, times 1.15
    assert found["beyond_1.15_s"] == pytest.approx(found["evaluate_s"] - 1.15 * found["extraction_s"], abs=0.2)


def test_an_evaluation_that_is_too_slow_loses() -> None:
    found = {
        "tiles": [10_000, 10_000], "features": "atlas", "threads": 2, "extraction_s": 100.0, "evaluate_s": 400.0,
        "beyond_1.15_s": 285.0, "peak_rss_mib": 2000,
    }  # fmt: skip
    assert "285 s; wanted: at most 120" in bench.table(found)
