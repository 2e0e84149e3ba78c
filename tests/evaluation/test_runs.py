"""``pathup evaluate`` end to end on made tiles: what it writes, what it refuses, and what a stop leaves."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pathup.errors import PathUpError
from pathup.evaluation import runs as module
from pathup.evaluation.runs import EvaluateRequest, evaluate
from pathup.model.encoder import TissueEncoder, save_encoder
from tests.tiles.made import save, save_slide, tissue


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder with random weights: it takes a second less than the shipped one, and is as much of a function."""
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    torch.manual_seed(0)
    save_encoder(TissueEncoder([8, 8, 8, 8], 32), folder, {})
    return str(folder)


def synthetic(folder: Path, seed: int, level: str = "patch", count: int = 8, **changed: Any) -> Path:
    """Like what `pathup generate --label all --level LEVEL` writes: tiles of both classes."""
    rows = []
    for index in range(count):
        for label in "AB":
            name = f"{label}_{index:04d}.png"
            save(folder / name, tissue(32, 32, 1000 * seed + 10 * index + (label == "B")))
            mpp = {"patch": 0.5, "overview": 2.5}[level]
            rows.append({"file_name": name, "label": label, "level": level, "mpp": mpp, "seed": seed, **changed})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def asked(real: Path, fake: Path, output: Path, features: str, **changed: Any) -> EvaluateRequest:
    values: dict[str, Any] = {
        "real": real, "fake": fake, "output": output, "features": (features,), "replicates": 20, "subsets": 5,
        "keep": False,
    }  # fmt: skip
    return EvaluateRequest(**{**values, **changed})


def read(output: Path) -> dict[str, Any]:
    return json.loads((output / "results.json").read_text())


def test_a_report_holds_every_part_beside_its_floor(tmp_path: Path, tiny_tiles: Path, features: str) -> None:
    fakes = [synthetic(tmp_path / f"run{seed}", seed) for seed in range(3)]
    told: list[tuple[str, int, int]] = []
    request = asked(tiny_tiles, fakes[0], tmp_path / "report", features, runs=tuple(fakes[1:]))
    report = evaluate(request, progress=lambda *call: told.append(call))
    results = read(tmp_path / "report")
    assert results == json.loads(json.dumps(report.results))

    (block,) = results["fidelity"]
    assert len(block["features"]["weights_sha256"]) == 64 and "bicubic" in block["features"]["resize_filter"]
    rows = {row["name"]: row for row in block["rows"]}
    assert list(rows) == ["overall", "patch, A", "patch, B"]
    overall = rows["overall"]
    assert overall["counts"]["train"] == overall["counts"]["synthetic"] == 16
    assert len(overall["runs"]) == 3 and overall["floor"]["fid"]["value"] > 0
    values = [run["fid"]["value"] for run in overall["runs"]]
    mean, deviation = pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1))
    assert overall["spread"]["fid"] == {"mean": mean, "std": deviation, "runs": 3}
    assert max(entry["relative_difference"] for entry in block["torch_fidelity"]["figures"].values()) < 1e-4

    (consistency,) = results["consistency"]
    assert consistency["level"] == "patch" and consistency["runs"] == 3
    assert set(consistency["views"]) == {"colour", "grey"}
    (morphology,) = results["morphology"]
    assert morphology["mpp"] == pytest.approx(0.5) and set(morphology["classes"]) == {"A", "B"}
    (copying,) = results["copying"]
    assert copying["counts"]["synthetic"] == 48 and copying["synthetic"]["copies"] == 0
    assert "private" not in json.dumps(results).lower()
    assert results["seams"] == [] and any("seams were not looked for" in note for note in results["notes"])
    assert results["split_by"] == "region" and results["libraries"]["torch-fidelity"]

    text = (tmp_path / "report" / "results.md").read_text()
    for said in ("are not comparable", "**Floor**", "mean ± std of 3 runs", "Fréchet distance", "## Copying"):
        assert said in text
    assert "FID" not in re.sub(r"(the FID and KID of the literature|so FID is|use KID)", "", text)  # not Inception's
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == len(list((tmp_path / "report").glob("*.png"))) >= 3
    assert "http" not in page and str(tmp_path) not in text + json.dumps(results)  # stands alone; no machine's paths
    stages = {stage for stage, _, _ in told}
    assert {"features, real", "features, synthetic"} <= stages and any("fidelity" in stage for stage in stages)
    for path in (tmp_path / "report").glob("*.png"):
        Image.open(path).verify()


