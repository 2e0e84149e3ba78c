from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.kid import poly_mmd

from pathup.evaluation import pairs as pairs_module
from pathup.evaluation.intervals import Units
from pathup.evaluation.kernel import KernelSums, kernel_distance, paired_kernel_distance, subset_draws
from pathup.evaluation.pairs import Pairs, sweep


def _two(images: int = 70, others: int = 50, dimension: int = 12) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.normal(1, 1, (images, dimension)), generator.normal(1.2, 0.9, (others, dimension))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pairs", "kernel"):
        monkeypatch.setattr(f"pathup.evaluation.{module}.BLOCK", 16)  # so that few images fill several blocks


def _k(x: np.ndarray, y: np.ndarray) -> float:
    return float((x @ y / len(x) + 1) ** 3)


def _slow(copies: list[tuple[object, int, np.ndarray]], others: list[tuple[object, int, np.ndarray]]) -> float:
    """Over pairs of (unit, copy, image): images of one copy of a unit pair with each other, of two copies do not."""

    def inside(members: list[tuple[object, int, np.ndarray]]) -> float:
        taken = [
            _k(x, y)
            for i, (unit, copy, x) in enumerate(members)
            for j, (unit_2, copy_2, y) in enumerate(members)
            if i != j and (unit != unit_2 or copy == copy_2)
        ]
        return sum(taken) / len(taken)

    across = [_k(x, y) for _, _, x in copies for _, _, y in others]
    return inside(copies) + inside(others) - 2 * sum(across) / len(across)


def test_equals_a_slow_loop() -> None:
    a, b = _two(23, 17)
    expected = _slow([(i, 0, x) for i, x in enumerate(a)], [(i, 0, x) for i, x in enumerate(b)])
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert kernel_distance(b, a) == pytest.approx(expected, rel=1e-10)


def test_replicates_leave_out_pairs_of_two_copies_of_a_unit() -> None:
    a, b = _two(20, 17)
    groups = np.arange(20) // 4  # five regions of four tiles
    units = Units.of(20, groups, "real"), Units.of(17, None, "synthetic")
    drawn = units[0].multiplicities(3, 0, "real"), units[1].multiplicities(3, 0, "synthetic")
    none = np.zeros((0, 2), dtype=int)
    pairs = Pairs(a, b)
    sums = KernelSums(pairs, units, (none, none), drawn)
    sweep(pairs, [sums])
    found = sums.distances()[2]
    for replicate in range(3):
        copies = [
            (group, copy, x)
            for x, group in zip(a, groups, strict=True)
            for copy in range(int(drawn[0][group, replicate]))
        ]
        others = [(i, copy, y) for i, y in enumerate(b) for copy in range(int(drawn[1][i, replicate]))]
        assert found[replicate] == pytest.approx(_slow(copies, others), rel=1e-9)


def test_the_bootstrap_is_centred_on_the_figure() -> None:
    # of the naive one, an image drawn twice raises the kernel's mean, and with it every replicate
    a, b = _two(120, 120)
    units = Units.of(120, None, "real"), Units.of(120, None, "synthetic")
    drawn = units[0].multiplicities(2000, 0, "real"), units[1].multiplicities(2000, 0, "synthetic")
    none = np.zeros((0, 2), dtype=int)
    pairs = Pairs(a, b)
    sums = KernelSums(pairs, units, (none, none), drawn)
    sweep(pairs, [sums])
    value, _, replicates = sums.distances()
    error = replicates.std() / 2000**0.5
    assert abs(replicates.mean() - value) < 4 * error  # 4 standard errors of the mean of 2,000


def test_equals_torchmetrics_on_the_whole_sets() -> None:
    # Documented difference: torchmetrics draws its subsets from torch's global generator, so that its mean over subsets
    # differs by chance; of one and the same subset it has the same figure.
    a, b = _two(60, 60)
    theirs = float(poly_mmd(torch.from_numpy(a), torch.from_numpy(b)))
    assert kernel_distance(a, b) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_subsets_are_those_of_torch_fidelity(dtype: type) -> None:
    a, b = (values.astype(dtype) for values in _two())
    drawn = subset_draws(len(a), len(b), 20, 30, seed=5)
    units = Units.of(len(a), None, "real"), Units.of(len(b), None, "synthetic")
    pairs = Pairs(a, b)
    sums = KernelSums(pairs, units, drawn, (np.zeros((len(a), 0)), np.zeros((len(b), 0))))
    sweep(pairs, [sums])
    whole, subsets, _ = sums.distances()
    theirs = kid_features_to_metric(
        torch.from_numpy(b), torch.from_numpy(a), kid_subsets=20, kid_subset_size=30, rng_seed=5, verbose=False
    )
    near = 1e-4 if dtype == np.float32 else 1e-10  # torch-fidelity's own arithmetic is of the features' type
    assert subsets.mean() == pytest.approx(theirs["kernel_inception_distance_mean"], rel=near)
    assert subsets.std() == pytest.approx(theirs["kernel_inception_distance_std"], rel=near)
    assert whole == pytest.approx(kernel_distance(a, b), rel=1e-10)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = _two()
    small = kernel_distance(a, b)
    monkeypatch.setattr(pairs_module, "BLOCK", 1000)
    assert kernel_distance(a, b) == pytest.approx(small, rel=1e-11)


def test_is_unbiased_between_sets_of_one_kind() -> None:
    generator = np.random.default_rng(1)
    values = np.array([kernel_distance(*generator.normal(size=(2, 20, 8))) for _ in range(200)])
    assert abs(values.mean()) < 4 * values.std() / 200**0.5 and values.min() < 0


def test_paired_distance_is_the_slow_loop_without_own_pairs(monkeypatch):
    generator = np.random.default_rng(5)
    x, y = (generator.normal(size=(7, 3)) for _ in range(2))
    monkeypatch.setattr("pathup.evaluation.kernel.BLOCK", 3)  # more than one block, the last one cut short

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    slow = np.mean([k(x[i], x[j]) + k(y[i], y[j]) - 2 * k(x[i], y[j]) for i, j in pairs])
    assert paired_kernel_distance(x, y) == pytest.approx(slow, rel=1e-12)
    assert paired_kernel_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert kernel_distance(x, x) < 0  # own pairs count as near ones


def test_paired_distance_wants_pairs():
    with pytest.raises(ValueError, match="pairs of images wanted"):
        paired_kernel_distance(np.zeros((3, 2)), np.zeros((4, 2)))
