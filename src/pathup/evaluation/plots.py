"""Pictures of the results: every bar beside its floor, and what the classifier takes for what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pathup import storage
from pathup.evaluation.fidelity import METRICS
from pathup.evaluation.rows import SMALLER_IS_BETTER, metric_title
from pathup.evaluation.tables import SCALE

__all__ = ["confusion_plot", "fidelity_plot", "histogram_plot", "save_figure"]

SYNTHETIC, FLOOR, HALVES, REAL = "#0072b2", "#8a8a8a", "#c9c9c9", "#d55e00"  # apart for the colour-blind as well


def save_figure(figure: Figure, target: Path) -> Path:
    """Write a figure as PNG, atomically."""
    FigureCanvasAgg(figure)
    with storage.atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=120, facecolor="white")
    return target


def fidelity_plot(block: dict[str, Any], target: Path) -> Path | None:
    """Each metric's bars with intervals: synthetic, floor (training tiles in their place) and halves, a row each.

    Returns
    -------
    Path or None
        None where no row has figures.
    """
    rows = [row for row in block["rows"] if row["runs"]]
    if not rows:
        return None
    figure = Figure(figsize=(13, 1.6 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(METRICS), sharey=True)
    for axis, metric in zip(axes, METRICS, strict=True):
        _bars(axis, rows, metric)
        name = metric_title(metric, block["features"]["literature"])
        axis.set_title(f"{name}\n({'smaller' if metric in SMALLER_IS_BETTER else 'larger'} is better)", fontsize=9)
    axes[0].set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    axes[0].invert_yaxis()
    handles = [axes[0].barh([0], [0], color=c) for c in (SYNTHETIC, FLOOR, HALVES)]
    figure.legend(
        handles,
        ["synthetic", "floor: real training tiles", "real test halves (fewer tiles)"],
        loc="outside lower center",
        ncols=3,
        fontsize=9,
        frameon=False,
    )
    return save_figure(figure, target)


def _bars(axis: Axes, rows: Sequence[dict[str, Any]], metric: str) -> None:
    scale = SCALE.get(metric, 1.0)
    for place, row in enumerate(rows):
        entries = (
            (row["runs"][0], SYNTHETIC, -0.27), (row["floor"], FLOOR, 0.0),
            ((row["halves"] or {}).get("real"), HALVES, 0.27),
        )  # fmt: skip
        for report, colour, offset in entries:
            if report is None:
                continue
            found = report[metric]
            axis.barh(place + offset, found["value"] * scale, 0.25, color=colour)
            if found["low"] is not None:
                axis.plot([found["low"] * scale, found["high"] * scale], [place + offset] * 2, color="black", lw=0.8)
    axis.axvline(0, color="black", lw=0.6)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    if metric in ("precision", "recall", "coverage"):
        axis.set_xlim(0, 1)


def confusion_plot(block: dict[str, Any], target: Path) -> Path:
    """Confusion matrices, colour and grey, of real test and of synthetic tiles: rows true, columns named, shares."""
    labels = block["labels"]
    side = 1.1 + 0.42 * len(labels)
    figure = Figure(figsize=(2 * side + 1.2, 2 * side), layout="constrained")
    axes = figure.subplots(2, 2, squeeze=False)
    for line, (view, found) in zip(axes, block["views"].items(), strict=True):
        for axis, (name, title) in zip(line, (("real_test", "real test"), ("synthetic", "synthetic")), strict=True):
            counts = np.array(found[name]["confusion"], float)
            shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
            axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
            for row, column in np.argwhere(shares >= 0.005):
                colour = "white" if shares[row, column] > 0.55 else "black"
                text = f"{shares[row, column] * 100:.0f}"
                axis.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
            axis.set_title(f"{title}, {view}: {found[name]['accuracy']:.0%} named right", fontsize=9)
            axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
            axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axes[0][0].set_ylabel("true class", fontsize=9)
    axes[1][0].set_xlabel("named class", fontsize=9)
    figure.colorbar(axes[0][0].images[0], ax=axes, shrink=0.6, label="share of the true class")
    return save_figure(figure, target)


def histogram_plot(
    measures: Sequence[tuple[str, str]],
    values: dict[str, dict[str, np.ndarray]],
    target: Path,
) -> Path:
    """Distributions of each measure: real test, real training (the floor) and synthetic, on common axes.

    Parameters
    ----------
    measures
        Name and axis title of each.
    values
        Of ``real``, ``floor`` (may be missing) and ``synthetic``: one value a tile and measure; NaN is left out.
    """
    columns = 4
    lines = -(-len(measures) // columns)
    figure = Figure(figsize=(13, 2.3 * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    shown = [
        ("real", "real test", REAL, "-"), ("floor", "real training (floor)", FLOOR, "--"),
        ("synthetic", "synthetic", SYNTHETIC, "-"),
    ]  # fmt: skip
    for axis, (name, title) in zip(axes, measures, strict=False):
        sets = {key: values[key][name][np.isfinite(values[key][name])] for key, *_ in shown if key in values}
        pooled = np.concatenate(list(sets.values()))
        if len(pooled):
            low, high = np.quantile(pooled, (0.005, 0.995))
            edges = np.linspace(low, high if high > low else low + 1, 31)
            for key, _, colour, style in shown:
                if key in sets and len(sets[key]):
                    counts, _ = np.histogram(sets[key], edges)
                    share = counts / len(sets[key])
                    axis.stairs(share, edges, color=colour, ls=style, lw=1.6 if key != "floor" else 1.1)
        axis.set_title(title, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.set_yticks([])
        axis.spines[["top", "right", "left"]].set_visible(False)
    for axis in axes[len(measures) :]:
        axis.set_axis_off()
    handles = [axes[0].plot([], [], color=colour, ls=style)[0] for key, _, colour, style in shown if key in values]
    names = [title for key, title, *_ in shown if key in values]
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return save_figure(figure, target)
