"""What an experiment writes: JSON, a page of tables beside the paper's figures, and a plot."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pathup import __version__, storage
from pathup.evaluation.plots import save_figure
from pathup.experiments.arms import ARMS, Experiment
from pathup.experiments.seeds import difference, mean_std

__all__ = ["METRICS", "write_pages"]

Row = dict[str, Any]
Cells = dict[tuple[str, str, str], list[Row]]
"""Rows by features, level and arm."""

METRICS = {
    "precision": "precision", "recall": "recall", "fid": "Fréchet distance", "kid": "kernel distance x 1000",
    "coverage": "coverage", "grey": "grey tiles named right",
}  # fmt: skip
"""What is shown of a row, in the paper's order, and its title."""

PAPER = {
    "table2": (
        "The paper's own figures (BRACS, Inception and VGG16, 10,000 images; not to be compared with those above):",
        ["resolution", "patho-align", "feature entropy", "IP", "IR", "FID", "KID"],
        [
            ["high", "", "", "0.906 ± 0.093", "0.322 ± 0.084", "83.4 ± 5.9", "20.8 ± 2.0"],
            ["high", "yes", "", "0.959 ± 0.045", "0.393 ± 0.063", "59.2 ± 5.5", "11.2 ± 1.2"],
            ["high", "yes", "yes", "0.964 ± 0.012", "0.592 ± 0.026", "45.4 ± 3.7", "8.1 ± 0.4"],
            ["low", "", "", "0.907 ± 0.084", "0.324 ± 0.106", "91.7 ± 5.9", "9.2 ± 1.8"],
            ["low", "yes", "", "0.943 ± 0.042", "0.417 ± 0.069", "69.0 ± 4.5", "11.5 ± 0.9"],
            ["low", "yes", "yes", "0.955 ± 0.021", "0.608 ± 0.033", "66.7 ± 2.2", "10.7 ± 0.9"],
        ],
    ),
}


LEARNT = {
    "L_r": ("L_r", ".4f"), "L_e": ("L_e", ".2g"), "memory_spread": ("spread of the memory", ".2f"),
    "training_seconds": ("training, seconds", ".0f"),
}  # fmt: skip
"""What is shown of an arm's training: title and format."""


def write_pages(
    output: Path, asked: Experiment, rows: list[Row], learnt: list[Row], floor: list[Row], seeds: int
) -> Row:
    """Write ``NAME.json``, ``NAME.md`` and ``NAME.png``; returns what the JSON holds.

    `rows` are figures of an arm, a seed, a level and features; `learnt` is what an arm's and a seed's training told.
    """
    cells = by_cell(rows)
    gaps, times = differences(asked, cells), ratios(asked, cells)
    content = {
        "experiment": asked.name, "version": __version__, "seeds": seeds, "floor": floor, "rows": rows,
        "learnt": learnt, "differences": gaps, "ratios": times,
    }  # fmt: skip
    storage.write_json(output / f"{asked.name}.json", content)
    plot(asked, cells, floor, output / f"{asked.name}.png")
    storage.write_text(output / f"{asked.name}.md", page(asked, cells, learnt, floor, gaps, times, seeds))
    return content


def by_cell(rows: list[Row]) -> Cells:
    """Rows by features, level and arm, each in the order of their seeds."""
    cells: Cells = defaultdict(list)
    for row in sorted(rows, key=lambda row: int(row["seed"])):
        cells[row["features"], row["level"], row["arm"]].append(row)
    return dict(cells)


def differences(asked: Experiment, cells: Cells) -> list[Row]:
    """Each arm beside the one that it is tested against, metric by metric."""
    found = []
    for (features, level, name), own in cells.items():
        other = ARMS[name].beside
        beside = cells.get((features, level, other or ""))
        if beside is None or name not in asked.arms:
            continue
        for metric in METRICS:
            gap = difference(values(own, metric), values(beside, metric))
            found.append({
                "features": features, "level": level, "arm": name, "beside": other, "metric": metric,
                "mean": gap.mean, "low": gap.low, "high": gap.high, "p": gap.p,
            })  # fmt: skip
    return found


