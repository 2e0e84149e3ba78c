"""What a pathologist can read about a set of tiles: stain, nuclei and texture, real beside synthetic.

The data flow: `measure_tiles` takes one tile at a time and keeps numbers only; `compare` says for each measure how far
the synthetic distribution lies from the real one, beside the floor: how far other real tiles lie from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wasserstein_distance

from pathup import draws
from pathup.errors import PathUpError, unknown
from pathup.evaluation.nuclei import COARSEST_MPP, nuclei_properties, segment_nuclei
from pathup.evaluation.stains import estimate_stains, stain_channels, tissue_mask
from pathup.evaluation.texture import texture
from pathup.slides.images import read_image

__all__ = ["MEASURES", "Measure", "compare", "compare_classes", "measure_tile", "measure_tiles", "subset"]

LEAST_TISSUE = 0.05
"""Share of a tile that must be stained for its stains and its nuclei's density to be measured."""
LEAST_TILES = 5
"""Of a set, with a value; below it a measure is not compared."""


@dataclass(frozen=True)
class Measure:
    """How a measure is called, in what unit, and what it says; `each`: one value a nucleus, not a tile."""

    title: str
    unit: str
    meaning: str
    group: str
    each: bool = False


MEASURES: dict[str, Measure] = {
    "haematoxylin": Measure(
        "Haematoxylin", "optical density", "Mean blue-violet stain of tissue: nuclei, basophilic matrix.", "stain"
    ),
    "eosin": Measure("Eosin", "optical density", "Mean pink stain of the tissue: cytoplasm, collagen, blood.", "stain"),
    "stain_angle": Measure(
        "Angle of the stains", "degrees", "Between a tile's own two stain vectors (Macenko): how apart.", "stain"
    ),
    "nuclei_density": Measure("Nuclei", "per mm2 of tissue", "How crowded the cells are.", "nuclei"),
    "nuclear_area": Measure("Nuclear area, tile mean", "um2", "Mean of a tile's whole nuclei.", "nuclei"),
    "nuclear_area_each": Measure(
        "Nuclear area, each nucleus", "um2", "Over all whole nuclei: size and how it varies.", "nuclei", True
    ),
    "nuclear_area_variation": Measure(
        "Variation of nuclear area", "share of the mean", "Standard deviation over mean within a tile.", "nuclei"
    ),
    "eccentricity": Measure("Eccentricity, tile mean", "0 to 1", "0: round nuclei; towards 1: spindles.", "nuclei"),
    "eccentricity_each": Measure("Eccentricity, each nucleus", "0 to 1", "Over all whole nuclei.", "nuclei", True),
    "orientation_order": Measure(
        "Order of directions", "1 parallel, 0 random", "How parallel a tile's longish nuclei lie.", "nuclei"
    ),
    "neighbour_distance": Measure(
        "Nearest neighbour", "um", "Median distance from a nucleus to the next, centre to centre.", "nuclei"
    ),
    "sharpness": Measure("Sharpness", "share of variance", "Detail of the finest octave; blur lowers it.", "texture"),
    "spectrum_slope": Measure(
        "Slope of the spectrum", "log power / log frequency", "More negative: smoother, less fine detail.", "texture"
    ),
    "local_contrast": Measure("Local contrast", "grey levels", "Mean deviation within 9 x 9 px.", "texture"),
    "cooccurrence_contrast": Measure(
        "Co-occurrence contrast", "steps squared", "How much neighbouring pixels differ.", "texture"
    ),
    "cooccurrence_homogeneity": Measure(
        "Co-occurrence homogeneity", "0 to 1", "How alike neighbouring pixels are.", "texture"
    ),
    "cooccurrence_entropy": Measure("Co-occurrence entropy", "bits", "How varied the pairs of greys are.", "texture"),
    "glass": Measure("Glass", "share of pixels", "Empty, unstained area.", "texture"),
}


