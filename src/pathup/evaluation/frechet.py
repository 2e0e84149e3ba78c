"""The Frechet distance of two sets of features (FID, where the features are those of Inception)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pathup.errors import PathUpError

__all__ = ["ENOUGH", "Frechet", "frechet", "frechet_distance", "frechet_distance_of", "too_small"]

ENOUGH = 10
"""Images a dimension, below which `too_small` speaks."""

_NOUGHT = 1e-7
"""Singular values below this part of the largest are rounding (they are square roots of values exact to 1e-16)."""


@dataclass(frozen=True)
class Frechet:
    """A Frechet distance and what each image adds to it.

    Parameters
    ----------
    value
        The distance (squared, as FID always is), at least 0 but for rounding.
    influence_N, influence_M
        (N,) and (M,) float64: the first-order change of the distance with the weight of an image, for its mean: where
        weights w (mean 1) move the mean of ``influence`` by d, the distance moves by d.
    """

    value: float
    influence_N: np.ndarray
    influence_M: np.ndarray


def frechet(a_ND: np.ndarray, b_MD: np.ndarray) -> Frechet:
    r"""The Frechet distance, and the influence of each image on it.

    Heusel et al., 2017, GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium:

        d^2 = |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))

    with the unbiased covariances (divisor n - 1). No square root of the non-symmetric product is taken. With
    A = (x - mu_1) / sqrt(n - 1), so that S_1 = A^T A, and B likewise, tr (S_1 S_2)^(1/2) is the sum of the singular
    values of A B^T; they follow from the eigenvalues of a symmetric matrix with min(D, n) rows, which is exact also
    where there are fewer images than dimensions.

    The singular vectors A B^T = U diag(s) V^T give the derivative as well: the weight of image i moves the sum of
    singular values by (1/2) sum_k s_k U_ik^2. For n > D this is (1/2) a_i^T T a_i, with T the optimal transport from
    one Gaussian to the other, and the influence of an image is

        2 (mu_1 - mu_2)^T (x_i - mu_1) + n (|a_i|^2 - a_i^T T a_i).

    Parameters
    ----------
    a_ND, b_MD
        Finite features of at least two images each.
    """
    if len(a_ND) > len(b_MD):  # the smaller set gives the smaller matrix
        turned = frechet(b_MD, a_ND)
        return Frechet(turned.value, turned.influence_M, turned.influence_N)
    (mean_1, a), (mean_2, b) = _centred(a_ND), _centred(b_MD)
    shift = mean_1 - mean_2
    images, dimension = a.shape
    if images <= dimension:
        factor, place = a.T, None
    else:
        values, vectors = torch.linalg.eigh(a.T @ a)
        kept = values > values[-1].clamp(min=0) * dimension * 1e-16
        values, vectors = values[kept], vectors[:, kept]
        factor, place = vectors * values.sqrt(), vectors / values.sqrt()
    # S_1 = factor factor^T; an image is a_i = factor u_i with u = a place (or the unit vectors)
    seen = b @ factor
    squares, turn = torch.linalg.eigh(seen.T @ seen)
    singular = squares.clamp(min=0).sqrt()
    own = turn if place is None else a @ (place @ turn)
    through_1 = own.square() @ singular
    counted = singular > _NOUGHT * singular.max() if len(singular) else singular > 0
    through_2 = (seen @ turn[:, counted]).square_() @ singular[counted].reciprocal()
    norm_1, norm_2 = a.square().sum(1), b.square().sum(1)
    value = shift @ shift + norm_1.sum() + norm_2.sum() - 2 * singular.sum()
    root_1, root_2 = (max(len(x) - 1, 1) ** 0.5 for x in (a, b))
    influence_1 = 2 * root_1 * (a @ shift) + len(a) * (norm_1 - through_1)
    influence_2 = -2 * root_2 * (b @ shift) + len(b) * (norm_2 - through_2)
    return Frechet(float(value), influence_1.numpy(), influence_2.numpy())


def frechet_distance(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """The Frechet distance alone; see `frechet`."""
    return frechet(a_ND, b_MD).value


def frechet_distance_of(
    mean_1: np.ndarray, covariance_1: np.ndarray, mean_2: np.ndarray, covariance_2: np.ndarray
) -> float:
    """The Frechet distance of two given Gaussians.

    Parameters
    ----------
    mean_1, mean_2
        (D,).
    covariance_1, covariance_2
        (D, D), symmetric, no eigenvalue below 0 but for rounding.

    Raises
    ------
    PathUpError
        Shapes do not fit, values are not finite, or a matrix is no covariance.
    """
    means = [np.asarray(mean, dtype=float) for mean in (mean_1, mean_2)]
    covariances = [np.asarray(covariance, dtype=float) for covariance in (covariance_1, covariance_2)]
    dimension = means[0].size
    shapes = [array.shape for array in (*means, *covariances)]
    if shapes != [(dimension,)] * 2 + [(dimension, dimension)] * 2:
        raise PathUpError(f"means and covariances are of shapes {shapes}, but (D,) and (D, D) of one D were needed")
    if not all(np.isfinite(array).all() for array in (*means, *covariances)):
        raise PathUpError("a mean or covariance holds NaN or infinite values; compute it from finite features")
    roots = [_root(torch.from_numpy(covariance)) for covariance in covariances]
    singular = torch.linalg.svdvals(roots[0].T @ roots[1])
    shift = means[0] - means[1]
    return float(shift @ shift + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * float(singular.sum()))


def too_small(images: int, dimension: int) -> str | None:
    """What a reader must know where `images` are too few for the covariance of `dimension` features; None: enough.

    Returns
    -------
    str or None
        One sentence. FID rises as images get fewer: of two sets of n images from one isotropic Gaussian, where the true
        distance is 0, it is about D / (2 n) of the covariance's trace: half of it at n = D, 5 % at n = 10 D. With
        variances that fall as 1 / rank (D = 200) it is half of that.
    """
    if images <= dimension:
        return (
            f"{images} images cannot determine the covariance of {dimension}-d features (more than {dimension} were "
            "needed), so FID is far too high; compare it only with the floor at the same number of images, or use KID"
        )
    if images < ENOUGH * dimension:
        return (
            f"{images} images are few for the covariance of {dimension}-d features (below {ENOUGH} a dimension), so "
            "FID is too high; compare it only with the floor at the same number of images, or use KID"
        )
    return None


def _centred(features_ND: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    features = torch.from_numpy(np.array(features_ND, dtype=np.float64))  # a copy, changed in place
    mean = features.mean(0)
    return mean, features.sub_(mean).div_(max(len(features) - 1, 1) ** 0.5)


def _root(covariance: torch.Tensor) -> torch.Tensor:
    """F with covariance = F F^T."""
    if not torch.allclose(covariance, covariance.T, rtol=1e-6, atol=1e-9 * float(covariance.abs().max())):
        raise PathUpError("a covariance is not symmetric; give the covariance matrix of features")
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    if values[0] < -1e-6 * values[-1].abs():
        raise PathUpError(f"a covariance has the eigenvalue {values[0]:.3g}; none below 0 was needed")
    return vectors * values.clamp(min=0).sqrt()