def ratios(asked: Experiment, cells: Cells) -> list[Row]:
    """Each arm's figures as a multiple of those of the one beside it, over all networks and levels at once.

    Of a seed, the geometric mean over networks and levels; over seeds, the geometric mean of these with the interval of
    a paired t-test of their logarithms. Of what many small differences say together a single table cannot tell. A
    metric that is not above 0 everywhere has no ratio and is left out.
    """
    found = []
    for name in asked.arms:
        keys = [(features, level) for features, level, own in cells if own == name]
        other = ARMS[name].beside or ""
        if any((*key, other) not in cells for key in keys):
            continue
        for metric in METRICS:
            own, beside = (np.stack([values(cells[*key, arm], metric) for key in keys]) for arm in (name, other))
            if min(own.min(), beside.min()) > 0:
                gap = difference(np.log(own).mean(0), np.log(beside).mean(0))
                mean, low, high = (float(np.exp(value)) for value in (gap.mean, gap.low, gap.high))
                found.append({
                    "arm": name, "beside": other, "metric": metric, "ratio": mean, "low": low, "high": high, "p": gap.p,
                })  # fmt: skip
    return found


def values(rows: list[Row], metric: str) -> np.ndarray:
    """A metric of each seed."""
    return np.asarray([row[metric] for row in rows], np.float64)


def page(
    asked: Experiment, cells: Cells, learnt: list[Row], floor: list[Row], gaps: list[Row], times: list[Row], seeds: int
) -> str:
    """The tables as markdown."""
    told = (
        f"Mean ± standard deviation of {seeds} seeds; the floor is as many real training tiles in their place (from "
        "such tiles the classifier of grey tiles has learnt, so that its figure there says nothing)."
    )
    lines = [f"# {asked.title}", "", told]
    for features, level in dict.fromkeys((features, level) for features, level, _ in cells):
        beside = [row for row in floor if (row["features"], row["level"]) == (features, level)]
        found = [gap for gap in gaps if (gap["features"], gap["level"]) == (features, level)]
        lines += ["", f"## {level}, on features of {features}", ""]
        lines += markdown(_means(asked, {name: cells[features, level, name] for name in asked.arms}, beside))
        if found:
            said = "Differences seed by seed, with their 95 % interval (paired t-test):"
            lines += ["", said, "", *markdown(_gaps(asked, found))]
    if times:
        lines += ["", "## Over all networks and levels", "", TOGETHER, "", *markdown(_times(asked, times))]
    lines += ["", "## Training", "", TRAINING, "", *markdown(_learnt(asked, learnt))]
    predictions = [[ARMS[name].title, ARMS[name].predicted] for name in asked.arms if ARMS[name].predicted]
    if predictions:
        lines += ["", "What was predicted:", "", *markdown([["arm", "beside the recipe"], *predictions])]
    if asked.name in PAPER:
        said, head, body = PAPER[asked.name]
        lines += ["", said, "", *markdown([head, *body])]
    return "\n".join([*lines, "", f"![{asked.title}]({asked.name}.png)", ""])


TOGETHER = (
    "An arm's figure as a multiple of that of the arm beside it: of each seed the geometric mean over networks and "
    "levels, of these the geometric mean with its 95 % interval (t-test of the logarithms)."
)

TRAINING = (
    "Losses are means over the last tenth of the steps. The memory's spread is 1 less the mean cosine of two of its "
    "anchors: 0 where all are one direction, above 1 where they avoid each other."
)


def _learnt(asked: Experiment, learnt: list[Row]) -> list[list[str]]:
    table = [["arm", *(title for title, _ in LEARNT.values())]]
    for name in asked.arms:
        own, cells = [row for row in learnt if row["arm"] == name], []
        for value, (_, form) in LEARNT.items():
            found = np.asarray([row[value] for row in own if value in row], np.float64)
            mean, std = mean_std(found) if len(found) else (0.0, 0.0)
            cells.append(f"{mean:{form}} ± {std:{form}}" if len(found) else "")
        table.append([ARMS[name].title, *cells])
    return table


