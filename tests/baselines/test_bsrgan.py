"""BSRGAN end to end on made tiles: an unbroken run against a resumed one, what it writes, and published weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from spandrel import ModelLoader

from pathup import draws
from pathup.baselines import bsrgan
from pathup.baselines.bsrgan import BSRGANTrainer, BSRGANUpscaler, DegradedCrops, import_published
from pathup.baselines.generating import DrawRequest, draw_from_baseline
from pathup.baselines.model_folder import read_model
from pathup.baselines.rrdb import RRDBNet
from pathup.baselines.shuffled_degradations import degraded
from pathup.baselines.systems import TrainRequest, load_baseline, train_baseline
from pathup.errors import PathUpError
from pathup.recipes import Recipe
from pathup.slides.images import read_image
from pathup.tiles.dataset import TileFolder
from pathup.training import tissue_features
from pathup.training.checkpoints import newest_checkpoint
from pathup.training.crops import Crops


def trained(
    tiles: Path, output: Path, recipe: Recipe, *, resume: bool = False, workers: int = 0, **own: object
) -> Path:
    changes = {f"baselines.bsrgan.{name}": value for name, value in own.items()}
    request = TrainRequest(
        tiles=tiles, output=output, recipe=recipe, changes=changes, resume=resume, cpu=True, workers=workers
    )
    return train_baseline("bsrgan", request)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def published(growth: int = 32) -> RRDBNet:
    """Stands for the published network: of 1 block and 8 channels instead of 23 and 64."""
    torch.manual_seed(1)
    return RRDBNet(channels=8, growth=growth, blocks=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_tiles, recipe) -> Path:
    """An unbroken run of 4 steps, the last two with the discriminator."""
    run = tmp_path_factory.mktemp("bsrgan") / "run"
    assert trained(tiny_tiles, run, recipe) == run / "model"
    return run


def losses(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]


# -- training -------------------------------------------------------------------------------------------------------


def test_pairs_are_of_a_crop_and_its_degraded_copy_by_seed_and_position_alone(tiny_tiles, recipe):
    tiles = TileFolder.load(tiny_tiles, "train", recipe).only("patch")
    pairs = DegradedCrops(tiles, seed=3, batch_size=4, crop_px=24)
    low, high = pairs[5]
    assert low.shape == (4, 3, 6, 6) and high.shape == (4, 3, 24, 24)
    assert torch.equal(high, Crops(tiles, seed=3, batch_size=4, crop_px=24)[5])
    pixels = ((high[2] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    expected = degraded(pixels, draws.numpy_generator(3, "degraded", 5 * 4 + 2))
    np.testing.assert_array_equal(((low[2] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), expected)
    halves = DegradedCrops(tiles, seed=3, batch_size=2, crop_px=24)  # another batch size: the same stream
    for part in (0, 1):
        assert torch.equal(torch.cat([halves[10][part], halves[11][part]]), (low, high)[part])
    other_low, other_high = DegradedCrops(tiles, seed=4, batch_size=4, crop_px=24)[5]
    assert not torch.equal(other_low, low) and not torch.equal(other_high, high)


def test_a_run_that_stops_and_goes_on_ends_bit_for_bit_like_an_unbroken_one(tmp_path, tiny_tiles, recipe, whole):
    broken = tmp_path / "broken"
    for steps in (1, 3, 4):  # before, within and at the end of the adversarial part, which begins at 2
        trained(tiny_tiles, broken, recipe, resume=steps > 1, steps=steps, workers=1 if steps == 3 else 0)
    one, other = (newest_checkpoint(run / "checkpoints") for run in (whole, broken))
    assert one is not None and other is not None and one.step == other.step == 4
    names = sorted(path.name for path in one.folder.glob("*.safetensors"))
    assert names == [
        f"{name}.safetensors"
        for name in (
            "discriminator",
            "discriminator_optimizer",
            "generator",
            "generator_average",
            "generator_optimizer",
        )
    ]
    places = [(one.folder / name, other.folder / name) for name in names]
    places += [
        (run[0] / "model/network.safetensors", run[1] / "model/network.safetensors") for run in [(whole, broken)]
    ]
    for a, b in places:
        tensors, again = load_file(a), load_file(b)
        assert tensors.keys() == again.keys()
        assert all(torch.equal(tensors[key], again[key]) for key in tensors), a.name
    assert losses(whole) == losses(broken)


def test_a_resumed_run_takes_only_the_steps_that_are_left(tmp_path, tiny_tiles, recipe, monkeypatch):
    trained(tiny_tiles, tmp_path / "run", recipe, steps=3)
    taken, step = [], BSRGANTrainer.train_step
    monkeypatch.setattr(BSRGANTrainer, "train_step", lambda self, b: taken.append(self.step) or step(self, b))
    features = []
    monkeypatch.setattr(tissue_features, "train_tissue_features", lambda *a, **k: features.append(a))
    trained(tiny_tiles, tmp_path / "run", recipe, resume=True, steps=5)
    assert taken == [3, 4]
    assert not features, "the perceptual term's classifier is read again"


def test_losses_join_when_the_recipe_says(whole):
    names = [set(line) - {"step"} for line in losses(whole)]
    assert names[0] == names[1] == {"pixel", "psnr"}
    assert names[2] == names[3] == {"pixel", "psnr", "perceptual", "adversarial", "discriminator"}


def test_what_is_not_wanted_is_not_made(tmp_path, tiny_tiles, recipe):
    trained(tiny_tiles, tmp_path / "run", recipe, steps=3, perceptual_weight=0, adversarial_weight=0)
    assert not (tmp_path / "run/tissue_features.safetensors").exists()
    assert {name for line in losses(tmp_path / "run") for name in line} == {"step", "pixel", "psnr"}
    trained(tiny_tiles, tmp_path / "short", recipe, steps=2)  # the perceptual term would join at step 2
    assert not (tmp_path / "short/tissue_features.safetensors").exists()


def test_the_network_learns_one_batch(tmp_path, tiny_tiles, recipe, monkeypatch):
    # the same batch again and again: 60 steps bring the error well below that of no training
    fixed = DegradedCrops.__getitem__
    monkeypatch.setattr(DegradedCrops, "__getitem__", lambda self, step: fixed(self, 0))
    trained(
        tiny_tiles,
        tmp_path / "run",
        recipe,
        steps=60,
        adversarial_start=60,
        learning_rate=0.005,
        checkpoint_every=60,
        sample_every=60,
    )
    errors = [line["pixel"] for line in losses(tmp_path / "run")]
    assert np.mean(errors[-5:]) < 0.3 * errors[0]


def test_the_sheet_shows_low_resolution_bicubic_ours_and_the_original(whole):
    with Image.open(whole / "sheets/00000004.png") as sheet:
        pixels = np.asarray(sheet)
    side, gap, head = 32, 4, 14  # px: a crop, what lies between, and the titles
    assert pixels.shape == (4 * (side + gap + head) - gap, 4 * (side + gap) - gap, 3)
    rows = [pixels[row * (side + gap + head) + head :][:side].astype(int) for row in range(4)]
    blocks = rows[0][:, :side].reshape(8, 4, 8, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    for a in range(4):
        for b in range(a):
            assert (rows[a] != rows[b]).any()


def test_only_tiles_of_the_highest_resolution_are_trained_on(whole, tiny_tiles, recipe):
    patches = TileFolder.load(tiny_tiles, "train", recipe).only("patch")
    assert read_model(whole).notes["tiles"] == patches.fingerprint()


@pytest.mark.parametrize("crop", [64, 28])
def test_a_crop_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, tiny_tiles, recipe, crop):
    with pytest.raises(PathUpError, match=f"crop_px is {crop}, but a multiple of 8 .* 32 px"):
        trained(tiny_tiles, tmp_path / "run", recipe, crop_px=crop)
    assert not (tmp_path / "run").exists()


def test_another_runs_folder_is_refused(tmp_path, tiny_tiles, recipe, whole):
    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(PathUpError, match="holds another run"):
        trained(tiny_tiles, tmp_path / "run", recipe, resume=True, growth=8)
    with pytest.raises(PathUpError, match="add --resume"):
        trained(tiny_tiles, tmp_path / "run", recipe)


# -- the model ------------------------------------------------------------------------------------------------------


def test_a_trained_model_loads_with_its_averaged_weights_and_enlarges_images_of_any_shape(whole):
    found, upscaler = load_baseline(whole)
    assert isinstance(upscaler, BSRGANUpscaler) and upscaler.factor == 4
    assert found.name == "bsrgan" and found.notes["steps"] == 4 and found.notes["tiles_seen"] == 16
    newest = newest_checkpoint(whole / "checkpoints")
    assert newest is not None
    average = newest.tensors("generator_average")
    assert all(torch.equal(value, average[name]) for name, value in upscaler.network.state_dict().items())
    for size in ((8, 8), (9, 31), (40, 17)):
        pixels = picture(*size)
        enlarged = upscaler.enlarge(pixels, seed=1, index=2)
        assert enlarged.shape == (4 * size[0], 4 * size[1], 3) and enlarged.dtype == np.uint8
        np.testing.assert_array_equal(enlarged, upscaler.enlarge(pixels, seed=3, index=4))
    with pytest.raises(PathUpError, match="30 x 7 px is to be enlarged, but at least 8 px a side"):
        upscaler.enlarge(picture(7, 30), 0, 0)


def test_a_folder_of_images_is_enlarged_by_the_command(tmp_path, whole):
    (tmp_path / "small").mkdir()
    Image.fromarray(picture(12, 20)).save(tmp_path / "small/one.png")
    request = DrawRequest(model=whole, out=tmp_path / "large", images=tmp_path / "small", device="cpu")
    report = draw_from_baseline(request)
    assert [path.name for path in report.files] == ["one.png"]
    _, upscaler = load_baseline(whole)
    np.testing.assert_array_equal(read_image(report.files[0]), upscaler.enlarge(picture(12, 20), 0, 0))


def test_tiles_of_a_large_image_make_the_whole_image(monkeypatch):
    network = published(growth=4)
    assert network.reach_px <= bsrgan.MARGIN_PX  # 19 px, of 1 block
    upscaler, pixels = BSRGANUpscaler(network), picture(101, 150)
    monkeypatch.setattr(bsrgan, "TILE_PX", 1000)
    whole = upscaler.enlarge(pixels, 0, 0).astype(int)
    monkeypatch.setattr(bsrgan, "TILE_PX", 2 * bsrgan.MARGIN_PX + 16)
    tiled = upscaler.enlarge(pixels, 0, 0).astype(int)
    assert np.abs(whole - tiled).max() <= 1  # convolutions of other sizes may add up in another order
    assert (whole != tiled).mean() < 0.001


def test_memory_is_bounded_by_the_tile_and_not_by_the_image(monkeypatch):
    seen = []
    network = published(growth=4)
    network.conv_first.register_forward_hook(lambda layer, given, result: seen.append(tuple(given[0].shape[-2:])))
    monkeypatch.setattr(bsrgan, "TILE_PX", 80)
    BSRGANUpscaler(network).enlarge(picture(90, 150), 0, 0)
    assert len(seen) > 1 and set(seen) == {(80, 80)}


@pytest.mark.parametrize("damage", ["another network", "no sizes", "truncated"])
def test_a_damaged_model_is_one_sentence(tmp_path, whole, damage):
    folder = tmp_path / "model"
    shutil.copytree(whole / "model", folder)
    if damage == "another network":
        save_file(published().state_dict(), folder / "network.safetensors")
    elif damage == "no sizes":
        notes = json.loads((folder / "baseline.json").read_text())
        del notes["network"]
        (folder / "baseline.json").write_text(json.dumps(notes))
    else:
        data = (folder / "network.safetensors").read_bytes()
        (folder / "network.safetensors").write_bytes(data[:100])
    with pytest.raises(PathUpError, match=r"train or import BSRGAN again|cannot be read") as caught:
        load_baseline(folder)
    assert "\n" not in str(caught.value)


# -- published weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_made_file_that_stands_for_the_published_weights_is_imported_and_enlarges_as_in_spandrel(
    tmp_path, recipe, suffix
):
    weights = tmp_path / f"BSRGAN{suffix}"
    state = published().state_dict()
    torch.save(state, weights) if suffix == ".pth" else save_file(state, weights)
    folder = import_published(weights, tmp_path / "model", recipe)
    assert folder == tmp_path / "model"
    assert not list(folder.glob("*.pth"))
    found, upscaler = load_baseline(folder)
    assert found.notes["published"]["file"] == weights.name
    assert found.notes["network"] == {"channels": 8, "growth": 32, "blocks": 1}
    pixels = picture(20, 33)
    theirs = ModelLoader("cpu").load_from_file(weights)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)[0].permute(1, 2, 0)
    enlarged = upscaler.enlarge(pixels, 0, 0)
    assert np.abs(enlarged - (expected.clamp(0, 1) * 255).round().numpy()).max() <= 1  # kernels may round otherwise
    assert np.ptp(enlarged) > 20


def test_a_file_that_training_wrote_loads_in_spandrel(tmp_path, tiny_tiles, recipe):
    model = trained(tiny_tiles, tmp_path / "run", recipe, steps=1, growth=32)  # the growth that spandrel takes
    theirs = ModelLoader("cpu").load_from_file(model / "network.safetensors")
    assert (theirs.architecture.id, theirs.scale) == ("ESRGAN", 4)
    _, upscaler = load_baseline(model)
    pixels = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(theirs.model(pixels), upscaler.network(pixels), atol=1e-5)
    assert import_published(model / "network.safetensors", tmp_path / "again", recipe).is_dir()


def test_a_wrong_file_and_a_folder_in_use_leave_everything_as_it_was(tmp_path, recipe):
    (tmp_path / "wrong.pth").write_text("no model")
    with pytest.raises(PathUpError, match="holds no image model"):
        import_published(tmp_path / "wrong.pth", tmp_path / "model", recipe)
    assert not (tmp_path / "model").exists()
    save_file(published().state_dict(), tmp_path / "good.safetensors")
    (tmp_path / "model/inner").mkdir(parents=True)
    with pytest.raises(PathUpError, match="is there already"):
        import_published(tmp_path / "good.safetensors", tmp_path / "model", recipe)
    assert (tmp_path / "model/inner").is_dir()
