"""Fidelity of one set of images to another, on their features: all metrics of a comparison, with intervals.

FID, KID, precision, recall, density and coverage are those of Inception or VGG16 only where the features are; figures
of different features cannot be compared with each other, nor those of different numbers of images.

Memory is bounded by the features themselves (as float64) and a few blocks of 1024 x 1024 pairs; no matrix of all
pairs is ever held. The number of threads is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pathup.errors import PathUpError
from pathup.evaluation.frechet import frechet, frechet_distance, too_small
from pathup.evaluation.intervals import (
    FEW_UNITS,
    LEVEL,
    Interval,
    Units,
    about,
    mean_deviations,
    proportion,
    relative,
    unknown_interval,
)
from pathup.evaluation.kernel import KernelSums, subset_draws
from pathup.evaluation.neighbours import DENSITY_NEIGHBOURS, PRECISION_NEIGHBOURS, Neighbours
from pathup.evaluation.pairs import Pairs, sweep

__all__ = ["HALVES", "LEAST", "METRICS", "checked", "fidelity", "torch_fidelity_check"]

METRICS = ("fid", "kid", "precision", "recall", "density", "coverage")

HALVES = 100
"""Random halves behind the intervals of precision, recall, density and coverage."""

LEAST = {
    "FID": 2,
    "KID": 2,
    "precision and recall": PRECISION_NEIGHBOURS + 1,
    "density and coverage": DENSITY_NEIGHBOURS + 1,
}
"""Images that each metric needs of both sets."""

_SIDES = ("real", "synthetic")


def fidelity(
    real_ND: np.ndarray,
    synthetic_MD: np.ndarray,
    *,
    real_groups: Sequence[object] | np.ndarray | None = None,
    synthetic_groups: Sequence[object] | np.ndarray | None = None,
    seed: int = 0,
    replicates: int = 1000,
    subset_size: int = 1000,
    subsets: int = 100,
) -> dict[str, Any]:
    """All metrics of one comparison.

    Intervals (95 %) are about the figure that these numbers of images would give on average: FID's by its linearised
    bootstrap, KID's by the bootstrap of its sums over pairs, the others' by random halves; see
    `pathup.evaluation.intervals`.

    Parameters
    ----------
    real_ND, synthetic_MD
        Features, float32 or float64.
    real_groups, synthetic_groups
        The region of each image: whole regions are then resampled, since tiles of one region are alike. None: single
        images, as synthetic ones are. Give both where real stands against real.
    seed
        Of the subsets and of all resampling, 0 to 2^32 - 1.
    replicates
        Of the bootstrap; at most `HALVES` halves. 0: no intervals.
    subset_size, subsets
        Of KID's mean and standard deviation over subsets; smaller subsets where a set has fewer images.

    Returns
    -------
    dict
        JSON values. Of each of `METRICS` ``value``, ``low`` and ``high`` (None where no interval can be given);
        ``kid_subsets``: ``mean``, ``std``, ``subsets``, ``subset_size``; ``k``; ``counts``: ``real``, ``synthetic``
        and their numbers of units; ``dimension``; ``seed``, ``replicates``, ``halves``, ``level``; ``warnings``:
        sentences.

    Raises
    ------
    PathUpError
        The features are not what is needed; see `checked`. A group is missing, or a count or the seed out of range.
    """
    real, synthetic = checked(real_ND, synthetic_MD)
    for name, given, needed, right in (
        ("seed", seed, "0 to 4294967295", 0 <= seed < 2**32),
        ("replicates", replicates, "0 (no intervals) or at least 2", replicates == 0 or replicates > 1),
        ("subset_size", subset_size, "at least 2", subset_size > 1),
        ("subsets", subsets, "at least 1", subsets > 0),
    ):
        if not right:
            raise PathUpError(f"{name} is {given}, but {needed} was needed")
    units = Units.of(len(real), real_groups, "real"), Units.of(len(synthetic), synthetic_groups, "synthetic")
    size = min(subset_size, len(real), len(synthetic))
    sure = replicates > 0 and min(unit.count for unit in units) > 1
    draws = replicates if sure else 0
    drawn = units[0].multiplicities(draws, seed, "real"), units[1].multiplicities(draws, seed, "synthetic")
    halves = tuple(unit.halves(min(HALVES, draws), seed, side) for unit, side in zip(units, _SIDES, strict=True))
    halved = sure and all(half.sum(1).min() > DENSITY_NEIGHBOURS for half in halves)
    if not halved:
        halves = tuple(half[:0] for half in halves)

    pairs = Pairs(real, synthetic)
    sums = KernelSums(pairs, units, subset_draws(len(real), len(synthetic), subsets, size, seed), drawn)
    neighbours = Neighbours(pairs, (halves[0], halves[1]))
    sweep(pairs, [sums, neighbours])
    kid, kid_subsets, kid_replicates = sums.distances()
    found = neighbours.manifold()
    del pairs, sums, neighbours  # so that FID finds their memory free

    intervals: dict[str, Interval] = {}
    if sure:
        distance = frechet(real, synthetic)
        moved = mean_deviations(distance.influence_N, units[0], drawn[0])
        moved += mean_deviations(distance.influence_M, units[1], drawn[1])
        intervals["fid"] = about(distance.value, moved)
    else:
        intervals["fid"] = unknown_interval(frechet_distance(real, synthetic))
    intervals["kid"] = about(kid, kid_replicates)
    for name, figure in found.figures.items():
        if not halved:
            intervals[name] = unknown_interval(figure)
        elif name == "density":
            intervals[name] = relative(figure, found.halves[name])
        else:
            owner = units[1] if name == "precision" else units[0]
            intervals[name] = proportion(figure, found.halves[name], owner.count)
    return {
        **{name: intervals[name] for name in METRICS},
        "kid_subsets": {
            "mean": float(kid_subsets.mean()), "std": float(kid_subsets.std()), "subsets": subsets, "subset_size": size,
        },
        "k": {"precision_recall": PRECISION_NEIGHBOURS, "density_coverage": DENSITY_NEIGHBOURS},
        "counts": {
            "real": len(real), "synthetic": len(synthetic),
            "real_units": units[0].count, "synthetic_units": units[1].count,
        },
        "dimension": real.shape[1],
        "seed": seed,
        "replicates": draws,
        "halves": len(halves[0]),
        "level": LEVEL,
        "warnings": _warnings(real, synthetic, units, asked=replicates > 0, halved=halved),
    }  # fmt: skip


def checked(real_ND: np.ndarray, synthetic_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features that every metric can be taken of.

    Raises
    ------
    PathUpError
        They are not two-dimensional arrays of numbers, not of one D, hold NaN or infinite values, or are of fewer
        images than a metric needs (`LEAST`).
    """
    arrays = np.asarray(real_ND), np.asarray(synthetic_MD)
    for side, array in zip(_SIDES, arrays, strict=True):
        if array.ndim != 2 or not array.shape[1] or array.dtype.kind not in "fiu":
            raise PathUpError(
                f"the {side} features are an array of {array.dtype} and shape {array.shape}; "
                "numbers in the shape (images, features) were needed"
            )
        metric, least = max(LEAST.items(), key=lambda item: item[1])
        if len(array) < least:
            names = [name for name, needed in LEAST.items() if needed > len(array)]
            raise PathUpError(
                f"there are {len(array)} {side} images, too few for {', '.join(names)}; "
                f"at least {least} are needed (by {metric})"
            )
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if len(bad):
            raise PathUpError(
                f"{len(bad)} of {len(array)} {side} images have NaN or infinite features, the first at index {bad[0]}; "
                "remove or mend these images"
            )
    if arrays[0].shape[1] != arrays[1].shape[1]:
        raise PathUpError(
            f"real features have {arrays[0].shape[1]} dimensions and synthetic ones {arrays[1].shape[1]}; "
            "extract both with the same network"
        )
    return arrays


