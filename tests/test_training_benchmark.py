"""The benchmark of training on the tiny model: all train, what it tells follows from the turns, and it can be lost."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import benchmarks.training as bench
from pathup.model.pipeline import build_pipeline
from pathup.recipes import Recipe


def test_pathup_and_the_loop_take_turns_and_all_of_them_train(
    tmp_path: Path, tiny_tiles: Path, recipe: Recipe
) -> None:
    build_pipeline(recipe).save_pretrained(tmp_path / "model")
    asked = argparse.Namespace(
        tiles=tiny_tiles, model=tmp_path / "model", recipe="tiny", batch_size=4, precision="fp32", compile=False,
        warm_up=1, steps=2, turns=2, device="cpu",
    )  # fmt: skip
    before = build_pipeline(recipe).unet.conv_out.weight
    (tmp_path / "work").mkdir()
    arms = bench.arms_of(asked, tmp_path / "work")
    found = bench.measure(asked, arms)
    for arm in arms.values():
        unet = arm.trainer.trained.unet if isinstance(arm, bench.PathUpTurns) else arm.unet
        assert not torch.equal(unet.conv_out.weight.detach(), before)
    # one step fills the cache, one warms up, then two turns of two
    assert [arm.trainer.step for arm in arms.values() if isinstance(arm, bench.PathUpTurns)] == [6, 6]
    assert all(len(spent) == 2 and min(spent) > 0 for spent in found["seconds_a_step"].values())
    assert all(0 < share < 1 for share in found["waited_share"])
    for line in ("PathUp, with the feature entropy loss", "the example's loop, bf16", "waiting for data"):
        assert line in bench.table(found)


def test_the_ratios_are_medians_over_turns_and_a_slow_trainer_loses() -> None:
    seconds = {
        "pathup": [1.0, 2.0, 3.0], "pathup_without_entropy": [1.0, 1.0, 2.0], "example_fp32": [1.5, 2.0, 9.0],
        "example_bf16": [0.5, 1.0, 1.5],
    }  # fmt: skip
    found = bench.ratios(seconds, [0.01, 0.2, 0.02])
    assert found["times_the_example_fp32"] == [1.5, 1.0, 3.0]
    assert found["times_the_example_bf16"] == [0.5, 0.5, 0.5]  # slower than the loop, and said so
    assert found["cost_of_entropy"] == [1.5, 1.0, 2.0]
    assert found["waiting_for_data"] == [0.02, 0.01, 0.2]
    assert found["steps_a_second"]["pathup"] == 0.5
