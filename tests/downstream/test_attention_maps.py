"""Attention over a region: every patch of every field at its place, as a table and as a picture."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from pathup.downstream.attention_maps import overlay
from pathup.downstream.judging import EvaluateRequest, evaluate_classifier
from pathup.downstream.runs import TrainRequest, train


def test_patches_are_coloured_where_they_are_and_nothing_else_is():
    pixels = np.full((40, 60, 3), 200, np.uint8)
    found = overlay(pixels, [(0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1)], np.array([0.1, 3.0]))
    assert (found[:20, 30:] == 200).all()
    assert (found[20:, :30] == 200).all()
    faint, strong = found[:20, :30], found[20:, 30:]
    assert np.abs(faint - 200.0).mean() < np.abs(strong - 200.0).mean()
    assert strong[0, 0].tolist() == [224, 214, 127]  # 0.45 of viridis's end (253, 231, 37) over 0.55 of 200


def test_the_table_has_every_patch_of_a_region_and_adds_up_to_one_in_each_field(source, recipe, tmp_path):
    train(TrainRequest(
        name="abmil", regions=source, output=tmp_path / "run", recipe=recipe, changes={}, cache=tmp_path / "cache",
        device="cpu",
    ))  # fmt: skip
    evaluate_classifier(EvaluateRequest(
        model=tmp_path / "run", regions=source, output=tmp_path / "scores", attention=True, cache=tmp_path / "cache",
        device="cpu",
    ))  # fmt: skip
    with (tmp_path / "scores/attention.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 16  # regions of 128 px have four fields of four patches
    own = [row for row in rows if row["region"] == "test_A_1"]
    corners = [(x, y) for x in (0, 32, 64, 96) for y in (0, 32, 64, 96)]
    assert sorted((int(row["x"]), int(row["y"])) for row in own) == corners
    fields: dict[tuple[int, int], float] = {}
    for row in own:
        key = int(row["x"]) // 64, int(row["y"]) // 64
        fields[key] = fields.get(key, 0) + float(row["attention"])
    assert list(fields.values()) == pytest.approx([1, 1, 1, 1], abs=1e-5)
    assert (tmp_path / "scores/attention/test_A_1.png").stat().st_size > 10_000
