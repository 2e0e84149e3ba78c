"""The parts of a report that look at pixels: morphology, copying and seams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pathup.evaluation import copying as copies
from pathup.evaluation import morphology as forms
from pathup.evaluation import plots
from pathup.evaluation.comparisons import Comparison
from pathup.evaluation.lookalikes import describe
from pathup.evaluation.pair_sheet import closest_pairs_sheet
from pathup.evaluation.parts import Pictures, Work
from pathup.evaluation.tile_sets import TileSet, drawn

MORPHOLOGY_TILES = 700
"""Most tiles of a set and level whose nuclei are measured: some milliseconds each, and enough for distributions."""

COPYING_TILES = 10_000
"""Most synthetic, and most held-out, tiles of a level that are searched for; training tiles are all searched in."""


def _level_row(rows: Sequence[Comparison], level: str | None) -> Comparison:
    """The row of all tiles of a level: its own, or the overall one where there is no other level."""
    of_level = [row for row in rows if row.label is None and row.level == level]
    return of_level[0] if of_level else rows[0]


def _thinned(tiles: TileSet, places: np.ndarray, count: int, seed: int, purpose: str) -> TileSet:
    """At most `count` of the tiles at `places`, of each class its share."""
    chosen = tiles.at(places)
    if len(chosen) <= count:
        return chosen
    kept = [
        drawn(own, max(1, len(own) * count // len(chosen)), seed, "thinned", purpose, *map(str, cell))
        for cell, own in chosen.cells().items()
    ]
    return chosen.at(np.sort(np.concatenate(kept)))


def morphology(work: Work, pictures: Pictures) -> list[dict[str, Any]]:
    """Distances between real and synthetic distributions of what a pathologist reads, a level at a time."""
    sets, seed = work.sets, work.request.seed
    blocks = []
    for level in work.levels():
        mpp = sets.real.mpp_of(level) or sets.runs[0].mpp_of(level)
        where = f" of level {level}" if level else ""
        if mpp is None:
            work.notes.append(
                f"morphology{where} was not measured: the tiles record no micrometres per pixel; state it with --mpp"
            )
            continue
        row = _level_row(sets.rows[0], level)
        if row.train is not None and sets.train is not None:
            real, floor = sets.real.at(row.real), sets.train.at(row.train)
        else:
            real, floor = (sets.real.at(half) for half in row.halves)
        real = _thinned(real, np.arange(len(real)), MORPHOLOGY_TILES, seed, "real")
        floor = _thinned(floor, np.arange(len(floor)), MORPHOLOGY_TILES, seed, "floor")
        own = [
            _thinned(tiles, _level_row(rows, level).synthetic, MORPHOLOGY_TILES, seed, "synthetic")
            for tiles, rows in zip(sets.runs, sets.rows, strict=True)
        ]
        measured = {
            name: _measured(work, tiles, mpp, f"morphology{where}, {name}")
            for name, tiles in (("real", real), ("floor", floor), *((f"synthetic {i}", t) for i, t in enumerate(own)))
        }
        if len(set(real.regions)) < 2:
            work.notes.append(
                f"the real tiles{where} are of one region or slide, or of none that is known: the intervals of "
                "morphology are "
                "by tile, and too narrow"
            )
        found = [_compared(real, floor, tiles, measured, f"synthetic {i}", seed) for i, tiles in enumerate(own)]
        block = {
            "level": level,
            "mpp": mpp,
            "floor": "real training tiles" if row.train is not None else "the other half of the real tiles",
            **found[0],
            "spread": _spread([result["overall"] for result in found]),
        }
        blocks.append(block)
        shown = {"real": measured["real"], "floor": measured["floor"], "synthetic": measured["synthetic 0"]}
        compared = block["overall"]["measures"]
        names = [(name, measure.title) for name, measure in forms.MEASURES.items() if compared[name]["distance"]]
        if names:
            values = {key: {name: _flat(found_[name]) for name, _ in names} for key, found_ in shown.items()}
            path = plots.histogram_plot(names, values, work.folder / f"morphology_{len(blocks)}.png")
            caption = f"Distributions of each measure{where}: real test, real training (the floor) and synthetic tiles."
            pictures.setdefault("Morphology", []).append((path, caption))
    return blocks


def _measured(work: Work, tiles: TileSet, mpp: float, stage: str) -> dict[str, np.ndarray]:
    return forms.measure_tiles(tiles.files, mpp, progress=lambda done: work.tell(stage, done, len(tiles)))


def _flat(column: np.ndarray) -> np.ndarray:
    return np.concatenate([np.empty(0), *column]) if column.dtype == object else column


def _compared(
    real: TileSet, floor: TileSet, tiles: TileSet, measured: dict[str, dict[str, np.ndarray]], name: str, seed: int
) -> dict[str, Any]:
    def groups(own: TileSet) -> list[str] | None:
        if None in own.regions or len(set(own.regions)) < 2:  # drawing one region anew and anew would show no spread
            return None
        return [str(region) for region in own.regions]

    columns = measured["real"], measured[name], measured["floor"]
    if real.labelled and tiles.labelled and floor.labelled:
        labels: dict[str, Any] = {
            key: [str(label) for label in own.labels]
            for key, own in (("labels", real), ("synthetic_labels", tiles), ("floor_labels", floor))
        }
        return forms.compare_classes(*columns, **labels, groups=groups(real), floor_groups=groups(floor), seed=seed)
    overall = forms.compare(*columns, groups=groups(real), floor_groups=groups(floor), seed=seed)
    return {"overall": overall, "classes": {}}


def _spread(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]] | None:
    """Mean and standard deviation of each measure's distance over runs; None for one run."""
    if len(results) < 2:
        return None
    spread = {}
    for name in forms.MEASURES:
        found = [result["measures"][name]["distance"] for result in results]
        values = [distance["value"] for distance in found if distance is not None]
        if len(values) > 1:
            spread[name] = {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)), "runs": len(values)}
    return spread


