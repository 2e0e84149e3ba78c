from __future__ import annotations

import pytest
import torch

from pathup.training.tissue_features import (
    GREY_DEVIATION,
    TissueFeatures,
    normalised_grey,
    perceptual_loss,
    train_tissue_features,
)

CPU = torch.device("cpu")


def crops(step: int, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Two kinds of grain of one strength, speckle and stripes, in any colour, brightness and contrast."""
    draw = torch.Generator().manual_seed(step)
    group = torch.arange(count) % 2
    speckle = torch.randn(count, 1, 32, 32, generator=draw)
    stripes = torch.randn(count, 1, 1, 32, generator=draw).expand(-1, -1, 32, -1)
    grain = torch.where(group[:, None, None, None] == 1, stripes, speckle)
    colour = torch.rand(count, 3, 1, 1, generator=draw) - 0.5
    strength = 0.1 + 0.1 * torch.rand(count, 1, 1, 1, generator=draw)
    return colour + strength * grain, group


@pytest.fixture(scope="module")
def network() -> TissueFeatures:
    return train_tissue_features(crops, 2, steps=80, seed=0, device=CPU)


def test_stain_brightness_and_contrast_do_not_count():
    pixels, _ = crops(0)
    grey = normalised_grey(pixels, pixels)
    assert grey.mean((1, 2, 3)).abs().max() < 1e-5
    assert torch.allclose(grey.std((2, 3)), torch.tensor(GREY_DEVIATION), atol=1e-4)
    assert torch.allclose(normalised_grey(2 * pixels + 0.2, 2 * pixels + 0.2), grey, atol=1e-4)
    # a reconstruction is normalised like its original, so that one that is too faint stays so
    assert torch.allclose(normalised_grey(0.5 * pixels, pixels).std((2, 3)), 0.5 * grey.std((2, 3)), atol=1e-4)
    blank = torch.full((1, 3, 32, 32), 0.9)
    assert torch.isfinite(normalised_grey(blank, blank)).all()


def test_it_learns_to_tell_kinds_of_grain_apart(network):
    pixels, group = crops(10_000, 64)
    named = network.logits(normalised_grey(pixels, pixels)).argmax(1)
    assert (named == group).float().mean() > 0.95


def test_the_distance_sees_the_kind_of_grain_and_not_where_it_lies(network):
    speckle, stripes = (crops(1)[0][i::2] for i in (0, 1))
    elsewhere = speckle.flip(-1)
    blurred = torch.nn.functional.avg_pool2d(speckle, 3, stride=1, padding=1)
    assert perceptual_loss(network, speckle, speckle) == 0
    same_kind = perceptual_loss(network, elsewhere, speckle)
    assert perceptual_loss(network, blurred, speckle) > 1.5 * same_kind  # pixel by pixel, blur is the nearer one
    assert (blurred - speckle).abs().mean() < (elsewhere - speckle).abs().mean()
    assert perceptual_loss(network, stripes, speckle) > same_kind


def test_it_is_a_function_of_its_seed_and_frozen(network):
    again = train_tissue_features(crops, 2, steps=80, seed=0, device=CPU)
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not any(parameter.requires_grad for parameter in network.parameters())
    fake = crops(2)[0].requires_grad_()
    perceptual_loss(network, fake, crops(3)[0]).backward()
    assert (fake.grad != 0).float().mean() > 0.9
