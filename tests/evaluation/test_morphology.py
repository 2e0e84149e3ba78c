from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import wasserstein_distance

from pathup.errors import PathUpError
from pathup.evaluation.morphology import MEASURES, compare, compare_classes, measure_tiles, subset
from pathup.evaluation.texture import texture
from tests.evaluation.made_nuclei import painted, scattered
from tests.tiles.made import save

Measured = dict[str, np.ndarray]


def fields(count: int, first: int, number: int = 14, length: float = 3.2, blur: float = 0.0) -> list[np.ndarray]:
    """Tiles of painted nuclei; how many varies."""
    tiles = []
    for seed in range(first, first + count):
        pixels = painted(40, scattered(40, number + seed % 5, length, 0.8 * length, seed), seed=seed)
        tiles.append(ndimage.gaussian_filter(pixels, (blur, blur, 0)) if blur else pixels)
    return tiles


@pytest.fixture(scope="module")
def sets() -> dict[str, Measured]:
    made = {
        "real": fields(24, 0),
        "floor": fields(24, 100),
        "large": fields(24, 200, length=4.2, number=9),
        "blurred": fields(24, 300, blur=1.0),
    }
    return {name: measure_tiles(tiles, 0.5) for name, tiles in made.items()}


def drawn(count: int, seed: int, shift: float = 0.0) -> Measured:
    """Measures drawn, not taken: a normal distribution each."""
    draws = np.random.default_rng(seed)
    found: Measured = {}
    for name, measure in MEASURES.items():
        column: np.ndarray = np.empty(count, object if measure.each else float)
        for i in range(count):
            column[i] = draws.normal(shift, 1, draws.integers(0, 6)) if measure.each else draws.normal(shift, 1)
        found[name] = column
    return found


def test_known_fields_give_known_numbers() -> None:
    true = scattered(64, 20, 3, 3)
    found = measure_tiles([painted(64, true)], 0.5)
    assert set(found) == set(MEASURES) and all(len(column) == 1 for column in found.values())
    inside = ((true[:, :2] >= 0) & (true[:, :2] < 64)).all(1).sum()
    assert found["nuclei_density"][0] == pytest.approx(inside / (0.064**2), rel=0.11)  # one or two at the border
    assert found["nuclear_area"][0] == pytest.approx(np.pi * 9, rel=0.1)
    assert np.median(found["nuclear_area_each"][0]) == pytest.approx(np.pi * 9, rel=0.1)
    assert found["eosin"][0] > 0.3 and found["haematoxylin"][0] > 0.05 and found["glass"][0] == 0


def test_files_and_pixels_are_the_same_and_progress_is_told(tmp_path: Path) -> None:
    tiles = fields(3, 0)
    files = [save(tmp_path / f"{i}.png", pixels) for i, pixels in enumerate(tiles)]
    told: list[int] = []
    one, other = measure_tiles(iter(tiles), 0.5), measure_tiles(files, 0.5, progress=told.append)
    assert told == [1, 2, 3]
    for name in MEASURES:
        for a, b in zip(one[name], other[name], strict=True):
            np.testing.assert_array_equal(a, b)


def test_blank_tiles_and_overviews_have_no_nuclei_values() -> None:
    blank = measure_tiles([np.full((64, 64, 3), 255, np.uint8)], 0.5)
    assert blank["glass"][0] == 1 and np.isnan(blank["nuclei_density"][0]) and not len(blank["nuclear_area_each"][0])
    overview = measure_tiles(fields(1, 0), 2.0)
    assert np.isnan(overview["nuclei_density"][0]) and np.isfinite(overview["eosin"][0])
    assert overview["sharpness"][0] == texture(fields(1, 0)[0])["sharpness"]
    empty = measure_tiles([painted(40, np.empty((0, 5)))], 0.5)
    assert empty["nuclei_density"][0] == 0 and np.isnan(empty["nuclear_area"][0])


def test_larger_nuclei_and_blur_lie_beyond_the_floor_where_they_should(sets: dict[str, Measured]) -> None:
    large = compare(sets["real"], sets["large"], sets["floor"])["measures"]
    for name in ("nuclear_area", "nuclear_area_each", "nuclei_density"):
        assert large[name]["beyond_floor"] is True, name
    assert large["nuclear_area"]["median"]["synthetic"] > 1.5 * large["nuclear_area"]["median"]["real"]
    blurred = compare(sets["real"], sets["blurred"], sets["floor"])["measures"]
    for name in ("sharpness", "spectrum_slope"):
        assert blurred[name]["beyond_floor"] is True, name
    assert blurred["nuclei_density"]["beyond_floor"] is False
    json.dumps(large, allow_nan=False)