def measure_tile(pixels_HWC: np.ndarray, mpp: float) -> dict[str, Any]:
    """All measures of one tile: a float each, and a 1-D array for those of each nucleus.

    NaN where a measure has no value: no tissue, too few nuclei, one stain only, or `mpp` too coarse for nuclei.

    Parameters
    ----------
    pixels_HWC
        uint8 RGB, (H, W, 3).
    mpp
        Micrometres per pixel.

    Raises
    ------
    PathUpError
        See `stains.checked`.
    """
    values: dict[str, Any] = {name: np.empty(0) if m.each else np.nan for name, m in MEASURES.items()}
    values |= texture(pixels_HWC)
    tissue = tissue_mask(pixels_HWC)
    if tissue.mean() < LEAST_TISSUE:
        return values
    stains = stain_channels(pixels_HWC)[tissue].mean(0)
    values["haematoxylin"], values["eosin"] = float(stains[0]), float(stains[1])
    values["stain_angle"] = estimate_stains(pixels_HWC).angle
    if mpp > COARSEST_MPP:
        return values
    nuclei = nuclei_properties(segment_nuclei(pixels_HWC, mpp), mpp)
    values["nuclei_density"] = nuclei.count / (tissue.sum() * mpp**2 / 1e6)
    areas, round_ = nuclei.area_um2[nuclei.whole], nuclei.eccentricity[nuclei.whole]
    values["nuclear_area_each"], values["eccentricity_each"] = areas, round_
    if len(areas) >= 3:  # fewer say little of a tile, and their mean jumps
        values["nuclear_area"], values["eccentricity"] = float(areas.mean()), float(round_.mean())
        values["nuclear_area_variation"] = float(areas.std(ddof=1) / areas.mean())
    values["orientation_order"] = nuclei.orientation_order()
    values["neighbour_distance"] = nuclei.neighbour_distance_um()
    return values


