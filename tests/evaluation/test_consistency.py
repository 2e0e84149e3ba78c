from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pathup.errors import PathUpError
from pathup.evaluation.consistency import capped, consistency, judged, trained_classifier
from pathup.evaluation.features import View, seen
from pathup.evaluation.tile_sets import TileSet
from tests.evaluation.test_tile_sets import of_kind
from tests.tiles.made import tissue

HUES = {"A": (200, 60, 60), "B": (60, 60, 200)}
Tile = tuple[str, np.ndarray]


def _patterned(label: str, seed: int, side: int = 32) -> np.ndarray:
    """Tissue of a class's own colour and own texture: rows in A, columns in B."""
    pixels = tissue(side, side, seed).astype(int) // 4 + np.array(HUES[label]) // 2
    lines = 40 * (np.arange(side) // 2 % 2)
    return (pixels + (lines[:, None, None] if label == "A" else lines[None, :, None])).clip(0, 255).astype(np.uint8)


class Made:
    """Sets of tiles held in memory, and their features: mean colour, and how much rows and columns differ."""

    def __init__(self) -> None:
        self.pixels: dict[Path, np.ndarray] = {}

    def tiles(self, name: str, tiles: list[Tile]) -> TileSet:
        found = of_kind({("patch", label): [own for own, _ in tiles].count(label) for label in "AB"}, name)
        ordered = sorted(tiles, key=lambda tile: tile[0])
        self.pixels |= dict(zip(found.files, (pixels for _, pixels in ordered), strict=True))
        return found

    def __call__(self, tiles: TileSet, view: View = "colour") -> np.ndarray:
        rows = []
        for file in tiles.files:
            pixels = seen(self.pixels[file], view) / 255
            rows.append(np.r_[pixels.mean((0, 1)), pixels.mean(1).std(0), pixels.mean(0).std(0)])
        return np.array(rows)


@pytest.fixture
def made() -> Made:
    return Made()


@pytest.fixture
def real(made: Made) -> tuple[TileSet, TileSet]:
    train, test = (
        made.tiles(name, [(label, _patterned(label, first + i)) for label in "AB" for i in range(16)])
        for name, first in (("training", 0), ("test", 50))
    )
    return train, test


def test_true_tiles_are_named_and_swapped_ones_are_not(real: tuple[TileSet, TileSet], made: Made) -> None:
    true = made.tiles("true", [(label, _patterned(label, 100 + i)) for label in "AB" for i in range(6)])
    report = consistency(*real, true, made)
    for view in ("colour", "grey"):
        results = report["views"][view]
        assert results["real_test"]["accuracy"] == 1 and results["synthetic"]["balanced_accuracy"] == 1
        assert results["ratio"] == {"accuracy": 1, "balanced_accuracy": 1}
        assert results["synthetic"]["confusion"] == [[6, 0], [0, 6]]
    assert report["counts"]["train"] == report["counts"]["real_test"] == {"A": 16, "B": 16}
    assert report["counts"]["synthetic"] == {"A": 6, "B": 6}
    other = {"A": "B", "B": "A"}
    swapped = made.tiles("swapped", [(label, _patterned(other[label], 100 + i)) for label in "AB" for i in range(6)])
    report = consistency(*real, swapped, made)
    assert [report["views"][view]["synthetic"]["accuracy"] for view in ("colour", "grey")] == [0, 0]
    assert report["views"]["grey"]["ratio"]["accuracy"] == 0


def test_right_colour_with_wrong_texture_passes_in_colour_and_fails_in_grey(
    real: tuple[TileSet, TileSet], made: Made
) -> None:
    # what the grey view is for: a model that learnt the stain of each class and none of its tissue
    tiles: list[Tile] = []
    for i in range(8):
        flat = np.random.default_rng(i).normal(0, 3, (32, 32, 1))
        tiles += [
            (label, (np.array(hue) // 2 + 55 + flat).clip(0, 255).astype(np.uint8)) for label, hue in HUES.items()
        ]
    report = consistency(*real, made.tiles("stain", tiles), made)
    assert report["views"]["colour"]["synthetic"]["accuracy"] == 1
    assert report["views"]["grey"]["synthetic"]["balanced_accuracy"] < 0.8  # by texture it can but guess


def test_a_class_without_synthetic_tiles_is_left_out_on_both_sides(real: tuple[TileSet, TileSet], made: Made) -> None:
    report = consistency(*real, made.tiles("a", [("A", _patterned("A", 9))]), made)
    assert report["counts"]["real_test"] == {"A": 16} and report["counts"]["train"] == {"A": 16, "B": 16}
    assert report["views"]["grey"]["synthetic"]["recall"] == {"A": 1.0, "B": None}


def test_figures_of_a_case_worked_by_hand() -> None:
    result = judged(["A", "A", "A", "B", "C"], ["A", "A", "B", "B", "A"], ["A", "B", "C", "D"])
    assert result["confusion"] == [[2, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["interval"] == pytest.approx([0.2307, 0.8824], abs=1e-4)  # Wilson (1927) for 3 of 5
    assert result["recall"] == {"A": pytest.approx(2 / 3), "B": 1.0, "C": 0.0, "D": None}
    assert result["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_caps_are_drawn_by_seed_class_by_class() -> None:
    tiles = of_kind({("patch", "A"): 70, ("patch", "B"): 30})
    one, again, other = (capped(tiles, 20, seed, "train") for seed in (1, 1, 2))
    assert one == again and one != other

    def counts(found: TileSet) -> dict[Any, int]:
        return {label: found.labels.count(label) for label in "AB"}

    assert counts(one) == {"A": 20, "B": 20}
    assert capped(tiles, None, 1, "train") == tiles
    assert counts(capped(tiles, 50, 1, "train")) == {"A": 50, "B": 30}


def test_what_cannot_be_judged_is_one_sentence(real: tuple[TileSet, TileSet], made: Made) -> None:
    train, test = real
    both = made.tiles("both", [(label, _patterned(label, 3)) for label in "AB"])
    with pytest.raises(PathUpError, match="are of class B, of which there are no real test tiles"):
        consistency(train, test.of(label="A"), both, made)
    with pytest.raises(PathUpError, match="are of class B, of which there are no real training tiles"):
        consistency(train.of(label="A"), test, both, made)
    with pytest.raises(PathUpError, match="all of class 'A'; at least two classes"):
        trained_classifier(np.zeros((3, 2)), ["A"] * 3)
