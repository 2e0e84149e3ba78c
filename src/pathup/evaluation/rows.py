"""Fidelity row by row: each comparison's figures beside its floor, on the features of one network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pathup.errors import PathUpError
from pathup.evaluation.comparisons import Comparison
from pathup.evaluation.fidelity import LEAST, METRICS, fidelity, torch_fidelity_check
from pathup.evaluation.tile_sets import TileSet, drawn

__all__ = ["Sides", "check_enough", "fidelity_rows", "metric_title", "spread"]

FeaturesOf = Callable[[TileSet], np.ndarray]

TITLES = {
    "fid": ("FID", "Fréchet distance"),
    "kid": ("KID x 1000", "kernel distance x 1000"),
    "precision": ("precision", "precision"),
    "recall": ("recall", "recall"),
    "density": ("density", "density"),
    "coverage": ("coverage", "coverage"),
}

CHECK_TILES = 2000
"""Most tiles a side that torch-fidelity's own functions, which hold all distances at once, are given."""

SMALLER_IS_BETTER = ("fid", "kid")


def metric_title(metric: str, encoder_literature: Sequence[str]) -> str:
    """What a metric is called: FID and KID only on Inception's features, a distance on any other's."""
    literature, plain = TITLES[metric]
    return literature if literature.split()[0] in encoder_literature else plain


def check_enough(compared: Sequence[Comparison], name: str) -> None:
    """Refuse a run none of whose rows has as many tiles as every metric needs.

    Raises
    ------
    PathUpError
        Names the metric that needs most.
    """
    metric, needed = max(LEAST.items(), key=lambda item: item[1])
    row = max(compared, key=lambda row: min(len(row.real), len(row.synthetic)))
    if min(len(row.real), len(row.synthetic)) < needed:
        raise PathUpError(
            f"there are {len(row.real)} real and {len(row.synthetic)} {name} tiles to compare, but {metric} needs at "
            f"least {needed} of each; give more tiles, or leave fidelity out with --only"
        )


class Sides:
    """The tiles that rows are about, and the features of each set, taken once.

    Parameters
    ----------
    real, train
        Real test and, where there are any, training tiles.
    features
        Gives the features of a set, in its order.
    rows
        Of every run; their places together say which tiles are needed.
    """

    def __init__(
        self, real: TileSet, train: TileSet | None, features: FeaturesOf, rows: Sequence[Sequence[Comparison]]
    ) -> None:
        every = [row for run in rows for row in run]
        self.real = _Side(real, [row.real for row in every] + [half for row in every for half in row.halves], features)
        places = [row.train for row in every if row.train is not None]
        self.train = None if train is None or not places else _Side(train, places, features)


class _Side:
    """The needed tiles of one set, with their features; looked up by place."""

    def __init__(self, tiles: TileSet, needed: Sequence[np.ndarray], features: FeaturesOf) -> None:
        self.places = np.unique(np.concatenate(needed))
        self._features = features(tiles.at(self.places))
        self._regions = tiles.regions

    def at(self, places: np.ndarray) -> np.ndarray:
        return self._features[np.searchsorted(self.places, places)]

    def regions(self, places: np.ndarray) -> list[str] | None:
        """The region of each tile; None where any is not known."""
        regions = [self._regions[place] for place in places]
        return None if any(region is None for region in regions) else [str(region) for region in regions]


