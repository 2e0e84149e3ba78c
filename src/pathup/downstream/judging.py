"""``pathup classify evaluate``: what a classifier says of regions, its F-scores, and where attention MIL looked."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pathup import __version__, storage
from pathup.downstream.attention_maps import attention_map
from pathup.downstream.classifiers import ABMILClassifier, Classifier
from pathup.downstream.fields import Field, LabelledRegion, labelled_regions, region_fields
from pathup.downstream.leaks import check_judged
from pathup.downstream.runs import CACHE, CHECKED, FIELDS, REGIONS, kind_of, set_threads
from pathup.downstream.scores import Predictions, f_scores, mean_f_interval, write_predictions
from pathup.downstream.training import NOTE, WEIGHTS, mean_probabilities, probabilities
from pathup.errors import PathUpError
from pathup.recipes import load_recipe
from pathup.sampling.device import choose_device
from pathup.tiles.regions import SPLITS

__all__ = ["EvaluateRequest", "evaluate_classifier", "load_classifier", "predicted"]

Progress = Callable[[str, int, int], None]


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


def evaluate_classifier(request: EvaluateRequest, progress: Progress | None = None) -> dict[str, Any]:
    """Name the classes of a split's regions; returns what ``scores.json`` holds.

    ``OUT/predictions.csv`` has a row a region; ``OUT/attention/REGION.png`` shows where attention MIL looked, and
    ``OUT/attention.csv`` holds the attention of each patch, where that is asked for.

    Raises
    ------
    PathUpError
        The model or the regions cannot be read, attention is asked of a classifier that has none, or the folder holds
        what another classifier or other regions gave.
    """
    set_threads(request.threads)
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
        _draw_attention(kind, network, own, fields, predictions, request.output, tell)
    low, high = mean_f_interval(predictions)
    scores = {
        "pathup": __version__, "model": notes, "split": request.split, "regions": len(predictions.regions),
        "f_scores": f_scores(predictions.truth, predictions.named, predictions.labels),
        "mean_interval": [low, high], "confusion": predictions.confusion().tolist(), "labels": predictions.labels,
    }  # fmt: skip
    storage.write_json(request.output / "scores.json", scores)
    return scores


def _draw_attention(
    kind: ABMILClassifier, network: torch.nn.Module, regions: Sequence[LabelledRegion], fields: Sequence[Field],
    predictions: Predictions, output: Path, tell: Progress,
) -> None:  # fmt: skip
    named = {
        region: f"{region}: is {truth}, named {name} ({probabilities.max():.0%})"
        for region, truth, name, probabilities in zip(
            predictions.regions, predictions.truth, predictions.named, predictions.probabilities_NC, strict=True
        )
    }
    rows = []
    for done, region in enumerate(regions, start=1):
        name = region.region.name
        own = [field for field in fields if field.region == name]
        rows += attention_map(kind, network, region, own, output / "attention" / f"{name}.png", named[name])
        tell("attention", done, len(regions))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    storage.write_text(output / "attention.csv", text.getvalue())


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
    kind = kind_of(str(notes["classifier"]), recipe, cache, (), features=features, pretrained=None, device=device)
    network = kind.network().to(device)
    try:
        network.load_state_dict(load_file(found / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise PathUpError(f"{found / WEIGHTS} cannot be read ({str(error).splitlines()[0]}); train it again") from error
    return kind, network, notes
