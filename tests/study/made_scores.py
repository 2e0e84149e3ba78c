"""Made reader studies: seven classes of ten real and ten synthetic images, scored from 1 to 10."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from pathup.study.scores import Scores

CLASSES = ("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC")


def study(values, synthetic, labels=None, repeats=None) -> Scores:
    """Scores of anything that lists a row a reader; one class unless labels are given."""
    values = np.asarray(values, dtype=float)
    readers, images = values.shape
    return Scores(
        readers=tuple(f"reader {n}" for n in range(readers)),
        images=tuple(f"image {n}" for n in range(images)),
        labels=tuple(labels) if labels is not None else ("N",) * images,
        synthetic=np.asarray(synthetic),
        values=values,
        repeats=np.full_like(values, np.nan) if repeats is None else np.asarray(repeats, dtype=float),
    )


def binormal(seed: int, separation: float, spread: float = 0.0, readers: int = 3, each: int = 10) -> Scores:
    """A study whose true mean AUC is `binormal_auc`: image and reader noise of equal variance, summing to 1 per score.

    `spread` is the standard deviation of the separation over readers. The normal scores are put on 1 to 10 by a
    monotone map, which no AUC notices.
    """
    rng = np.random.default_rng(seed)
    labels = np.repeat(CLASSES, 2 * each)
    synthetic = np.tile(np.repeat([False, True], each), len(CLASSES))
    shift = separation + spread * rng.standard_normal((readers, 1))
    noise = (rng.standard_normal(len(labels)) + rng.standard_normal((readers, len(labels)))) / np.sqrt(2)
    return study(1 + 9 * norm.cdf(noise + shift * ~synthetic), synthetic, labels)


def binormal_auc(separation: float, spread: float = 0.0) -> float:
    """P(real > synthetic) over readers and images: a normal difference of variance 2 + spread^2 above 0."""
    return float(norm.cdf(separation / np.sqrt(2 + spread**2)))


def whole(seed: int, missing: float = 0.0, readers: int = 3) -> Scores:
    """A study of whole scores, real ones a little higher, with a share of answers missing and a tenth repeated."""
    rng = np.random.default_rng(seed)
    own = binormal(seed, 0.5, 0.3, readers)
    values = np.round(own.values)
    values[rng.random(values.shape) < missing] = np.nan
    again = np.clip(values + rng.integers(-1, 2, size=values.shape), 1, 10)
    repeats = np.where(rng.random(values.shape) < 0.1, again, np.nan)
    return study(values, own.synthetic, own.labels, repeats)