def fidelity_rows(
    sides: Sides,
    runs: Sequence[tuple[TileSet, Sequence[Comparison]]],
    features: FeaturesOf,
    *,
    seed: int,
    replicates: int,
    subset_size: int,
    subsets: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """All rows: the synthetic figures of each run, the floor and the halves, with counts.

    Returns
    -------
    list of dict
        One a row of the first run: ``name``, ``level``, ``label``, ``counts``, ``matched``; ``runs``: the report of
        `fidelity` of each run; ``floor``: that of real training tiles in the synthetic ones' place; ``halves``:
        ``real`` and ``synthetic``; ``spread``: mean and standard deviation of each metric over runs (None for one run);
        ``beyond_floor``: metrics of which the synthetic interval lies wholly on the worse side of the floor's;
        ``warnings``. Rows with too few tiles say so and have no figures.
    """
    settings: dict[str, Any] = {
        "seed": seed, "replicates": replicates, "subset_size": subset_size, "subsets": subsets,
    }  # fmt: skip
    needed = max(LEAST.values())
    first = {(row.level, row.label): row for row in runs[0][1]}
    synthetic = [
        _Side(tiles, [row.synthetic for row in rows] + [row.synthetic_half for row in rows], features)
        for tiles, rows in runs
    ]
    results: list[dict[str, Any]] = []
    for number, (key, row) in enumerate(first.items()):
        told: dict[str, Any] = {
            "name": row.name, "level": row.level, "label": row.label, "counts": row.counts(), "matched": row.matched,
            "runs": [], "floor": None, "halves": None, "spread": None, "beyond_floor": [], "warnings": [],
        }  # fmt: skip
        results.append(told)
        if min(len(row.real), len(row.synthetic)) < needed:
            told["warnings"].append(
                f"there are {len(row.real)} real and {len(row.synthetic)} synthetic tiles; at least {needed} of each "
                "were "
                "needed"
            )
            continue
        for side, (_, rows) in zip(synthetic, runs, strict=True):
            own = next((other for other in rows if (other.level, other.label) == key), None)
            if own is not None and len(own.synthetic) >= needed:
                regions = sides.real.regions(own.real)
                told["runs"].append(
                    fidelity(sides.real.at(own.real), side.at(own.synthetic), real_groups=regions, **settings)
                )
        if row.train is not None and sides.train is not None and len(row.train) >= needed:
            told["floor"] = fidelity(
                sides.real.at(row.real),
                sides.train.at(row.train),
                real_groups=sides.real.regions(row.real),
                synthetic_groups=sides.train.regions(row.train),
                **settings,
            )
            if len(row.train) < len(row.synthetic):
                told["warnings"].append(
                    f"the floor has {len(row.train)} training tiles beside {len(row.synthetic)} synthetic ones; there "
                    "are "
                    "no more"
                )
        if min(len(row.halves[0]), len(row.halves[1]), len(row.synthetic_half)) >= needed:
            half, other = row.halves
            told["halves"] = {
                "real": fidelity(sides.real.at(half), sides.real.at(other), **settings),
                "synthetic": fidelity(sides.real.at(half), synthetic[0].at(row.synthetic_half), **settings),
            }
        told["spread"] = spread(told["runs"])
        told["beyond_floor"] = _beyond(told["runs"][0], told["floor"])
        told["warnings"] += told["runs"][0]["warnings"]
        if progress is not None:
            progress(number + 1, len(first))
    return results


def spread(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]] | None:
    """Mean and standard deviation (n - 1) of each metric over runs; None for fewer than two."""
    if len(runs) < 2:
        return None
    values = {metric: np.array([run[metric]["value"] for run in runs]) for metric in METRICS}
    return {
        metric: {"mean": float(found.mean()), "std": float(found.std(ddof=1)), "runs": len(found)}
        for metric, found in values.items()
    }


def _beyond(synthetic: dict[str, Any], floor: dict[str, Any] | None) -> list[str]:
    if floor is None:
        return []
    worse = []
    for metric in METRICS:
        ours, theirs = synthetic[metric], floor[metric]
        if None in (ours["low"], ours["high"], theirs["low"], theirs["high"]):
            continue
        if ours["low"] > theirs["high"] if metric in SMALLER_IS_BETTER else ours["high"] < theirs["low"]:
            worse.append(metric)
    return worse


def checked_against_torch_fidelity(
    sides: Sides, run: tuple[TileSet, Sequence[Comparison]], features: FeaturesOf, seed: int
) -> dict[str, Any]:
    """The overall row's figures by torch-fidelity's own functions, beside ours; see `torch_fidelity_check`.

    Of at most `CHECK_TILES` tiles a side, drawn by `seed`: it checks the computation, not the tiles.
    """
    tiles, rows = run
    real, synthetic = (
        drawn(places, CHECK_TILES, seed, "check", name)
        for name, places in (("real", rows[0].real), ("synthetic", rows[0].synthetic))
    )
    side = _Side(tiles, [synthetic], features)
    figures = torch_fidelity_check(sides.real.at(real), side.at(synthetic))
    return {"counts": {"real": len(real), "synthetic": len(synthetic)}, "figures": figures}
