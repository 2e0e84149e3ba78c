"""Class consistency: how often a classifier trained on real tiles names the class that synthetic tiles claim.

The data flow: features of a frozen network are standardised and given to a multinomial logistic regression, trained on
real tiles of the split ``train``. It then names the class of real tiles of the split ``test`` and of synthetic tiles,
once in colour and once grey and contrast-normalised, since colour alone can give a slide away. Real and synthetic
figures stand side by side: the real one is the most that can be expected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pathup.errors import PathUpError
from pathup.evaluation.features import VIEWS, View
from pathup.evaluation.tile_sets import TileSet, drawn

__all__ = ["capped", "consistency", "judged", "trained_classifier"]

REGULARISATION = 0.01
"""C of scikit-learn's LogisticRegression: the features outnumber the tiles of a class, so weights are held small."""

CLASSIFIER = f"multinomial logistic regression on standardised features (C = {REGULARISATION}, balanced)"


def capped(tiles: TileSet, count: int | None, seed: int, purpose: str) -> TileSet:
    """At most `count` tiles a class, drawn by (seed, purpose, class); None keeps all."""
    if count is None:
        return tiles
    places = [
        drawn(own, count, seed, "consistency", purpose, str(label)) for (_, label), own in tiles.cells().items()
    ]
    return tiles.at(np.sort(np.concatenate(places)))


def trained_classifier(features_ND: np.ndarray, labels: Sequence[str | None]) -> Any:
    """Standardisation and multinomial logistic regression, classes weighing the same; a fitted scikit-learn pipeline.

    Raises
    ------
    PathUpError
        There are fewer than two classes.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(set(labels)) < 2:
        raise PathUpError(f"the real training tiles are all of class '{labels[0]}'; at least two classes were needed")
    regression = LogisticRegression(C=REGULARISATION, class_weight="balanced", max_iter=5000)
    return make_pipeline(StandardScaler(), regression).fit(features_ND.astype(np.float64), list(labels))


def judged(truth: Sequence[str | None], named: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """How often the right class was named.

    Parameters
    ----------
    truth, named
        The class of each tile, and the class that the classifier named.
    labels
        All classes, in the order of the confusion matrix.

    Returns
    -------
    dict
        ``count``; ``accuracy``, of all tiles, with a 95 % Wilson interval under ``interval``; ``balanced_accuracy``,
        the mean recall of the classes that `truth` holds; ``recall`` of each (None for a class without tiles);
        ``confusion``, rows true, columns named, counts.
    """
    from scipy.stats import binomtest

    place = {label: index for index, label in enumerate(labels)}
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    for own, other in zip(truth, named, strict=True):
        confusion[place[str(own)], place[other]] += 1
    totals, right = confusion.sum(1), confusion.diagonal()
    recall = {label: float(right[i] / totals[i]) if totals[i] else None for label, i in place.items()}
    interval = binomtest(int(right.sum()), int(totals.sum())).proportion_ci(method="wilson")
    return {
        "count": len(truth),
        "accuracy": float(right.sum() / totals.sum()),
        "interval": [float(interval.low), float(interval.high)],
        "balanced_accuracy": float(np.mean([value for value in recall.values() if value is not None])),
        "recall": recall,
        "confusion": confusion.tolist(),
    }


def consistency(
    train: TileSet,
    test: TileSet,
    synthetic: TileSet,
    features: Callable[[TileSet, View], np.ndarray],
    *,
    cap: int | None = 400,
    seed: int = 0,
) -> dict[str, Any]:
    """Train on real tiles, and name the class of real test tiles and of synthetic tiles. All of one level.

    Parameters
    ----------
    train, test, synthetic
        Labelled tiles. Where `synthetic` lacks a class, the real test tiles of that class are left out as well, so that
        both figures are of the same classes.
    features
        Gives the features (N, D) of a set in a view.
    cap
        At most so many real tiles a class and set, drawn by `seed`; None: all. Synthetic tiles are all used.

    Returns
    -------
    dict
        JSON values: counts, and under ``views`` for ``colour`` and ``grey`` the figures of `judged` for ``real_test``
        and ``synthetic``, and their ``ratio`` (synthetic over real).

    Raises
    ------
    PathUpError
        A class of the synthetic tiles has no real training or test tiles, or there are fewer than two classes.
    """
    for known, name in ((test, "test"), (train, "training")):
        missing = sorted(set(synthetic.labels) - set(known.labels), key=str)
        if missing:
            raise PathUpError(
                f"the synthetic tiles are of class {', '.join(map(str, missing))}, of which there are no real {name} "
                "tiles; "
                "cut regions of it, or leave the class out"
            )
    train = capped(train, cap, seed, "train")
    own = set(synthetic.labels)
    test = capped(test.at(i for i, label in enumerate(test.labels) if label in own), cap, seed, "test")
    sets = {"real_test": test, "synthetic": synthetic}
    labels = sorted({str(label) for label in train.labels})
    views: dict[str, Any] = {}
    for view in VIEWS:
        classifier = trained_classifier(features(train, view), train.labels)
        results: dict[str, Any] = {
            name: judged(tiles.labels, classifier.predict(features(tiles, view).astype(np.float64)).tolist(), labels)
            for name, tiles in sets.items()
        }
        results["ratio"] = {
            figure: _ratio(results["synthetic"][figure], results["real_test"][figure])
            for figure in ("accuracy", "balanced_accuracy")
        }
        views[view] = results
    return {
        "classifier": CLASSIFIER,
        "labels": labels,
        "chance": 1 / len(labels),
        "cap_a_class": cap,
        "counts": {
            name: dict(sorted(Counter(map(str, tiles.labels)).items()))
            for name, tiles in {"train": train, **sets}.items()
        },
        "views": views,
    }


def _ratio(synthetic: float, real: float) -> float | None:
    return synthetic / real if real else None
