"""``pathup classify train`` and ``evaluate``: from regions and synthetic images to a model, and to its F-scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pathup import __version__, draws, storage
from pathup.downstream.attention_maps import attention_map
from pathup.downstream.classifiers import ABMILClassifier, Classifier, ViTClassifier, classifier
from pathup.downstream.distillation import distil
from pathup.downstream.fields import Field, LabelledRegion, labelled_regions, region_fields
from pathup.downstream.leaks import check_judged, check_start, check_synthetic
from pathup.downstream.scores import Predictions, f_scores, mean_f_interval, write_predictions
from pathup.downstream.synthetic import mixed, synthetic_fields
from pathup.downstream.training import NOTE, WEIGHTS, mean_probabilities, probabilities, train_classifier
from pathup.errors import PathUpError
from pathup.recipes import Recipe, load_recipe, recipe_with
from pathup.sampling.device import choose_device
from pathup.tiles.provenance import read_sources
from pathup.tiles.regions import SPLITS

__all__ = [
    "EvaluateRequest",
    "PretrainRequest",
    "TrainRequest",
    "evaluate_classifier",
    "pretrain",
    "train",
    "training_counts",
]

Progress = Callable[[str, int, int], None]

CACHE = ".cache"
"""In an output folder: hidden, so that one which holds nothing else is taken for new."""

REGIONS, FIELDS, CHECKED = "regions.json", "fields.json", "checked.json"
"""Of a cache: what was found of regions and of their squares, and between what there is no leak."""


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """``pathup classify train``: the fields are its arguments and options (docs/commands.md)."""

    name: str
    regions: Path
    output: Path
    recipe: Recipe
    synthetic: tuple[Path, ...] = ()
    per_class: int | None = None
    real_per_class: int | None = None
    augment: bool = False
    features: str = "atlas"
    pretrained: Path | None = None
    changes: dict[str, Any]
    cache: Path | None = None
    device: str = "auto"
    threads: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        classifier(self.name)
        for name in ("per_class", "real_per_class", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PathUpError(f"{name} is {value}, but at least 1 was needed")


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """``pathup classify evaluate``: the fields are its arguments and options (docs/commands.md)."""

    model: Path
    regions: Path
    output: Path
    split: str = "test"
    attention: bool = False
    cache: Path | None = None
    device: str = "auto"
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class PretrainRequest:
    """``pathup classify pretrain``: the fields are its options (docs/commands.md)."""

    regions: Path
    output: Path
    recipe: Recipe
    features: str = "atlas"
    changes: dict[str, Any]
    cache: Path | None = None
    device: str = "auto"
    threads: int | None = None
    resume: bool = False


def pretrain(request: PretrainRequest) -> Path:
    """Teach a vision transformer the features of a frozen network, on unlabelled regions of 'train'; returns a file.

    Raises
    ------
    PathUpError
        The regions or the recipe do not fit, the folder holds another run, or training fails.
    """
    recipe = recipe_with(request.recipe, request.changes, source="classify pretrain")
    _set_threads(request.threads)
    device, cache = choose_device(request.device), request.cache or request.output / CACHE
    vit = ViTClassifier(recipe, cache)
    bags = ABMILClassifier(recipe, cache, features=request.features, device=device)
    regions = labelled_regions(request.regions, recipe, cache / REGIONS)
    own = {split: [region for region in regions if region.split == split] for split in ("train", "val")}
    fields = {split: region_fields(regions_, recipe, cache / FIELDS) for split, regions_ in own.items()}
    identity = {
        "features": bags.described(), "vit": recipe.downstream.vit.model_dump(mode="json"),
        "view": recipe.downstream.view, "patch_px": bags.spec.patch_px, "scale": recipe.tiles.mpp,
        **{split: [field.identity() for field in found] for split, found in fields.items()},
    }  # fmt: skip
    storage.claim_folder(request.output, "classify pretrain", identity, resume=request.resume)
    sources = [region.source for region in own["train"]]
    return distil(vit, bags, fields, sources, request.output, device)


def train(request: TrainRequest) -> Path:
    """Train a classifier from where its run stands; returns the model's folder.

    Raises
    ------
    PathUpError
        The regions, the synthetic images or the recipe do not fit, tissue that is held back would leak into training,
        the folder holds another run, or training fails.
    """
    recipe = recipe_with(request.recipe, request.changes, source="classify train")
    _set_threads(request.threads)
    device = choose_device(request.device)
    cache = request.cache or request.output / CACHE
    kind = _kind(
        request.name, recipe, cache, recipe.downstream.augmentations if request.augment else (),
        features=request.features, pretrained=request.pretrained, device=device,
    )  # fmt: skip
    regions = labelled_regions(request.regions, recipe, cache / REGIONS)
    chosen = few(regions, request.real_per_class, kind.spec.seed)
    fields = {split: region_fields([r for r in chosen if r.split == split], recipe, cache / FIELDS) for split in SPLITS}
    if request.pretrained is not None:
        check_start([region for region in regions if region.split != "train"], request.pretrained, cache / CHECKED)
    training = with_synthetic(fields["train"], regions, request.synthetic, request.per_class, recipe, cache / CHECKED)
    identity = {
        "classifier": kind.described(), "recipe": recipe.model_dump(mode="json", include={"downstream", "classes"}),
        "scale": recipe.tiles.mpp, "augmentations": list(kind.augmentations),
        "train": [field.identity() for field in training], "val": [field.identity() for field in fields["val"]],
        "pretrained": None if request.pretrained is None else storage.sha256_file(request.pretrained),
    }  # fmt: skip
    storage.claim_folder(request.output, "classify train", identity, resume=request.resume)
    counts = Counter((field.label, field.synthetic) for field in training)
    notes = {
        "real_fields": {label: counts[label, False] for label in recipe.labels},
        "synthetic_fields": {label: counts[label, True] for label in recipe.labels},
        "seed": kind.spec.seed,
        "pretrained": None if request.pretrained is None else request.pretrained.name,
    }
    sources = [replace(region.source, mirrored="") for region in chosen if region.split != "test"]
    for folder in (*request.synthetic, *([] if request.pretrained is None else [request.pretrained.parent])):
        sources += read_sources(folder) or []
    sources = list(dict.fromkeys(sources))
    return train_classifier(kind, training, fields["val"], request.output, device, notes, sources)


def with_synthetic(
    real: Sequence[Field], regions: Sequence[LabelledRegion], folders: Sequence[Path], per_class: int | None,
    recipe: Recipe, cache: Path | None = None,
) -> list[Field]:  # fmt: skip
    """Training fields with synthetic images among them, after each folder was checked against what is held back.

    Parameters
    ----------
    real
        Training fields.
    regions
        Of all splits.
    folders
        Of synthetic images.
    per_class
        How many images a class, on the average; None: all.
    recipe
        Classes, and how images are mixed in.
    cache
        As of `leaks.check_synthetic`.
    """
    labels, found = recipe.labels, []
    held = [region for region in regions if region.split != "train"]
    for folder in folders:
        own = synthetic_fields(folder, labels)
        check_synthetic(held, folder, own, cache)
        found += own
    if not folders:
        return list(real)
    if per_class is None:
        return [*real, *found]
    return mixed(real, found, per_class * len(labels), recipe.downstream.mixing, labels)


def training_counts(folder: Path, recipe: Recipe, cache: Path) -> dict[str, int]:
    """How many real training fields each class has, in the recipe's order.

    Parameters
    ----------
    folder
        Of labelled regions.
    recipe
        Whose classes and fields they are.
    cache
        Where what is found of regions is kept.

    Raises
    ------
    PathUpError
        The regions cannot be read or do not fit the recipe.
    """
    regions = labelled_regions(folder, recipe, cache / REGIONS)
    fields = region_fields([region for region in regions if region.split == "train"], recipe, cache / FIELDS)
    counts = Counter(field.label for field in fields)
    return {label: counts[label] for label in recipe.labels}


def few(regions: Sequence[LabelledRegion], per_class: int | None, seed: int) -> list[LabelledRegion]:
    """The regions with at most so many of each class in 'train', drawn by the seed; more hold those of fewer."""
    if per_class is None:
        return list(regions)
    kept = set()
    for label in dict.fromkeys(region.region.label for region in regions):
        own = [r.region.name for r in regions if r.split == "train" and r.region.label == label]
        order = draws.numpy_generator(seed, "few regions", label).permutation(len(own))
        kept |= {own[place] for place in order[:per_class]}
    return [region for region in regions if region.split != "train" or region.region.name in kept]


def evaluate_classifier(request: EvaluateRequest, progress: Progress | None = None) -> dict[str, Any]:
    """Name the classes of a split's regions; returns what ``scores.json`` holds.

    ``OUT/predictions.csv`` has a row a region; ``OUT/attention/REGION.png`` shows where attention MIL looked, where
    that is asked for.

    Raises
    ------
    PathUpError
        The model or the regions cannot be read, attention is asked of a classifier that has none, or the folder holds
        what another classifier or other regions gave.
    """
    _set_threads(request.threads)
    device, tell = choose_device(request.device), progress or (lambda stage, done, total: None)
    kind, network, notes = load_classifier(request.model, request.cache or request.output / CACHE, device)
    if request.attention and not isinstance(kind, ABMILClassifier):
        raise PathUpError(f"{kind.title} has no attention over patches; leave --attention out, or evaluate abmil")
    if request.split not in SPLITS:
        raise PathUpError(f"split '{request.split}' is none of {', '.join(SPLITS)}")
    regions = labelled_regions(request.regions, kind.recipe, kind.cache / REGIONS)
    own = [region for region in regions if region.split == request.split]
    if request.split == "test":
        check_judged(own, trained_folder(request.model), kind.cache / CHECKED)
    fields = region_fields(own, kind.recipe, kind.cache / FIELDS)
    identity = {"classifier": notes, "split": request.split, "fields": [field.identity() for field in fields]}
    storage.claim_folder(request.output, "classify evaluate", identity, resume=True)
    kind.prepare(fields, training=False, progress=lambda done, total: tell("fields", done, total))
    predictions = predicted(kind, network, fields, device)
    write_predictions(request.output / "predictions.csv", predictions)
    if isinstance(kind, ABMILClassifier) and request.attention:
        for done, field in enumerate(fields, start=1):
            attention_map(kind, network, field, request.output / "attention" / f"{field.name}.png")
            tell("attention", done, len(fields))
    low, high = mean_f_interval(predictions)
    scores = {
        "pathup": __version__, "model": notes, "split": request.split, "regions": len(predictions.regions),
        "f_scores": f_scores(predictions.truth, predictions.named, predictions.labels),
        "mean_interval": [low, high], "confusion": predictions.confusion().tolist(), "labels": predictions.labels,
    }  # fmt: skip
    storage.write_json(request.output / "scores.json", scores)
    return scores


def predicted(kind: Classifier, network: torch.nn.Module, fields: Sequence[Field], device: torch.device) -> Predictions:
    """What a classifier says of the regions of fields."""
    first, found = mean_probabilities(fields, probabilities(kind, network, fields, device))
    return Predictions(kind.recipe.labels, [f.region for f in first], [f.label for f in first], np.asarray(found))


def trained_folder(folder: Path) -> Path:
    """Where a classifier is: the folder itself, or ``model`` in it.

    Raises
    ------
    PathUpError
        It is in neither.
    """
    found = next((place for place in (folder, folder / "model") if (place / NOTE).is_file()), None)
    if found is None:
        raise PathUpError(
            f"{folder} holds no trained classifier: {NOTE} was needed, as 'pathup classify train' writes at the end"
        )
    return found


def load_classifier(
    folder: Path, cache: Path, device: torch.device
) -> tuple[Classifier, torch.nn.Module, dict[str, Any]]:
    """A trained classifier: its kind, its network, and what ``classifier.json`` says.

    Raises
    ------
    PathUpError
        There is none, or its files are damaged.
    """
    found = trained_folder(folder)
    notes = dict(storage.read_json(found / NOTE))
    recipe = load_recipe(found / "recipe.yaml")
    features = str(notes.get("features", {}).get("option", "atlas"))
    kind = _kind(str(notes["classifier"]), recipe, cache, (), features=features, pretrained=None, device=device)
    network = kind.network().to(device)
    try:
        network.load_state_dict(load_file(found / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise PathUpError(f"{found / WEIGHTS} cannot be read ({str(error).splitlines()[0]}); train it again") from error
    return kind, network, notes


def _kind(
    name: str, recipe: Recipe, cache: Path, augmentations: Sequence[str], *, features: str, pretrained: Path | None,
    device: torch.device,
) -> Classifier:  # fmt: skip
    kind = classifier(name)
    if kind is ABMILClassifier:
        if pretrained is not None:
            raise PathUpError("attention MIL starts from features, not from weights; name them with --features")
        return ABMILClassifier(recipe, cache, augmentations, features=features, device=device)
    return ViTClassifier(recipe, cache, augmentations, pretrained=pretrained)


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
