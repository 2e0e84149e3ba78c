"""Latent super-resolution: what a step sees and descends, exact resume, and enlarging end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import avg_pool2d

from pathup.baselines import ldm_sr
from pathup.baselines.ldm_sr import LDMSRTrainer, PairBatches
from pathup.baselines.model_folder import read_model
from pathup.baselines.pairs import find_pairs
from pathup.baselines.systems import TrainRequest, load_baseline, train_baseline
from pathup.errors import PathUpError
from pathup.model.components import load_autoencoder
from pathup.recipes import recipe_from_dict
from pathup.tiles.dataset import TileFolder
from pathup.training.checkpoints import newest_checkpoint
from pathup.training.crops import oriented
from pathup.training.latents import orientations_of
from tests.tiles.made import tiny, tissue


def request(tiles: Path, output: Path, recipe, autoencoder: Path, **more) -> TrainRequest:
    changes = {f"baselines.ldm_sr.{name}": value for name, value in more.pop("changes", {}).items()}
    asked = {"tiles": tiles, "output": output, "recipe": recipe, "autoencoder": str(autoencoder), "changes": changes}
    return TrainRequest(**{**asked, "cpu": True, **more})


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_tiles, tiny_autoencoder, recipe) -> Path:
    run = tmp_path_factory.mktemp("ldm_sr") / "run"
    return train_baseline("ldm-sr", request(tiny_tiles, run, recipe, tiny_autoencoder))


@pytest.fixture
def trainer(tmp_path, tiny_tiles, tiny_autoencoder, recipe) -> LDMSRTrainer:
    tiles = TileFolder.load(tiny_tiles, "train", recipe)
    own = recipe.baselines.ldm_sr.model_copy(update={"min_snr_gamma": 0.5})
    changed = recipe.model_copy(update={"baselines": recipe.baselines.model_copy(update={"ldm_sr": own})})
    asked = request(tiny_tiles, tmp_path / "run", changed, tiny_autoencoder)
    return LDMSRTrainer(asked, tiles, find_pairs(tiles), load_autoencoder(tiny_autoencoder))


class Shrunk:
    """Stands for the latent cache: a 'latent' is the patch in its orientation, shrunk to the crop's size."""

    def __init__(self, pairs, orientations: int) -> None:
        self._pairs, self.orientations, self.seed = pairs, orientations, 5

    def __getitem__(self, place: tuple[int, int]) -> torch.Tensor:
        patch, slot = place
        turn = orientations_of(patch, self.orientations, self.seed)[slot]
        return avg_pool2d(oriented(self._pairs.patches.pixels(patch), turn).float() / 127.5 - 1, 4)


def test_crops_are_turned_as_their_latents_are(tiny_tiles, recipe):
    pairs = find_pairs(TileFolder.load(tiny_tiles, "train", recipe))
    spec = recipe.baselines.ldm_sr.model_copy(update={"condition_noise": 0.0, "batch_size": 64})
    latents, noise, low, timestep = PairBatches(pairs, Shrunk(pairs, 8), spec, 1000)[0]
    assert latents.shape == noise.shape == low.shape == (64, 3, 8, 8)
    assert 0 <= int(timestep.min()) < int(timestep.max()) < 1000
    for own, crop in zip(latents, low, strict=True):
        likeness = [np.corrcoef(own.flatten(), oriented(crop, turn).flatten())[0, 1] for turn in range(8)]
        assert int(np.argmax(likeness)) == 0  # in no other orientation are they more alike


def test_condition_noise_has_a_random_deviation_up_to_its_bound(tiny_tiles, recipe):
    pairs = find_pairs(TileFolder.load(tiny_tiles, "train", recipe))
    clean, noisy = (
        PairBatches(pairs, Shrunk(pairs, 1), recipe.baselines.ldm_sr.model_copy(
            update={"condition_noise": bound, "batch_size": 200}), 1000)[3]
        for bound in (0.0, 0.5)
    )  # fmt: skip
    assert torch.equal(clean[0], noisy[0])
    deviations = (noisy[2] - clean[2]).std((1, 2, 3))
    # uniform up to 0.5: a mean of 0.25 whose standard error over 200 samples is 0.01
    assert deviations.mean() == pytest.approx(0.25, abs=0.05)
    assert deviations.max() < 0.6
    assert deviations.min() < 0.02


def test_a_step_descends_the_weighed_error_of_v(trainer):
    trainer.prepare(trainer.spec.steps)
    latents, noise, low, timestep = batch = trainer.batches()[0]
    alpha_bar = trainer.scheduler.alphas_cumprod[timestep]
    a, s = (part[:, None, None, None] for part in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt()))
    with torch.no_grad():
        # 32 px tiles and a factor of 4: latents are as wide as the crop, so it is concatenated as it is
        predicted = trainer.unet(torch.cat([a * latents + s * noise, low], 1), timestep).sample
    error = (predicted - (a * noise - s * latents)).square().mean((1, 2, 3))
    snr = alpha_bar / (1 - alpha_bar)
    gamma = trainer.spec.min_snr_gamma
    assert snr.min() < gamma < snr.max()  # of both kinds
    expected = (snr.clamp(max=gamma) / (snr + 1) * error).mean()  # min-SNR of v (Hang et al. 2023)
    before = trainer.unet.conv_in.weight.clone()
    assert float(trainer.train_step(batch)["L_r"]) == pytest.approx(float(expected), rel=1e-4)
    assert not torch.equal(trainer.unet.conv_in.weight, before)


