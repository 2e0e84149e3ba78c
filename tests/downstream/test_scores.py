"""F-scores are scikit-learn's on what is kept as CSV; intervals; damaged files."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from pathup.downstream.scores import (
    Predictions,
    _macro,
    f_scores,
    mean_f_interval,
    read_predictions,
    write_predictions,
)
from pathup.errors import PathUpError

LABELS = ["IC", "HEM", "KEL"]


def made(count: int = 40, skill: float = 2.0, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    truth = rng.integers(3, size=count)
    logits = rng.normal(size=(count, 3))
    logits[np.arange(count), truth] += skill
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Predictions(LABELS, [f'region "{n}", a' for n in range(count)], [LABELS[t] for t in truth], shares)


def test_f_scores_are_scikit_learns_on_the_saved_predictions(tmp_path):
    predictions = made()
    write_predictions(tmp_path / "predictions.csv", predictions)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["region", "label", "predicted", "p_IC", "p_HEM", "p_KEL"]
    assert [row["region"] for row in rows] == predictions.regions
    theirs = f1_score([r["label"] for r in rows], [r["predicted"] for r in rows], labels=LABELS, average=None)
    own = f_scores(predictions.truth, predictions.named, LABELS)
    assert [own[label] for label in LABELS] == pytest.approx(list(theirs))
    macro = f1_score([r["label"] for r in rows], [r["predicted"] for r in rows], average="macro")
    assert own["mean"] == pytest.approx(macro)
    back = read_predictions(tmp_path / "predictions.csv")
    assert (back.regions, back.truth, back.named) == (predictions.regions, predictions.truth, predictions.named)
    assert back.probabilities_NC == pytest.approx(predictions.probabilities_NC, abs=1e-8)


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=30))
def test_the_quick_mean_is_scikit_learns(pairs):
    truth, named = (np.array(column) for column in zip(*pairs, strict=True))
    theirs = f1_score(truth, named, labels=LABELS, average="macro", zero_division=0)
    assert _macro(truth, named, LABELS) == pytest.approx(theirs)


def test_the_interval_holds_the_figure_and_narrows_with_more_regions():
    few, many = made(30), made(300)
    for predictions in (few, many):
        low, high = mean_f_interval(predictions)
        assert low < f_scores(predictions.truth, predictions.named, LABELS)["mean"] < high
    widths = [high - low for low, high in (mean_f_interval(few), mean_f_interval(many))]
    assert widths[1] < widths[0] / 2  # the root of ten is 3.2
    sure = Predictions(LABELS, few.regions, few.truth, np.eye(3)[[LABELS.index(t) for t in few.truth]])
    assert mean_f_interval(sure) == (1.0, 1.0)


def test_a_damaged_file_is_one_sentence(tmp_path):
    for text in ("", "region,label,predicted,p_A\n", "region,label,predicted,p_A\nr,A,A,much\n"):
        (tmp_path / "p.csv").write_text(text)
        with pytest.raises(PathUpError, match="evaluate the classifier again"):
            read_predictions(tmp_path / "p.csv")
