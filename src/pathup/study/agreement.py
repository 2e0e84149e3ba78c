"""How far readers agree, with each other and with themselves.

Scores (R, N), NaN where missing, become counts of paired scores per image (Krippendorff's coincidences), or mean
squares of a two-way analysis of variance (intraclass correlations, ICC). Both are 1 for perfect agreement and about 0
for what chance would give; less is possible.

Krippendorff's ordinal alpha is the main figure: scores are ordered, their steps need not be equal, and answers may be
missing. The ICC stands beside it as what clinical readers know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from pathup import draws
from pathup.study.resampling import UNKNOWN, Interval, case_counts, percentile_interval
from pathup.study.scores import Scores

__all__ = ["ICC", "Metric", "SelfAgreement", "alpha_interval", "icc", "krippendorff_alpha", "self_agreement"]

Metric = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(values: np.ndarray, metric: Metric = "ordinal") -> float:
    """Krippendorff's alpha, at most 1.

    alpha = 1 - D_o / D_e, with D_o the mean squared difference of scores within images and D_e that of all scores that
    have a partner. Images with fewer than two scores are left out.

    Parameters
    ----------
    values
        Scores (R, N), NaN where missing. Memory grows with the square of the number of different scores, which is
        meant to be that of a rating scale.
    metric
        What a difference is. ``nominal``: 1 between different scores; ``interval``: their difference; ``ordinal``: the
        number of scores that lie between them, half of their own included, which is the difference of mid-ranks.

    Returns
    -------
    float
        NaN where it is undefined: no image has two scores, or all scores are equal (no difference is expected by
        chance, so none can be compared with it).

    References
    ----------
    Krippendorff, 2011, Computing Krippendorff's alpha-reliability, sections B to D; Krippendorff, 2019, Content
    analysis, 4th ed., chapter 12.
    """
    scale_V, coincidences_NVV = _coincidences(values)
    return float(_alpha(coincidences_NVV.sum(0), scale_V, metric))


def alpha_interval(
    values: np.ndarray, metric: Metric = "ordinal", *, replicates: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The percentile interval of alpha by the bootstrap of images (Zapf et al., 2016, BMC Med Res Methodol 16:93).

    Readers are taken as they are. Replicates in which alpha is undefined are left out; (NaN, NaN) if all are.

    Parameters
    ----------
    values, metric
        As in `krippendorff_alpha`.
    replicates
        Of the bootstrap.
    seed
        Of the bootstrap; the same seed, the same interval.
    level
        Two-sided confidence.
    """
    scale_V, coincidences_NVV = _coincidences(values)
    count = len(coincidences_NVV)
    counts_BN = case_counts(np.zeros(count, dtype=int), replicates, draws.numpy_generator(seed, "cases of alpha"))
    drawn_BVV = np.tensordot(counts_BN, coincidences_NVV, 1)
    return percentile_interval(_alpha(drawn_BVV, scale_V, metric), level)


