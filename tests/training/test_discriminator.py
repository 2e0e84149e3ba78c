"""The losses between images: what each sees and what it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch

from pathup.training.discriminator import (
    PatchDiscriminator,
    discriminator_loss,
    feature_matching_loss,
    gradient_loss,
    texture_loss,
)


def noise(seed: int, deviation: float, side: int = 64) -> torch.Tensor:
    return deviation * torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_texture_is_blind_to_where_the_grain_lies_and_sees_how_strong_it_is():
    coarse, fine = noise(0, 0.2), noise(1, 0.2)
    other, faint = noise(2, 0.2), noise(1, 0.1)
    assert texture_loss(fine, fine) == 0
    # windows hold 64 to 256 correlated samples of one deviation, so their log amplitudes differ by about a tenth
    assert texture_loss(other, fine) < 0.15
    # half the deviation in every window and band: log 2, but for the grey level that both share
    assert texture_loss(faint, fine) == pytest.approx(math.log(2), rel=0.06)
    # a plain error of pixels says the opposite: faint grain is nearer than grain of the right strength elsewhere
    assert (faint - fine).abs().mean() < (other - fine).abs().mean()
    assert texture_loss(coarse + 0.5, coarse) < 1e-4  # brightness is no detail


def test_texture_tells_directions_apart():
    stripes = 0.3 * torch.sin(torch.arange(64.0) * 2.5).expand(1, 3, 64, 64).contiguous()
    turned = stripes.transpose(-1, -2).contiguous()
    assert stripes.std() == turned.std()
    assert texture_loss(turned, stripes) > 1


def test_grain_below_a_grey_level_hardly_counts():
    blank, grain = torch.ones(1, 3, 32, 32), torch.ones(1, 3, 32, 32)
    grain[..., ::2, ::2] -= 0.2 / 255
    assert texture_loss(grain, blank) < 0.01


def test_every_loss_reaches_the_picture():
    real = noise(3, 0.3)
    for loss in (texture_loss, gradient_loss):
        fake = noise(4, 0.1).requires_grad_()
        loss(fake, real).backward()
        assert torch.isfinite(fake.grad).all()
        assert (fake.grad != 0).float().mean() > 0.9


def test_the_discriminator_learns_what_blur_is_and_its_features_follow():
    torch.manual_seed(0)
    judge = PatchDiscriminator(8)
    optimizer = torch.optim.Adam(judge.parameters(), lr=3e-3)
    for step in range(60):
        real = noise(10 + step, 0.5)
        fake = torch.nn.functional.avg_pool2d(real, 3, stride=1, padding=1)
        (verdicts_real, _), (verdicts_fake, _) = judge(real), judge(fake)
        loss = discriminator_loss(verdicts_real, verdicts_fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1  # 2 is a judge that cannot tell
    real = noise(5, 0.5)
    features = judge(real)[1]
    blurred = judge(torch.nn.functional.avg_pool2d(real, 3, stride=1, padding=1))[1]
    assert feature_matching_loss(features, features) == 0
    assert feature_matching_loss(features, blurred) > 0.1


def test_features_averaged_over_windows_forgive_where_the_grain_lies_and_single_ones_do_not():
    torch.manual_seed(0)
    judge = PatchDiscriminator(8)
    real, elsewhere = (judge(noise(seed, 0.5))[1] for seed in (5, 6))
    windows, single = (feature_matching_loss(real, elsewhere, window) for window in (16, 1))
    assert windows < single / 2
    assert feature_matching_loss(real, real, 1) == 0
