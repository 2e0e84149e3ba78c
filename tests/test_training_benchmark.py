"""The benchmark of training on the tiny model: all train, what it tells follows from the turns, and it can be lost."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch

import benchmarks.training as bench
from benchmarks.example_loop import LoopTurns
from pathup import PathUpError
from pathup.memory import HUGE_PAGES
from pathup.model.pipeline import build_pipeline
from pathup.recipes import Recipe


def _asked(tiles: Path, model: Path) -> argparse.Namespace:
    return argparse.Namespace(
        tiles=tiles, model=model, recipe="tiny", batch_size=4, precision="fp32", compile=False, warm_up=1, steps=2,
        turns=2, device="cpu", threads=1,
    )  # fmt: skip


def test_pathup_and_the_loop_take_turns_and_all_of_them_train(tmp_path: Path, tiny_tiles: Path, recipe: Recipe) -> None:
    build_pipeline(recipe).save_pretrained(tmp_path / "model")
    asked = _asked(tiny_tiles, tmp_path / "model")
    (tmp_path / "work").mkdir()
    found = bench.measure(asked, tmp_path / "work")
    assert all(len(spent) == 2 and min(spent) > 0 for spent in found["seconds_a_step"].values())
    assert all(0 < share < 1 for share in found["waited_share"])
    assert found["peak_memory_bytes"].keys() == found["seconds_a_step"].keys()
    assert min(found["peak_memory_bytes"].values()) > 100 * 2**20  # PyTorch alone takes more
    for line in ("PathUp, with the feature entropy loss", "the example's loop, bf16", "waiting for data"):
        assert line in bench.table(found)


def test_each_arm_trains_its_unet(tmp_path: Path, tiny_tiles: Path, recipe: Recipe) -> None:
    build_pipeline(recipe).save_pretrained(tmp_path / "model")
    asked = _asked(tiny_tiles, tmp_path / "model")
    before = build_pipeline(recipe).unet.conv_out.weight
    pathup = bench.PathUpTurns(asked, tmp_path, "pathup", entropy=True)
    pathup.turn(2)
    assert pathup.trainer.step == 4  # one step fills the cache, one warms up
    loop = LoopTurns(asked, "fp32")
    for unet in (pathup.trainer.trained.unet, loop.unet):
        assert not torch.equal(unet.conv_out.weight.detach(), before)


def test_an_arm_that_fails_says_why(tmp_path: Path, tiny_tiles: Path) -> None:
    asked = _asked(tiny_tiles, tmp_path / "none")
    with pytest.raises(PathUpError, match="none"):
        bench.Turns(bench.LoopArm("example_fp32", "fp32"), asked, tmp_path)


def test_huge_pages_are_asked_for_by_pathup_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HUGE_PAGES, "0")
    with bench._environment(False):
        assert HUGE_PAGES not in os.environ
    with bench._environment(True):
        assert os.environ[HUGE_PAGES] == "1"
    assert os.environ[HUGE_PAGES] == "0"


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