def test_trained_loaded_and_enlarged(trained, tiny_autoencoder):
    found, upscaler = load_baseline(trained)
    assert upscaler.factor == 4
    assert {"steps": 4, "tiles_seen": 16, "pairs": 32, "patches_left_out": 18}.items() <= found.notes.items()
    assert found.notes["seconds"] > 0
    copied = load_autoencoder(found.folder / "autoencoder").state_dict()  # the model is whole
    assert all(
        torch.equal(copied[key], value) for key, value in load_autoencoder(tiny_autoencoder).state_dict().items()
    )
    assert str(tiny_autoencoder) not in (found.folder / "autoencoder/config.json").read_text()
    assert (trained.parent / "sheets/00000004.png").is_file()
    image = tissue(8, 8, 1)
    once, again, other, index = (upscaler.enlarge(image, *key) for key in ((1, 0), (1, 0), (2, 0), (1, 1)))
    assert once.shape == (32, 32, 3)
    assert once.dtype == np.uint8
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)
    assert not np.array_equal(once, index)
    assert not np.array_equal(once, upscaler.enlarge(255 - image, 1, 0))  # the image has a say


@pytest.mark.parametrize("size", [(5, 7), (8, 8), (13, 20), (1, 30)])
def test_images_of_any_size_become_4_times_as_large(trained, size):
    _, upscaler = load_baseline(trained)
    assert upscaler.enlarge(tissue(size[1], size[0]), 0, 0).shape == (4 * size[0], 4 * size[1], 3)


def test_one_window_is_plain_sampling(trained):
    _, upscaler = load_baseline(trained)
    condition = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = upscaler.draw(condition, 3, 7)
    sampler = upscaler._sampler()
    from pathup import draws

    latents = draws.normal((4, 8, 8), 3, "enlarge", 7)[None]
    with torch.no_grad():
        for timestep in sampler.timesteps:
            predicted = upscaler._unet(torch.cat([latents, condition[None]], 1), timestep).sample
            latents = sampler.step(predicted, timestep, latents).prev_sample
        pixels = upscaler._vae.decode(latents / upscaler._vae.config.scaling_factor).sample[0]
    assert torch.allclose(found, latents[0], atol=1e-4)  # weights times values over weights: rounding
    # 8 low-resolution pixels a side, as the latent here, so that they are given as they are
    image = ((condition + 1) * 127.5).round().byte()
    expected = upscaler.draw(image.float() / 127.5 - 1, 3, 7)
    pixels = upscaler._vae.decode(expected[None] / upscaler._vae.config.scaling_factor).sample[0]
    reference = (pixels / 2 + 0.5).clamp(0, 1) * 255
    enlarged = torch.from_numpy(upscaler.enlarge(image.permute(1, 2, 0).numpy(), 3, 7)).permute(2, 0, 1)
    assert (enlarged.float() - reference).abs().max() <= 0.51  # rounded to whole grey levels


class Pointwise(torch.nn.Module):
    """A 'U-Net' that sees one position alone: windows can make no difference to it."""

    def forward(self, inputs: torch.Tensor, timestep: torch.Tensor, return_dict: bool = True) -> tuple[torch.Tensor]:
        return (torch.tanh(inputs[:, :4] + inputs[:, 4:5]),)


def test_windows_of_a_large_image_are_fused_without_a_trace(trained):
    _, upscaler = load_baseline(trained)
    upscaler._unet = Pointwise()
    condition = torch.rand(3, 19, 26, generator=torch.Generator().manual_seed(1)) * 2 - 1  # no multiple of a window
    found = upscaler.draw(condition, 3, 7)
    upscaler._side = 100
    from pathup import draws

    sampler, latents = upscaler._sampler(), draws.normal((4, 19, 26), 3, "enlarge", 7)[None]
    for timestep in sampler.timesteps:
        predicted = Pointwise()(torch.cat([latents, condition[None]], 1), timestep)[0]
        latents = sampler.step(predicted, timestep, latents).prev_sample
    assert torch.allclose(found, latents[0], atol=1e-4)


@pytest.mark.parametrize("blocks", [[8, 16], [8, 8, 8, 16]])
def test_an_autoencoder_of_another_factor_fits(tmp_path, tiny_tiles, recipe, blocks):
    from pathup.model.components import build_autoencoder

    values = recipe.model_dump(mode="json")
    values["autoencoder"] |= {"block_channels": blocks}  # factors 2 and 8, where the recipe's has 4
    build_autoencoder(recipe_from_dict(values).autoencoder).save_pretrained(tmp_path / "vae")
    asked = request(tiny_tiles, tmp_path / "run", recipe, tmp_path / "vae", changes={"steps": 1})
    _, upscaler = load_baseline(train_baseline("ldm-sr", asked))
    assert upscaler.enlarge(tissue(11, 9), 0, 0).shape == (36, 44, 3)  # at a factor of 8, half a position is cut off