def test_the_same_request_gives_the_same_results_and_kept_features_are_used(
    tmp_path: Path, tiny_tiles: Path, features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = synthetic(tmp_path / "fake", 0)
    parts = {"only": ("fidelity", "consistency"), "keep": True, "cache": tmp_path / "cache"}
    evaluate(asked(tiny_tiles, fake, tmp_path / "one", features, **parts))

    def no_extraction(*args: object, **kwargs: object) -> None:
        raise AssertionError("features were taken again")

    monkeypatch.setattr("pathup.evaluation.features.extract", no_extraction)
    evaluate(asked(tiny_tiles, fake, tmp_path / "two", features, **parts))
    assert read(tmp_path / "one") == read(tmp_path / "two")


def test_two_levels_are_told_apart(tmp_path: Path, tiny_tiles: Path, features: str) -> None:
    overview = json.loads((tiny_tiles / "test" / "metadata.jsonl").read_text().splitlines()[0])
    assert overview["level"] in ("overview", "patch")
    for level in ("overview", "patch"):
        mpp = next(
            row["mpp"] for row in map(json.loads, (tiny_tiles / "test" / "metadata.jsonl").read_text().splitlines())
            if row["level"] == level
        )  # fmt: skip
        synthetic(tmp_path / "run" / level, 1, level, mpp=mpp)
    request = asked(tiny_tiles, tmp_path / "run", tmp_path / "report", features, only=("fidelity", "morphology"))
    results = evaluate(request).results
    names = [row["name"] for row in results["fidelity"][0]["rows"]]
    assert names[:3] == ["overall", "overview", "patch"] and "overview, A" in names
    # two overviews of the split test are too few, and said to be; patches are enough
    rows = {row["name"]: row for row in results["fidelity"][0]["rows"]}
    assert not rows["overview"]["runs"] and "at least" in rows["overview"]["warnings"][0] and rows["patch"]["runs"]
    assert [block["level"] for block in results["morphology"]] == ["overview", "patch"]
    only = asked(tiny_tiles, tmp_path / "run", tmp_path / "level", features, only=("fidelity",), level="patch")
    assert [row["name"] for row in evaluate(only).results["fidelity"][0]["rows"]] == ["overall", "patch, A", "patch, B"]


def test_plain_folders_of_images_are_compared_with_halves_for_a_floor(tmp_path: Path, features: str) -> None:
    for name, first in (("real", 0), ("fake", 100)):
        for number in range(16):
            save(tmp_path / name / f"{number}.png", tissue(32, 32, first + number))
    results = evaluate(asked(tmp_path / "real", tmp_path / "fake", tmp_path / "report", features)).results
    (row,) = results["fidelity"][0]["rows"]
    assert row["floor"] is None and row["halves"]["real"]["fid"]["value"] > 0
    assert results["consistency"] == results["morphology"] == results["copying"] == []
    notes = " ".join(results["notes"])
    assert "--mpp" in notes and "--train" in notes and "class consistency was not measured" in notes
    scaled = asked(tmp_path / "real", tmp_path / "fake", tmp_path / "b", features, mpp=0.5, only=("morphology",))
    assert evaluate(scaled).results["morphology"][0]["floor"] == "the other half of the real tiles"


def test_slides_and_large_images_are_cropped_and_searched_for_seams(tmp_path: Path, features: str) -> None:
    save_slide(tmp_path / "real" / "slide.tif", tissue(640, 512), 0.5)
    for number in range(2):
        save(tmp_path / "fake" / f"{number}.png", tissue(512, 512, 5 + number))
    request = asked(
        tmp_path / "real", tmp_path / "fake", tmp_path / "report", features, crop=32, crops=12, grid="128",
        only=("fidelity", "seams"), mpp=0.5,
    )  # fmt: skip
    results = evaluate(request).results
    assert results["sets"]["real"]["count"] == results["sets"]["synthetic"][0]["count"] == 12
    assert results["fidelity"][0]["rows"][0]["runs"]
    assert any("random crops of 32 px" in note for note in results["notes"])
    assert [found["image"] for found in results["seams"]] == ["0.png", "1.png"]
    assert all(0 < found["p_value"] <= 1 and found["grid_from"] == "given, 128 px" for found in results["seams"])
    crops = sorted((tmp_path / "report" / "crops" / "synthetic").glob("*.png"))
    assert len(crops) == 12 and Image.open(crops[0]).size == (32, 32)


def test_crops_of_runs_of_one_name_are_kept_apart(tmp_path: Path, features: str) -> None:
    for name in ("real", "a/drawn", "b/drawn"):
        save(tmp_path / name / "0.png", tissue(200, 200, len(name)))
    request = asked(
        tmp_path / "real", tmp_path / "a" / "drawn", tmp_path / "report", features, runs=(tmp_path / "b" / "drawn",),
        only=("fidelity",), crop=32, crops=8,
    )  # fmt: skip
    assert len(evaluate(request).results["fidelity"][0]["rows"][0]["runs"]) == 2
    assert sorted(path.name for path in (tmp_path / "report" / "crops").iterdir()) == [
        "real", "synthetic", "synthetic_run_2",
    ]  # fmt: skip


def test_a_slide_is_cropped_to_the_tiles_it_is_compared_with(tmp_path: Path, features: str) -> None:
    slide = save_slide(tmp_path / "slide.tif", tissue(640, 512), 0.5)
    for number in range(8):
        save(tmp_path / "tiles" / f"{number}.png", tissue(64, 64, number))
    save(tmp_path / "large" / "0.png", tissue(600, 600))
    how: dict[str, Any] = {"only": ("fidelity",), "crops": 8}
    results = evaluate(asked(tmp_path / "tiles", slide, tmp_path / "one", features, **how)).results
    told = results["sets"]["synthetic"][0]
    assert told == {"source": "crops of slide.tif", "count": 8, "size_px": 64, "cells": {"all": 8}}
    results = evaluate(asked(slide, tmp_path / "large", tmp_path / "two", features, **how)).results
    assert results["sets"]["real"]["size_px"] == results["sets"]["synthetic"][0]["size_px"] == module.CROP_PX


def test_a_run_that_is_stopped_leaves_nothing_half_written(
    tmp_path: Path, tiny_tiles: Path, features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = synthetic(tmp_path / "fake", 0)
    request = asked(tiny_tiles, fake, tmp_path / "report", features, only=("fidelity",))

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "markdown", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(request)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fake"]
    evaluate(request)
    before = (tmp_path / "report" / "results.json").read_bytes()
    with pytest.raises(PathUpError, match="exists and is not empty; add --overwrite"):
        evaluate(request)
    assert (tmp_path / "report" / "results.json").read_bytes() == before
    evaluate(asked(tiny_tiles, fake, tmp_path / "report", features, only=("fidelity",), overwrite=True))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(PathUpError, match="something other than a report"):
        evaluate(asked(tiny_tiles, fake, tmp_path / "mine", features, overwrite=True))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"only": ("fidelty",)}, "unknown part 'fidelty'; did you mean 'fidelity'"),
        ({"split": "tset"}, "unknown split 'tset'; did you mean 'test'"),
        ({"level": "pacth"}, "unknown level .* 'pacth'; did you mean 'patch'"),
        ({"features": ("atlsa",)}, "unknown features 'atlsa'; did you mean 'atlas'"),
        ({"real": Path("nowhere")}, "real tiles nowhere do not exist"),
        ({"fake": Path("nowhere")}, "synthetic tiles nowhere do not exist"),
        ({"grid": "wide"}, "grid 'wide' is not understood"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, tiny_tiles: Path, features: str, changed: dict[str, Any], said: str
) -> None:
    fake = synthetic(tmp_path / "fake", 0)
    with pytest.raises(PathUpError, match=said):
        evaluate(replace(asked(tiny_tiles, fake, tmp_path / "report", features), **changed))
    assert not (tmp_path / "report").exists()


