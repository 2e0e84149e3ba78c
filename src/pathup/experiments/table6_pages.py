"""What table 6 writes: JSON, a page with the paper's figures beside, and the curves."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pathup import __version__, storage
from pathup.downstream.classifiers import CLASSIFIERS
from pathup.downstream.scores import Predictions, difference_interval, f_scores
from pathup.evaluation.plots import save_figure
from pathup.experiments.classifier_arms import CURVE, FEW, TABLE6, ClassifierArm, Job, sweep
from pathup.experiments.pages import markdown
from pathup.experiments.seeds import difference, holm, mean_std
from pathup.recipes import Recipe

__all__ = ["write_table6"]

Row = dict[str, Any]

PAPER_CLASSES = ("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC", "mean")
PAPER = {
    "ViT-L": "65.5 1.1 43.1 2.7 31.1 1.5 67.1 3.1 33.3 1.4 43.0 2.4 69.9 1.0 50.4 1.9",
    "ViT-L, random": "64.5 2.1 52.8 2.7 33.3 1.7 65.2 2.5 39.9 2.1 45.6 3.0 71.5 1.1 53.2 2.2",
    "ViT-L, synthetic": "68.0 1.0 56.0 2.2 40.1 1.3 66.8 2.6 37.8 1.2 50.0 2.3 72.5 0.8 55.9 1.6",
    "attention MIL": "72.5 1.7 51.5 2.4 38.9 2.5 68.8 3.0 35.8 2.5 52.1 3.6 83.3 1.3 57.6 2.6",
    "attention MIL, random": "73.2 1.2 53.4 2.8 45.1 3.3 67.7 2.8 43.8 2.7 55.0 2.8 81.1 2.1 59.9 2.5",
    "attention MIL, synthetic": "75.1 1.2 61.4 2.0 51.9 2.5 69.9 2.8 44.7 2.1 57.1 2.4 83.3 1.9 63.3 2.1",
}
"""The paper's table 6: mean and deviation of each class."""


def write_table6(
    output: Path, images: int, seeds: int, recipe: Recipe, found: dict[Job, Predictions], notes: dict[Job, Row]
) -> Row:
    """Write ``table6.json``, ``table6.md`` and ``table6.png``; returns what the JSON holds."""
    rows = [
        {
            "classifier": job.classifier, "arm": job.arm.name, "seed": job.seed,
            "f_scores": f_scores(own.truth, own.named, own.labels), "learning_rate": notes[job]["learning_rate"],
            "real_fields": notes[job]["real_fields"], "synthetic_fields": notes[job]["synthetic_fields"],
        }
        for job, own in found.items()
    ]  # fmt: skip
    arms = {arm.name: arm for arm in (*TABLE6, *sweep(images), *CURVE)}
    gaps = [
        _gap(kind, arm, arms[arm.beside], found, seeds)
        for kind in CLASSIFIERS
        for arm in arms.values()
        if arm.beside is not None
    ]
    for gap, corrected in zip(gaps, holm([gap["p"] for gap in gaps]), strict=True):
        gap["p_holm"] = corrected
    content = {
        "experiment": "table6", "version": __version__, "recipe": recipe.name, "seeds": seeds, "images": images,
        "augmentations": recipe.downstream.augmentations, "regions": len(next(iter(found.values())).regions),
        "pretrained": next((own["pretrained"] for own in notes.values() if own.get("pretrained")), None),
        "rows": rows, "differences": gaps,
        "over_the_curve": [_over_the_curve(kind, rows, seeds) for kind in CLASSIFIERS],
    }  # fmt: skip
    _write_predictions(output / "predictions.csv", found)
    storage.write_json(output / "table6.json", content)
    _plot(rows, output / "table6.png")
    storage.write_text(output / "table6.md", _page(content, recipe))
    return content


def _gap(kind: str, arm: ClassifierArm, beside: ClassifierArm, found: dict[Job, Predictions], seeds: int) -> Row:
    own, other = ([found[Job(kind, of, seed)] for seed in range(seeds)] for of in (arm, beside))
    means = [np.array([f_scores(p.truth, p.named, p.labels)["mean"] for p in of]) for of in (own, other)]
    by_seed = difference(*means)
    low, high = difference_interval(own, other)
    return {
        "classifier": kind, "arm": arm.name, "beside": beside.name, "mean": by_seed.mean, "low": by_seed.low,
        "high": by_seed.high, "p": by_seed.p, "regions_low": low, "regions_high": high,
    }  # fmt: skip


def _over_the_curve(kind: str, rows: list[Row], seeds: int) -> Row:
    """What synthetic images add, averaged over all numbers of real regions, seed by seed: one test for all of them."""
    means = {(row["arm"], row["seed"]): row["f_scores"]["mean"] for row in rows if row["classifier"] == kind}
    real, synthetic = (
        np.mean([[means[arm, seed] for seed in range(seeds)] for arm in (name, *(f"{name}_of_{k}" for k in FEW))], 0)
        for name in ("real", "synthetic")
    )
    return {"classifier": kind, **asdict(difference(synthetic, real))}


