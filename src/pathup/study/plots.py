"""The plots of a report: scores of each reader, and how well they tell real from synthetic images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from pathup.evaluation.plots import REAL, SYNTHETIC, save_figure
from pathup.study.scores import Scores

__all__ = ["roc_plot", "score_plot"]

SCORES = np.arange(1, 11)
COLUMNS = 4
"""Readers beside each other."""


def score_plot(scores: Scores, target: Path) -> Path:
    """How often each reader gave each score, to real and to synthetic images."""
    readers = len(scores.readers)
    columns = min(readers, COLUMNS)
    lines = -(-readers // columns)
    figure = Figure(figsize=(3.4 * columns, 2.6 * lines), layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)).ravel()
    for axis, name, own in zip(axes, scores.readers, scores.values, strict=False):
        for shift, arm, colour, title in ((-0.2, False, REAL, "real"), (0.2, True, SYNTHETIC, "synthetic")):
            given = own[scores.synthetic == arm]
            heights = [(given == score).sum() for score in SCORES]
            axis.bar(SCORES + shift, heights, 0.4, color=colour, label=title)
        axis.set_title(name, fontsize=10)
        axis.set_xticks(SCORES)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[readers:]:
        axis.set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.supxlabel("score, 1 synthetic to 10 real", fontsize=9)
    figure.supylabel("images", fontsize=9)
    return save_figure(figure, target)


def roc_plot(scores: Scores, aucs: Sequence[float], target: Path) -> Path:
    """The ROC curve of every reader, *real* being what is found, with the AUC beside the name."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="#8a8a8a", linewidth=1, linestyle=":")
    for name, own, area in zip(scores.readers, scores.values, aucs, strict=True):
        known = ~np.isnan(own)
        real = ~scores.synthetic[known]
        if real.any() and not real.all():
            false, true, _ = roc_curve(real, own[known], drop_intermediate=False)
            axis.plot(false, true, marker="o", markersize=3, linewidth=1.2, label=f"{name}: {area:.2f}")
    axis.set_xlabel("synthetic images at the score or above", fontsize=9)
    axis.set_ylabel("real images at the score or above", fontsize=9)
    axis.set_aspect("equal")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    return save_figure(figure, target)
