"""Class consistency: how often a classifier trained on real tiles names the class that synthetic tiles claim.

The data flow: features of a frozen network (`pathup.evaluation.features`) are standardised and given to a multinomial
logistic regression, trained on real tiles of the split ``train``. It then names the class of real tiles of the split
``test`` and of synthetic tiles, once in colour and once grey and contrast-normalised, since colour alone can give a
slide away. Real and synthetic figures stand side by side: the real one is the most that can be expected.

``python -m pathup.evaluation.consistency REAL_TILES SYNTHETIC_TILES --weights FILE --level patch``
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pathup import __version__, draws, storage
from pathup.errors import PathUpError, unknown
from pathup.evaluation.features import VIEWS, Extractor, load_extractor
from pathup.memory import keep_freed_memory
from pathup.recipes import Recipe, load_recipe
from pathup.slides.images import image_size
from pathup.tiles.dataset import MPP_TOLERANCE, TileFolder
from pathup.tiles.making import METADATA_FILE
from pathup.tiles.taxonomy import level_of

__all__ = ["Tiles", "consistency", "judged", "real_tiles", "synthetic_tiles", "trained_classifier"]

REGULARISATION = 0.01
"""C of scikit-learn's LogisticRegression: the features outnumber the tiles of a class, so weights are held small."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Tiles:
    """Image files and the class label of each."""

    files: list[Path]
    labels: list[str]

    def capped(self, count: int | None, seed: int, purpose: str) -> Tiles:
        """At most `count` tiles a class, drawn by (seed, purpose, class); None keeps all."""
        if count is None:
            return self
        kept: list[int] = []
        for label in sorted(set(self.labels)):
            places = [place for place, own in enumerate(self.labels) if own == label]
            order = draws.numpy_generator(seed, "consistency", purpose, label).permutation(len(places))
            kept += [places[i] for i in order[:count]]
        return self._at(sorted(kept))

    def of(self, labels: Sequence[str]) -> Tiles:
        """The tiles of some classes."""
        return self._at([place for place, own in enumerate(self.labels) if own in labels])

    def counts(self) -> dict[str, int]:
        """Tiles a class."""
        return dict(sorted(Counter(self.labels).items()))

    def _at(self, places: Sequence[int]) -> Tiles:
        return Tiles([self.files[i] for i in places], [self.labels[i] for i in places])


def real_tiles(folder: Path, split: str, level: str, recipe: Recipe) -> Tiles:
    """Tiles of a split and level from what ``pathup tiles`` made, checked as training checks them.

    Raises
    ------
    PathUpError
        See `TileFolder.load` and `TileFolder.only`.
    """
    found = TileFolder.load(folder, split, recipe).only(level)
    return Tiles([found.path(i) for i in range(len(found))], [record.label for record in found.records])


