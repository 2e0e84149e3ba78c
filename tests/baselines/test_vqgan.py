"""VQ-GAN end to end on made tiles: both stages of its training, resuming, drawing, and wrong inputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pathup.baselines import vqgan
from pathup.baselines.codes import CodesTrainer
from pathup.baselines.systems import TrainRequest, load_baseline, train_baseline
from pathup.errors import PathUpError
from pathup.recipes import Recipe
from pathup.tiles.dataset import TileFolder


def train(tiles: Path, output: Path, recipe: Recipe, *, resume: bool = False, **changes: Any) -> Path:
    asked = {f"baselines.vqgan.{name.replace('__', '.')}": value for name, value in changes.items()}
    request = TrainRequest(tiles=tiles, output=output, recipe=recipe, changes=asked, resume=resume, cpu=True)
    return train_baseline("vqgan", request)


@pytest.fixture(scope="module", autouse=True)
def _early_reseeds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vqgan, "RESEED_EVERY", 3)  # so that runs of 4 steps do it after a checkpoint, too
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_tiles: Path, recipe: Recipe) -> Path:
    """An unbroken run of 4 steps in each stage."""
    output = tmp_path_factory.mktemp("vqgan") / "run"
    train(tiny_tiles, output, recipe)
    return output


def assert_same_weights(one: Path, other: Path) -> None:
    for name in ("autoencoder", "transformer"):
        a, b = (load_file(folder / f"{name}.safetensors") for folder in (one, other))
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), f"{name}: {key}"


def test_dead_codes_are_revived_and_living_ones_stay(tmp_path, tiny_tiles, recipe):
    request = TrainRequest(tiles=tiny_tiles, output=tmp_path / "run", recipe=recipe, changes={}, cpu=True)
    stage = vqgan.AutoencoderStage(request, TileFolder.load(tiny_tiles, "train", recipe))
    batch = stage.batches()[0]
    stage.train_step(batch)
    book, moments = stage.autoencoder.quantize.embedding.weight, stage.optimizers["autoencoder"].state
    average = stage.averages["autoencoder"].tensors["quantize.embedding.weight"]
    alive = int(stage.state["chosen"].argmax())
    dead = torch.tensor([code for code in range(16) if code != alive])
    with torch.no_grad():
        book[dead] = 1000.0  # where no latent is
    stage.state["chosen"].zero_()
    stage.step = 1
    assert stage.train_step(batch)["perplexity"] == 1
    assert stage.state["chosen"].nonzero().flatten().tolist() == [alive]
    kept = [tensor[alive].clone() for tensor in (book, average, moments[book]["exp_avg_sq"])]
    with torch.no_grad():
        latents = stage.autoencoder.encode(batch[0]).latents
    stage._reseed(latents)
    assert book[dead].abs().max() <= latents.abs().max()
    assert torch.equal(average[dead], book[dead])
    assert moments[book]["exp_avg_sq"][dead].abs().max() == 0
    now = [tensor[alive] for tensor in (book, average, moments[book]["exp_avg_sq"])]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    assert stage.state["chosen"].sum() == 0, "the next search counts anew"
    stage.step = 2
    assert stage.train_step(batch)["perplexity"] > 1.5  # several codes are chosen again


# -- both stages --------------------------------------------------------------------------------------------


def test_a_trained_model_says_what_it_is_and_draws_tiles(run, recipe):
    found, maker = load_baseline(run)
    assert found.name == "vqgan"
    notes = found.notes
    assert notes["steps"] == notes["autoencoder"]["steps"] + notes["transformer"]["steps"] == 8
    assert notes["seconds"] == pytest.approx(notes["autoencoder"]["seconds"] + notes["transformer"]["seconds"])
    assert 1 <= notes["perplexity"] <= notes["codes_used"] <= 16
    tiles = maker.draw("A", "patch", range(3), 0)
    assert tiles.shape == (3, 32, 32, 3)
    assert tiles.dtype == np.uint8
    lines = [json.loads(line) for line in (run / "autoencoder/losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(1 <= line["perplexity"] <= 16 for line in lines)
    assert ["discriminator" in line for line in lines] == [False, False, True, True]  # from step 2 on, counted from 0
    assert (run / "autoencoder/sheets/00000004.png").is_file()
    assert (run / "transformer/sheets/00000004.png").is_file()


def test_a_tile_is_the_same_whichever_others_are_drawn_with_it(run):
    _, maker = load_baseline(run)
    together = maker.codes("B", "patch", range(5), 3)
    for index in range(5):
        assert torch.equal(maker.codes("B", "patch", range(index, index + 1), 3)[0], together[index])
    alone, among = maker.draw("B", "patch", range(2, 3), 3)[0], maker.draw("B", "patch", range(5), 3)[2]
    assert np.abs(alone.astype(int) - among).max() <= 1  # the decoder's rounding differs from batch to batch
    for other in (maker.codes("B", "patch", range(5), 4), maker.codes("A", "patch", range(5), 3)):
        assert not torch.equal(other, together)
    assert not torch.equal(together[0], together[1])


def test_nothing_is_drawn_where_nothing_is_asked_for(run):
    _, maker = load_baseline(run)
    assert maker.draw("A", "patch", range(0), 0).shape == (0, 32, 32, 3)


def test_a_finished_run_is_not_done_again(run, tiny_tiles, recipe, monkeypatch, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for stage in (vqgan.AutoencoderStage, CodesTrainer):
        monkeypatch.setattr(stage, "__init__", lambda self, *a: pytest.fail("a stage was begun again"))
    assert train(tiny_tiles, tmp_path / "run", recipe, resume=True) == tmp_path / "run/model"
    with pytest.raises(PathUpError, match="add --resume"):
        train(tiny_tiles, tmp_path / "run", recipe)


class StoppedError(Exception):
    """What a test raises in the middle of a run."""


def stop(self: Any) -> Any:
    raise StoppedError


@pytest.mark.parametrize(
    ("stage", "at"),
    [
        (vqgan.AutoencoderStage, "train_step"),
        (vqgan.AutoencoderStage, "export"),
        (CodesTrainer, "batches"),
        (CodesTrainer, "train_step"),
        (CodesTrainer, "export"),
    ],
)
def test_a_run_stopped_anywhere_and_resumed_ends_bit_for_bit_like_an_unbroken_one(
    run, tmp_path, tiny_tiles, recipe, monkeypatch, stage, at
):
    whole, broken = getattr(stage, at), tmp_path / "run"

    def stopping(self: Any, *arguments: Any) -> Any:
        if at != "train_step" or self.step == 3:  # a step after the first checkpoint
            raise StoppedError
        return whole(self, *arguments)

    monkeypatch.setattr(stage, at, stopping)
    with pytest.raises(StoppedError):
        train(tiny_tiles, broken, recipe)
    assert not (broken / "model").exists()
    taken = []

    def counting(self: Any, *arguments: Any) -> Any:
        taken.append(self.step)
        return whole(self, *arguments)

    monkeypatch.setattr(stage, at, counting)
    train(tiny_tiles, broken, recipe, resume=True)
    if at == "train_step":
        assert taken == [2, 3], "it goes on from the checkpoint, and does not start over"
    assert_same_weights(run / "model", broken / "model")
    for name in ("autoencoder", "transformer"):
        assert (run / name / "losses.jsonl").read_text() == (broken / name / "losses.jsonl").read_text()


def test_a_shorter_run_that_is_made_longer_is_the_longer_one(run, tmp_path, tiny_tiles, recipe):
    # the learning rate of a run that falls depends on its length: here it does not fall
    level = {"decay_share": 0.0, "transformer__decay_share": 0.0}
    train(tiny_tiles, tmp_path / "long", recipe, **level)
    train(tiny_tiles, tmp_path / "short", recipe, **level, transformer__steps=2)
    train(tiny_tiles, tmp_path / "short", recipe, **level, resume=True)
    assert_same_weights(tmp_path / "long/model", tmp_path / "short/model")


def test_a_run_of_some_minutes_goes_on_to_the_steps_that_were_planned_and_is_not_done_again(
    tmp_path, tiny_tiles, recipe, monkeypatch
):
    from pathup.training import budget

    monkeypatch.setattr(budget, "FIRST_STEPS", (1, 2))
    output = tmp_path / "run"
    request = TrainRequest(
        tiles=tiny_tiles, output=output, recipe=recipe, changes={}, cpu=True, resume=True, minutes=0.0001
    )
    export = CodesTrainer.export
    monkeypatch.setattr(CodesTrainer, "export", stop)
    with pytest.raises(StoppedError):
        train_baseline("vqgan", request)
    monkeypatch.setattr(CodesTrainer, "export", export)
    taken, step = [], CodesTrainer.train_step
    monkeypatch.setattr(CodesTrainer, "train_step", lambda self, batch: taken.append(self.step) or step(self, batch))
    train_baseline("vqgan", request)
    notes = load_baseline(output)[0].notes
    assert taken == []
    assert notes["autoencoder"]["steps"] == notes["transformer"]["steps"] == 3  # the time is spent at once: 2, and 1
    for stage in (vqgan.AutoencoderStage, CodesTrainer):
        monkeypatch.setattr(stage, "__init__", lambda self, *a: pytest.fail("a stage was begun again"))
    train_baseline("vqgan", request)


def test_codes_of_another_autoencoder_are_refused(run, tmp_path, tiny_tiles, recipe):
    shutil.copytree(run, tmp_path / "run")
    with pytest.raises(PathUpError, match=r"made by another autoencoder.*remove .*transformer to train it anew"):
        train(tiny_tiles, tmp_path / "run", recipe, resume=True, steps=6)
    shutil.rmtree(tmp_path / "run/transformer")
    train(tiny_tiles, tmp_path / "run", recipe, resume=True, steps=6)
    assert load_baseline(tmp_path / "run")[0].notes["autoencoder"]["steps"] == 6


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"precision": "bf16"}, "set them to the same"),
        ({"block_channels": [4, 4, 4, 4, 4, 4, 4]}, "a multiple of 64 was needed"),
        ({"norm_groups": 3}, "does not divide 8"),
        ({"codes": 70000}, "at most 65536"),
        ({"transformer__heads": 3}, "heads 3 does not divide width 16"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(tmp_path, tiny_tiles, recipe, changes, sentence):
    with pytest.raises(PathUpError, match=sentence):
        train(tiny_tiles, tmp_path / "run", recipe, **changes)
    assert not (tmp_path / "run").exists()


def test_another_runs_folder_is_refused(run, tmp_path, tiny_tiles, recipe):
    shutil.copytree(run, tmp_path / "run")
    with pytest.raises(PathUpError, match="holds another run"):
        train(tiny_tiles, tmp_path / "run", recipe, resume=True, transformer__width=32)


def test_what_cannot_be_drawn_is_one_sentence(run, tmp_path):
    _, maker = load_baseline(run)
    with pytest.raises(PathUpError, match="unknown label 'C'"):
        maker.draw("C", "patch", range(1), 0)
    with pytest.raises(PathUpError, match="did you mean 'patch'"):
        maker.draw("A", "pach", range(1), 0)
    maker._groups = {("A", "patch")}
    with pytest.raises(PathUpError, match=r"no tiles of label 'B' at level 'patch'.*ask for one of: A patch"):
        maker.draw("B", "patch", range(1), 0)
    shutil.copytree(run / "model", tmp_path / "model")
    shutil.copy(tmp_path / "model/transformer.safetensors", tmp_path / "model/autoencoder.safetensors")
    with pytest.raises(PathUpError, match="does not fit the recipe beside it"):
        load_baseline(tmp_path / "model")
    (tmp_path / "model/transformer.safetensors").unlink()
    (tmp_path / "model/autoencoder.safetensors").write_bytes(b"no weights")
    with pytest.raises(PathUpError, match="cannot be read"):
        load_baseline(tmp_path / "model")