def test_synthetic_tiles_of_an_unknown_class_or_size_are_refused(
    tmp_path: Path, tiny_tiles: Path, features: str
) -> None:
    other = synthetic(tmp_path / "other", 0, label="C")
    with pytest.raises(PathUpError, match="synthetic set holds tiles of class C, level 'patch'"):
        evaluate(asked(tiny_tiles, other, tmp_path / "report", features))
    large = synthetic(tmp_path / "large", 0)
    for path in large.glob("*.png"):
        save(path, tissue(64, 64))
    with pytest.raises(PathUpError, match="synthetic tiles are 64 px wide, but the real ones 32"):
        evaluate(asked(tiny_tiles, large, tmp_path / "report", features))
    few = synthetic(tmp_path / "few", 0, count=1)
    with pytest.raises(PathUpError, match="2 synthetic tiles to compare, but density and coverage needs at least 6"):
        evaluate(asked(tiny_tiles, few, tmp_path / "report", features, only=("fidelity",)))
    for number, path in enumerate(sorted((synthetic(tmp_path / "grey", 0)).glob("*.png"))):
        if number == 5:
            Image.open(path).convert("L").save(path)
    with pytest.raises(PathUpError, match=r"\.png is a greyscale image, but 8-bit RGB was needed"):
        evaluate(asked(tiny_tiles, tmp_path / "grey", tmp_path / "report", features))
    assert not (tmp_path / "report").exists()
