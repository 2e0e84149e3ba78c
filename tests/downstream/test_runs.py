"""``pathup classify`` end to end on made regions: both classifiers, resumption, equal tuning, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pathup.downstream import training
from pathup.downstream.classifiers import ABMILClassifier, ViTClassifier
from pathup.downstream.fields import labelled_regions, region_fields
from pathup.downstream.judging import EvaluateRequest, evaluate_classifier
from pathup.downstream.runs import TrainRequest, few, train
from pathup.downstream.scores import f_scores, read_predictions
from pathup.downstream.training import ClassifierRun
from pathup.errors import PathUpError
from pathup.recipes import recipe_with
from pathup.tiles.provenance import SOURCES_FILE
from tests.downstream import made

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("classify") / "cache"


def asked(name: str, source: Path, output: Path, recipe, cache: Path, **values) -> TrainRequest:
    told = {"changes": {}, "device": "cpu", "cache": cache, **values}
    return TrainRequest(name=name, regions=source, output=output, recipe=recipe, **told)


@pytest.mark.parametrize("name", ["vit", "abmil"])
def test_training_with_everything_and_its_evaluation(source, drawn, recipe, cache, tmp_path, name):
    request = asked(name, source, tmp_path / "run", recipe, cache, synthetic=(drawn,), per_class=2, augment=True)
    model = train(request)
    notes = json.loads((model / "classifier.json").read_text())
    assert notes["real_fields"] == {"A": 12, "B": 12}
    assert notes["synthetic_fields"] == {"A": 2, "B": 2}
    assert set(notes["learning_rates"]) == {"0.001", "0.003"}
    assert notes["learning_rate"] == min((0.001, 0.003), key=lambda r: notes["learning_rates"][f"{r:g}"]["val_loss"])
    assert train(request.__class__(**{**request.__dict__, "resume": True})) == model
    out = tmp_path / "scores"
    scores = evaluate_classifier(EvaluateRequest(
        model=tmp_path / "run", regions=source, output=out, attention=name == "abmil", cache=cache, device="cpu",
    ))  # fmt: skip
    predictions = read_predictions(out / "predictions.csv")
    assert sorted(predictions.regions) == [f"test_{label}_{n}" for label in "AB" for n in (0, 1)]
    assert scores["f_scores"] == pytest.approx(f_scores(predictions.truth, predictions.named, ["A", "B"]))
    assert np.sum(scores["confusion"]) == scores["regions"] == 4
    with pytest.raises(PathUpError, match="differs in: fields, split"):
        evaluate_classifier(EvaluateRequest(
            model=tmp_path / "run", regions=source, output=out, split="val", cache=cache, device="cpu",
        ))  # fmt: skip
    maps = sorted((out / "attention").glob("*.png"))
    assert [path.stem for path in maps] == (sorted(predictions.regions) if name == "abmil" else [])
    assert all(np.asarray(Image.open(path).convert("RGB")).std() > 10 for path in maps)


@pytest.mark.parametrize("name", ["vit", "abmil"])
def test_a_run_that_was_stopped_ends_at_the_weights_of_an_unbroken_one(
    source, recipe, cache, tmp_path, monkeypatch, name
):
    train(asked(name, source, tmp_path / "whole", recipe, cache, augment=True))
    taken, step = [], ClassifierRun._take_step

    def stopping(self):
        taken.append(self.step)
        if len(taken) in (4, 9):
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(ClassifierRun, "_take_step", stopping)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(asked(name, source, tmp_path / "parts", recipe, cache, augment=True, resume=True))
    train(asked(name, source, tmp_path / "parts", recipe, cache, augment=True, resume=True))
    # from the checkpoint after two steps, then the second learning rate, which had not begun
    assert taken == [0, 1, 2, 3, 2, 3, 4, 5, 0, 0, 1, 2, 3, 4, 5]
    whole, parts = (load_file(tmp_path / run / "model/classifier.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    told = [json.loads((tmp_path / run / "model/classifier.json").read_text()) for run in ("whole", "parts")]
    assert told[0] == told[1]


def test_training_stops_when_val_does_not_get_better_and_keeps_the_best(source, recipe, cache, tmp_path, monkeypatch):
    own = recipe_with(recipe, {"downstream.abmil.steps": 40}, source="test")
    kind = ABMILClassifier(own, cache)
    fields = region_fields(labelled_regions(source, own), own)
    kind.prepare(fields, training=False)
    losses = iter([0.5, 0.4, 0.6, 0.7, 0.8])
    weights = []

    def planted(run):
        loss = next(losses)
        weights.append(run.network.head.weight.detach().clone())
        if loss < run.best.loss:
            run.best = training.Outcome(loss, run.step, run.step)
            run._best_weights = {name: value.detach().clone() for name, value in run.network.state_dict().items()}
        return loss

    monkeypatch.setattr(ClassifierRun, "_look", planted)
    run = ClassifierRun(kind, fields, fields, tmp_path / "run", 0.01, CPU)
    outcome = run.run()
    assert (outcome.loss, outcome.best_step) == (0.4, 4)
    assert outcome.steps == 10  # three looks of two steps without a lower loss
    assert torch.equal(run.network.head.weight, weights[1])
    assert not torch.equal(weights[1], weights[-1])


def test_in_the_grey_view_stain_is_not_seen(source, recipe, tmp_path):
    own = recipe_with(recipe, {"downstream.view": "grey"}, source="test")
    fields = region_fields(labelled_regions(source, own), own)[:2]
    vit = ViTClassifier(own, tmp_path)
    vit.prepare(fields, training=False)
    shown = vit.batch([vit.sample(field) for field in fields])[0]
    assert torch.equal(shown[:, 0], shown[:, 1])
    assert torch.equal(shown[:, 0], shown[:, 2])
    assert shown.mean((1, 2, 3)).abs().max() < 0.02  # of [-1, 1]: every image has the same mean
    coloured = ViTClassifier(recipe, tmp_path).sample(fields[0])
    assert not torch.equal(coloured[0], coloured[1])
    bags = [ABMILClassifier(of, tmp_path) for of in (own, recipe)]
    for kind in bags:
        kind.prepare(fields, training=False)
    assert not torch.allclose(bags[0].sample(fields[0]), bags[1].sample(fields[0]))


@pytest.mark.parametrize("kind", [ViTClassifier, ABMILClassifier])
def test_a_share_of_training_samples_is_augmented_and_the_others_are_as_they_are(source, recipe, tmp_path, kind):
    field = region_fields(labelled_regions(source, recipe), recipe)[0]
    counts = {}
    for share in (0.0, 0.5, 1.0):
        own = recipe_with(recipe, {"downstream.augmented_share": share}, source="test")
        classifier = kind(own, tmp_path, ("geometry", "stain"))
        classifier.prepare([field], training=True)
        plain = classifier.sample(field)
        counts[share] = sum(not torch.equal(classifier.sample(field, position), plain) for position in range(60))
    assert counts[0.0] == 0
    assert 18 <= counts[0.5] <= 42  # 30 and three standard deviations
    assert counts[1.0] == 60
    assert not kind(recipe, tmp_path).is_augmented(0)  # where nothing augments


def test_augmented_features_are_the_same_for_every_seed(source, recipe, tmp_path):
    field = region_fields(labelled_regions(source, recipe), recipe)[0]
    one = ABMILClassifier(recipe, tmp_path, ("geometry",))
    one.prepare([field], training=True)
    kept = sorted(tmp_path.rglob("*.npy"))
    other = recipe_with(recipe, {"downstream.abmil.seed": 5}, source="test")
    ABMILClassifier(other, tmp_path, ("geometry",)).prepare([field], training=True)
    assert sorted(tmp_path.rglob("*.npy")) == kept
    assert len(kept) == 1 + recipe.downstream.abmil.variants


def test_an_augmented_image_is_the_same_whether_remembered_or_made_anew(source, recipe, tmp_path, monkeypatch):
    fields = region_fields(labelled_regions(source, recipe), recipe)[:2]
    always = recipe_with(recipe, {"downstream.augmented_share": 1}, source="test")
    one, other = (ViTClassifier(always, tmp_path, ("geometry", "colour")) for _ in range(2))
    one.prepare(fields, training=True)
    asked_for = [(field, position) for position in (0, 7) for field in fields]
    first = [one.sample(*key) for key in asked_for]
    assert len({image.numpy().tobytes() for image in first}) == len(asked_for)
    monkeypatch.setattr("pathup.downstream.classifiers.augmented", lambda *_: pytest.fail("made once more"))
    assert all(torch.equal(one.sample(*key), image) for key, image in zip(asked_for, first, strict=True))
    monkeypatch.undo()
    monkeypatch.setattr("pathup.downstream.classifiers.KEPT_BYTES", 0)  # no room to remember any
    assert all(torch.equal(other.sample(*key), image) for key, image in zip(asked_for, first, strict=True))


def test_classes_that_differ_by_form_are_learnt(source, recipe, cache, tmp_path):
    own = recipe_with(recipe, {
        "downstream.abmil.steps": 60, "downstream.abmil.learning_rates": [0.01], "downstream.abmil.evaluate_every": 10,
        "downstream.abmil.patience": 10, "downstream.abmil.embedding": 16,
    }, source="test")  # fmt: skip
    train(asked("abmil", source, tmp_path / "run", own, cache))
    scores = evaluate_classifier(
        EvaluateRequest(model=tmp_path / "run", regions=source, output=tmp_path / "s", cache=cache, device="cpu")
    )
    assert scores["f_scores"]["mean"] == 1.0


def test_few_regions_are_drawn_by_the_seed_and_more_hold_those_of_fewer(source, recipe):
    regions = labelled_regions(source, recipe)
    names = {k: {r.region.name for r in few(regions, k, 0) if r.split == "train"} for k in (1, 2, 3)}
    assert [len(names[k]) for k in (1, 2, 3)] == [2, 4, 6]
    assert names[1] < names[2] < names[3]
    assert any({r.region.name for r in few(regions, 1, s) if r.split == "train"} != names[1] for s in range(1, 6))
    assert [r for r in few(regions, 1, 0) if r.split != "train"] == [r for r in regions if r.split != "train"]
    assert few(regions, None, 0) == regions


def test_a_leak_stops_training_before_anything_is_written(source, drawn, recipe, cache, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(drawn, copy)
    made.replant(source / "test/0_A/test_A_0.png", copy / "A_0000.png")
    with pytest.raises(PathUpError, match=r"'copy/A_0000\.png' is region 'test_A_0' of split 'test'"):
        train(asked("vit", source, tmp_path / "run", recipe, cache, synthetic=(copy,)))
    (copy / SOURCES_FILE).unlink()
    with pytest.raises(PathUpError, match="does not say which regions"):
        train(asked("vit", source, tmp_path / "run", recipe, cache, synthetic=(copy,)))
    assert not (tmp_path / "run").exists()


def test_weights_of_the_same_vit_are_a_start_and_others_are_refused(source, recipe, cache, tmp_path):
    """Stands for pretrained weights, of a model with other classes."""
    kind = ViTClassifier(recipe, cache)
    state = kind.network().state_dict()
    other = {**state, "head.weight": torch.zeros(9, 16), "head.bias": torch.zeros(9)}
    save_file(other, tmp_path / "good.safetensors")
    loaded = ViTClassifier(recipe, cache, pretrained=tmp_path / "good.safetensors").network()
    assert torch.equal(loaded.blocks[0].mlp.fc1.weight, state["blocks.0.mlp.fc1.weight"])
    save_file({"x": torch.zeros(1)}, tmp_path / "bad.safetensors")
    with pytest.raises(PathUpError, match="holds no fitting weights for"):
        ViTClassifier(recipe, cache, pretrained=tmp_path / "bad.safetensors").network()


def test_what_cannot_be_is_one_sentence(source, recipe, cache, tmp_path):
    with pytest.raises(PathUpError, match="unknown classifier 'vitt'"):
        asked("vitt", source, tmp_path / "run", recipe, cache)
    with pytest.raises(PathUpError, match="per_class is 0"):
        asked("vit", source, tmp_path / "run", recipe, cache, per_class=0)
    with pytest.raises(PathUpError, match="holds no trained classifier"):
        evaluate_classifier(EvaluateRequest(model=tmp_path, regions=source, output=tmp_path / "s", device="cpu"))
    for key, value in (("input_px", 40), ("model", "resnet18")):
        own = recipe_with(recipe, {f"downstream.vit.{key}": value}, source="test")
        with pytest.raises(PathUpError, match=r"downstream\.vit cannot be built"):
            ViTClassifier(own, cache).network()
    own = recipe_with(recipe, {"downstream.abmil.patch_px": 256}, source="test")
    with pytest.raises(PathUpError, match="smaller than a patch of 256 px"):
        train(asked("abmil", source, tmp_path / "small", own, cache))
