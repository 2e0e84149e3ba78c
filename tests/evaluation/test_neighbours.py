from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_prc import calculate_precision_recall_full

from pathup.evaluation.intervals import Units
from pathup.evaluation.neighbours import Manifold, Neighbours, manifold
from pathup.evaluation.pairs import Pairs, sweep


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathup.evaluation.pairs.BLOCK", 32)  # so that few images fill several blocks


def _two(images: int = 130, others: int = 90, dimension: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(3, 1, (images, dimension)), generator.normal(3.2, 0.8, (others, dimension))


def _slow(real: np.ndarray, synthetic: np.ndarray) -> dict[str, np.ndarray]:
    """Image by image, from distances of differences; whole numbers make these exact."""

    def squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.square(x[:, None] - y[None]).sum(2)

    def radii(x: np.ndarray, k: int) -> np.ndarray:
        own = squares(x, x)
        return np.array([np.sort(np.delete(row, i))[k - 1] for i, row in enumerate(own)])

    across = squares(real, synthetic)
    wide = across <= radii(real, 5)[:, None]
    return {
        "precise_M": (across <= radii(real, 3)[:, None]).any(0),
        "recalled_N": (across <= radii(synthetic, 3)[None]).any(1),
        "density_M": wide.sum(0) / 5,
        "covered_N": wide.any(1),
    }


def _same(found: Manifold, expected: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(getattr(found, name), values) for name, values in expected.items())


@settings(max_examples=30, deadline=None)
@given(st.integers(6, 80), st.integers(6, 80), st.integers(1, 5), st.integers(0, 10_000))
def test_equals_a_slow_loop_with_all_its_ties(images: int, others: int, dimension: int, seed: int) -> None:
    # few whole numbers: many equal images and equal distances, far from 0, so that rounding would show
    generator = np.random.default_rng(seed)
    real = generator.integers(0, 4, (images, dimension)) + 1000.0
    synthetic = generator.integers(0, 4, (others, dimension)) + 1000.0
    assert _same(manifold(real, synthetic), _slow(real, synthetic))
    assert _same(manifold(real / 7, synthetic / 7), _slow(real, synthetic))


def test_equals_a_slow_loop_on_features() -> None:
    real, synthetic = _two()
    assert _same(manifold(real, synthetic), _slow(real, synthetic))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch_fidelity(dtype: torch.dtype) -> None:
    real, synthetic = _two(700, 500, 32)
    figures = manifold(real, synthetic).figures
    theirs = calculate_precision_recall_full(torch.from_numpy(synthetic).to(dtype), torch.from_numpy(real).to(dtype))
    assert (figures["precision"], figures["recall"]) == pytest.approx(theirs, rel=1e-6)  # their means are float32


def test_what_must_not_change_it() -> None:
    real, synthetic = _two()
    first = manifold(real, synthetic)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    order = np.random.default_rng(1).permutation(len(real))
    assert manifold(real - 9, synthetic - 9).figures == first.figures
    assert manifold(100 * real @ turn, 100 * synthetic @ turn).figures == first.figures
    moved = manifold(real[order], synthetic)
    assert np.array_equal(moved.recalled_N, first.recalled_N[order])
    assert np.array_equal(moved.precise_M, first.precise_M)
    assert moved.figures == first.figures
    turned = manifold(synthetic, real).figures  # precision one way is recall the other
    assert (turned["precision"], turned["recall"]) == (first.figures["recall"], first.figures["precision"])


def test_a_set_with_itself_is_whole() -> None:
    real, _ = _two()
    figures = manifold(real, real).figures
    assert (figures["precision"], figures["recall"], figures["coverage"]) == (1, 1, 1)
    assert figures["density"] >= 1  # each image is in its own ball and in those of which it is a neighbour: 6 / 5


def test_mode_collapse_raises_precision_and_lowers_recall() -> None:
    generator = np.random.default_rng(0)
    real = generator.normal(size=(400, 16))
    figures = [manifold(real, spread * generator.normal(size=(400, 16))).figures for spread in (1.0, 0.8, 0.4)]
    precision, recall = ([figure[name] for figure in figures] for name in ("precision", "recall"))
    assert precision[0] < precision[1] < precision[2] == 1
    assert recall[0] > recall[1] > recall[2] and recall[2] < 0.01


def test_lost_modes_lower_recall_and_coverage_by_their_share() -> None:
    generator = np.random.default_rng(0)
    centres = 20 * np.eye(4, 8)  # so far apart that no ball reaches over
    real = centres[np.arange(400) % 4] + generator.normal(size=(400, 8))
    whole = manifold(real, centres[np.arange(400) % 4] + generator.normal(size=(400, 8))).figures
    lost = manifold(real, centres[0] + generator.normal(size=(400, 8))).figures
    assert whole["recall"] > 0.7 and whole["coverage"] > 0.9
    assert lost["recall"] <= 0.25 and lost["coverage"] <= 0.25  # one mode of four is left
    assert abs(lost["precision"] - whole["precision"]) < 0.15  # what is made is as good as before


def test_synthetic_images_that_are_all_one_real_image() -> None:
    real, _ = _two()
    figures = manifold(real, np.repeat(real[7:8], 50, axis=0)).figures
    assert figures["precision"] == 1
    assert figures["recall"] == 1 / len(real)  # balls of radius 0 hold the copied image alone


def test_halves_are_sets_of_their_own() -> None:
    # the figures of a half are those of the half's images alone
    real, synthetic = _two(100, 80)
    groups = np.arange(100) // 5
    halves = Units.of(100, groups, "real").halves(6, 0, "real"), Units.of(80, None, "s").halves(6, 0, "synthetic")
    pairs = Pairs(real, synthetic)
    neighbours = Neighbours(pairs, halves)
    sweep(pairs, [neighbours])
    found = neighbours.manifold()
    assert found.figures == manifold(real, synthetic).figures
    for replicate in range(6):
        alone = manifold(real[halves[0][replicate]], synthetic[halves[1][replicate]]).figures
        assert {name: values[replicate] for name, values in found.halves.items()} == pytest.approx(alone)