def test_the_floor_against_itself_is_not_beyond(sets: dict[str, Measured]) -> None:
    same = compare(sets["real"], sets["floor"], sets["floor"])["measures"]
    assert not any(row["beyond_floor"] for row in same.values())
    for row in same.values():
        if row["distance"] is not None:
            assert row["distance"]["value"] == pytest.approx(row["floor"]["value"])


def test_false_alarms_are_rare() -> None:
    flags = [
        row["beyond_floor"]
        for seed in range(3)
        for row in compare(drawn(60, 3 * seed), drawn(60, 3 * seed + 1), drawn(60, 3 * seed + 2), resamples=100)[
            "measures"
        ].values()
    ]
    assert np.mean(flags) < 0.05  # two 95 % intervals that do not meet: far below 5 % where nothing differs


def test_a_shift_of_one_deviation_is_a_distance_of_one() -> None:
    real, moved = drawn(400, 0), drawn(400, 1, shift=1.0)
    found = compare(real, moved, drawn(400, 2), resamples=50)["measures"]
    for name in ("eosin", "nuclear_area_each"):
        row = found[name]
        assert row["distance"]["value"] == pytest.approx(1, abs=0.2) and row["beyond_floor"]  # 1 / sqrt(400), twice
        low, high = row["distance"]["interval"]
        assert low < row["distance"]["value"] < high
    expected = wasserstein_distance(real["eosin"], moved["eosin"]) / real["eosin"].std()
    assert found["eosin"]["distance"]["value"] == pytest.approx(expected)


def test_counts_are_made_the_same_and_the_seed_decides() -> None:
    real, synthetic, floor = drawn(40, 0), drawn(90, 1), drawn(30, 2)
    one = compare(real, synthetic, floor, seed=1, resamples=20)
    assert one["tiles"] == {"real": 40, "synthetic": 30, "floor": 30}
    assert one == compare(real, synthetic, floor, seed=1, resamples=20)
    assert one != compare(real, synthetic, floor, seed=2, resamples=20)


def test_tiles_of_one_region_make_the_interval_wider() -> None:
    real = drawn(60, 0)
    regions = np.repeat(np.arange(6), 10)
    real["eosin"] = np.random.default_rng(5).normal(size=6)[regions] + 0.05 * real["eosin"]
    widths = []
    for groups in (None, regions.tolist()):
        row = compare(real, drawn(60, 1), drawn(60, 2), groups=groups)["measures"]["eosin"]
        widths.append(row["distance"]["interval"][1] - row["distance"]["interval"][0])
    assert widths[1] > 1.3 * widths[0]


def test_classes_are_compared_apart_and_drawn_apart() -> None:
    labels = ["A"] * 30 + ["B"] * 30
    real, synthetic, floor = (drawn(60, seed) for seed in range(3))
    for measured in (real, synthetic, floor):
        measured["eosin"] = measured["eosin"] + 20 * (np.arange(60) >= 30)  # the classes lie far apart
    synthetic["eosin"][30:] += 3
    result = compare_classes(
        real, synthetic, floor, labels=labels, synthetic_labels=labels, floor_labels=labels, resamples=50
    )
    flags = {name: row["measures"]["eosin"]["beyond_floor"] for name, row in result["classes"].items()}
    assert flags == {"A": False, "B": True}
    high = result["overall"]["measures"]["eosin"]["floor"]["interval"][1]
    assert high < 0.15  # drawn together, the shares of A and B would move it by 2 / sqrt(60) of a deviation of 10
    assert result["classes"]["A"] == compare(
        *(subset(measured, np.arange(30)) for measured in (real, synthetic, floor)), resamples=50
    )


def test_too_few_values_have_a_reason() -> None:
    few = drawn(40, 1)
    few["nuclear_area"][3:] = np.nan
    flat = drawn(40, 0)
    flat["glass"][:] = 0.0
    found = compare(flat, few, drawn(40, 2), resamples=10)["measures"]
    assert found["nuclear_area"]["distance"] is None and "synthetic 3" in found["nuclear_area"]["reason"]
    assert found["glass"]["beyond_floor"] is None and "do not vary" in found["glass"]["reason"]
    json.dumps(found, allow_nan=False)


def test_what_cannot_be_compared_is_one_sentence() -> None:
    real = drawn(20, 0)
    with pytest.raises(PathUpError, match="no synthetic tiles"):
        compare(real, subset(real, []), real)
    with pytest.raises(PathUpError, match="3 groups for 20 real tiles"):
        compare(real, real, real, groups=[1, 2, 3])
    with pytest.raises(PathUpError, match="missing there"):
        compare(real, {"glass": real["glass"]}, real)
    with pytest.raises(PathUpError, match="1 labels for 20 synthetic"):
        compare_classes(real, real, real, labels=["A"] * 20, synthetic_labels=["A"], floor_labels=["A"] * 20)