def synthetic_tiles(folder: Path, level: str, recipe: Recipe) -> Tiles:
    """Tiles that ``pathup generate --level`` made: a folder with metadata.jsonl.

    Raises
    ------
    PathUpError
        The metadata is missing or damaged; a tile is of another level, of an unknown class, or of another size or
        scale than the real ones, so that they could not be compared.
    """
    path = folder / METADATA_FILE
    if not path.is_file():
        raise PathUpError(
            f"{path} does not exist; a folder that 'pathup generate --level {level}' has finished was needed"
        )
    spec = level_of(recipe, level)
    side, mpp = recipe.tiles.tile_px, recipe.tiles.level_mpp(spec)
    files, labels = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path}, row {number}"
        try:
            row = json.loads(line)
            name, label, own_level, own_mpp = row["file_name"], row["label"], row["level"], float(row["mpp"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise PathUpError(f"{where} is damaged ({error!r}); generate the tiles again") from error
        if label not in recipe.labels:
            raise unknown(f"label in {where}:", label, recipe.labels)
        if own_level != level:
            raise PathUpError(f"{where}: the tile is of level '{own_level}', but level '{level}' was asked for")
        if abs(own_mpp / mpp - 1) > MPP_TOLERANCE:
            raise PathUpError(
                f"{where}: the tile has {own_mpp:g} micrometres per pixel, but the real ones have {mpp:g}; "
                "only tiles of the same scale can be compared"
            )
        size = image_size(folder / name)
        if size != (side, side):
            raise PathUpError(
                f"{folder / name} is {size[0]} x {size[1]} px, but the real tiles are {side} x {side}; "
                "only tiles of the same size can be compared"
            )
        files.append(folder / name)
        labels.append(label)
    if not files:
        raise PathUpError(f"{path} lists no tiles; generate some with 'pathup generate --level {level}'")
    return Tiles(files, labels)


def trained_classifier(features_ND: np.ndarray, labels: Sequence[str]) -> Any:
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
    return make_pipeline(StandardScaler(), regression).fit(features_ND, list(labels))


def judged(truth: Sequence[str], named: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
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
        ``count``; ``accuracy``, of all tiles; ``balanced_accuracy``, the mean recall of the classes that `truth` holds;
        ``recall`` of each (None for a class without tiles); ``confusion``, rows true, columns named, counts.
    """
    place = {label: index for index, label in enumerate(labels)}
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    for own, other in zip(truth, named, strict=True):
        confusion[place[own], place[other]] += 1
    totals, right = confusion.sum(1), confusion.diagonal()
    recall = {label: float(right[i] / totals[i]) if totals[i] else None for label, i in place.items()}
    return {
        "count": len(truth),
        "accuracy": float(right.sum() / totals.sum()),
        "balanced_accuracy": float(np.mean([value for value in recall.values() if value is not None])),
        "recall": recall,
        "confusion": confusion.tolist(),
    }


def consistency(
    real: Path,
    synthetic: Path | None,
    extractor: Extractor,
    *,
    level: str,
    train_cap: int | None = 400,
    test_cap: int | None = 400,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train on real tiles, and name the class of real test tiles and of synthetic tiles.

    Parameters
    ----------
    real
        What ``pathup tiles`` made, with the splits train and test.
    synthetic
        What ``pathup generate --label all --level LEVEL`` made; None measures the real tiles alone. Where it lacks
        a class, the real test tiles of that class are left out as well, so that both figures are of the same classes.
    extractor
        The frozen network.
    level
        The spatial level of all tiles.
    train_cap, test_cap
        At most so many real tiles a class, drawn by `seed`; None: all. Synthetic tiles are all used.
    progress
        Called as ``progress(stage, done, total)``, in tiles.

    Returns
    -------
    dict
        JSON values: what was measured with, counts, and under ``views`` for ``colour`` and ``grey`` the figures of
        `judged` for ``real_test`` and ``synthetic``, and their ``ratio`` (synthetic over real).

    Raises
    ------
    PathUpError
        Tiles are missing, damaged or not to be compared; see `real_tiles` and `synthetic_tiles`.
    """
    recipe = load_recipe(real / "recipe.yaml") if (real / "recipe.yaml").is_file() else None
    if recipe is None:
        raise PathUpError(f"{real} holds no recipe.yaml; the folder that 'pathup tiles' wrote was needed")
    sets = {"real_train": real_tiles(real, "train", level, recipe).capped(train_cap, seed, "train")}
    test = real_tiles(real, "test", level, recipe)
    if synthetic is not None:
        fake = synthetic_tiles(synthetic, level, recipe)
        untested = sorted(set(fake.labels) - set(test.labels))
        if untested:
            raise PathUpError(
                f"{synthetic} holds class {', '.join(untested)}, of which {real} has no test tiles; cut regions of it, "
                "or generate the other classes alone"
            )
        test = test.of(sorted(set(fake.labels)))
        sets["synthetic"] = fake
    sets["real_test"] = test.capped(test_cap, seed, "test")
    unseen = sorted(set(sets["real_test"].labels) - set(sets["real_train"].labels))
    if unseen:
        raise PathUpError(f"{real} has test tiles of class {', '.join(unseen)} but no training tiles; cut more regions")
    labels = [label for label in recipe.labels if label in sets["real_train"].counts()]
    return {
        "tool": "pathup.evaluation.consistency",
        "pathup": __version__,
        "features": extractor.described(),
        "classifier": f"multinomial logistic regression on standardised features (C = {REGULARISATION}, balanced)",
        "level": level,
        "labels": labels,
        "chance": 1 / len(labels),
        "seed": seed,
        "caps_a_class": {"real_train": train_cap, "real_test": test_cap},
        "counts": {name: tiles.counts() for name, tiles in sorted(sets.items())},
        "real_split_by": recipe.tiles.split_by,
        "views": _views(extractor, sets, labels, progress),
    }


def _views(
    extractor: Extractor, sets: dict[str, Tiles], labels: list[str], progress: Progress | None
) -> dict[str, dict[str, Any]]:
    views: dict[str, dict[str, Any]] = {}
    for view in VIEWS:
        features = {}
        for name, tiles in sets.items():
            told = None
            if progress is not None:
                stage = f"{view}, {name.replace('_', ' ')}"

                def told(done: int, total: int, stage: str = stage) -> None:
                    progress(stage, done, total)

            features[name] = extractor.features(tiles.files, view, progress=told)
        classifier = trained_classifier(features["real_train"], sets["real_train"].labels)
        results: dict[str, Any] = {
            name: judged(sets[name].labels, classifier.predict(features[name]).tolist(), labels)
            for name in ("real_test", "synthetic")
            if name in sets
        }
        if "synthetic" in results:
            results["ratio"] = {
                figure: _ratio(results["synthetic"][figure], results["real_test"][figure])
                for figure in ("accuracy", "balanced_accuracy")
            }
        views[view] = results
    return views


def _ratio(synthetic: float, real: float) -> float | None:
    return synthetic / real if real else None


def summary(report: dict[str, Any]) -> str:
    """A report as a few lines of text: real and synthetic side by side."""
    lines = [
        f"class named, level '{report['level']}', on {report['features']['network']} (chance: {report['chance']:.1%})"
    ]
    for view, results in report["views"].items():
        for figure, title in (("accuracy", "accuracy"), ("balanced_accuracy", "mean recall")):
            line = f"{view:>6}  {title:<12} real test {results['real_test'][figure]:6.1%}"
            if "synthetic" in results:
                ratio = results["ratio"][figure]
                line += f"  synthetic {results['synthetic'][figure]:6.1%}"
                line += "" if ratio is None else f"  ratio {ratio:.2f}"
            lines.append(line)
        for name in ("real_test", "synthetic"):
            if name in results:
                told = "  ".join(f"{k} {v:.0%}" for k, v in results[name]["recall"].items() if v is not None)
                lines.append(f"{view:>6}  recall, {name.replace('_', ' ')} ({results[name]['count']} tiles): {told}")
    if report["real_split_by"] == "region":
        lines.append("note: real training and test tiles may come from the same slides (split by region)")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pathup.evaluation.consistency", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("real", type=Path, metavar="REAL_TILES", help="folder that 'pathup tiles' wrote")
    parser.add_argument(
        "synthetic", type=Path, nargs="?", metavar="SYNTHETIC_TILES",
        help="folder that 'pathup generate --level' wrote; without it, the real tiles alone are measured",
    )  # fmt: skip
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file of timm's mobilenetv2_035")
    parser.add_argument("--level", default="patch", help="spatial level of the tiles [patch]")
    parser.add_argument("--cap", type=int, default=400, help="real training tiles a class, at most [400]; 0: all")
    parser.add_argument("--test-cap", type=int, default=400, help="real test tiles a class, at most [400]; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw that the caps make [0]")
    parser.add_argument("--threads", type=int, help="CPU threads [all cores]")
    parser.add_argument("--output", type=Path, help="write the whole report to this JSON file")
    asked = parser.parse_args(arguments)
    keep_freed_memory()
    try:
        for name, least in (("cap", 0), ("test_cap", 0), ("threads", 1)):
            value = getattr(asked, name)
            if value is not None and value < least:
                raise PathUpError(f"--{name.replace('_', '-')} is {value}, but at least {least} was needed")
        if asked.threads is not None:
            torch.set_num_threads(asked.threads)
        report = consistency(
            asked.real, asked.synthetic, load_extractor(asked.weights), level=asked.level,
            train_cap=asked.cap or None, test_cap=asked.test_cap or None, seed=asked.seed, progress=_tell,
        )  # fmt: skip
        if asked.output is not None:
            storage.write_json(asked.output, report)
    except PathUpError as error:
        print(f"pathup: {error}", file=sys.stderr)
        return 1
    print(summary(report))
    return 0


def _tell(stage: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(
            f"\r{stage}: {done} of {total} tiles\033[K", end="\n" if done == total else "", file=sys.stderr, flush=True
        )
    elif done == total:
        print(f"{stage}: {total} tiles", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
