"""The parts of a report: each takes the checked sets and gives its section of ``results.json`` and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pathup.evaluation import plots, rows
from pathup.evaluation.consistency import consistency as class_consistency
from pathup.evaluation.crops import are_crops
from pathup.evaluation.encoders import Encoder
from pathup.evaluation.features import View
from pathup.evaluation.tables import SCALE, figure
from pathup.evaluation.tile_sets import TileSet

if TYPE_CHECKING:
    from pathup.evaluation.runs import EvaluateRequest, Sets

Pictures = dict[str, list[tuple[Path, str]]]

CHECK_WIDTH = 1024
"""Most features for which torch-fidelity's own FID, eigenvalues of a non-symmetric matrix, takes seconds."""


class FeaturesOf(Protocol):
    """Gives the features of a set in a view."""

    def __call__(self, tiles: TileSet, view: View = "colour") -> np.ndarray:
        """Features (N, D), in the set's order."""
        ...


@dataclass(frozen=True)
class Work:
    """What every part needs: the request, the sets, where pictures go, the notes, and whom to tell of progress."""

    request: EvaluateRequest
    sets: Sets
    folder: Path
    notes: list[str]
    tell: Callable[[str, int, int], None]

    def levels(self) -> list[str | None]:
        """The spatial levels of the synthetic tiles; one None where they are not known."""
        return sorted({level for run in self.sets.runs for level in run.levels}, key=str)


    def cropped(self) -> list[Path]:
        """The synthetic sets that were cropped, since they are of large images."""
        given = zip((self.request.fake, *self.request.runs), self.sets.runs, strict=True)
        return [path for path, tiles in given if are_crops(tiles)]


def fidelity(
    work: Work, encoders: Sequence[Encoder], features: Sequence[FeaturesOf], pictures: Pictures
) -> list[dict[str, Any]]:
    """FID, KID, precision, recall, density and coverage, on each network's features.

    Raises
    ------
    PathUpError
        There are fewer tiles in all than a metric needs.
    """
    request, sets = work.request, work.sets
    for tiles, compared in zip(sets.runs, sets.rows, strict=True):
        rows.check_enough(compared, tiles.name)
    blocks = []
    for encoder, own in zip(encoders, features, strict=True):
        sides = rows.Sides(sets.real, sets.train, own, sets.rows)
        runs = list(zip(sets.runs, sets.rows, strict=True))
        stage = f"fidelity, {encoder.name}"

        def tell(done: int, total: int, stage: str = stage) -> None:
            work.tell(stage, done, total)

        found = rows.fidelity_rows(
            sides, runs, own, seed=request.seed, replicates=request.replicates, subset_size=request.subset_size,
            subsets=request.subsets, progress=tell,
        )  # fmt: skip
        measured = [row for row in found if row["runs"]]
        block: dict[str, Any] = {
            "features": {
                **encoder.described(),
                "literature": sorted(encoder.literature),
                "dimension": measured[0]["runs"][0]["dimension"] if measured else None,
            },
            "rows": found,
            "torch_fidelity": None,
        }
        if found[0]["runs"] and block["features"]["dimension"] <= CHECK_WIDTH:
            block["torch_fidelity"] = rows.checked_against_torch_fidelity(sides, runs[0], own, request.seed)
        blocks.append(block)
        name = f"fidelity_{len(blocks)}.png"
        drawn = plots.fidelity_plot(block, work.folder / name)
        if drawn is not None:
            caption = f"Synthetic tiles beside the floor, on features of {encoder.name}. Black lines: 95 % intervals."
            pictures.setdefault("Fidelity", []).append((drawn, caption))
    return blocks


def consistency(
    work: Work, encoders: Sequence[Encoder], features: Sequence[FeaturesOf], pictures: Pictures
) -> list[dict[str, Any]]:
    """Accuracy and confusion of a classifier trained on real tiles, a level and network at a time."""
    sets = work.sets
    if sets.train is None or not sets.train.labelled or not sets.real.labelled or not sets.runs[0].labelled:
        work.notes.append(
            "class consistency was not measured: it needs real training and test tiles and synthetic ones, each of a "
            "known "
            "class"
        )
        return []
    blocks = []
    for level in work.levels():
        train, test = sets.train.of(level=level), sets.real.of(level=level)
        own = [run.of(level=level) for run in sets.runs]
        if len(set(train.labels)) < 2:
            work.notes.append("class consistency was not measured: the real training tiles are all of one class")
            continue
        for encoder, of in zip(encoders, features, strict=True):
            results = [
                class_consistency(train, test, tiles, of, seed=work.request.seed) for tiles in own if len(tiles)
            ]
            spread = None
            if len(results) > 1:
                accuracies = {
                    view: [found["views"][view]["synthetic"]["accuracy"] for found in results]
                    for view in results[0]["views"]
                }
                spread = {
                    view: {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}
                    for view, values in accuracies.items()
                }
            block = {"level": level, "features": encoder.described(), **results[0]}
            block |= {"runs": len(results), "spread": spread}
            blocks.append(block)
            drawn = plots.confusion_plot(block, work.folder / f"confusion_{len(blocks)}.png")
            where = f"level {level}, " if level else ""
            caption = f"What the classifier takes for what ({where}{encoder.name}): percent of each true class."
            pictures.setdefault("Class consistency", []).append((drawn, caption))
    return blocks


def summary(results: dict[str, Any]) -> list[str]:
    """A few lines for the terminal: the overall figures beside their floor."""
    lines = []
    for block in results.get("fidelity", []):
        features = block["features"]
        for row in block["rows"]:
            if row["label"] is not None or not row["runs"]:
                continue
            lines.append(
                f"{row['name']}: {row['counts']['synthetic']} synthetic beside {row['counts']['real']} real tiles, on "
                f"features of {features['network']} (floor in brackets)"
            )
            told = []
            for metric in ("fid", "kid", "precision", "recall"):
                scale = SCALE.get(metric, 1.0)
                floor = row["floor"] or (row["halves"] or {}).get("real")
                beside = "none" if floor is None else figure(floor[metric]["value"] * scale)
                name = rows.metric_title(metric, features["literature"])
                told.append(f"{name} {figure(row['runs'][0][metric]['value'] * scale)} ({beside})")
            lines.append("  " + ", ".join(told))
    for block in results.get("consistency", []):
        grey = block["views"]["grey"]
        level = f", {block['level']}" if block["level"] else ""
        lines.append(
            f"class consistency{level}, grey: synthetic {grey['synthetic']['accuracy']:.1%} beside real test "
            f"{grey['real_test']['accuracy']:.1%}"
        )
    return lines
