"""StyleGAN2: its penalties by hand, its adaptive augmentation at work, exact resumption, tiles by seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pathup import PathUpError
from pathup.baselines.stylegan2 import StyleGAN2Trainer, path_lengths, r1_penalty
from pathup.baselines.stylegan2_networks import build_discriminator, build_generator
from pathup.baselines.systems import TrainRequest, load_baseline, train_baseline
from pathup.recipes import Recipe, recipe_with
from pathup.tiles.dataset import TileFolder


def request(tiles: Path, output: Path, recipe: Recipe, **changes: Any) -> TrainRequest:
    own = {f"baselines.stylegan2.{name}": value for name, value in changes.items()}
    return TrainRequest(tiles=tiles, output=output, recipe=recipe, changes=own, cpu=True)


@pytest.fixture(scope="module")
def trained(tiny_tiles: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_baseline("stylegan2", request(tiny_tiles, tmp_path_factory.mktemp("gan") / "run", recipe))


def test_r1_is_the_squared_gradient_of_each_image_by_itself(recipe):
    judge = build_discriminator(recipe.baselines.stylegan2.model_copy(update={"minibatch_std": 1}), 4).double()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    group, squares = torch.tensor([0, 3, 1]), []
    for number in range(3):  # by differences, along a few directions and against the gradient's product with them
        own = images[number : number + 1].clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(judge(own, group[number : number + 1]).sum(), own)
        squares.append(float(gradient.square().sum()))
        for seed in range(3):
            way = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            with torch.no_grad():
                ahead, behind = (judge(own + sign * 1e-6 * way, group[number : number + 1]) for sign in (1, -1))
            slope = float(((ahead - behind) / 2e-6).sum())
            assert slope == pytest.approx(float((gradient * way).sum()), rel=1e-3, abs=1e-7)
    assert float(r1_penalty(judge, images, group).detach()) == pytest.approx(np.mean(squares), rel=1e-6)


def test_r1_descends_to_a_flatter_discriminator(recipe):
    judge = build_discriminator(recipe.baselines.stylegan2, 4)
    images, group = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-3)
    found = []
    for _ in range(6):
        penalty = r1_penalty(judge, images, group)
        optimizer.zero_grad()
        penalty.backward()  # through the gradient of the gradient
        optimizer.step()
        found.append(float(penalty.detach()))
    assert found[-1] < 0.8 * found[0]


def test_the_path_length_of_a_linear_generator_is_that_of_the_direction_through_its_matrix():
    torch.manual_seed(0)
    matrix = torch.randn(3 * 4 * 4, 5, dtype=torch.float64)
    w = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    images = (w.sum(1) @ matrix.T).view(2, 3, 4, 4)  # each of the 3 layers moves it alike
    wanted = [float((matrix.T @ y[number].flatten() / 4).norm()) for number in range(2)]  # 4: the root of 16 pixels
    assert path_lengths(images, w, y).tolist() == pytest.approx(wanted)


def test_the_path_length_of_the_generator_is_that_of_its_jacobian(recipe):
    maker = build_generator(recipe.baselines.stylegan2, 4).double()
    w = torch.randn(1, maker.layers, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w.requires_grad_(True)
    noise = torch.zeros(1, maker.noise_values, dtype=torch.float64)
    y = torch.randn(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    jacobian = torch.autograd.functional.jacobian(lambda own: (maker(own, noise) * y).sum() / 32, w)
    wanted = float(jacobian[0].square().sum(1).mean().sqrt())
    assert float(path_lengths(maker(w, noise), w, y)[0].detach()) == pytest.approx(wanted, rel=1e-6)


def test_overfitting_raises_the_probability_of_augmentation(tiny_tiles, recipe, tmp_path):
    """Planted: the generator may not learn, so the discriminator soon tells the few real tiles from its images."""
    changed = recipe_with(
        recipe,
        {"baselines.stylegan2.augmentation_tiles": 100, "baselines.stylegan2.learning_rate": 0.01},
        source="test",
    )
    tiles = TileFolder.load(tiny_tiles, "train", changed)
    probabilities = []
    for overfits in (True, False):
        trainer = StyleGAN2Trainer(request(tiny_tiles, tmp_path, changed), tiles)
        for step in range(24):
            trainer.step = step
            real, counted = trainer.batches()[step]
            if overfits:
                trainer._discriminator_step(real, trainer._known[counted])
            else:  # a discriminator that has learnt nothing is sure of nothing
                verdicts = torch.tensor([1.0, -1.0, 1.0, -1.0])
                trainer.state["augmentation"] = trainer.control.after(trainer.state["augmentation"], step, verdicts)
        probabilities.append(trainer.probability)
    assert probabilities[0] > 0.3  # at most 24 x 4 / 100
    assert probabilities[1] == 0.0


def test_without_augmentation_its_probability_stays_0_whatever_the_verdicts(tiny_tiles, recipe, tmp_path):
    model = train_baseline("stylegan2", request(tiny_tiles, tmp_path / "run", recipe, augmentation="none"))
    found, _ = load_baseline(model)
    assert found.notes["augmentation_probability"] == 0


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tiny_tiles, recipe, tmp_path, trained, monkeypatch):
    class StoppedError(Exception):
        pass

    step = StyleGAN2Trainer.train_step

    def until_5(self: StyleGAN2Trainer, batch: Any) -> Any:
        if self.step == 5:
            raise StoppedError
        return step(self, batch)

    asked = request(tiny_tiles, tmp_path / "run", recipe)
    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        patched.setattr(StyleGAN2Trainer, "train_step", until_5)
        train_baseline("stylegan2", asked)  # the newest checkpoint is of step 4
    resumed = train_baseline("stylegan2", TrainRequest(**{**asked.__dict__, "resume": True}))
    for name in ("model/generator", "checkpoints/step-00000006/discriminator", "checkpoints/step-00000006/state"):
        own, other = (load_file(run.parent / f"{name}.safetensors") for run in (resumed, trained))
        assert own.keys() == other.keys()
        assert all(torch.equal(own[key], other[key]) for key in own), name


def test_training_moves_every_weight_of_the_generator_and_of_the_average(trained, recipe):
    before = build_generator(recipe.baselines.stylegan2, 4).state_dict()
    after = load_file(trained / "generator.safetensors")
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert still == []


def test_a_tile_is_of_its_seed_class_level_and_index_whatever_is_drawn_with_it(trained):
    found, maker = load_baseline(trained)
    assert found.name == "stylegan2"
    four = maker.draw("A", "patch", range(4), 0)
    assert four.shape == (4, 32, 32, 3)
    assert four.dtype == np.uint8
    alone = maker.draw("A", "patch", range(2, 3), 0)
    assert np.abs(four[2].astype(int) - alone[0].astype(int)).max() <= 1  # sums of a batch are rounded in another order
    for other in (("B", "patch", 0), ("A", "overview", 0), ("A", "patch", 1)):
        label, level, seed = other
        assert not np.array_equal(maker.draw(label, level, range(2, 3), seed)[0], alone[0])


def test_truncation_brings_tiles_nearer_to_each_other(trained, recipe):
    maker = build_generator(recipe.baselines.stylegan2, 4)
    maker.load_state_dict(load_file(trained / "generator.safetensors"))
    z, group = torch.randn(32, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(32, dtype=torch.long)
    wide, near = (maker.styles(z, group, truncation=psi)[:, 0].var(0).mean() for psi in (1.0, 0.5))
    assert float(near.detach()) == pytest.approx(0.25 * float(wide.detach()), rel=1e-4)


def test_channels_that_do_not_make_the_tile_are_refused(tiny_tiles, recipe, tmp_path):
    with pytest.raises(PathUpError, match=r"has 3 entries, which makes images of 16 px, but tiles are 32 px"):
        train_baseline("stylegan2", request(tiny_tiles, tmp_path / "run", recipe, channels=[8, 8, 8]))
    assert not (tmp_path / "run").exists()