def measure_tiles(
    tiles: Iterable[Path | str | np.ndarray],
    mpp: float,
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """All measures of a set of tiles, read one at a time.

    Parameters
    ----------
    tiles
        Image files, or pixels (uint8 RGB, (H, W, 3)).
    mpp
        Micrometres per pixel of all of them.
    progress
        Called with the number of tiles done.

    Returns
    -------
    dict
        By the names of `MEASURES`, arrays with one entry a tile, in their order: float64, NaN for no value; for
        measures of each nucleus an object array, each entry a 1-D array.

    Raises
    ------
    PathUpError
        A file cannot be read (see `read_image`); see `measure_tile`.
    """
    rows: list[dict[str, Any]] = []
    for done, tile in enumerate(tiles, start=1):
        rows.append(measure_tile(tile if isinstance(tile, np.ndarray) else read_image(Path(tile)), mpp))
        if progress is not None:
            progress(done)
    found = {}
    for name, measure in MEASURES.items():
        column: np.ndarray = np.empty(len(rows), object if measure.each else np.float64)
        for place, row in enumerate(rows):
            column[place] = row[name]
        found[name] = column
    return found


def subset(measured: dict[str, np.ndarray], places: np.ndarray | Sequence[int]) -> dict[str, np.ndarray]:
    """The measures of some of the tiles, by number or by a mask of bool."""
    at = np.asarray(places)
    at = at if at.dtype == bool else at.astype(int)
    return {name: column[at] for name, column in measured.items()}


def compare(
    real: dict[str, np.ndarray],
    synthetic: dict[str, np.ndarray],
    floor: dict[str, np.ndarray],
    *,
    groups: Sequence[Any] | None = None,
    floor_groups: Sequence[Any] | None = None,
    labels: tuple[Sequence[str], Sequence[str], Sequence[str]] | None = None,
    seed: int = 0,
    resamples: int = 200,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """How far synthetic tiles lie from real ones in each measure, beside other real tiles.

    The distance is the 1-Wasserstein distance of the two distributions over the real standard deviation: 0 the same,
    1 as far as moving every tile by one deviation. It grows as sets shrink, so synthetic and floor are first cut, at
    random, to the same number of tiles.

    Parameters
    ----------
    real
        The reference, as from `measure_tiles`: real test tiles.
    synthetic
        Synthetic tiles.
    floor
        Other real tiles: of the split train.
    groups, floor_groups
        The region, slide or patient of each real tile: tiles of one resemble each other, so whole groups are drawn
        for the interval. None: each tile by itself, which makes the interval too narrow where tiles share a region.
    labels
        The class of each real, synthetic and floor tile: tiles are then drawn class by class, so that the interval
        does not hold the chance of drawing more tiles of one class. None: all together.
    seed
        Of the cut and the bootstrap.
    resamples
        Of the bootstrap (percentile intervals); both sides of a distance are drawn anew, the real one in common.
        That adds a little to a distance, so an interval can lie above its value; synthetic and floor share it.
    confidence
        Of the interval.

    Returns
    -------
    dict
        JSON values. ``tiles``: those of real, synthetic and floor after the cut; ``measures``: by name ``title``,
        ``unit``, ``meaning``, ``group``; ``tiles`` with a value in each set; ``median`` of each set; ``distance`` and
        ``floor``, each ``{"value", "interval"}``; ``beyond_floor``: the synthetic interval lies above the floor's.
        Where a set has fewer than `LEAST_TILES` tiles with a value, or the real tiles do not vary, distances and flag
        are None and ``reason`` says why.

    Raises
    ------
    PathUpError
        A set lacks a measure or is empty, or groups do not fit their tiles.
    """
    sets = {"real": real, "synthetic": synthetic, "floor": floor}
    for name, measured in sets.items():
        for measure in MEASURES:
            if measure not in measured:
                raise unknown(f"measure wanted of the {name} tiles, which is missing there:", measure, measured)
        if not len(measured["glass"]):
            raise PathUpError(f"there are no {name} tiles to measure; at least {LEAST_TILES} were needed")
    count = {name: len(measured["glass"]) for name, measured in sets.items()}
    group = {
        "real": _groups(groups, count["real"], "real"),
        "floor": _groups(floor_groups, count["floor"], "floor"),
        "synthetic": np.arange(count["synthetic"]),
    }
    strata = {
        name: np.asarray(own) if labels else np.zeros(count[name], int)
        for name, own in zip(sets, labels or (None,) * 3, strict=True)
    }
    same = min(count["synthetic"], count["floor"])
    for name in ("synthetic", "floor"):
        kept = np.sort(draws.numpy_generator(seed, "morphology", "cut", name).permutation(count[name])[:same])
        sets[name], group[name], count[name] = subset(sets[name], kept), group[name][kept], same
        strata[name] = strata[name][kept]
    drawn = {
        name: [
            _resampled(group[name], strata[name], draws.numpy_generator(seed, "morphology", name, i))
            for i in range(resamples)
        ]
        for name in sets
    }
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    return {
        "tiles": count,
        "seed": seed,
        "resamples": resamples,
        "confidence": confidence,
        "measures": {name: _compared(name, sets, drawn, tails) for name in MEASURES},
    }


def compare_classes(
    real: dict[str, np.ndarray],
    synthetic: dict[str, np.ndarray],
    floor: dict[str, np.ndarray],
    *,
    labels: Sequence[str],
    synthetic_labels: Sequence[str],
    floor_labels: Sequence[str],
    groups: Sequence[Any] | None = None,
    floor_groups: Sequence[Any] | None = None,
    **how: Any,
) -> dict[str, Any]:
    """`compare` overall and for each class that all three sets have.

    The three sets should hold the classes in the same shares, or the overall distance shows the shares.

    Parameters
    ----------
    real, synthetic, floor, groups, floor_groups
        See `compare`.
    labels, synthetic_labels, floor_labels
        The class of each tile.
    how
        Handed to `compare`: seed, resamples, confidence.

    Returns
    -------
    dict
        ``overall``, and ``classes`` by label.
    """
    own = [np.asarray(names) for names in (labels, synthetic_labels, floor_labels)]
    for measured, names, kind in zip((real, synthetic, floor), own, ("real", "synthetic", "floor"), strict=True):
        if len(names) != len(measured["glass"]):
            raise PathUpError(f"{len(names)} labels for {len(measured['glass'])} {kind} tiles; one each was needed")
    groups = list(range(len(own[0]))) if groups is None else groups
    floor_groups = list(range(len(own[2]))) if floor_groups is None else floor_groups
    every = (labels, synthetic_labels, floor_labels)
    result: dict[str, Any] = {
        "overall": compare(real, synthetic, floor, groups=groups, floor_groups=floor_groups, labels=every, **how),
        "classes": {},
    }
    for label in sorted(set(own[0]) & set(own[1]) & set(own[2])):
        at = [names == label for names in own]
        result["classes"][str(label)] = compare(
            *(subset(measured, places) for measured, places in zip((real, synthetic, floor), at, strict=True)),
            groups=[name for name, kept in zip(groups, at[0], strict=True) if kept],
            floor_groups=[name for name, kept in zip(floor_groups, at[2], strict=True) if kept],
            **how,
        )
    return result


def _groups(names: Sequence[Any] | None, count: int, kind: str) -> np.ndarray:
    if names is None:
        return np.arange(count)
    if len(names) != count:
        raise PathUpError(f"{len(names)} groups for {count} {kind} tiles; one each was needed")
    number: dict[Any, int] = {}
    return np.array([number.setdefault(name, len(number)) for name in names])


def _resampled(group: np.ndarray, strata: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Tiles of a bootstrap sample: of each stratum as many groups as it has, with replacement, with all their tiles."""
    found = []
    for stratum in np.unique(strata):
        places = np.flatnonzero(strata == stratum)
        order = places[np.argsort(group[places], kind="stable")]
        members = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
        found += [members[i] for i in generator.integers(0, len(members), len(members))]
    return np.concatenate(found)


def _values(column: np.ndarray) -> np.ndarray:
    """All values of a column: those of each nucleus joined, NaN left out."""
    if column.dtype == object:
        return np.concatenate([np.empty(0), *column])
    return column[np.isfinite(column)]


def _compared(
    name: str,
    sets: dict[str, dict[str, np.ndarray]],
    drawn: dict[str, list[np.ndarray]],
    tails: list[float],
) -> dict[str, Any]:
    measure = MEASURES[name]
    columns = {kind: measured[name] for kind, measured in sets.items()}
    values = {kind: _values(column) for kind, column in columns.items()}
    valued = {
        kind: int(sum(len(v) > 0 for v in column) if measure.each else np.isfinite(column).sum())
        for kind, column in columns.items()
    }
    result: dict[str, Any] = {
        "title": measure.title,
        "unit": measure.unit,
        "meaning": measure.meaning,
        "group": measure.group,
        "tiles": valued,
        "median": {kind: float(np.median(v)) if len(v) else None for kind, v in values.items()},
        "distance": None,
        "floor": None,
        "beyond_floor": None,
    }
    few = [f"{kind} {number}" for kind, number in valued.items() if number < LEAST_TILES]
    spread = float(values["real"].std()) if len(values["real"]) else 0.0
    if few or spread < 1e-12:
        lacking = f"too few tiles with a value ({', '.join(few)}; {LEAST_TILES} are needed)"
        result["reason"] = lacking if few else "real tiles do not vary"
        return result
    for key, kind in (("distance", "synthetic"), ("floor", "floor")):
        resampled = []
        for at_real, at_other in zip(drawn["real"], drawn[kind], strict=True):
            one, other = _values(columns["real"][at_real]), _values(columns[kind][at_other])
            if len(one) and len(other):
                resampled.append(wasserstein_distance(one, other) / spread)
        result[key] = {
            "value": float(wasserstein_distance(values["real"], values[kind]) / spread),
            "interval": [float(q) for q in np.quantile(resampled, tails)] if resampled else None,
        }
    intervals = result["distance"]["interval"], result["floor"]["interval"]
    if all(intervals):
        result["beyond_floor"] = bool(intervals[0][0] > intervals[1][1])
    return result