def _coincidences(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores that occur, (V,), and each image's share of the coincidence matrix, (N, V, V).

    An image with m scores has m (m - 1) ordered pairs, each of weight 1 / (m - 1), so that it adds m in all.
    """
    scale_V = np.unique(values[~np.isnan(values)])
    counts_NV = (values.T[:, :, None] == scale_V).sum(1).astype(float)
    pairs_NVV = counts_NV[:, :, None] * counts_NV[:, None, :] - counts_NV[:, :, None] * np.eye(len(scale_V))
    return scale_V, pairs_NVV / np.maximum(counts_NV.sum(1) - 1, 1)[:, None, None]  # one score has no pair: 0


def _alpha(coincidences: np.ndarray, scale_V: np.ndarray, metric: Metric) -> np.ndarray:
    """Alpha of each coincidence matrix, (..., V, V) to (...); NaN where no disagreement is expected."""
    totals = coincidences.sum(-1)  # (..., V)
    place = np.cumsum(totals, -1) - totals / 2 if metric == "ordinal" else scale_V
    squares = (place[..., :, None] - place[..., None, :]) ** 2
    if metric == "nominal":
        squares = (squares > 0).astype(float)
    observed = (coincidences * squares).sum((-1, -2))
    expected = (totals[..., :, None] * totals[..., None, :] * squares).sum((-1, -2)) / (totals.sum(-1) - 1)
    return 1 - np.divide(observed, expected, out=np.full(np.shape(observed), np.nan), where=expected > 0)


@dataclass(frozen=True)
class ICC:
    """Intraclass correlations of R readers (Shrout and Fleiss, 1979); NaN where undefined.

    Attributes
    ----------
    icc11, icc21, icc31
        Of a single reader's score: each image by other readers; the same readers for all images, as a sample of
        readers, with their differences in level as error; the same, without differences in level.
    icc1k, icc2k, icc3k
        The same of the mean of the R readers.
    interval21
        Of icc21.
    readers, images
        What went in: images that every reader answered.
    """

    icc11: float
    icc21: float
    icc31: float
    icc1k: float
    icc2k: float
    icc3k: float
    interval21: Interval
    readers: int
    images: int


def icc(values: np.ndarray, level: float = 0.95) -> ICC:
    """Intraclass correlations from the mean squares of images, readers and rest.

    ICC(2,1) is the one for a reader study: readers stand for others, and a score is meant to be the same whoever gives
    it.

    Parameters
    ----------
    values
        Scores (R, N). Images with a missing score are left out, since the formulas are of complete tables.
    level
        Two-sided confidence of the interval of ICC(2,1), which is based on F distributions.

    Returns
    -------
    ICC
        All NaN with fewer than two readers or two complete images, or if all scores are equal.

    References
    ----------
    Shrout and Fleiss, 1979, Psychological Bulletin 86:420-428; McGraw and Wong, 1996, Psychological Methods 1:30-46,
    table 7, ICC(A,1) (the interval).
    """
    complete = values[:, ~np.isnan(values).any(0)]
    k, n = complete.shape
    if k < 2 or n < 2 or np.ptp(complete) == 0:
        return ICC(*(float("nan"),) * 6, UNKNOWN, k, n)
    image_means, reader_means, mean = complete.mean(0), complete.mean(1), complete.mean()
    between = k * ((image_means - mean) ** 2).sum() / (n - 1)
    readers = n * ((reader_means - mean) ** 2).sum() / (k - 1)
    rest = ((complete - image_means - reader_means[:, None] + mean) ** 2).sum() / ((n - 1) * (k - 1))
    within = ((complete - image_means) ** 2).sum() / (n * (k - 1))
    single = _ratio(between - rest, between + (k - 1) * rest + k * (readers - rest) / n)
    return ICC(
        icc11=_ratio(between - within, between + (k - 1) * within),
        icc21=single,
        icc31=_ratio(between - rest, between + (k - 1) * rest),
        icc1k=_ratio(between - within, between),
        icc2k=_ratio(between - rest, between + (readers - rest) / n),
        icc3k=_ratio(between - rest, between),
        interval21=_interval21(single, between, readers, rest, k, n, level),
        readers=k,
        images=n,
    )


def _ratio(part: float, whole: float) -> float:
    """Their quotient; NaN where there is nothing to divide by (images do not differ)."""
    return float(part / whole) if whole else float("nan")


def _interval21(
    single: float, between: float, readers: float, rest: float, k: int, n: int, level: float
) -> tuple[float, float]:
    """McGraw and Wong's interval of ICC(A,1); with perfect agreement (no error at all) it is (1, 1)."""
    if not readers and not rest:
        return 1.0, 1.0
    a, b = k * single, n * (1 - single) + k * single * (n - 1)  # their a and b, times n (1 - single)
    error = (a * readers) ** 2 / (k - 1) + (b * rest) ** 2 / ((n - 1) * (k - 1))
    if not error > 0:  # no F distribution to take
        return UNKNOWN
    freedom = (a * readers + b * rest) ** 2 / error
    up = stats.f.ppf((1 + level) / 2, n - 1, freedom)
    down = stats.f.ppf((1 + level) / 2, freedom, n - 1)
    error_part = k * readers + (k * n - k - n) * rest
    low = n * (between - up * rest) / (up * error_part + n * between)
    high = n * (down * between - rest) / (error_part + n * down * between)
    return float(low), float(high)


@dataclass(frozen=True)
class SelfAgreement:
    """One reader's second scores against the first.

    Attributes
    ----------
    reader
        The name.
    images
        How many images have both scores; the figures are NaN with none.
    alpha, interval
        Ordinal alpha of the two showings and its bootstrap interval.
    mean_absolute_difference
        In points of the scale.
    mean_change
        Second minus first: whether the reader drifted.
    """

    reader: str
    images: int
    alpha: float
    interval: Interval
    mean_absolute_difference: float
    mean_change: float


def self_agreement(
    scores: Scores, *, replicates: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[SelfAgreement, ...]:
    """Each reader against themselves, from the images that were shown twice.

    By ordinal alpha, which can be laid beside the readers' alpha with each other, and the mean absolute difference,
    which is in points. The quadratic-weighted kappa is as usual and near interval alpha, but takes what chance would
    give from each showing's own scores, as if two readers had given them, and does not correct for few images. On a
    dozen images any of them is rough, as the interval shows.
    """
    found = []
    for reader, first, second in zip(scores.readers, scores.values, scores.repeats, strict=True):
        both = ~np.isnan(first) & ~np.isnan(second)
        pair = np.stack([first[both], second[both]])
        change = pair[1] - pair[0]
        found.append(
            SelfAgreement(
                reader=reader,
                images=int(both.sum()),
                alpha=krippendorff_alpha(pair),
                interval=alpha_interval(pair, replicates=replicates, seed=seed, level=level),
                mean_absolute_difference=float(np.abs(change).mean()) if change.size else float("nan"),
                mean_change=float(change.mean()) if change.size else float("nan"),
            )
        )
    return tuple(found)