def torch_fidelity_check(
    real_ND: np.ndarray, synthetic_MD: np.ndarray, report: dict[str, Any] | None = None
) -> dict[str, dict[str, float]]:
    """The same figures by torch-fidelity's own functions, on the same features, beside ours.

    torch-fidelity is given float64 features, the synthetic ones first, as its convention is, and block by block
    (``save_cpu_ram``). Its FID takes eigenvalues of a non-symmetric D x D matrix: minutes at D = 2048.

    Parameters
    ----------
    real_ND, synthetic_MD
        See `fidelity`.
    report
        What `fidelity` returned for these features; None: it is computed, without intervals.

    Returns
    -------
    dict
        Of ``fid``, ``kid_subsets_mean``, ``kid_subsets_std``, ``precision`` and ``recall``: ``pathup``,
        ``torch_fidelity`` and ``relative_difference`` (of the latter; 0 where both are 0).
    """
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    features = checked(real_ND, synthetic_MD)
    if report is None:
        report = fidelity(*features, replicates=0)
    real, synthetic = (torch.from_numpy(np.array(array, dtype=np.float64)) for array in features)
    drawn = report["kid_subsets"]
    theirs = fid_statistics_to_metric(fid_features_to_statistics(synthetic), fid_features_to_statistics(real), False)
    theirs |= kid_features_to_metric(
        synthetic, real, kid_subsets=drawn["subsets"], kid_subset_size=drawn["subset_size"],
        rng_seed=report["seed"], verbose=False,
    )  # fmt: skip
    theirs |= prc_features_to_metric(
        synthetic, real, prc_neighborhood=report["k"]["precision_recall"], prc_batch_size=1024, save_cpu_ram=True,
        verbose=False,
    )  # fmt: skip
    ours = {
        "fid": (report["fid"]["value"], "frechet_inception_distance"),
        "kid_subsets_mean": (drawn["mean"], "kernel_inception_distance_mean"),
        "kid_subsets_std": (drawn["std"], "kernel_inception_distance_std"),
        "precision": (report["precision"]["value"], "precision"),
        "recall": (report["recall"]["value"], "recall"),
    }
    return {
        name: {
            "pathup": value,
            "torch_fidelity": float(theirs[key]),
            "relative_difference": abs(value - theirs[key]) / max(abs(theirs[key]), np.finfo(float).tiny),
        }
        for name, (value, key) in ours.items()
    }


def _warnings(
    real: np.ndarray, synthetic: np.ndarray, units: tuple[Units, Units], *, asked: bool, halved: bool
) -> list[str]:
    said = [f"{side}: {text}" for side, features in zip(_SIDES, (real, synthetic), strict=True)
            if (text := too_small(*features.shape))]  # fmt: skip
    if not asked:
        return said
    for side, unit in zip(_SIDES, units, strict=True):
        kind = "regions" if unit.grouped else "images"
        if unit.count == 1:
            said.append(f"{side}: all images are of one region, so no interval can be given; add regions")
        elif unit.count < FEW_UNITS:
            said.append(
                f"{side}: intervals rest on {unit.count} {kind} (below {FEW_UNITS}) and are likely too narrow; "
                f"add {kind}"
            )
    if not halved and min(unit.count for unit in units) > 1:
        said.append(
            f"precision, recall, density and coverage have no interval, since a random half may hold no more than "
            f"{DENSITY_NEIGHBOURS} images; add images or regions"
        )
    return said