def _write_predictions(path: Path, found: dict[Job, Predictions]) -> None:
    """All predictions as one CSV, a row a job and region: what every figure here can be computed from."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    labels = next(iter(found.values())).labels
    rows.writerow(["classifier", "arm", "seed", "region", "label", "predicted", *(f"p_{label}" for label in labels)])
    for job, own in found.items():
        for region, truth, named, values in zip(
            own.regions, own.truth, own.named, own.probabilities_NC.tolist(), strict=True
        ):
            told = (f"{value:.4f}" for value in values)
            rows.writerow([job.classifier, job.arm.name, job.seed, region, truth, named, *told])
    storage.write_text(path, text.getvalue())


def _page(content: Row, recipe: Recipe) -> str:
    start = content["pretrained"]
    rows, labels, images = content["rows"], recipe.labels, content["images"]
    parts = ", ".join(content["augmentations"])
    lines = [
        "# Table 6: lesion classifiers with and without synthetic tissue",
        "",
        f"F-scores x 100 of {content['regions']} regions of split 'test', mean ± standard deviation of "
        f"{content['seeds']} seeds; {images} synthetic images a class; random augmentation: {parts}. Recipe "
        f"`{content['recipe']}`. Every arm tries the same learning rates for the same number of steps and stops by its "
        f"loss on 'val'; vision transformers start from {f'`{start}`' if start else 'random weights'}. All predictions "
        f"are in predictions.csv. (PathUp {content['version']})",
        "",
        *_table(rows, TABLE6, labels),
        "",
        "## Differences of the mean F-score",
        "",
        "Seed by seed, with the 95 % interval and p of the paired t-test; and the 95 % interval by the bootstrap of "
        "test regions, which says how far it hangs on which regions are tested. Beside p, what Holm's correction for "
        "all differences on this page makes of it.",
        "",
        *_gaps([gap for gap in content["differences"] if gap["arm"] in {arm.name for arm in TABLE6}], TABLE6),
        "",
        "## How many synthetic images",
        "",
        *_table(rows, sweep(images), labels),
        "",
        *_gaps([gap for gap in content["differences"] if gap["arm"] in {a.name for a in sweep(images)}], sweep(images)),
        "",
        "## How many real regions",
        "",
        *_table(rows, CURVE, labels),
        "",
        *_gaps([gap for gap in content["differences"] if gap["arm"] in {arm.name for arm in CURVE}], CURVE),
        "",
        "Over all numbers of real regions together, seed by seed:",
        "",
        *[
            f"- {CLASSIFIERS[one['classifier']].title}: {_interval(one)}, p {_p(one['p'])}"
            for one in content["over_the_curve"]
        ],
        "",
        "![F-score against the number of real regions](table6.png)",
        "",
        "## The paper",
        "",
        "The paper's own figures (BRACS, classes of breast lesions; not to be compared with those above):",
        "",
        *markdown([["method", *PAPER_CLASSES], *([name, *_pairs(values)] for name, values in PAPER.items())]),
        "",
    ]
    return "\n".join(lines)


def _table(rows: list[Row], arms: Sequence[ClassifierArm], labels: list[str]) -> list[str]:
    table = [["method", *labels, "mean"]]
    for kind in CLASSIFIERS.values():
        for arm in arms:
            own = [row["f_scores"] for row in rows if (row["classifier"], row["arm"]) == (kind.name, arm.name)]
            cells = [mean_std(np.array([100 * scores[name] for scores in own])) for name in (*labels, "mean")]
            table.append([f"{kind.title}, {arm.title}", *(f"{mean:.1f} ± {std:.1f}" for mean, std in cells)])
    return markdown(table)


def _gaps(gaps: list[Row], arms: Sequence[ClassifierArm]) -> list[str]:
    titles = {arm.name: arm.title for arm in (*TABLE6, *arms)}
    table = [["method", "beside", "difference x 100", "p", "p, Holm", "by regions"]]
    for gap in gaps:
        by_regions = f"{100 * gap['regions_low']:+.1f} to {100 * gap['regions_high']:+.1f}"
        title = CLASSIFIERS[gap["classifier"]].title
        table.append([f"{title}, {titles[gap['arm']]}", titles[gap["beside"]], _interval(gap), _p(gap["p"]),
                      _p(gap["p_holm"]), by_regions])  # fmt: skip
    return markdown(table)


def _interval(gap: Row) -> str:
    return f"{100 * gap['mean']:+.1f} ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _pairs(values: str) -> list[str]:
    numbers = values.split()
    return [f"{mean} ± {std}" for mean, std in zip(numbers[::2], numbers[1::2], strict=True)]


def _plot(rows: list[Row], target: Path) -> Path:
    """The mean F-score against the number of real regions, a panel a classifier."""
    figure = Figure(figsize=(4.5 * len(CLASSIFIERS), 3.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(CLASSIFIERS), sharey=True))
    ticks = [*map(str, FEW), "all"]
    for axis, kind in zip(axes, CLASSIFIERS.values(), strict=True):
        for name, title, colour, aside in (
            ("real", "real", "#8a8a8a", -0.06), ("synthetic", "+ synthetic", "#0072b2", 0.06)
        ):  # fmt: skip
            arms = [*(f"{name}_of_{count}" for count in FEW), name]
            found = [
                [100 * row["f_scores"]["mean"] for row in rows if (row["classifier"], row["arm"]) == (kind.name, arm)]
                for arm in arms
            ]
            means, stds = zip(*(mean_std(np.array(values)) for values in found), strict=True)
            places = np.arange(len(arms)) + aside  # beside each other, so that none hides the other
            axis.errorbar(places, means, stds, fmt="o-", color=colour, capsize=3, label=title)
            for place, values in zip(places, found, strict=True):
                axis.plot([place] * len(values), values, ".", color=colour, alpha=0.4)
        axis.set_xticks(range(len(ticks)), ticks)
        axis.set_xlabel("real regions a class")
        axis.set_title(kind.title, fontsize=10)
    axes[0].set_ylabel("mean F-score x 100")
    axes[0].legend(frameon=False)
    return save_figure(figure, target)
