"""Adaptive discriminator augmentation: what it changes, and how its probability is steered."""

from __future__ import annotations

import pytest
import torch

from pathup.baselines import augmentation
from pathup.baselines.augmentation import AugmentationControl, augmented


def image(count: int = 4, side: int = 32) -> torch.Tensor:
    """Smooth colours in [-1, 1], no two images alike."""
    waves = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(waves, size=side, mode="bicubic").clamp(-1, 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nothing_changes_at_probability_0_and_nearly_every_image_at_1():
    given = image(16)
    assert torch.equal(augmented(given, 0.0, seeded()), given)
    changed = augmented(given, 1.0, seeded())
    assert changed.shape == given.shape
    assert bool(((changed - given).abs().mean((1, 2, 3)) > 0.05).all())


def test_more_images_are_changed_at_a_higher_probability():
    given = image(200, 16)
    changes = [(augmented(given, p, seeded()) - given).abs().amax((1, 2, 3)) for p in (0.05, 0.2)]
    shares = [float((change > 1e-4).float().mean()) for change in changes]
    # some 12 ways of changing an image, each with p: 1 - (1 - p)^12 is 0.46 and 0.93; flips by nothing count as none
    assert 0.25 < shares[0] < 0.6 < shares[1] < 0.98


def test_the_same_generator_gives_the_same_change_and_moves_on_by_as_much_whatever_the_probability():
    given = image()
    assert torch.equal(augmented(given, 0.5, seeded(3)), augmented(given, 0.5, seeded(3)))
    left = []
    for probability in (0.0, 0.5, 1.0):
        generator = seeded(3)
        augmented(given, probability, generator)
        left.append(generator.get_state())
    assert torch.equal(left[0], left[1])
    assert torch.equal(left[1], left[2])


def test_geometry_alone_moves_pixels_and_makes_no_new_colours(monkeypatch):
    monkeypatch.setattr(augmentation, "_colour", lambda count, p, generator: torch.eye(4).double().repeat(count, 1, 1))
    given = image(8)
    moved = augmented(given, 1.0, seeded())
    for own, was in zip(moved, given, strict=True):
        for channel in range(3):  # interpolation stays between neighbours; mirrored rims show what is there
            assert own[channel].min() >= was[channel].min() - 1e-5
            assert own[channel].max() <= was[channel].max() + 1e-5


def test_colour_alone_leaves_every_pixel_where_it_is(monkeypatch):
    monkeypatch.setattr(augmentation, "_geometry", lambda count, side, p, g: torch.eye(3).double().repeat(count, 1, 1))
    given = image(8)
    coloured = augmented(given, 1.0, seeded())
    for own, was in zip(coloured, given, strict=True):  # an affine map of RGB explains all of it
        pixels = torch.cat([was.flatten(1).T, torch.ones(32 * 32, 1)], 1).double()
        wanted = own.flatten(1).T.double()
        map_ = torch.linalg.lstsq(pixels, wanted).solution
        assert torch.allclose(pixels @ map_, wanted, atol=1e-4)
        assert not torch.allclose(own, was, atol=0.02)


def test_turning_hues_leaves_greys_grey_and_lengths_as_they_are():
    maps = augmentation._about_grey(torch.tensor([0.3, 2.0, -1.0], dtype=torch.float64))
    grey = torch.tensor([0.4, 0.4, 0.4, 1.0], dtype=torch.float64)
    assert torch.allclose(maps @ grey, grey.expand(3, 4))
    inner = maps[:, :3, :3]
    assert torch.allclose(inner @ inner.transpose(1, 2), torch.eye(3, dtype=torch.float64).expand(3, 3, 3))
    assert torch.allclose(torch.linalg.det(inner), torch.ones(3, dtype=torch.float64))


def test_gradients_go_through_to_the_images():
    given = image().requires_grad_(True)
    augmented(given, 0.7, seeded()).square().sum().backward()
    assert given.grad is not None
    assert bool((given.grad.abs().sum((1, 2, 3)) > 0).all())


def test_the_probability_rises_at_the_set_rate_while_verdicts_are_sure_and_falls_while_they_are_not():
    control, state = AugmentationControl(target=0.6, tiles=400), AugmentationControl.begin()
    sure, unsure = torch.full((10,), 3.0), torch.tensor([1.0, -1.0] * 5)
    for step in range(8):
        state = control.after(state, step, sure)
    assert float(state[0]) == pytest.approx(80 / 400)  # 80 tiles seen
    for step in range(8, 12):
        state = control.after(state, step, unsure)
    assert float(state[0]) == pytest.approx(40 / 400)
    for step in range(12, 40):
        state = control.after(state, step, unsure)
    assert float(state[0]) == 0.0  # never below
    for step in range(40, 400):
        state = control.after(state, step, sure)
    assert float(state[0]) == 1.0  # never above


def test_between_two_adjustments_verdicts_add_up():
    control, state = AugmentationControl(target=0.6, tiles=100), AugmentationControl.begin()
    for step, verdicts in enumerate([[1.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, 1.0]]):  # r_t = 6/8 > 0.6
        state = control.after(state, step, torch.tensor(verdicts))
    assert float(state[0]) == pytest.approx(8 / 100)
