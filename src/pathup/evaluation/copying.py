"""Synthetic tiles that copy training tiles: how many there are, beside what real tiles give by chance.

Each synthetic tile and each held-out real tile is held against all training tiles (`pathup.evaluation.lookalikes`).
What counts as a copy is set on real tiles alone: hardly any training tile is as similar to a tile of another region.
The held-out tiles, which take no part in that, tell how often the method is wrong. It finds whole tiles only, up to
flips, quarter turns, shifts of an eighth of the side, stain and mild blur: to find none is no proof of none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from pathup import draws
from pathup.errors import PathUpError
from pathup.evaluation import lookalikes
from pathup.evaluation.lookalikes import Descriptors, Nearest, nearest

__all__ = ["authenticity", "copying", "nearer", "wilson"]

QUANTILE = 0.999
"""Share of real tiles that must be less similar to real tiles of other regions than a copy is to its original."""
LIMITS = (0.7, 0.8)
"""The threshold is held within these: the upper keeps copies shifted by half a thumbnail pixel (at least 0.83 in 1,260
planted); the lower, which loses none of them, spares tissue rims on glass, the most alike of real tiles."""
LEAST_PAIRS = 100
"""Fewer real pairs set no threshold; the upper limit is taken."""
REAL_TILES = 4000
"""Training tiles whose similarity to other regions sets the threshold, drawn by the seed."""
SIGNIFICANT = 0.01
"""Chance below which a difference between synthetic and held-out tiles is told of."""
NOTABLE = 0.6
"""Chance that a synthetic tile is nearer to a training tile than a held-out one is, above which that is told of."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Threshold:
    value: float
    set_on: str
    pairs: int
    quantile: float | None  # before the limits

    def described(self) -> dict[str, Any]:
        return {
            "value": self.value, "set_on": self.set_on, "pairs": self.pairs,
            "quantile": QUANTILE, "at_quantile": self.quantile, "limits": list(LIMITS),
        }  # fmt: skip


