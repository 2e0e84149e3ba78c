from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance

from pathup.errors import PathUpError
from pathup.evaluation.frechet import frechet, frechet_distance, frechet_distance_of, too_small


def _two(images: int, others: int, dimension: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated, unlike features with a mean far from 0, as a network's are."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(dimension, dimension)) / dimension**0.5
    a = generator.normal(size=(images, dimension)) @ mixing + 3
    b = generator.normal(size=(others, dimension)) * np.linspace(0.5, 1.5, dimension) @ mixing + 3.2
    return a, b


def _slow(a: np.ndarray, b: np.ndarray) -> float:
    """The formula as it is printed, with SciPy's matrix square root."""
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = a.mean(0) - b.mean(0)
    return float(shift @ shift + np.trace(first + second - 2 * sqrtm(first @ second).real))


@pytest.mark.parametrize(("images", "others"), [(200, 150), (150, 200), (33, 200)])
def test_equals_the_formula_as_printed(images: int, others: int) -> None:
    a, b = _two(images, others, 32)
    assert frechet_distance(a, b) == pytest.approx(_slow(a, b), rel=1e-9)


@pytest.mark.parametrize("images", [40, 200])  # fewer images than dimensions, and more
def test_equals_torchmetrics(images: int) -> None:
    # Documented difference: it sums features and their products before centring, in float32 unless told otherwise, and
    # takes roots of the eigenvalues of the non-symmetric product, whose zeros come out as about 1e-8 of the largest.
    class Identity(torch.nn.Module):
        num_features = 64

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return features

    a, b = _two(images, images + 30, 64)
    theirs = FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(a), real=True)
    theirs.update(torch.from_numpy(b), real=False)
    assert frechet_distance(a, b) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_given_gaussians_have_the_closed_form() -> None:
    # diagonal covariances commute: |mu_1 - mu_2|^2 + sum (s_1 - s_2)^2
    mean_1, mean_2 = np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0])
    deviation_1, deviation_2 = np.array([1.0, 2.0, 0.0]), np.array([3.0, 1.0, 0.5])
    expected = 1 + 4 + 4 + 1 + 0.25
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    for axes in (np.eye(3), turn):
        covariances = [axes @ np.diag(deviation**2) @ axes.T for deviation in (deviation_1, deviation_2)]
        found = frechet_distance_of(axes @ mean_1, covariances[0], axes @ mean_2, covariances[1])
        assert found == pytest.approx(expected, rel=1e-6)


def test_features_with_given_moments_have_the_closed_form() -> None:
    # features that are whitened and coloured, so that their sample moments are exactly those of the Gaussians
    generator = np.random.default_rng(1)
    deviations, means, sets = [np.linspace(1, 2, 16), np.linspace(2, 0.5, 16)], [np.zeros(16), np.full(16, 0.5)], []
    for mean, deviation in zip(means, deviations, strict=True):
        raw = generator.normal(size=(100, 16))
        raw -= raw.mean(0)
        orthogonal, _ = np.linalg.qr(raw)
        sets.append(orthogonal * (99**0.5) * deviation + mean)
    expected = 16 * 0.25 + np.square(deviations[0] - deviations[1]).sum()
    assert frechet_distance(*sets) == pytest.approx(expected, rel=1e-10)
    covariances = [np.diag(deviation**2) for deviation in deviations]
    assert frechet_distance_of(means[0], covariances[0], means[1], covariances[1]) == pytest.approx(expected, rel=1e-10)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 30), st.integers(0, 1000))
def test_what_must_not_change_it(images: int, others: int, dimension: int, seed: int) -> None:
    a, b = _two(images, others, dimension, seed)
    generator = np.random.default_rng(seed)
    value = frechet_distance(a, b)
    turn, _ = np.linalg.qr(generator.normal(size=(dimension, dimension)))
    size = np.square(a - a.mean(0)).sum() / images + 1  # of the trace, of which rounding is a part (roots of 1e-16)
    near = pytest.approx(value, abs=1e-6 * size)
    assert frechet_distance(b, a) == near
    assert frechet_distance(generator.permutation(a), b) == near
    assert frechet_distance(a - 7, b - 7) == near
    assert frechet_distance(a @ turn, b @ turn) == near
    assert frechet_distance(3 * a, 3 * b) == pytest.approx(9 * value, abs=1e-5 * size)
    assert value > -1e-6 * size and frechet_distance(a, a) == pytest.approx(0, abs=1e-6 * size)


@pytest.mark.parametrize(("images", "others", "dimension"), [(120, 90, 20), (90, 120, 20), (30, 40, 64), (60, 15, 20)])
def test_influence_is_the_derivative_by_the_weight_of_an_image(images: int, others: int, dimension: int) -> None:
    a, b = _two(images, others, dimension)
    found = frechet(a, b)

    def weighted(values: np.ndarray, extra: float, place: int) -> tuple[np.ndarray, np.ndarray]:
        weight = np.ones(len(values))
        weight[place] += extra
        weight /= weight.mean()
        mean = weight @ values / len(values)
        centred = values - mean
        return mean, (centred * weight[:, None]).T @ centred / (len(values) - 1)

    step = 1e-4
    for place in (0, 7):
        for values, influence, other in ((a, found.influence_N, b), (b, found.influence_M, a)):
            fixed = other.mean(0), np.cov(other, rowvar=False)
            up, down = (frechet_distance_of(*weighted(values, sign * step, place), *fixed) for sign in (1, -1))
            expected = (influence[place] - influence.mean()) / len(values)
            assert (up - down) / (2 * step) == pytest.approx(expected, rel=2e-3, abs=1e-4)


def test_dead_features_change_nothing() -> None:
    a, b = _two(50, 60, 10)
    padded = [np.pad(values, ((0, 0), (0, 5)), constant_values=2.0) for values in (a, b)]
    assert frechet_distance(*padded) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    constant = np.ones((20, 4))
    assert frechet_distance(constant, constant + 1) == pytest.approx(4)
    assert np.isfinite(frechet(constant, a[:, :4]).influence_N).all()


def test_a_small_set_is_told() -> None:
    assert "cannot determine" in str(too_small(64, 64))
    assert "few" in str(too_small(65, 64)) and "few" in str(too_small(639, 64))
    assert too_small(640, 64) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mean_1": np.zeros(2)}, "shapes"),
        ({"covariance_2": np.full((3, 3), np.nan)}, "NaN"),
        ({"covariance_1": np.triu(np.ones((3, 3)))}, "not symmetric"),
        ({"covariance_2": np.diag([1.0, 1.0, -1.0])}, "eigenvalue -1"),
    ],
)
def test_no_gaussians(changed: dict[str, np.ndarray], said: str) -> None:
    given_ones = {"mean_1": np.zeros(3), "covariance_1": np.eye(3), "mean_2": np.zeros(3), "covariance_2": np.eye(3)}
    with pytest.raises(PathUpError, match=said):
        frechet_distance_of(**{**given_ones, **changed})
