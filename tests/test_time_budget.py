"""A whole session of a few minutes on tiny parts: what it leaves is there, and the budget decides the steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import benchmarks.time_budget as module
from pathup.model.pipeline import load_pipeline
from pathup.recipes import Recipe
from pathup.tiles.making import make_tiles
from pathup.training.journal import GoneOffError, Journal
from tests.tiles.made import save, tissue


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    root = tmp_path_factory.mktemp("budget") / "regions"
    for first, split in ((0, "train"), (10, "val"), (20, "test")):
        for number, label in enumerate(recipe.labels):
            save(root / split / f"{number}_{label}" / f"{split}_{label}_1.png", tissue(384, 384, first + number))
    return root


def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PROBE", 4), ("LINE", 2), ("AUTOENCODER_PROBE", (2, 4))):
        monkeypatch.setattr(module, name, value)


def test_a_session_leaves_a_model_its_tiles_a_sheet_and_figures(regions, tmp_path, monkeypatch):
    shortened(monkeypatch)
    output = tmp_path / "out"
    told = ["time_budget", str(regions), "--output", str(output), "--recipe", "tiny", "--count", "10"]
    monkeypatch.setattr("sys.argv", [*told, "--minutes", "0.01", "--device", "cpu"])  # spent at once: one step each
    assert module.main() == 0
    found = json.loads((output / "time_budget.json").read_text())
    assert found["steps"] == 5  # the probe and one more
    stages = {"tiles", "autoencoder", "latents, setting up and probe", "training", "sampling and figures"}
    assert stages <= set(found["stages"])
    assert {(row["set"], row["level"]) for row in found["figures"]} == {
        (name, level) for name in ("drawn", "floor") for level in ("overview", "patch")
    }
    assert load_pipeline(output / "model").level_names == ["overview", "patch"]
    assert (output / "sheet.png").stat().st_size > 1000


def test_a_folder_of_tiles_is_taken_as_it_is(regions, tmp_path, recipe, tiny_autoencoder, monkeypatch):
    shortened(monkeypatch)
    make_tiles(regions, tmp_path / "tiles", recipe)
    told = ["time_budget", str(tmp_path / "tiles"), "--output", str(tmp_path / "out"), "--recipe", "tiny"]
    more = ["--autoencoder", str(tiny_autoencoder), "--count", "10", "--minutes", "0.01", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", [*told, *more])
    assert module.main() == 0
    assert not (tmp_path / "out" / "work" / "tiles").exists()
    assert "autoencoder" not in json.loads((tmp_path / "out/time_budget.json").read_text())["stages"]


def test_a_run_that_goes_off_goes_on_from_before_that_and_slower(
    regions, tmp_path, recipe, tiny_autoencoder, monkeypatch
):
    shortened(monkeypatch)
    monkeypatch.setattr(module, "affordable", lambda seconds, a_step: 6)
    monkeypatch.setattr(module, "KEEP_EVERY", 2)
    record, told = Journal.record, []

    def going_off_once(self: Journal, step: int, values: dict[str, float]) -> None:
        record(self, step, values)
        if step == 8 and not told:
            told.append(step)
            raise GoneOffError("planted", 5)

    monkeypatch.setattr(Journal, "record", going_off_once)
    make_tiles(regions, tmp_path / "tiles", recipe)
    line = ["time_budget", str(tmp_path / "tiles"), "--output", str(tmp_path / "out"), "--recipe", "tiny"]
    more = ["--count", "0", "--autoencoder", str(tiny_autoencoder), "--minutes", "9", "--device", "cpu"]
    more += ["--learning-rate", "0.001"]
    monkeypatch.setattr("sys.argv", [*line, *more])
    assert module.main() == 0
    assert told
    found = json.loads((tmp_path / "out/time_budget.json").read_text())
    assert found["slowed_down_at"] == [4] and found["steps"] == 10  # 4 is the newest checkpoint before step 5
    rows = [json.loads(row) for row in (tmp_path / "out" / "work" / "run" / "losses.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10]
    assert max(row["learning_rate"] for row in rows if row["step"] > 4) <= 0.0005


def test_speed_is_that_of_the_further_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def run(steps: int) -> None:
        now[0] += 30 + 0.5 * steps  # setting up takes 30 s

    assert module.seconds_a_step(run) == pytest.approx(0.5)
    assert module.affordable(100, 0.5) == 200
    assert module.affordable(-5, 0.5) == 1


def test_a_missing_source_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["time_budget", str(tmp_path / "none"), "--output", str(tmp_path / "out")])
    assert module.main() == 1
    assert capsys.readouterr().err.count("pathup: ") == 1