def test_a_run_broken_off_and_resumed_ends_bit_for_bit_like_an_unbroken_one(
    tmp_path, tiny_tiles, tiny_autoencoder, recipe, trained, monkeypatch
):
    asked = request(tiny_tiles, tmp_path / "run", recipe, tiny_autoencoder)
    step, taken = LDMSRTrainer.train_step, []

    def broken(self, batch):
        if self.step == 3 and 3 not in taken:  # a step after the checkpoint of step 2
            taken.append(3)
            raise KeyboardInterrupt
        taken.append(self.step)
        return step(self, batch)

    monkeypatch.setattr(LDMSRTrainer, "train_step", broken)
    with pytest.raises(KeyboardInterrupt):
        train_baseline("ldm-sr", asked)
    model = train_baseline("ldm-sr", replace(asked, resume=True))
    assert taken == [0, 1, 2, 3, 2, 3]  # from the checkpoint, not from the start
    whole, resumed = (newest_checkpoint(run / "checkpoints") for run in (trained.parent, tmp_path / "run"))
    assert whole is not None and resumed is not None
    names = sorted(path.name for path in whole.folder.glob("*.safetensors"))
    assert names == ["unet.safetensors", "unet_average.safetensors", "unet_optimizer.safetensors"]
    for name in names:
        a, b = load_file(whole.folder / name), load_file(resumed.folder / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name
    losses = [(run / "losses.jsonl").read_text() for run in (trained.parent, tmp_path / "run")]
    assert losses[0] == losses[1]
    assert len(losses[0].splitlines()) == 4
    assert (model / "unet.safetensors").read_bytes() == (trained / "unet.safetensors").read_bytes()


def test_another_runs_folder_is_refused(trained, tiny_tiles, tiny_autoencoder, recipe):
    asked = request(tiny_tiles, trained.parent, recipe, tiny_autoencoder, changes={"seed": 3}, resume=True)
    with pytest.raises(PathUpError, match="holds another run"):
        train_baseline("ldm-sr", asked)
    with pytest.raises(PathUpError, match="add --resume"):
        train_baseline("ldm-sr", request(tiny_tiles, trained.parent, recipe, tiny_autoencoder))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scheduler": "dimm"}, "did you mean 'ddim'"),
        ({"sampling_steps": 1001}, "1001 steps were asked for"),
        ({"block_channels": [16] * 5, "attention": [False] * 5}, "are 8 latent positions wide .* halves them 4 times"),
        ({"norm_groups": 7}, "norm_groups 7 does not divide 16"),
        ({"head_channels": 12}, "head_channels 12 does not divide 32"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(tmp_path, tiny_tiles, tiny_autoencoder, recipe, changes, sentence):
    with pytest.raises(PathUpError, match=sentence):
        train_baseline("ldm-sr", request(tiny_tiles, tmp_path / "run", recipe, tiny_autoencoder, changes=changes))
    assert not (tmp_path / "run").exists()


def test_levels_or_autoencoders_that_do_not_fit_are_refused(tmp_path, tiny_tiles, tiny_autoencoder, recipe):
    one = tiny(levels=[{"name": "patch", "word": "patch", "field_px": 32}])
    (tmp_path / "patches/train").mkdir(parents=True)
    (tmp_path / "patches/train/patch").symlink_to(tiny_tiles / "train/patch")
    rows = [line for line in (tiny_tiles / "train/metadata.jsonl").read_text().splitlines() if '"patch"' in line]
    assert json.loads(rows[0])["level"] == "patch"
    (tmp_path / "patches/train/metadata.jsonl").write_text("\n".join(rows) + "\n")
    with pytest.raises(PathUpError, match="super-resolution is by 4"):
        train_baseline("ldm-sr", request(tmp_path / "patches", tmp_path / "run", one, tiny_autoencoder))
    with pytest.raises(PathUpError, match="is not a folder"):
        train_baseline("ldm-sr", request(tiny_tiles, tmp_path / "run", recipe, Path("/nowhere/at/all")))
    with pytest.raises(PathUpError, match="--autoencoder was needed"):
        train_baseline("ldm-sr", replace(request(tiny_tiles, tmp_path / "run", recipe, tmp_path), autoencoder=None))
    assert not (tmp_path / "run").exists()


def test_damaged_weights_are_told(tmp_path, trained):
    import shutil

    shutil.copytree(trained, tmp_path / "model")
    tensors = load_file(trained / "unet.safetensors")
    tensors.pop("conv_in.weight")
    save_file(tensors, tmp_path / "model/unet.safetensors")
    with pytest.raises(PathUpError, match=r"are not of the U-Net that its recipe.yaml says"):
        load_baseline(tmp_path / "model")
    (tmp_path / "model/unet.safetensors").write_bytes(b"nothing")
    with pytest.raises(PathUpError, match=r"unet.safetensors cannot be read"):
        ldm_sr.load(read_model(tmp_path / "model"), torch.device("cpu"))
