"""Tables 1, 3 and 4 on made tiles: every row, the same budget, resumption, what a plan says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pathup.baselines.bsrgan import import_published
from pathup.baselines.rrdb import RRDBNet
from pathup.errors import PathUpError
from pathup.experiments import contenders
from pathup.experiments.comparison import ComparisonRequest
from pathup.experiments.contenders import CONTENDERS
from pathup.experiments.large_tables import WEIGHTS
from pathup.experiments.tables import TABLES, compare, plan
from pathup.experiments.tile_tables import coarse_pixels
from pathup.recipes import load_recipe, recipe_with, save_recipe
from pathup.slides.images import read_image


def asked(name: str, tiles: Path, output: Path, autoencoder: Path | None, **values: object) -> ComparisonRequest:
    told = {"recipe": "tiny", "generations": 2, "count": 10, "images": 1, "device": "cpu", **values}
    given = None if autoencoder is None else str(autoencoder)
    return ComparisonRequest(name=name, data=tiles, output=output, autoencoder=given, **told)


@pytest.fixture(scope="module")
def done(some_tiles, tiny_autoencoder, tmp_path_factory) -> Path:
    """All tables in one folder, which share what is trained and drawn."""
    output = tmp_path_factory.mktemp("tables") / "out"
    for name in ("table1", "table3", "pairs", "table4"):
        compare(asked(name, some_tiles, output, tiny_autoencoder, resume=True))
    return output


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_row_level_and_generation_is_there_beside_its_floor_and_the_papers_figures(done, name):
    content = json.loads((done / f"{name}.json").read_text())
    levels = {"overview", "patch"} if name == "table1" else {"patch"}
    assert {row["level"] for row in content["floor"]} == levels
    for entry in content["entries"]:
        found = {(row["generation"], row["level"]) for row in entry["rows"]}
        assert found == {(number, level) for number in ((0,) if entry["once"] else (0, 1)) for level in levels}
        low, high = entry["rows"][0]["kid_interval"]
        assert low <= entry["rows"][0]["kid"] <= high
    text = (done / f"{name}.md").read_text()
    for entry in content["entries"]:
        assert text.count(f"| {entry['title']} |") >= len(levels)
    assert "trained on latents of an autoencoder that was trained before" in text
    for row in (TABLES[name].paper or ((), ()))[1]:
        assert f"| {' | '.join(row)} |" in text
    for level in levels:
        assert (done / f"{name}_{level}.png").stat().st_size > 5_000


def test_the_rows_are_the_papers_and_what_they_are_to_be_better_than(done):
    rows = {name: [e["entry"] for e in json.loads((done / f"{name}.json").read_text())["entries"]] for name in TABLES}
    assert rows["table1"] == [
        "stylegan2", "vqgan", "ldm", "pathup", "coarse", "untrained_stylegan2", "untrained_vqgan", "untrained_ldm",
        "untrained_pathup",
    ]  # fmt: skip
    assert rows["table3"] == [
        "ldm-sr", "bsrgan", "pathup", "bicubic", "nearest", "untrained_ldm-sr", "untrained_bsrgan",
    ]  # fmt: skip
    assert rows["pairs"] == rows["table3"]
    assert rows["table4"] == ["hard", "equation_6", "hann"]


def test_what_training_took_is_told_of_every_trained_row(done):
    for name in TABLES:
        for entry in json.loads((done / f"{name}.json").read_text())["entries"]:
            if entry["once"] or entry["entry"] in ("bicubic", "nearest", "coarse"):
                assert entry["training"] is None
            else:
                assert entry["training"]["seconds"] > 0
                assert entry["training"]["steps"] > 0
                assert entry["seconds_a_tile"] > 0


def test_large_images_of_all_rows_grow_from_the_same_overviews(done):
    overviews = sorted(path.name for path in (done / "drawn/overviews/0").glob("*.png"))
    assert len(overviews) == 2  # of each class
    rows = ["bicubic", "nearest", "ldm-sr", "bsrgan"] + [f"grown_{weight}_here" for weight in WEIGHTS]
    for row in rows:
        assert sorted(path.name for path in (done / "drawn" / row / "0").glob("*.png")) == overviews


def test_pairs_are_real_overviews_and_every_tile_has_its_own_original(done):
    drawn, crops = done / "drawn/pairs", done / "crops/pairs"
    cells = {(entry, number) for entry in ("ldm-sr", "bicubic", "pathup") for number in (0, 1)}
    names = {(entry, number): sorted(f.name for f in (crops / entry / str(number) / "crops").glob("*.png"))
             for entry, number in cells}  # fmt: skip
    for entry, number in cells:
        assert names[entry, number] == names["bicubic", number]  # the same places of all rows
        originals = crops / entry / str(number) / "originals"
        assert sorted(file.name for file in originals.iterdir()) == names[entry, number]
    overview, large = (read_image(drawn / row / "0" / "A_0000.png") for row in ("overviews", "bicubic"))
    assert large.shape[0] == 4 * overview.shape[0]
    content = {entry["entry"]: entry for entry in json.loads((done / "pairs.json").read_text())["entries"]}
    found = {name: np.mean([row["psnr"] for row in entry["rows"]]) for name, entry in content.items()}
    # enlarging what is real is nearer to the truth than what an untrained network makes of it
    assert found["bicubic"] > found["untrained_ldm-sr"]
    assert "PSNR, dB" in (done / "pairs.md").read_text()
    assert "PSNR" not in (done / "table3.md").read_text()


def test_what_is_there_is_not_done_again(done, some_tiles, tiny_autoencoder, tmp_path, monkeypatch):
    output = tmp_path / "copy"
    shutil.copytree(done, output)
    before = json.loads((output / "table1.json").read_text())
    (output / "figures/table1/vqgan_1.json").unlink()
    request = asked("table1", some_tiles, output, tiny_autoencoder, resume=True)
    left = [step.what for step in plan(request) if not step.done()]
    assert left == ["draw and measure VQ-GAN, generation 1"]
    monkeypatch.setattr(contenders, "train_baseline", lambda *a, **k: pytest.fail("nothing is to be trained"))
    monkeypatch.setattr(contenders, "train_diffusion", lambda *a, **k: pytest.fail("nothing is to be trained"))
    after = compare(request)
    for entry in (*before["entries"], *after["entries"]):
        entry.pop("seconds_a_tile")  # of tiles that were kept
    assert json.loads(json.dumps(after)) == before
    with pytest.raises(PathUpError, match="add --resume"):
        compare(asked("table1", some_tiles, output, tiny_autoencoder))
    with pytest.raises(PathUpError, match="differs in: minutes"):
        compare(asked("table1", some_tiles, output, tiny_autoencoder, minutes=1.0, resume=True))


def test_a_plan_tells_everything_and_writes_nothing(some_tiles, tmp_path):
    steps = plan(asked("table1", some_tiles, tmp_path / "out", None, minutes=5.0))
    assert [step.what for step in steps[:5]] == [
        "train the autoencoder", "train StyleGAN2", "train VQ-GAN", "train LDM", "train PathUp",
    ]  # fmt: skip
    assert steps[1].cost == "5 minutes of training"
    assert len(steps) == 5 + 4 * 2 + 5  # four systems twice; coarse tiles and four untrained systems once
    assert not any(step.done() for step in steps)
    raw = plan(asked("table3", tmp_path, tmp_path / "out", None))
    assert raw[0].what == "cut tiles"
    assert not (tmp_path / "out").exists()


def test_a_given_model_has_a_row_of_its_own_beside_the_one_of_equal_training_and_draws_table_4(some_tiles, tmp_path):
    model = tmp_path / "atlas"
    for name in TABLES:
        names = [step.what for step in plan(asked(name, some_tiles, tmp_path / "out", None, model=model))]
        assert "train the autoencoder" not in names  # the model's own
        has_row = name != "table4"
        assert ("draw and measure PathUp, trained elsewhere, generation 0" in names) == has_row
        assert ("train PathUp" in names) == has_row


def test_a_baseline_from_elsewhere_is_a_row_in_the_tables_of_its_kind(done, some_tiles, tmp_path):
    more = tmp_path / "longer"
    shutil.copytree(done / "runs/vqgan/model", more)
    published = tmp_path / "published"
    state = RRDBNet(8, 32, 1).state_dict()
    torch.save(state, tmp_path / "made.pth")
    import_published(tmp_path / "made.pth", published, load_recipe("tiny"))
    found = {}
    for name in TABLES:
        bench = TABLES[name](asked(name, some_tiles, done, None, baselines=(more, published)))
        found[name] = {entry.title: bench.model_of(entry) for entry in bench.trained_entries() if "_" in entry.name}
    steps = json.loads((more / "baseline.json").read_text())["steps"]
    assert found["table1"] == {f"VQ-GAN, {steps} steps": more}
    assert found["table3"] == found["pairs"] == {"BSRGAN, published weights": published}
    assert found["table4"] == {}


def test_a_baseline_of_other_tiles_is_refused(done, some_tiles, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(done / "runs/vqgan/model", other)
    notes = json.loads((other / "baseline.json").read_text())
    (other / "baseline.json").write_text(json.dumps({**notes, "tiles": "0" * 64}))
    with pytest.raises(PathUpError, match="was trained on other tiles"):
        plan(asked("table1", some_tiles, done, None, baselines=(other,)))


def test_overviews_are_the_given_models_and_both_models_grow_them(done, some_tiles, tmp_path):
    given = tmp_path / "given"
    shutil.copytree(done / "runs/pathup/model", given)
    bench = TABLES["table3"](asked("table3", some_tiles, tmp_path / "out", None, model=given))
    assert bench.overview_model == given
    rows = {entry.name: bench.model_of(entry) for entry in bench.trained_entries()}
    assert rows["given"] == given
    assert rows["pathup"] == tmp_path / "out/runs/pathup/model"
    grown = [bench.grown(entry, 0, "hann")[0] for entry in bench.trained_entries() if entry.name == "given"]
    assert [folder.parent.name for folder in grown] == ["grown_hann_elsewhere"]
    assert bench.overviews(0).is_dir()


def test_every_contender_trains_for_about_the_time_it_is_given(some_tiles, tiny_autoencoder, tmp_path):
    """Steps of so small a network take milliseconds and are nothing to time; it is the plan that is held."""
    request = asked("table1", some_tiles, tmp_path / "out", tiny_autoencoder, minutes=0.02)
    bench = TABLES["table1"](request)
    bench.claim()
    for name in ("stylegan2", "pathup"):
        found = contenders.trained(CONTENDERS[name], bench.setting)
        planned = json.loads((tmp_path / "out/runs" / name / "budget.json").read_text())
        assert planned["minutes"] == 0.02
        assert found.steps == planned["steps"] > 72


def test_coarse_pixels_keep_the_mean_and_lose_the_detail():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    found = coarse_pixels(pixels)
    assert found.shape == pixels.shape
    assert abs(found.mean() - pixels[4::8, 4::8].mean()) < 3  # rims weigh more after a blur
    steps = [np.abs(np.diff(image.astype(int), axis=1)).mean() for image in (pixels, found)]
    assert steps[1] < 0.1 * steps[0]  # neighbours of white noise differ by 85 grey levels


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"generations": 1}, "generations is 1, but at least 2"),
        ({"count": 9}, "count is 9, but at least 10"),
        ({"images": 0}, "images is 0, but at least 1"),
        ({"minutes": 0.0}, "0 minutes of training"),
    ],
)
def test_a_senseless_request_is_one_sentence(tmp_path, values, said):
    with pytest.raises(PathUpError, match=said):
        asked("table1", tmp_path, tmp_path / "out", None, **values)


def test_a_recipe_that_does_not_fit_a_system_is_told_before_anything_is_done(some_tiles, tmp_path, recipe):
    wrong = recipe_with(recipe, {"baselines.stylegan2.channels": [8, 8]}, source="test")
    save_recipe(wrong, tmp_path / "wrong.yaml")
    request = asked("table1", some_tiles, tmp_path / "out", None, recipe=str(tmp_path / "wrong.yaml"))
    with pytest.raises(PathUpError, match="channels has 2 entries"):
        compare(request)
    assert not (tmp_path / "out").exists()


def test_an_unknown_table_is_named(tmp_path):
    with pytest.raises(PathUpError, match="unknown experiment 'table7'"):
        plan(asked("table7", tmp_path, tmp_path / "out", None))