def _means(asked: Experiment, rows: dict[str, list[Row]], floor: list[Row]) -> list[list[str]]:
    table = [["arm", "tiles", *METRICS.values()]]
    for name in asked.arms:
        found = (mean_std(values(rows[name], metric)) for metric in METRICS)
        table.append([
            ARMS[name].title, f"{rows[name][0]['tiles']:.0f}", *(f"{mean:.3g} ± {std:.2g}" for mean, std in found),
        ])  # fmt: skip
    for row in floor:
        table.append(["*floor*", f"{row['tiles']:.0f}", *(f"{row[metric]:.3g}" for metric in METRICS)])
    return table


def _gaps(asked: Experiment, gaps: list[Row]) -> list[list[str]]:
    table = [["arm", "beside", *METRICS.values()]]
    for name in asked.arms:
        own = {gap["metric"]: gap for gap in gaps if gap["arm"] == name}
        if own:
            table.append([
                ARMS[name].title, ARMS[str(ARMS[name].beside)].title, *(_gap(own[metric]) for metric in METRICS),
            ])  # fmt: skip
    return table


def _times(asked: Experiment, times: list[Row]) -> list[list[str]]:
    shown = [metric for metric in METRICS if any(row["metric"] == metric for row in times)]
    table = [["arm", "beside", *(METRICS[metric] for metric in shown)]]
    for name in asked.arms:
        own = {row["metric"]: row for row in times if row["arm"] == name}
        if own:
            cells = [_ratio(own[metric]) if metric in own else "" for metric in shown]
            table.append([ARMS[name].title, ARMS[str(ARMS[name].beside)].title, *cells])
    return table


def _ratio(row: Row) -> str:
    if row["p"] is None:
        return f"{row['ratio']:.3g} in every seed"
    return f"{row['ratio']:.3g} ({row['low']:.3g} to {row['high']:.3g}; p {row['p']:.2g})"


def _gap(gap: Row) -> str:
    if gap["p"] is None:
        return f"{gap['mean']:+.2g} in every seed"
    return f"{gap['mean']:+.2g} ({gap['low']:+.2g} to {gap['high']:+.2g}; p {gap['p']:.2g})"


def markdown(table: list[list[str]]) -> list[str]:
    """The lines of a table whose first row is its head."""
    head, *body = table
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def plot(asked: Experiment, cells: Cells, floor: list[Row], target: Path) -> Path:
    """Every seed's figure and the arms' means, an axis for each metric and level; the floor as a line, if near."""
    keys = list(dict.fromkeys((features, level) for features, level, _ in cells))
    shown = ("recall", "kid", "grey")
    figure = Figure(figsize=(4.2 * len(shown), 2.6 * len(keys) + 0.6), layout="constrained")
    grid = np.atleast_2d(figure.subplots(len(keys), len(shown)))
    labels = [name.replace("_", " ") for name in asked.arms]
    for row, (features, level) in zip(grid, keys, strict=True):
        for axis, metric in zip(row, shown, strict=True):
            for place, name in enumerate(asked.arms):
                found = values(cells[features, level, name], metric)
                axis.plot([place] * len(found), found, "o", color="#8a8a8a", markersize=4, alpha=0.7)
                mean, std = mean_std(found)
                axis.errorbar([place], [mean], [std], fmt="o", color="#0072b2", capsize=4)
            title = f"{METRICS[metric]}: {level}, {features}"
            for real in floor:
                if (real["features"], real["level"]) == (features, level):
                    title += _marked(axis, real[metric])
            axis.set_xticks(range(len(labels)), labels, rotation=25, ha="right", fontsize=7)
            axis.set_title(title, fontsize=7)
            axis.tick_params(labelsize=7)
    legend = "blue: mean and standard deviation of seeds; dashed, or told: real training tiles"
    figure.suptitle(f"{asked.title} ({legend})", fontsize=9)
    return save_figure(figure, target)


def _marked(axis: Axes, floor: float) -> str:
    """The floor as a line; or as words for the title, where a line would press what is compared into a corner."""
    low, high = axis.get_ylim()
    if low - (high - low) <= floor <= high + (high - low):
        axis.axhline(floor, color="#d55e00", linewidth=1, linestyle="--")
        return ""
    return f" (real: {floor:.3g})"
