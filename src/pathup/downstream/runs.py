"""``pathup classify pretrain`` and ``train``: from regions and synthetic images to a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pathup import draws, storage
from pathup.downstream.classifiers import ABMILClassifier, Classifier, ViTClassifier, classifier
from pathup.downstream.distillation import distil
from pathup.downstream.fields import Field, LabelledRegion, labelled_regions, region_fields
from pathup.downstream.leaks import check_start, check_synthetic
from pathup.downstream.synthetic import mixed, synthetic_fields
from pathup.downstream.training import train_classifier
from pathup.errors import PathUpError
from pathup.recipes import Recipe, recipe_with
from pathup.sampling.device import choose_device
from pathup.tiles.provenance import read_sources
from pathup.tiles.regions import SPLITS

__all__ = [
    "CACHE",
    "CHECKED",
    "FIELDS",
    "REGIONS",
    "PretrainRequest",
    "TrainRequest",
    "few",
    "kind_of",
    "pretrain",
    "set_threads",
    "train",
    "training_counts",
    "with_synthetic",
]

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
    set_threads(request.threads)
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
    set_threads(request.threads)
    device = choose_device(request.device)
    cache = request.cache or request.output / CACHE
    kind = kind_of(
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


def kind_of(
    name: str, recipe: Recipe, cache: Path, augmentations: Sequence[str], *, features: str, pretrained: Path | None,
    device: torch.device,
) -> Classifier:  # fmt: skip
    """A classifier that is shown fields of a recipe.

    Raises
    ------
    PathUpError
        There is none of that name, weights to start from are given to one that has none, or the features are unknown.
    """
    kind = classifier(name)
    if kind is ABMILClassifier:
        if pretrained is not None:
            raise PathUpError("attention MIL starts from features, not from weights; name them with --features")
        return ABMILClassifier(recipe, cache, augmentations, features=features, device=device)
    return ViTClassifier(recipe, cache, augmentations, pretrained=pretrained)


def set_threads(threads: int | None) -> None:
    """Let torch use so many CPU threads; None: as many as it does."""
    if threads is not None:
        torch.set_num_threads(threads)
