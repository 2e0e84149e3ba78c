"""Table 6 on made regions: every arm, seed and curve, shared by processes, from a model that really draws."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pathup.downstream import runs
from pathup.downstream.scores import f_scores, read_predictions
from pathup.errors import PathUpError
from pathup.experiments import classifier_arms
from pathup.experiments.classifier_arms import CURVE, TABLE6, ClassifierArm, jobs_of, sweep
from pathup.experiments.table6 import Table6Request, plan, table6
from pathup.recipes import load_recipe, recipe_with, save_recipe
from pathup.tiles.making import make_tiles
from pathup.tiles.provenance import read_sources, write_sources
from pathup.training.runs import train_diffusion
from tests.downstream import made


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_autoencoder) -> Path:
    """Regions, a recipe of few steps, and a model trained on the regions' training tiles."""
    root = tmp_path_factory.mktemp("table6")
    made.regions(root / "regions")
    (root / "regions/train/1_B/train_B_0.png").unlink()  # B is rarer, by a region of four fields
    short = {f"downstream.{kind}.{name}": value for kind in ("vit", "abmil")
             for name, value in (("steps", 2), ("learning_rates", [0.001]))}  # fmt: skip
    recipe = recipe_with(load_recipe("tiny"), {**short, "sampling.steps": 2}, source="test")
    save_recipe(recipe, root / "recipe.yaml")
    make_tiles(root / "regions", root / "tiles", recipe)
    train_diffusion(
        root / "tiles", root / "run", str(root / "recipe.yaml"), pretrained=None, autoencoder=str(tiny_autoencoder),
        level=None, latents=None, resume=False, changes={"steps": 2}, cpu=True, workers=0, wandb_project=None,
        gradient_checkpointing=False,
    )  # fmt: skip
    return root


@pytest.fixture(scope="module", autouse=True)
def _short(request):
    """A curve of one point: the arms differ by their numbers alone."""
    patch = pytest.MonkeyPatch()
    short = tuple(arm for arm in CURVE if arm.real_per_class == 1)
    for module in (classifier_arms, __import__("pathup.experiments.table6_pages", fromlist=["x"])):
        patch.setattr(module, "CURVE", short)
        patch.setattr(module, "FEW", (1,), raising=False)
    request.addfinalizer(patch.undo)


def asked(place: Path, output: Path, **values) -> Table6Request:
    told = {"model": place / "run/model", "recipe": str(place / "recipe.yaml"), "images": 2, "seeds": 2,
            "device": "cpu", **values}  # fmt: skip
    return Table6Request(data=place / "regions", output=output, **told)


