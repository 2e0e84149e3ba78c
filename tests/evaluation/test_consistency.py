from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pathup.errors import PathUpError
from pathup.evaluation import consistency as module
from pathup.evaluation.consistency import Tiles, consistency, judged, main, summary
from pathup.evaluation.features import Extractor
from tests.tiles.made import save, tissue

HUES = {"A": (200, 60, 60), "B": (60, 60, 200)}


def _patterned(label: str, seed: int, side: int = 32) -> np.ndarray:
    """Tissue of a class's own colour and own texture: rows in A, columns in B."""
    pixels = tissue(side, side, seed).astype(int) // 4 + np.array(HUES[label]) // 2
    lines = 40 * (np.arange(side) // 2 % 2)
    return (pixels + (lines[:, None, None] if label == "A" else lines[None, :, None])).clip(0, 255).astype(np.uint8)


def _moments(seen: torch.Tensor) -> torch.Tensor:
    """Mean colour, and how much rows and columns differ: enough to tell the classes by colour or by texture."""
    rows, columns = seen.mean(3).std(2), seen.mean(2).std(2)
    return torch.cat([seen.mean((2, 3)), rows, columns], 1)


@pytest.fixture
def extractor() -> Extractor:
    return Extractor("moments", "0" * 64, _moments)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, recipe: Any) -> Path:
    from pathup.tiles.making import make_tiles

    root = tmp_path_factory.mktemp("real")
    for split, first in (("train", 0), ("test", 50)):
        for number, label in enumerate("AB"):
            for region in range(2):
                pixels = _patterned(label, first + 10 * number + region, 128)
                save(root / "regions" / split / f"{number}_{label}" / f"{split}{label}{region}.png", pixels)
    make_tiles(root / "regions", root / "tiles", recipe)
    return root / "tiles"


def _synthetic(folder: Path, tiles: list[tuple[str, np.ndarray]], **changed: Any) -> Path:
    rows = []
    for index, (claimed, pixels) in enumerate(tiles):
        name = f"{claimed}_{index:04d}.png"
        save(folder / name, pixels)
        rows.append({"file_name": name, "label": claimed, "level": "patch", "mpp": 0.5, **changed})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_true_tiles_are_named_and_swapped_ones_are_not(real: Path, extractor: Extractor, tmp_path: Path) -> None:
    true = _synthetic(tmp_path / "true", [(label, _patterned(label, 100 + i)) for label in "AB" for i in range(6)])
    report = consistency(real, true, extractor, level="patch")
    for view in ("colour", "grey"):
        results = report["views"][view]
        assert results["real_test"]["accuracy"] == 1 and results["synthetic"]["balanced_accuracy"] == 1
        assert results["ratio"] == {"accuracy": 1, "balanced_accuracy": 1}
        assert results["synthetic"]["confusion"] == [[6, 0], [0, 6]]
    assert report["counts"]["synthetic"] == {"A": 6, "B": 6}
    assert report["counts"]["real_train"] == {"A": 32, "B": 32}  # two regions of 4 x 4 tiles each
    other = {"A": "B", "B": "A"}
    swapped = _synthetic(
        tmp_path / "swapped", [(label, _patterned(other[label], 100 + i)) for label in "AB" for i in range(6)]
    )
    report = consistency(real, swapped, extractor, level="patch")
    assert [report["views"][view]["synthetic"]["accuracy"] for view in ("colour", "grey")] == [0, 0]
    assert report["views"]["grey"]["ratio"]["accuracy"] == 0


