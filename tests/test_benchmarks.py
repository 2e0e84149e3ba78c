"""The benchmark of the sampler on the tiny model: what it compares is comparable, and its verdicts can be lost."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import benchmarks.sampling as bench
from benchmarks import sampling_bench, sampling_methods, sampling_report
from benchmarks.panorama import draw, panorama
from pathup.model.pipeline import PathUpPipeline, build_pipeline
from pathup.recipes import load_recipe
from pathup.sampling.canvas import canvas_noise
from pathup.sampling.tracking import last_timesteps
from pathup.sampling.windows import WindowGrid
from tests.sampling import reference

SIZE, STEPS = 64, 2  # 16 x 16 latent positions: 3 x 3 windows of 8 that overlap by half, 2 x 2 that don't


@pytest.fixture(scope="module")
def pipeline() -> PathUpPipeline:
    torch.set_num_threads(1)
    made = build_pipeline(load_recipe("tiny"))
    for part in (made.vae, made.text_encoder, made.unet):
        part.eval().requires_grad_(False)
    return made


@pytest.fixture(autouse=True)
def _this_process_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    verbosity = diffusers.utils.logging.get_verbosity()
    monkeypatch.setattr(sampling_bench, "keep_freed_memory", lambda: False)
    yield
    diffusers.utils.logging.set_verbosity(verbosity)


def _asked(*more: str) -> argparse.Namespace:
    asked = ["--recipe", "tiny", "--size", str(SIZE), "--steps", str(STEPS), "--threads", "1", "--device", "cpu"]
    return bench.parsed([*asked, "--batches", "3", "--repeats", "1", *more])


def _turn(asked: argparse.Namespace, name: str, **more: Any) -> dict[str, Any]:
    """As in a process of its own: through the command line, and JSON."""
    told = sampling_methods.turn_of(bench.parsed(bench.arguments_of(asked, name, **more)))
    found: dict[str, Any] = json.loads(json.dumps(told))
    return found


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sampling_bench, "keep_freed_memory", lambda: False)
        patched.setattr(bench, "turn", _turn)
        return bench.measure(_asked())


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_diffusers_panorama_at_half_a_window_is_algorithm_1_without_weights(
    pipeline: PathUpPipeline, monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    # so our subclass gives it this model's window and factor, and nothing else differs
    start = canvas_noise((4, 24, 16), 3)
    monkeypatch.setattr(reference, "equation_6", lambda side: torch.ones(side, side, dtype=torch.float64))
    scheduler = pipeline.make_scheduler("ddim")
    prompt = pipeline.prompt("B", "patch")
    timesteps = last_timesteps(scheduler, 3, 1.0)
    expected = reference.algorithm_1(
        pipeline, start, scheduler, timesteps, prompt=prompt, guidance=guidance, size=8, overlap=4
    )
    embeddings = {
        "prompt_embeds": pipeline.encode_prompts([prompt]),
        "negative_prompt_embeds": pipeline.encode_prompts([""]),
    }
    for batch in (1, 4):
        found = draw(panorama(pipeline, 8, 4), start, embeddings, steps=3, guidance=guidance, view_batch=batch)
        assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())  # rounding of float32


def test_diffusers_views_are_the_windows_of_its_stride(pipeline: PathUpPipeline) -> None:
    for stride in (2, 4, 8):
        views = panorama(pipeline, 8, stride).get_views(24 * pipeline.factor, 16 * pipeline.factor)
        grid = WindowGrid(24, 16, 8, 8 - stride)
        assert views == [(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in grid]


def test_each_method_is_counted_where_it_calls_the_unet(result: dict[str, Any]) -> None:
    rows = result["methods"]
    assert list(rows) == list(sampling_report.TITLES)
    overlapped, stride_8 = STEPS * 9, STEPS * 4
    for name in ("literal", "equation_6", "overlapped", "overlapped_1", "panorama_half", "panorama_half_batched"):
        assert rows[name]["forwards"] == rows[name]["windows_worth"] == overlapped, name
    assert rows["panorama"]["forwards"] == rows["panorama_batched"]["forwards"] == stride_8
    assert rows["shifted"]["windows_worth"] == 4 + 9  # one step covers the canvas once, the last one overlaps
    batches = [rows[name]["window_batch"] for name in ("literal", "overlapped", "overlapped_1", "panorama")]
    assert batches == [1, 3, 1, 1]
    for kind in ("overlapped", "shifted"):
        whole, bare = rows[f"whole_{kind}"], rows[f"bare_{kind}"]
        assert whole["forwards"] == whole["forwards_reported"]
        assert bare["forwards"] == whole["forwards"] and bare["windows_worth"] == whole["windows_worth"]
        assert whole["window_batch"] == bare["window_batch"] == 1  # of a batch of 3: with guidance a window is two
        assert sum(seconds for stage, seconds in whole["stages"].items() if stage != "total") == pytest.approx(
            whole["seconds"]
        )
        assert {"load", "overview", "encode", "canvas", "decode", "write"} < set(whole["stages"])
    assert all(row["seconds"] > 0 and row["cpu_seconds"] > 0 and row["peak_memory_bytes"] > 0 for row in rows.values())
    assert result["equation_6_from_literal"] < 1e-5  # rounding of float32


def test_the_page_says_every_method_and_verdict(result: dict[str, Any]) -> None:
    page = sampling_report.table(json.loads(json.dumps(result)))
    for name, title in sampling_report.TITLES.items():
        assert name.startswith(("whole_", "bare_")) or f"| {title} |" in page
    assert len(result["verdicts"]) == 10
    assert page.count("line 1: ") == 8 and page.count("line 2: ") == 2
    assert max(len(line) for line in page.splitlines() if not line.startswith(("|", "-", "#"))) <= 125


def _row(seconds: float, **more: float) -> dict[str, Any]:
    turn = {"seconds": {"total": seconds}, "cpu_seconds": seconds, "forwards": 1, "peak_memory_bytes": 1, **more}
    slower = {**turn, "seconds": {"total": 3 * seconds}}
    return sampling_report.summary("", [slower, turn, slower])


@pytest.mark.parametrize(
    ("seconds", "lost"),
    [
        ({}, ""),
        ({"shifted": 45.1}, "shifted over overlapped"),
        ({"overlapped_1": 110.1}, "one window at a time"),
        ({"whole_shifted": 55.1}, "whole slide (shifted)"),
    ],
)
def test_a_verdict_is_lost_just_beyond_its_limit(seconds: dict[str, float], lost: str) -> None:
    times = {"literal": 110.0, "overlapped": 100.0, "overlapped_1": 110.0, "shifted": 45.0, "whole_shifted": 55.0,
             "bare_shifted": 50.0, **seconds}  # fmt: skip
    worth = {"windows_worth": 7.0, "windows_worth_expected": 7.0}
    found = sampling_report.verdicts({name: _row(time, **worth) for name, time in times.items()}, 1e-5)
    fails = [row["what"] for row in found if row["verdict"] == "fails"]
    assert len(fails) == bool(lost) and all(lost in what for what in fails)


def test_windows_that_are_left_out_and_another_canvas_lose_too() -> None:
    short = {"windows_worth": 6.0, "windows_worth_expected": 7.0}
    found = sampling_report.verdicts({"shifted": _row(1.0, **short)}, 0.1)
    assert [row["verdict"] for row in found] == ["fails", "fails"]


def test_a_turn_is_told_what_the_benchmark_was_told(tmp_path: Path) -> None:
    asked = _asked("--methods", "shifted", "--output", "x.json", "--guidance", "2")
    told = bench.parsed(bench.arguments_of(asked, "shifted", batch=4, tile=32, keep=tmp_path / "a.npy"))
    assert (told.turn, told.batch, told.tile, told.keep) == ("shifted", 4, 32, tmp_path / "a.npy")
    same = ("recipe", "model", "size", "steps", "guidance", "batches", "repeats", "threads", "device")
    assert all(getattr(told, name) == getattr(asked, name) for name in same)


def test_the_shipped_model_is_measured_when_none_is_named() -> None:
    assert bench.parsed([]).model == bench.SHIPPED
    assert bench.parsed(["--recipe", "tiny"]).model is None
