"""The benchmark of many tiles on the tiny model: all arms draw, and what it tells follows from the turns."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

import benchmarks.bulk as bench
from pathup.model.pipeline import build_pipeline
from pathup.recipes import Recipe


def test_all_arms_draw_as_many_tiles(tmp_path: Path, recipe: Recipe) -> None:
    build_pipeline(recipe).save_pretrained(tmp_path / "model")
    asked = argparse.Namespace(
        model=tmp_path / "model", level="patch", count=3, batch=2, precision="fp32", arms=list(bench.TITLES),
        warm_up=1, turns=1, device="cpu", threads=1,
    )  # fmt: skip
    arms = bench.Arms(asked, tmp_path)
    forwards = 0

    def counted(*_: object) -> None:
        nonlocal forwards
        forwards += 1

    hook = arms.pipeline.unet.register_forward_hook(counted)
    arms.bare()
    bare, forwards = forwards, 0
    arms.ours(None)
    assert bare == forwards > 0
    hook.remove()

    found = bench.measure(asked, arms)
    labels, side = arms.pipeline.labels, int(arms.pipeline.config.tile_px)
    assert found["tiles"] == arms.tiles == 3 * len(labels)
    for turn in (5, 6):  # diffusers' arms, after PathUp's two and the bare ones
        drawn = sorted((tmp_path / str(turn)).glob("*.png"))
        assert [path.name for path in drawn] == [f"{label}_{i:04d}.png" for label in labels for i in range(3)]
        with Image.open(drawn[0]) as image:
            assert image.size == (side, side)
    assert set(found["over"]) == {
        "pathup over bare", "shards over bare", "plain over bare", "diffusers_loop over pathup",
        "diffusers_batches over pathup",
    }  # fmt: skip
    assert "one tile after the other" in bench.table(found)


def test_the_ratios_are_medians_over_turns() -> None:
    found = bench.ratios({"pathup": [1.1, 2.4, 3.9], "bare": [1.0, 2.0, 3.0]}, 12)
    assert [round(value, 3) for value in found["over"]["pathup over bare"]] == [1.2, 1.1, 1.3]
    assert found["tiles_a_second"] == {"pathup": 5.0, "bare": 6.0}