def test_right_colour_with_wrong_texture_passes_in_colour_and_fails_in_grey(
    real: Path, extractor: Extractor, tmp_path: Path
) -> None:
    # what the grey view is for: a model that learnt the stain of each class and none of its tissue
    tiles = []
    for i in range(8):
        flat = np.random.default_rng(i).normal(0, 3, (32, 32, 1))
        tiles += [
            (label, (np.array(hue) // 2 + 55 + flat).clip(0, 255).astype(np.uint8)) for label, hue in HUES.items()
        ]
    report = consistency(real, _synthetic(tmp_path / "stain", tiles), extractor, level="patch")
    assert report["views"]["colour"]["synthetic"]["accuracy"] == 1
    assert report["views"]["grey"]["synthetic"]["balanced_accuracy"] < 0.8  # by texture it can but guess


def test_a_class_without_synthetic_tiles_is_left_out_on_both_sides(
    real: Path, extractor: Extractor, tmp_path: Path
) -> None:
    report = consistency(real, _synthetic(tmp_path / "a", [("A", _patterned("A", 9))]), extractor, level="patch")
    assert report["counts"]["real_test"] == {"A": 32} and report["counts"]["real_train"] == {"A": 32, "B": 32}
    assert report["views"]["grey"]["synthetic"]["recall"] == {"A": 1.0, "B": None}


def test_the_real_tiles_alone(real: Path, extractor: Extractor) -> None:
    report = consistency(real, None, extractor, level="patch", test_cap=5)
    assert set(report["views"]["colour"]) == {"real_test"}
    assert report["counts"]["real_test"] == {"A": 5, "B": 5}
    assert "synthetic" not in summary(report)


def test_figures_of_a_case_worked_by_hand() -> None:
    result = judged(["A", "A", "A", "B", "C"], ["A", "A", "B", "B", "A"], ["A", "B", "C", "D"])
    assert result["confusion"] == [[2, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["recall"] == {"A": pytest.approx(2 / 3), "B": 1.0, "C": 0.0, "D": None}
    assert result["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_caps_are_drawn_by_seed_class_by_class() -> None:
    tiles = Tiles([Path(str(i)) for i in range(100)], ["A"] * 70 + ["B"] * 30)
    one, again, other = (tiles.capped(20, seed, "train") for seed in (1, 1, 2))
    assert one == again and one != other
    assert one.counts() == {"A": 20, "B": 20}
    assert all(tiles.labels[int(file.name)] == label for file, label in zip(one.files, one.labels, strict=True))
    assert tiles.capped(None, 1, "train") == tiles
    assert tiles.capped(50, 1, "train").counts() == {"A": 50, "B": 30}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: _synthetic(folder, [("A", _patterned("A", 0))], level="overview"), "is of level 'overview'"),
        (lambda folder: _synthetic(folder, [("A", _patterned("A", 0))], mpp=0.25), "same scale"),
        (lambda folder: _synthetic(folder, [("A", _patterned("A", 0))], label="a"), "did you mean 'A'"),
        (lambda folder: _synthetic(folder, [("A", _patterned("A", 0, 64))]), "same size"),
        (lambda folder: _synthetic(folder, [("A", _patterned("A", 0))], file_name="x.png"), "x.png does not exist"),
        (lambda folder: _synthetic(save(folder / "x.png", tissue(4, 4)).parent, []), "lists no tiles"),
        (lambda folder: folder, "does not exist"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    real: Path, extractor: Extractor, tmp_path: Path, spoil: Callable[[Path], Path], said: str
) -> None:
    with pytest.raises(PathUpError, match=said):
        consistency(real, spoil(tmp_path / "fake"), extractor, level="patch")


def test_from_the_command_line(
    real: Path,
    extractor: Extractor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module, "load_extractor", lambda weights: extractor)
    fake = _synthetic(tmp_path / "fake", [(label, _patterned(label, 7)) for label in "AB"])
    out = tmp_path / "report.json"
    arguments = [str(real), str(fake), "--weights", "w.safetensors", "--cap", "8", "--output", str(out)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "ratio 1.00" in said and "grey" in said and "split by region" in said
    report = json.loads(out.read_text())
    assert report["features"]["weights_sha256"] == "0" * 64 and report["counts"]["real_train"] == {"A": 8, "B": 8}
    assert main([str(tmp_path / "none"), "--weights", "w.safetensors"]) == 1
    assert capsys.readouterr().err.startswith("pathup: ")
