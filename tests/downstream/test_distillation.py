"""A transformer learns a frozen network's features: crops, targets, resumption, what comes out, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pathup.downstream.classifiers import ABMILClassifier, ViTClassifier
from pathup.downstream.distillation import Crops, Distillation, Targets
from pathup.downstream.fields import labelled_regions, region_fields
from pathup.downstream.runs import PretrainRequest, TrainRequest, pretrain, train
from pathup.errors import PathUpError
from pathup.recipes import recipe_with
from pathup.tiles.provenance import read_sources


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("distillation") / "cache"


def crops(source, recipe, cache, least_side=0.5) -> Crops:
    fields = region_fields([own for own in labelled_regions(source, recipe) if own.split == "train"], recipe)
    return Crops(
        ViTClassifier(recipe, cache), ABMILClassifier(recipe, cache), fields, least_side=least_side, seed=0, title="t"
    )


def asked(source, output, recipe, cache, **values) -> PretrainRequest:
    told = {"changes": {}, "device": "cpu", "cache": cache, **values}
    return PretrainRequest(regions=source, output=output, recipe=recipe, **told)


def test_the_target_of_a_crop_is_the_mean_of_the_patches_that_are_centred_in_it(source, recipe, cache):
    """Fields of 64 px have four patches of 32 px, whose centres lie at a quarter and three quarters."""
    found = crops(source, recipe, cache)
    features = ABMILClassifier(recipe, cache).sample(found.fields[3]).numpy()
    assert features.shape[0] == 4
    pixels, mean = found.whole(3)
    assert pixels.shape == (3, 32, 32)
    assert mean == pytest.approx(features.mean(0), rel=1e-5)
    subsets = [features[list(rows)].mean(0) for rows in ((0,), (1,), (2,), (3,), (0, 1), (2, 3), (0, 2), (1, 3))]
    subsets.append(features.mean(0))
    seen = set()
    for position in range(60):
        target = found.crop(3, position)[1]
        away = [float(np.abs(target - own).max()) for own in subsets]
        assert min(away) < 1e-4  # a rectangle of patches, as a square of half the side or more holds them
        seen.add(int(np.argmin(away)))
    assert len(seen) > 4
    assert torch.equal(found.crop(3, 7)[0], found.crop(3, 7)[0])
    assert not torch.equal(found.crop(3, 7)[0], found.crop(3, 8)[0])


def test_targets_have_mean_0_and_deviation_1_between_fields(source, recipe, cache):
    found = crops(source, recipe, cache)
    targets = Targets.of(found)
    values = targets.standardised([found.whole(index)[1] for index in range(len(found.fields))])
    assert values.mean(0).abs().max() < 1e-3
    spread = values.std(0, correction=0)
    assert spread.max() < 1.001
    assert spread.median() == pytest.approx(1, abs=1e-3)  # channels that hardly differ are not blown up


def test_weights_without_a_last_layer_come_with_the_regions_they_saw_and_are_a_start(source, recipe, cache, tmp_path):
    weights = pretrain(asked(source, tmp_path / "run", recipe, cache))
    assert not [name for name in load_file(weights) if name.startswith("head")]
    names = {own.region for own in read_sources(weights.parent) or []}
    assert names == {f"train_{label}_{n}" for label in "AB" for n in range(3)}
    notes = json.loads((weights.parent / "distillation.json").read_text())
    assert notes["steps"] == 4
    assert notes["fields"] == 24
    assert notes["taught_by"]["option"] == "atlas"
    assert pretrain(asked(source, tmp_path / "run", recipe, cache, resume=True)) == weights
    model = train(TrainRequest(
        name="vit", regions=source, output=tmp_path / "vit", recipe=recipe, pretrained=weights, changes={},
        cache=cache, device="cpu",
    ))  # fmt: skip
    assert json.loads((model / "classifier.json").read_text())["pretrained"] == "vit.safetensors"
    assert {own.region.partition("_")[0] for own in read_sources(model) or []} == {"train", "val"}


def test_a_run_that_was_stopped_ends_at_the_weights_of_an_unbroken_one(source, recipe, cache, tmp_path, monkeypatch):
    whole = load_file(pretrain(asked(source, tmp_path / "whole", recipe, cache)))
    taken, step = [], Distillation._take_step

    def stopping(self):
        taken.append(self.step)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Distillation, "_take_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        pretrain(asked(source, tmp_path / "parts", recipe, cache))
    parts = load_file(pretrain(asked(source, tmp_path / "parts", recipe, cache, resume=True)))
    assert taken == [0, 1, 2, 3, 2, 3]  # from the checkpoint after two steps
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_features_of_fields_that_were_not_seen_are_foretold(source, recipe, cache, tmp_path):
    """Two classes that differ by form: most of what differs between fields is told by their pixels."""
    own = recipe_with(recipe, {
        "downstream.vit.distillation.steps": 120, "downstream.vit.distillation.evaluate_every": 60,
        "downstream.vit.distillation.batch_size": 16, "downstream.vit.distillation.learning_rate": 0.003,
        "downstream.vit.drop_path": 0.0,
    }, source="test")  # fmt: skip
    weights = pretrain(asked(source, tmp_path / "run", own, cache))
    assert json.loads((weights.parent / "distillation.json").read_text())["val_explained"] > 0.3


def test_features_that_are_the_same_everywhere_teach_nothing(source, recipe, cache, tmp_path, monkeypatch):
    blank = torch.ones(4, 8)
    monkeypatch.setattr(ABMILClassifier, "sample", lambda *_: blank)
    with pytest.raises(PathUpError, match="says the same of all training fields"):
        pretrain(asked(source, tmp_path / "run", recipe, cache))
