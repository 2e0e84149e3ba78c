"""F-scores of predictions, which are kept as CSV: a row a region, with its name, class and probabilities."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score

from pathup import draws, storage
from pathup.errors import PathUpError

__all__ = ["Predictions", "difference_interval", "f_scores", "mean_f_interval", "read_predictions", "write_predictions"]

RESAMPLES = 2000


@dataclass(frozen=True)
class Predictions:
    """What a classifier said of regions.

    Attributes
    ----------
    labels
        All classes, in the order of probabilities.
    regions, truth
        Of each region: its name and class.
    probabilities_NC
        Of each region and class.
    """

    labels: list[str]
    regions: list[str]
    truth: list[str]
    probabilities_NC: np.ndarray

    @property
    def named(self) -> list[str]:
        """The likeliest class of each region."""
        return [self.labels[place] for place in self.probabilities_NC.argmax(1)]

    def confusion(self) -> np.ndarray:
        """Counts, rows true, columns named."""
        return np.asarray(confusion_matrix(self.truth, self.named, labels=self.labels))


def f_scores(truth: Sequence[str], named: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """The F-score of each class, and their ``mean`` (macro F), by scikit-learn, 0 to 1.

    A class that is neither there nor named has 0.
    """
    found = f1_score(truth, named, labels=list(labels), average=None, zero_division=0)
    return {**dict(zip(labels, (float(value) for value in found), strict=True)), "mean": float(np.mean(found))}


def mean_f_interval(predictions: Predictions, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean F-score, by the bootstrap of regions within each class."""
    truth, named = np.array(predictions.truth), np.array(predictions.named)
    rng = draws.numpy_generator(seed, "bootstrap of regions")
    found = []
    for _ in range(RESAMPLES):
        places = _resampled(truth, predictions.labels, rng)
        found.append(_macro(truth[places], named[places], predictions.labels))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def difference_interval(
    ones: Sequence[Predictions], others: Sequence[Predictions], seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of how much higher the mean F-score of one arm is than another's, averaged over seeds.

    By the bootstrap of regions within each class, the same ones for all seeds of both arms: it says how far the
    difference hangs on which regions are tested.

    Parameters
    ----------
    ones, others
        Predictions of each seed, all of the same regions in the same order.

    Raises
    ------
    PathUpError
        They are of different regions.
    """
    first = ones[0]
    for own in (*ones, *others):
        if (own.regions, own.truth, own.labels) != (first.regions, first.truth, first.labels):
            raise PathUpError("predictions of different regions cannot be compared; evaluate both on the same split")
    truth = np.array(first.truth)
    named = [[np.array(own.named) for own in arm] for arm in (ones, others)]
    rng = draws.numpy_generator(seed, "bootstrap of regions")
    found = []
    for _ in range(RESAMPLES // 4):
        places = _resampled(truth, first.labels, rng)
        means = [np.mean([_macro(truth[places], of_seed[places], first.labels) for of_seed in arm]) for arm in named]
        found.append(means[0] - means[1])
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write them as CSV: region, label, predicted, and p_LABEL of each class."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["region", "label", "predicted", *(f"p_{label}" for label in predictions.labels)])
    for region, label, named, own in zip(
        predictions.regions, predictions.truth, predictions.named, predictions.probabilities_NC, strict=True
    ):
        rows.writerow([region, label, named, *(f"{value:.9g}" for value in own)])
    storage.write_text(path, text.getvalue())


def read_predictions(path: Path) -> Predictions:
    """What `write_predictions` wrote.

    Raises
    ------
    PathUpError
        The file is missing or damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        labels = [name.removeprefix("p_") for name in rows[0] if name.startswith("p_")]
        values = np.array([[float(row[f"p_{label}"]) for label in labels] for row in rows])
        return Predictions(labels, [row["region"] for row in rows], [row["label"] for row in rows], values)
    except (OSError, IndexError, KeyError, TypeError, ValueError) as error:
        raise PathUpError(
            f"{path} holds no predictions that can be read ({error}); evaluate the classifier again"
        ) from error


def _resampled(truth: np.ndarray, labels: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Places of regions drawn with replacement, as many of each class as there are."""
    groups = [np.flatnonzero(truth == label) for label in labels]
    return np.concatenate([rng.choice(group, len(group)) for group in groups if len(group)])


def _macro(truth: np.ndarray, named: np.ndarray, labels: Sequence[str]) -> float:
    """As `f_scores`, the mean alone: scikit-learn's function takes a millisecond, and there are thousands."""
    scores = []
    for label in labels:
        right = np.sum((truth == label) & (named == label))
        scores.append(2 * right / max(1, np.sum(truth == label) + np.sum(named == label)))
    return float(np.mean(scores))
