"""The benchmark of cutting: both arms make the same tiles, and it can be lost."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import benchmarks.cutting as bench
from pathup.tiles.making import make_tiles
from tests.tiles.made import class_tree, tiny


def test_the_bare_arm_makes_the_very_tiles(tmp_path: Path) -> None:
    recipe, source = tiny(), class_tree(tmp_path / "source")
    make_tiles(source, tmp_path / "tiles", recipe)
    bench.bare(bench.cuts_of(source, tmp_path / "tiles", recipe), recipe.tiles.tile_px, tmp_path / "bare", 1)

    def pixels(folder: Path) -> list[bytes]:
        return sorted(np.asarray(Image.open(path)).tobytes() for path in folder.rglob("*.png"))

    assert pixels(tmp_path / "bare") == pixels(tmp_path / "tiles")


def test_turns_are_told_and_a_slow_cutter_loses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = class_tree(tmp_path / "source")
    clock = iter([0.0, 3.0, 10.0, 12.0, 20.0, 24.0, 30.0, 32.0])  # 3 s beside 2, then 4 beside 2
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(bench, "make_tiles", lambda *given, **_: make_tiles(*given))
    monkeypatch.setattr(bench, "bare", lambda *_: None)
    asked = argparse.Namespace(regions=source, recipe="tiny", workers=2, turns=2, scratch=None)
    found = bench.measure(asked)
    assert found["over_bare"] == [1.75, 1.5, 2.0]
    assert found["regions"] == len(list(source.rglob("*.png")))
    assert found["megapixels_a_second"] == pytest.approx(found["megapixels"] / 3.5)
    assert "1.75 (1.50 to 2.00)" in bench.table(found)
