from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from pathup.errors import PathUpError
from pathup.evaluation.copying import authenticity, copying, nearer, wilson
from pathup.evaluation.lookalikes import Descriptors, Nearest, describe, turned
from pathup.evaluation.pair_sheet import closest_pairs_sheet
from tests.evaluation.test_lookalikes import texture, written
from tests.tiles.made import SHARED

REGIONS = SHARED / "data" / "regions"
needs_regions = pytest.mark.skipif(not REGIONS.is_dir(), reason=f"real regions are not at hand ({REGIONS})")
REAL, HELD_OUT = 300, 200


def _jpeg(pixels: np.ndarray) -> np.ndarray:
    stored = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stored, "JPEG", quality=75)
    return np.asarray(Image.open(stored))


def _planted(field: np.ndarray, number: int) -> dict[str, np.ndarray]:
    """Copies of the tile in the middle of a field that has 8 px around it."""
    tile = field[8:-8, 8:-8]
    side = len(tile)
    x, y = ((8, 0), (0, 8), (-8, 0), (0, -8), (8, 8), (-8, 8), (8, -8), (-8, -8))[number % 8]
    shifted = field[8 + y : 8 + y + side, 8 + x : 8 + x + side]
    orientation = 1 + number % 7
    return {
        "exact": tile,
        "turned": turned(tile, orientation),
        "jpeg": _jpeg(tile),
        "shifted": shifted,
        "all": _jpeg(turned(shifted, orientation)),
    }


def _nearest(index: list[int], similarity: list[float]) -> Nearest:
    count = len(index)
    return Nearest(np.array(index), np.zeros(count, int), np.zeros((count, 2)), np.array(similarity))


@pytest.fixture(scope="module")
def fields() -> list[np.ndarray]:
    return [texture(80, seed, 1.5) for seed in range(REAL)]