@pytest.fixture(scope="module")
def done(place, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("done") / "out"
    assert not any(step.needs() for step in plan(asked(place, output))[1:])  # nothing before its images are there
    assert "rows" in table6(asked(place, output))
    return output


def test_every_arm_and_seed_is_there_and_its_figures_are_those_of_its_predictions(done):
    content = json.loads((done / "table6.json").read_text())
    jobs = jobs_of(("vit", "abmil"), 2, 2)
    assert len(content["rows"]) == len(jobs) == 2 * 2 * (len(TABLE6) + len(sweep(2)) + 2)
    for row in content["rows"]:
        name = f"{row['classifier']}_{row['arm']}_{row['seed']}"
        kept = read_predictions(done / "scores" / name / "predictions.csv")
        assert row["f_scores"] == pytest.approx(f_scores(kept.truth, kept.named, kept.labels))
    with (done / "predictions.csv").open() as file:
        every = list(csv.DictReader(file))
    assert len(every) == 4 * len(jobs)  # two test regions of each class
    one = [row for row in every if (row["classifier"], row["arm"], row["seed"]) == ("abmil", "both", "1")]
    kept = read_predictions(done / "scores/abmil_both_1/predictions.csv")
    assert [(row["region"], row["label"], row["predicted"]) for row in one] == list(
        zip(kept.regions, kept.truth, kept.named, strict=True)
    )
    means = {(row["classifier"], row["arm"], row["seed"]): row["f_scores"]["mean"] for row in content["rows"]}
    for told in content["over_the_curve"]:
        gains = [
            np.mean([means[told["classifier"], f"synthetic{of}", seed] - means[told["classifier"], f"real{of}", seed]
                     for of in ("", "_of_1")]) for seed in (0, 1)
        ]  # fmt: skip
        assert told["mean"] == pytest.approx(np.mean(gains))
    assert all(gap["p_holm"] is None or gap["p_holm"] >= gap["p"] for gap in content["differences"])
    page = (done / "table6.md").read_text()
    assert "start from random weights" in page
    for kind in ("ViT", "attention MIL"):
        for arm in TABLE6:
            assert f"| {kind}, {arm.title} |" in page
    assert "| attention MIL, synthetic | 75.1 ± 1.2 | 61.4 ± 2.0 |" in page  # the paper's
    assert (done / "table6.png").stat().st_size > 5_000


def test_arms_have_the_images_that_they_say_and_the_same_tuning(done):
    def notes(name: str) -> dict:
        return json.loads((done / "runs" / name / "model/classifier.json").read_text())

    assert notes("vit_real_0")["synthetic_fields"] == {"A": 0, "B": 0}
    assert notes("vit_synthetic_0")["synthetic_fields"] == {"A": 2, "B": 2}
    assert notes("abmil_rare_first_1")["synthetic_fields"] == {"A": 0, "B": 4}  # as many, all to the rare class
    assert len({image.read_bytes() for image in done.glob("synthetic*/**/B_*.png")}) == 4  # none of them twice
    assert notes("vit_synthetic_1_0")["synthetic_fields"] == {"A": 1, "B": 1}
    assert notes("abmil_both_1")["augmentations"] == ["geometry", "colour", "stain", "randaugment"]
    assert notes("abmil_real_1")["augmentations"] == []
    assert notes("vit_synthetic_of_1_0")["real_fields"] == {"A": 4, "B": 4}  # one region of four fields
    tuned = {name: set(notes(f"vit_{name}_0")["learning_rates"]) for name in ("real", "random", "synthetic", "both")}
    assert set(map(frozenset, tuned.values())) == {frozenset({"0.001"})}
    assert {row["seed"] for row in json.loads((done / "table6.json").read_text())["rows"]} == {0, 1}


def test_what_is_there_is_not_done_again(done, place, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(done, copy)
    before = json.loads((copy / "table6.json").read_text())
    (copy / "scores/vit_random_1/scores.json").unlink()
    assert [step.what for step in plan(asked(place, copy)) if not step.done()] == [
        "train and evaluate vit, + random augmentation, seed 1"
    ]
    monkeypatch.setattr(runs, "train_classifier", lambda *a: pytest.fail("nothing is to be trained")
                        if not (a[3] / "model").is_dir() else a[3] / "model")  # fmt: skip
    assert json.loads(json.dumps(table6(asked(place, copy, resume=True)))) == before
    with pytest.raises(PathUpError, match="add --resume"):
        table6(asked(place, copy))


def test_a_generator_that_has_seen_a_test_region_is_refused(place, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(place / "run/model", model)
    make_tiles(place / "regions", tmp_path / "again", load_recipe(place / "recipe.yaml"))
    write_sources(model, [*(read_sources(model) or []), *(read_sources(tmp_path / "again/test") or [])[:1]])
    with pytest.raises(PathUpError, match=r"was trained on region 'test_A_0', .* split 'test'"):
        table6(asked(place, tmp_path / "out", model=model))


def test_images_that_were_drawn_before_serve_and_are_counted_first(done, place, tmp_path):
    images, more = tmp_path / "images", done / "synthetic_more/B"
    shutil.copytree(done / "synthetic", images)
    out = tmp_path / "out"
    with pytest.raises(PathUpError, match=r"too few for --images 2 and .* \(B 2 of 4\)"):
        table6(asked(place, out, model=None, synthetic=(images,)))
    own = asked(place, out, model=None, synthetic=(images, more), resume=True)
    steps = plan(own)
    assert len(steps) == len(plan(asked(place, out))) - 2  # nothing is to be drawn
    assert all(step.needs() for step in steps)
    next(step for step in steps if step.lock == "abmil_rare_first_1").do()
    notes = json.loads((out / "runs/abmil_rare_first_1/model/classifier.json").read_text())
    assert notes["synthetic_fields"] == {"A": 0, "B": 4}


def test_the_vit_of_every_arm_starts_from_pretrained_weights(place, tmp_path):
    start = runs.pretrain(runs.PretrainRequest(
        regions=place / "regions", output=tmp_path / "start", recipe=load_recipe(place / "recipe.yaml"), changes={},
        device="cpu",
    ))  # fmt: skip
    own = asked(place, tmp_path / "out", pretrained=start)
    (tmp_path / "out/synthetic").mkdir(parents=True)
    for kind in ("vit", "abmil"):
        step = next(step for step in plan(own) if step.lock == f"{kind}_real_0")
        step.do()
        notes = json.loads((tmp_path / f"out/runs/{kind}_real_0/model/classifier.json").read_text())
        assert notes["pretrained"] == ("vit.safetensors" if kind == "vit" else None)


def test_a_senseless_request_is_one_sentence(place, tmp_path):
    cases = (
        ({"model": None}, "needs either --model"), ({"synthetic": (place,)}, "needs either --model"),
        ({"seeds": 1}, "at least 2"),
    )  # fmt: skip
    for values, said in cases:
        with pytest.raises(PathUpError, match=said):
            asked(place, tmp_path / "out", **values)


def test_a_sweep_is_of_fewer_images_than_the_table_has():
    for images in (1, 2, 3, 8, 20):
        numbers = [arm.per_class for arm in sweep(images)]
        assert all(isinstance(number, int) and 0 < number < images for number in numbers)
        assert len(set(numbers)) == len(numbers)
    assert isinstance(sweep(8)[0], ClassifierArm)
    assert np.array_equal([arm.per_class for arm in sweep(8)], [2, 4])
