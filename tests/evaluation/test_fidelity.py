from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pathup.errors import PathUpError
from pathup.evaluation.fidelity import METRICS, checked, fidelity, torch_fidelity_check
from pathup.evaluation.frechet import frechet_distance
from pathup.evaluation.kernel import kernel_distance
from pathup.evaluation.neighbours import manifold


def _two(images: int = 300, others: int = 250, dimension: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features that are 0 or more and far from centred, as a network's are."""
    generator = np.random.default_rng(seed)
    scale = np.linspace(0.5, 1.5, dimension)
    a = np.abs(generator.normal(0.5, scale, (images, dimension)))
    b = np.abs(generator.normal(0.6, 0.9 * scale, (others, dimension)))
    return a.astype(np.float32), b.astype(np.float32)


def _width(interval: dict[str, float]) -> float:
    return interval["high"] - interval["low"]


@pytest.mark.parametrize(("images", "others", "dimension"), [(300, 250, 16), (400, 600, 64), (90, 60, 128)])
def test_equals_torch_fidelity(images: int, others: int, dimension: int) -> None:
    real, synthetic = _two(images, others, dimension)
    report = fidelity(real, synthetic, replicates=0, subset_size=80, subsets=10, seed=3)
    for name, figures in torch_fidelity_check(real, synthetic, report).items():
        assert figures["relative_difference"] < 1e-6, name  # 1e-4 is what must hold
    assert report["kid_subsets"]["subset_size"] == min(80, others)


def test_equals_its_parts() -> None:
    real, synthetic = _two()
    report = fidelity(real, synthetic, replicates=50)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["fid"]["value"] == pytest.approx(frechet_distance(real, synthetic))
    assert report["kid"]["value"] == pytest.approx(kernel_distance(real, synthetic))
    for name, value in manifold(real, synthetic).figures.items():
        assert report[name]["value"] == value
    assert all(report[name]["low"] <= report[name]["value"] <= report[name]["high"] for name in METRICS)
    assert report["counts"] == {"real": 300, "synthetic": 250, "real_units": 300, "synthetic_units": 250}
    # the mean over 100 subsets of 250 is that of the whole sets, to 4 of its own standard errors or better
    subsets = report["kid_subsets"]
    assert subsets["subset_size"] == 250 and abs(subsets["mean"] - report["kid"]["value"]) < 4 * subsets["std"]


def test_seed_and_precision_of_features() -> None:
    real, synthetic = _two()
    first, again, other = (fidelity(real, synthetic, replicates=50, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert [first[name]["value"] for name in METRICS] == [other[name]["value"] for name in METRICS]
    assert first["kid"]["low"] != other["kid"]["low"]
    assert fidelity(real.astype(np.float64), synthetic.astype(np.float64), replicates=50, seed=1) == first
    kept = real.copy()
    fidelity(real, synthetic, replicates=2)
    assert np.array_equal(kept, real)


def test_regions_that_are_alike_inside_widen_the_intervals() -> None:
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 15)
    real = generator.normal(size=(20, 8))[groups] + 0.5 * generator.normal(size=(300, 8))
    synthetic = generator.normal(size=(300, 8))
    single = fidelity(real, synthetic, replicates=200)
    grouped = fidelity(real, synthetic, replicates=200, real_groups=groups)
    assert grouped["counts"]["real_units"] == 20
    for name in METRICS:
        assert grouped[name]["value"] == single[name]["value"]
    for name in ("fid", "kid", "recall"):  # coverage owes half of its spread to the synthetic images
        assert _width(grouped[name]) > 1.5 * _width(single[name]), name
    named = fidelity(real, synthetic, replicates=200, real_groups=[f"region {group:02d}" for group in groups])
    assert named == grouped  # a group's name is only a name


def test_intervals_hold_the_expected_figure() -> None:
    # 40 draws of Gaussian features: at 95 %, 33 or fewer hits have a chance of 1 in 2,000; wider is no fault
    found = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        real, synthetic = generator.normal(size=(120, 6)), generator.normal(0.3, 0.8, (120, 6))
        found.append(fidelity(real, synthetic, replicates=200, subsets=1, subset_size=50))
    for name in METRICS:
        expected = np.mean([report[name]["value"] for report in found])
        hits = sum(report[name]["low"] <= expected <= report[name]["high"] for report in found)
        assert hits >= 34, name
    for name in ("fid", "kid"):  # and they are as wide as the figures vary: 40 draws know that to 11 %
        spread = np.std([report[name]["value"] for report in found])
        assert 0.7 < np.mean([_width(report[name]) for report in found]) / 3.92 / spread < 1.4, name


def test_what_cannot_be_known_is_none_and_told() -> None:
    real, synthetic = _two(40, 40, 8)
    report = fidelity(real, synthetic, replicates=50, real_groups=["one"] * 40)
    assert all(report[name]["low"] is None for name in METRICS)
    assert any("one region" in text for text in report["warnings"])
    report = fidelity(real, synthetic, replicates=50, real_groups=np.arange(40) // 10)
    assert all(report[name]["low"] is not None for name in METRICS)
    assert any("rest on 4 regions" in text for text in report["warnings"])
    report = fidelity(real[:7], synthetic, replicates=50)
    assert report["precision"]["low"] is None and report["fid"]["low"] is not None
    assert any("cannot determine" in text for text in report["warnings"])
    assert any("random half" in text for text in report["warnings"])
    quiet = fidelity(*_two(200, 200, 8), replicates=50)
    assert quiet["warnings"] == []
    assert all(fidelity(real, synthetic, replicates=0)[name]["low"] is None for name in METRICS)


def test_the_smallest_sets() -> None:
    real, synthetic = _two(6, 6, 500)
    report = fidelity(real, synthetic, replicates=100, subsets=5)
    assert all(np.isfinite(report[name]["value"]) for name in METRICS)
    json.dumps(report, allow_nan=False)


def _spoiled(value: float) -> np.ndarray:
    features = np.ones((20, 4))
    features[[3, 9], 1] = value
    return features


@pytest.mark.parametrize(
    ("real", "synthetic", "options", "said"),
    [
        (_spoiled(np.nan), np.ones((20, 4)), {}, "2 of 20 real images have NaN .* the first at index 3"),
        (np.ones((20, 4)), _spoiled(np.inf), {}, "2 of 20 synthetic images"),
        (np.ones((20, 4)), np.ones((20, 5)), {}, "real features have 4 dimensions and synthetic ones 5"),
        (np.ones((20, 4, 1)), np.ones((20, 4)), {}, "shape"),
        (np.full((20, 4), "x"), np.ones((20, 4)), {}, "numbers"),
        (np.ones((20, 0)), np.ones((20, 0)), {}, "shape"),
        (np.ones((5, 4)), np.ones((20, 4)), {}, "5 real images, too few for density and coverage; at least 6"),
        (np.ones((20, 4)), np.ones((1, 4)), {}, "1 synthetic images, too few for FID, KID, precision and recall"),
        (np.ones((20, 4)), np.ones((20, 4)), {"real_groups": [1]}, "1 groups were given for 20 real images"),
        (np.ones((20, 4)), np.ones((20, 4)), {"seed": -1}, "seed is -1"),
        (np.ones((20, 4)), np.ones((20, 4)), {"replicates": 1}, "replicates is 1"),
        (np.ones((20, 4)), np.ones((20, 4)), {"subset_size": 1}, "subset_size is 1"),
        (np.ones((20, 4)), np.ones((20, 4)), {"subsets": 0}, "subsets is 0"),
    ],
)
def test_bad_input_is_one_sentence(
    real: np.ndarray, synthetic: np.ndarray, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(PathUpError, match=said) as caught:
        fidelity(real, synthetic, **options)
    assert "\n" not in str(caught.value)


def test_whole_numbers_are_numbers() -> None:
    assert checked(np.ones((6, 2), dtype=np.uint8), np.ones((6, 2)))[0].shape == (6, 2)
    constant = fidelity(np.ones((20, 4)), np.ones((20, 4)), replicates=20)
    assert constant["fid"]["value"] == pytest.approx(0) and constant["precision"]["value"] == 1