def copying(
    synthetic: Descriptors,
    training: Descriptors,
    held_out: Descriptors | None = None,
    *,
    training_groups: Sequence[str | None] | None = None,
    synthetic_labels: Sequence[str | None] | None = None,
    held_out_labels: Sequence[str | None] | None = None,
    unit: str = "region",
    pairs: int = 24,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Search for copies among tiles of one size and level.

    Parameters
    ----------
    synthetic, training, held_out
        What `describe` keeps of the tiles: synthetic ones, all that the model was trained on, and real ones it has not
        seen.
    training_groups
        Region or slide of each training tile, as `unit` says. Real tiles are compared with each other across groups
        only: neighbours in one region overlap or continue each other. None, or a None among them: not known.
    synthetic_labels, held_out_labels
        Class of each tile, for figures a class.
    unit
        What a group is: ``'region'`` or ``'slide'``.
    pairs
        How many of the closest pairs to name.
    seed
        Of the draw of real tiles that set the threshold.
    progress
        Called as ``progress(stage, done, total)``.

    Returns
    -------
    dict
        JSON values. ``method``; ``counts``; ``not_judged`` (too little contrast); ``threshold`` and how it was set;
        ``synthetic`` and ``held_out`` (None without any): ``judged`` (tiles), ``copies``, their ``share`` with Wilson's
        95 % interval, ``by_class``, quantiles of ``similarity``; ``real_real``, those quantiles of training tiles
        across groups; ``authenticity`` of both sets, or None and a ``reason``; ``nearer``, see `nearer`; ``pairs``, the
        closest, for `pathup.evaluation.pair_sheet`; ``notes``; ``reading``, one sentence; ``warning``, whether the
        reading is one.

    Raises
    ------
    PathUpError
        A set is empty, sizes differ, or groups or labels are not one a tile.
    """
    sets = {"synthetic": (synthetic, synthetic_labels), "held_out": (held_out, held_out_labels)}
    _check(sets, training, training_groups)
    tell = progress or (lambda stage, done, total: None)

    def told(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: tell(stage, done, total)

    found = {
        name: nearest(tiles, training, progress=told(f"copies, {name.replace('_', ' ')}"))
        for name, (tiles, _) in sets.items()
        if tiles is not None
    }
    across, reason = _real_neighbours(training, training_groups, list(found.values()), unit, seed, told("copies, real"))
    checked = np.ones(0 if held_out is None else len(held_out), bool)
    notes = []
    if across is not None:
        threshold = _threshold(across.similarity[_sample(training, seed)], f"training tiles of different {unit}s")
    elif held_out is not None:
        half = draws.numpy_generator(seed, "copying", "half").permutation(len(held_out)) < len(held_out) // 2
        threshold, checked = _threshold(found["held_out"].similarity[half], "one half of the held-out tiles"), ~half
        notes.append("the threshold was set on one half of the held-out tiles and is checked on the other half only")
    else:
        threshold = _threshold(np.zeros(0), "")
    if threshold.quantile is None:
        notes.append(f"fewer than {LEAST_PAIRS} real pairs were at hand, so the threshold is a fixed one")
    elif threshold.quantile > LIMITS[1]:
        notes.append(
            f"real tiles of different {unit}s are alike to {threshold.quantile:.2f} and more, so some that are called "
            "copies may not be; the same tissue may be there twice, in serial sections or overlapping regions"
        )
    results = {
        name: _judged(near.similarity, threshold.value, sets[name][1], checked if name == "held_out" else None)
        for name, near in found.items()
    }
    beside = None
    if held_out is not None:
        beside = nearer(
            found["synthetic"].similarity, found["held_out"].similarity[checked], synthetic_labels,
            None if held_out_labels is None else np.asarray(held_out_labels, object)[checked].tolist(),
        )  # fmt: skip
    warning, reading = _reading(results["synthetic"], results.get("held_out"), beside)
    return {
        "method": {
            "thumbnail_px": lookalikes.SIDE, "candidates": lookalikes.CANDIDATES,
            "orientations": lookalikes.ORIENTATIONS, "least_texture": lookalikes.LEAST_TEXTURE,
            "largest_shift_px": lookalikes.LARGEST_SHIFT * training.size_px / lookalikes.SIDE,
        },
        "counts": {"training": len(training)} | {name: len(near.index) for name, near in found.items()},
        "not_judged": {"training": int((~training.judged).sum())}
        | {name: int((near.index < 0).sum()) for name, near in found.items()},
        "threshold": threshold.described(),
        "synthetic": results["synthetic"],
        "held_out": results.get("held_out"),
        "real_real": None if across is None else _quantiles(across.similarity[_sample(training, seed)]),
        "authenticity": {
            "neighbours": f"across {unit}s", "reason": reason,
            **{name: None if across is None else authenticity(near, across) for name, near in found.items()},
        },
        "nearer": beside,
        "pairs": _closest(synthetic, training, found["synthetic"], threshold.value, pairs),
        "notes": notes,
        "reading": reading,
        "warning": warning,
    }  # fmt: skip


def authenticity(near: Nearest, across: Nearest) -> dict[str, Any]:
    """Share of tiles that are further from their nearest training tile than that one is from its nearest real tile.

    Alaa, van Breugel, Saveliev and van der Schaar, 2022, "How Faithful is Your Synthetic Data? Sample-level Metrics for
    Evaluating and Auditing Generative Models": tile j is authentic when d(g_j, r_i*) > d(r_i*, r_k*), r_i* being the
    real tile nearest to g_j and r_k* the one nearest to r_i*. Here d is 1 - similarity, and r_k* is of another group
    than r_i*.

    Parameters
    ----------
    near
        Nearest training tile of each tile.
    across
        Nearest training tile of another group of each training tile.

    Returns
    -------
    dict
        ``value`` (None when no tile can be told) and ``count``, the tiles told of.
    """
    own = near.index[near.index >= 0]
    theirs, ours = across.similarity[own], near.similarity[near.index >= 0]
    known = ~np.isnan(theirs)
    return {"value": float((ours < theirs)[known].mean()) if known.any() else None, "count": int(known.sum())}


def nearer(
    synthetic_N: np.ndarray,
    held_out_M: np.ndarray,
    synthetic_labels: Sequence[str | None] | None = None,
    held_out_labels: Sequence[str | None] | None = None,
) -> dict[str, Any]:
    """Whether synthetic tiles are more similar to training tiles than held-out ones are, class by class.

    The Mann-Whitney statistics of the classes are added up, with their means and variances under chance (Mann and
    Whitney, 1947, "On a Test of Whether One of Two Random Variables is Stochastically Larger than the Other"), so that
    other shares of the classes make no difference. Tiles of one region are alike: take the p-value for a lower limit.

    Parameters
    ----------
    synthetic_N, held_out_M
        Similarities; NaN is left out.
    synthetic_labels, held_out_labels
        Class of each; without both, all count as one class.

    Returns
    -------
    dict
        ``chance`` that a synthetic tile is nearer than a held-out one of its class (0.5: no difference; None when there
        is no class with both), and the one-sided ``p``.
    """
    classes: Sequence[str | None] = [None]
    if synthetic_labels is not None and held_out_labels is not None:
        classes = sorted(set(synthetic_labels) & set(held_out_labels), key=str)
        ours, theirs = np.asarray(synthetic_labels, object), np.asarray(held_out_labels, object)
    above = pairs = variance = 0.0
    for label in classes:
        chosen = (slice(None), slice(None)) if label is None and len(classes) == 1 else (ours == label, theirs == label)
        a, b = (values[~np.isnan(values)] for values in (synthetic_N[chosen[0]], held_out_M[chosen[1]]))
        n, m = len(a), len(b)
        above += float(stats.rankdata(np.concatenate([a, b]))[:n].sum()) - n * (n + 1) / 2
        pairs += n * m
        variance += n * m * (n + m + 1) / 12
    if not pairs:
        return {"chance": None, "p": None}
    return {"chance": above / pairs, "p": float(stats.norm.sf((above - pairs / 2) / np.sqrt(variance)))}


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share: all p with ``|hits / count - p| <= z sqrt(p (1 - p) / count)``.

    Wilson, 1927, "Probable Inference, the Law of Succession, and Statistical Inference". Of a count of 0: (0, 1).
    """
    if count == 0:
        return 0.0, 1.0
    z = float(stats.norm.ppf(0.975))
    share, spread = hits / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def _check(
    sets: dict[str, tuple[Descriptors | None, Sequence[str | None] | None]],
    training: Descriptors,
    groups: Sequence[str | None] | None,
) -> None:
    given = {name.replace("_", "-"): (*both, "labels") for name, both in sets.items()}
    for name, (tiles, column, what) in ({"training": (training, groups, "groups")} | given).items():
        if tiles is None:
            continue
        if not len(tiles):
            raise PathUpError(f"there are no {name} tiles to search for copies; give at least one")
        if column is not None and len(column) != len(tiles):
            raise PathUpError(f"{len(column)} {what} were given for {len(tiles)} {name} tiles; one each was needed")


def _sample(training: Descriptors, seed: int) -> np.ndarray:
    """Places of the training tiles that set the threshold."""
    return np.sort(draws.numpy_generator(seed, "copying", "real").permutation(len(training))[:REAL_TILES])


def _real_neighbours(
    training: Descriptors,
    groups: Sequence[str | None] | None,
    found: list[Nearest],
    unit: str,
    seed: int,
    told: Callable[[int, int], None],
) -> tuple[Nearest | None, str | None]:
    """Nearest tile of another group of the training tiles that matter (others: NaN), or why there is none."""
    names = [] if groups is None else [name for name in groups if name is not None]
    if len(names) < len(training):
        return None, f"the {unit}s of the training tiles are not known, and real tiles of one {unit} may overlap"
    if len(set(names)) < 2:
        return None, f"the training tiles are of one {unit} only, and real tiles of one {unit} may overlap"
    hit = [near.index[near.index >= 0] for near in found]
    asked = np.unique(np.concatenate([_sample(training, seed), *hit]))
    part = nearest(training.at(asked), training, groups=([names[i] for i in asked], names), progress=told)
    index, similarity = np.full(len(training), -1), np.full(len(training), np.nan, np.float32)
    index[asked], similarity[asked] = part.index, part.similarity
    nothing = np.zeros(len(training), np.int64)
    return Nearest(index, nothing, np.zeros((len(training), 2), np.float32), similarity), None


def _threshold(similarity: np.ndarray, set_on: str) -> _Threshold:
    known = similarity[~np.isnan(similarity)]
    if len(known) < LEAST_PAIRS:
        return _Threshold(LIMITS[1], "nothing: a fixed value", len(known), None)
    quantile = float(np.quantile(known, QUANTILE))
    return _Threshold(float(np.clip(quantile, *LIMITS)), set_on, len(known), quantile)


def _quantiles(similarity: np.ndarray) -> dict[str, float] | None:
    known = similarity[~np.isnan(similarity)]
    if not len(known):
        return None
    levels = (0.05, 0.5, 0.95, 0.99, 0.999, 1)
    return {f"{level:g}": float(value) for level, value in zip(levels, np.quantile(known, levels), strict=True)}


def _judged(
    similarity: np.ndarray, threshold: float, labels: Sequence[str | None] | None, chosen: np.ndarray | None
) -> dict[str, Any]:
    known = ~np.isnan(similarity) if chosen is None else ~np.isnan(similarity) & chosen

    def share(places: np.ndarray) -> dict[str, Any]:
        judged, copies = int(places.sum()), int((similarity[places] > threshold).sum())
        low, high = wilson(copies, judged)
        return {
            "judged": judged, "copies": copies, "share": copies / judged if judged else None, "low": low, "high": high,
        }  # fmt: skip

    own = np.asarray([] if labels is None else labels, object)
    by_class = {label: share(known & (own == label)) for label in sorted({x for x in own if x is not None})}
    return {**share(known), "by_class": by_class, "similarity": _quantiles(similarity[known])}


def _closest(
    synthetic: Descriptors, training: Descriptors, near: Nearest, threshold: float, count: int
) -> list[dict[str, Any]]:
    order = np.argsort(-np.nan_to_num(near.similarity, nan=-2), kind="stable")[:count]
    return [
        {
            "synthetic": str(synthetic.files[i]),
            "training": str(training.files[near.index[i]]),
            "similarity": float(near.similarity[i]),
            "orientation": int(near.orientation[i]),
            "shift_px": [float(value) for value in near.shift_px[i]],
            "copy": bool(near.similarity[i] > threshold),
        }
        for i in order
        if near.index[i] >= 0
    ]


def _reading(
    synthetic: dict[str, Any], held_out: dict[str, Any] | None, beside: dict[str, Any] | None
) -> tuple[bool, str]:
    """Whether to warn, and the sentence."""
    judged, copies = synthetic["judged"], synthetic["copies"]
    if not judged:
        return False, "no synthetic tile had enough contrast to be judged, so nothing is known of copies"
    called = f"{copies} of {judged} synthetic tiles ({copies / judged:.1%}) look like a copy of a training tile"
    if held_out is None or not held_out["judged"]:
        if synthetic["low"] > 1 - QUANTILE:
            return True, f"{called}, and no held-out real tiles tell how many do by chance; look at the closest pairs"
        return False, f"{called}: no sign of copying was found by this method, though held-out real tiles are missing"
    beside_that = f"{held_out['copies']} of {held_out['judged']} held-out real tiles ({held_out['share']:.1%})"
    table = [[copies, judged - copies], [held_out["copies"], held_out["judged"] - held_out["copies"]]]
    if stats.fisher_exact(table, alternative="greater").pvalue < SIGNIFICANT:
        return True, f"{called}, more than the {beside_that} that do so by chance; look at the closest pairs"
    if beside and beside["chance"] is not None and beside["chance"] > NOTABLE and beside["p"] < SIGNIFICANT:
        return True, (
            f"{called}, no more than the {beside_that}, but synthetic tiles are on the whole nearer to training tiles "
            f"than held-out ones are (chance {beside['chance']:.2f}, 0.50 expected); look at the closest pairs"
        )
    if copies:
        return False, f"{called}, beside {beside_that}: no more than chance may give, but look at the closest pairs"
    return False, f"{called}, beside {beside_that}: no sign of copying was found by this method"
