"""The benchmark of several processes on the tiny model: both numbers of processes train and draw."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

import benchmarks.scaling as bench
from pathup import PathUpError
from pathup.model.pipeline import build_pipeline
from pathup.recipes import Recipe


def test_one_process_and_two_take_turns(tmp_path: Path, tiny_tiles: Path, recipe: Recipe) -> None:
    build_pipeline(recipe).save_pretrained(tmp_path / "model")
    asked = argparse.Namespace(
        tiles=tiny_tiles, model=tmp_path / "model", recipe="tiny", latents=None, processes=2, threads=1, batch_size=2,
        steps=2, count=2, window_batch=1, turns=1, device="cpu",
    )  # fmt: skip
    work = tmp_path / "work"
    work.mkdir()
    found = bench.measure(asked, work)
    for name in ("training", "drawing"):
        assert {count: len(rates) for count, rates in found["tiles_a_second"][name].items()} == {"1": 1, "2": 1}
        assert found["times_one_process"][name][0] > 0
    assert len(list(work.glob("draw_*/*.png"))) == 2 * 2 * 2  # two turns, two classes, two tiles
    assert "| training |" in bench.table(found)


def test_ratios_are_of_the_same_turn_and_what_is_not_told_is_an_error() -> None:
    assert bench.ratio({"1": [1.0, 2.0, 4.0], "2": [1.5, 4.0, 4.0]}, 2) == [1.5, 1.0, 2.0]
    assert bench.told_rate("14 images of 32 x 32 px, 0.5 mpp: out\n9 forwards; tiles 7.0 s, total 8.0 s") == 2.0
    with pytest.raises(PathUpError, match="neither images nor seconds"):
        bench.told_rate("something else")