@pytest.fixture(scope="module")
def training(fields: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Descriptors:
    return describe(written(tmp_path_factory.mktemp("training"), [field[8:-8, 8:-8] for field in fields]))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Descriptors:
    made = [texture(64, 1000 + seed, 1.5) for seed in range(HELD_OUT)]
    return describe(written(tmp_path_factory.mktemp("held_out"), made))


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Descriptors:
    return describe(written(tmp_path_factory.mktemp("new"), [texture(64, 5000 + seed, 1.5) for seed in range(100)]))


GROUPS = [f"region{i // 50}" for i in range(REAL)]


def test_planted_copies_are_called_and_others_are_not(
    fields: list[np.ndarray], training: Descriptors, held_out: Descriptors, tmp_path: Path
) -> None:
    planted = [_planted(fields[i], i) for i in range(40)]
    tiles = [tile for kinds in planted for tile in kinds.values()]
    synthetic = describe(written(tmp_path, tiles))
    labels = [kind for kinds in planted for kind in kinds]
    report = copying(synthetic, training, held_out, training_groups=GROUPS, synthetic_labels=labels)
    assert {kind: found["copies"] for kind, found in report["synthetic"]["by_class"].items()} == dict.fromkeys(
        planted[0], 40
    )
    assert report["held_out"]["share"] <= 0.01  # what the tool promises
    assert report["warning"] and "look at the closest pairs" in report["reading"]
    assert report["authenticity"]["synthetic"]["value"] == 0 < report["authenticity"]["held_out"]["value"]
    assert report["nearer"]["chance"] == 1
    assert report["threshold"]["set_on"] == "training tiles of different regions"
    assert report["threshold"]["pairs"] == REAL
    assert all(pair["copy"] for pair in report["pairs"]) and len(report["pairs"]) == 24
    pair = report["pairs"][0]
    source = int(Path(pair["synthetic"]).stem[-4:]) // 5
    assert Path(pair["training"]).stem == f"tile{source:04d}"
    assert json.loads(json.dumps(report)) == report


def test_new_tiles_give_no_warning(new: Descriptors, training: Descriptors, held_out: Descriptors) -> None:
    report = copying(new, training, held_out, training_groups=GROUPS)
    assert report["synthetic"]["copies"] == 0 and not report["warning"]
    assert "no sign of copying was found by this method" in report["reading"]
    assert report["counts"] == {"training": REAL, "synthetic": 100, "held_out": HELD_OUT}
    assert not report["notes"]
    again = copying(new, training, held_out, training_groups=GROUPS)
    assert again == report


def test_it_never_says_private(
    fields: list[np.ndarray], training: Descriptors, held_out: Descriptors, new: Descriptors, tmp_path: Path
) -> None:
    copies = describe(written(tmp_path, [field[8:-8, 8:-8] for field in fields[:20]]))
    for tiles in (copies, new):
        for real in (held_out, None):
            for groups in (GROUPS, None):
                report = copying(tiles, training, real, training_groups=groups)
                report.pop("pairs")  # file names are the user's
                assert "priva" not in json.dumps(report).lower()


def test_without_regions_the_held_out_tiles_set_the_threshold(
    new: Descriptors, training: Descriptors, held_out: Descriptors
) -> None:
    for groups, reason in ((None, "not known"), (["a", None] * 150, "not known"), (["a"] * REAL, "one region only")):
        report = copying(new, training, held_out, training_groups=groups)
        assert reason in report["authenticity"]["reason"] and "may overlap" in report["authenticity"]["reason"]
        assert report["authenticity"]["synthetic"] is None and report["real_real"] is None
        assert report["threshold"]["set_on"] == "one half of the held-out tiles"
        assert report["threshold"]["pairs"] == report["held_out"]["judged"] == HELD_OUT // 2
        assert len(report["notes"]) == 1
    alone = copying(new, training)
    assert alone["held_out"] is None and alone["nearer"] is None
    assert alone["threshold"]["value"] == 0.8 and alone["threshold"]["quantile"] == 0.999
    assert "held-out real tiles are missing" in alone["reading"]


def test_copies_without_held_out_tiles_warn(fields: list[np.ndarray], training: Descriptors, tmp_path: Path) -> None:
    copies = describe(written(tmp_path, [field[8:-8, 8:-8] for field in fields[:5]]))
    report = copying(copies, training)
    assert report["warning"] and "no held-out real tiles" in report["reading"]


def test_glass_is_counted_as_not_judged(training: Descriptors, held_out: Descriptors, tmp_path: Path) -> None:
    glass = describe(written(tmp_path, [np.full((64, 64, 3), 240, np.uint8)] * 3))
    report = copying(glass, training, held_out, training_groups=GROUPS)
    assert report["not_judged"]["synthetic"] == 3 and report["synthetic"]["judged"] == 0
    assert report["synthetic"]["share"] is None and report["pairs"] == []
    assert "nothing is known of copies" in report["reading"] and not report["warning"]


def test_real_tiles_that_are_there_twice_are_told_of(
    fields: list[np.ndarray], held_out: Descriptors, tmp_path: Path
) -> None:
    tiles = [field[8:-8, 8:-8] for field in fields[:100]]
    twice = describe(written(tmp_path, [*tiles, *tiles]))
    report = copying(held_out, twice, training_groups=["a"] * 100 + ["b"] * 100)
    assert report["threshold"]["at_quantile"] == pytest.approx(1, abs=1e-3) and report["threshold"]["value"] == 0.8
    assert "serial sections" in report["notes"][0]


def test_authenticity_of_a_case_worked_by_hand() -> None:
    across = _nearest([1, 0, -1], [0.4, 0.5, np.nan])
    near = _nearest([0, 1, 1, 2, -1], [0.9, 0.3, 0.6, 0.1, np.nan])
    # 0.9 > 0.4: not authentic; 0.3 < 0.5: authentic; 0.6 > 0.5: not; the last two cannot be told
    assert authenticity(near, across) == {"value": pytest.approx(1 / 3), "count": 3}
    assert authenticity(_nearest([2], [0.5]), across) == {"value": None, "count": 0}


def test_wilsons_interval_solves_its_equation() -> None:
    z = stats.norm.ppf(0.975)
    for hits, count in ((0, 10), (1, 10), (5, 10), (99, 100), (100, 100)):
        for bound in wilson(hits, count):
            assert abs(hits / count - bound) == pytest.approx(z * np.sqrt(bound * (1 - bound) / count), abs=1e-9)
    assert wilson(0, 0) == (0, 1)


def test_nearer_agrees_with_scipy_and_is_not_misled_by_other_shares_of_classes() -> None:
    draw = np.random.default_rng(0)
    ours, theirs = draw.normal(0.1, 1, 300), draw.normal(0, 1, 400)
    expected = stats.mannwhitneyu(ours, theirs, alternative="greater", method="asymptotic", use_continuity=False)
    found = nearer(np.append(ours, np.nan), theirs)
    assert found["chance"] == pytest.approx(expected.statistic / (300 * 400))
    assert found["p"] == pytest.approx(expected.pvalue)
    # class B lies higher than A, and is more common among synthetic tiles; within a class there is no difference
    shares = {"A": (50, 350), "B": (350, 50)}
    values = [np.concatenate([draw.normal(5 * (k == "B"), 1, n[side]) for k, n in shares.items()]) for side in (0, 1)]
    labels = [[k for k, n in shares.items() for _ in range(n[side])] for side in (0, 1)]
    assert nearer(*values)["chance"] > 0.8
    assert nearer(*values, *labels)["chance"] == pytest.approx(0.5, abs=0.05)  # standard error 0.015
    assert nearer(ours, theirs, ["A"] * 300, ["B"] * 400) == {"chance": None, "p": None}


def test_bad_input(training: Descriptors, held_out: Descriptors) -> None:
    with pytest.raises(PathUpError, match="no synthetic tiles"):
        copying(describe([]), training)
    with pytest.raises(PathUpError, match="2 groups were given for 300 training tiles"):
        copying(held_out, training, training_groups=["a", "b"])
    with pytest.raises(PathUpError, match="1 labels were given for 200 held-out tiles"):
        copying(held_out, training, held_out, held_out_labels=["A"])


def test_the_sheet_shows_the_pairs(
    fields: list[np.ndarray], training: Descriptors, held_out: Descriptors, tmp_path: Path
) -> None:
    tiles = [_planted(field, number)["all"] for number, field in enumerate(fields[:4])]
    report = copying(describe(written(tmp_path, tiles)), training, held_out, training_groups=GROUPS)
    target = closest_pairs_sheet(report["pairs"], tmp_path / "sheet.png")
    with Image.open(target) as sheet:
        assert sheet.size[0] > 3 * 2 * 64 and sheet.size[1] > 2 * 64  # four pairs, three a row
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(PathUpError, match="does not exist"):
        closest_pairs_sheet([report["pairs"][0] | {"training": str(tmp_path / "gone.png")}], tmp_path / "other.png")
    assert not (tmp_path / "other.png").exists()


@needs_regions
def test_planted_copies_of_real_tissue(tmp_path: Path) -> None:
    """The promise: at least 99 % of planted copies called, at most 1 % of held-out real tiles."""
    cut: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    groups, planted, labels = [], [], []
    for split, count in (("train", 2), ("test", 1)):
        for folder in sorted((REGIONS / split).iterdir()):
            for path in sorted(folder.glob("*.jpg"))[:count]:
                region = np.asarray(Image.open(path).crop((512, 512, 1168, 1168)))
                for place in range(25):
                    top, left = 8 + place // 5 * 128, 8 + place % 5 * 128
                    field = region[top - 8 : top + 136, left - 8 : left + 136]
                    cut[split].append(field[8:-8, 8:-8])
                    if split == "train":
                        groups.append(path.stem)
                        if place % 6 == 0:
                            kinds = _planted(field, len(planted))
                            planted += list(kinds.values())
                            labels += list(kinds)
    training, held_out = (describe(written(tmp_path / split, tiles)) for split, tiles in cut.items())
    synthetic = describe(written(tmp_path / "planted", planted))
    report = copying(synthetic, training, held_out, training_groups=groups, synthetic_labels=labels)
    for kind, found in report["synthetic"]["by_class"].items():
        # glass is not judged; all others of 70 must be found, since one that is missed is more than 1 %
        assert found["copies"] == found["judged"] > 35, kind
    assert report["held_out"]["share"] <= 0.01