def copying(work: Work, pictures: Pictures) -> list[dict[str, Any]]:
    """Synthetic tiles that copy training tiles, beside held-out real ones, a level at a time."""
    sets, seed = work.sets, work.request.seed
    if sets.train is None:
        work.notes.append("copying was not looked for: the tiles that the model was trained on are needed (--train)")
        return []
    blocks = []
    for level in work.levels():
        where = f" of level {level}" if level else ""

        def told(name: str, where: str = where) -> Any:
            return lambda done, total: work.tell(f"thumbnails{where}, {name}", done, total)

        own = [run.of(level=level) for run in sets.runs if len(run.of(level=level))]
        training, held_out = sets.train.of(level=level), sets.real.of(level=level)
        synthetic = _joined(own, COPYING_TILES, seed)
        held_out = _thinned(held_out, np.arange(len(held_out)), COPYING_TILES, seed, "held out")
        unit = sets.split_by if sets.split_by == "slide" else "region"
        found = copies.copying(
            describe(synthetic.files, progress=told("synthetic")),
            describe(training.files, progress=told("training")),
            describe(held_out.files, progress=told("held-out")),
            training_groups=training.regions,
            synthetic_labels=synthetic.labels if synthetic.labelled else None,
            held_out_labels=held_out.labels if held_out.labelled else None,
            unit=unit,
            seed=seed,
            progress=work.tell,
        )
        found["level"] = level
        blocks.append(found)
        if found["pairs"]:
            path = closest_pairs_sheet(found["pairs"], work.folder / f"pairs_{len(blocks)}.png")
            caption = (
                f"The closest pairs{where}: a synthetic tile, and the training tile most like it, turned and shifted "
                "to "
                "lie the same way."
            )
            pictures.setdefault("Copying", []).append((path, caption))
        for pair in found["pairs"]:
            pair |= {key: "/".join(Path(pair[key]).parts[-2:]) for key in ("synthetic", "training")}
    return blocks


def _joined(sets: Sequence[TileSet], count: int, seed: int) -> TileSet:
    """The tiles of several runs as one set, at most `count` of them."""
    first = sets[0]
    columns: dict[str, Any] = {
        name: tuple(value for tiles in sets for value in getattr(tiles, name))
        for name in ("files", "labels", "levels", "regions", "mpp")
    }
    joined = TileSet(first.name, size_px=first.size_px, source=first.source, **columns)
    return _thinned(joined, np.arange(len(joined)), count, seed, "runs")
