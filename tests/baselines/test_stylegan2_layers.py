"""StyleGAN2's layers beside slow loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import conv2d, conv_transpose2d

from pathup.baselines.stylegan2_layers import (
    EqualConv,
    EqualLinear,
    doubled,
    filtered,
    halved,
    minibatch_deviation,
    modulated_conv,
    normalised,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("side", [1, 3])
def test_a_modulated_convolution_is_each_image_convolved_with_weights_of_its_own(demodulate, side):
    images, weight, style = drawn(3, 4, 6, 6), drawn(5, 4, side, side, seed=1), drawn(3, 4, seed=2)
    found = modulated_conv(images, weight, style, demodulate=demodulate)
    for number in range(3):
        own = torch.empty_like(weight)
        for out in range(5):
            for channel in range(4):
                own[out, channel] = weight[out, channel] * style[number, channel]
            if demodulate:
                own[out] = own[out] / math.sqrt(float(own[out].square().sum()) + 1e-8)
        wanted = conv2d(images[number : number + 1], own, padding=side // 2)
        assert torch.allclose(found[number : number + 1], wanted)


def test_a_doubling_convolution_is_a_transposed_one_and_the_filter_image_by_image():
    images, weight, style = drawn(2, 3, 4, 4), drawn(5, 3, 3, 3, seed=1), drawn(2, 3, seed=2)
    found = modulated_conv(images, weight, style, double=True)
    assert found.shape == (2, 5, 8, 8)
    for number in range(2):
        own = weight * style[number][None, :, None, None]
        own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        spread = conv_transpose2d(images[number : number + 1], own.transpose(0, 1), stride=2)
        assert torch.allclose(found[number : number + 1], filtered(spread, 4.0, (1, 1)))


def test_outputs_of_a_demodulated_convolution_have_the_deviation_of_its_inputs():
    images = drawn(2, 64, 32, 32)
    found = modulated_conv(images, drawn(64, 64, 3, 3, seed=1), 3 * drawn(2, 64, seed=2))
    assert found[:, :, 1:-1, 1:-1].std() == pytest.approx(1.0, rel=0.05)  # 115,200 values, of weights once drawn


def test_halving_and_doubling_are_the_binomial_filter_written_out():
    image = drawn(1, 1, 6, 6)
    row = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
    kernel = torch.outer(row, row)
    small, large = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(12, 12, dtype=torch.float64)

    def at(y: int, x: int) -> float:
        return float(image[0, 0, y, x]) if 0 <= y < 6 and 0 <= x < 6 else 0.0

    for y in range(3):
        for x in range(3):  # taps lie at -1, 0, 1, 2 of the even pixels
            taps = [(v, u) for v in range(4) for u in range(4)]
            small[y, x] = sum(float(kernel[v, u]) * at(2 * y + v - 1, 2 * x + u - 1) for v, u in taps)
    for y in range(6):
        for x in range(6):  # each pixel spreads over 4 x 4
            for v in range(4):
                for u in range(4):
                    place = (2 * y + v - 1, 2 * x + u - 1)
                    if min(place) >= 0 and max(place) < 12:
                        large[place] += 4 * kernel[v, u] * image[0, 0, y, x]
    assert torch.allclose(halved(image)[0, 0], small)
    assert torch.allclose(doubled(image)[0, 0], large)


def test_an_even_image_stays_even_when_doubled_and_halved():
    image = torch.full((1, 2, 8, 8), 0.7)
    assert torch.allclose(doubled(image)[:, :, 2:-2, 2:-2], torch.full((1, 2, 12, 12), 0.7))
    assert torch.allclose(halved(image)[:, :, 1:-1, 1:-1], torch.full((1, 2, 2, 2), 0.7))


def test_a_halving_convolution_filters_first():
    torch.manual_seed(0)
    for side in (1, 3):
        layer = EqualConv(3, 4, side, halve=True)
        image = drawn(2, 3, 8, 8).float()
        wide = filtered(image, 1.0, (side // 2 + 1,) * 2)
        wanted = conv2d(wide, layer.weight / math.sqrt(3 * side**2), layer.bias, stride=2)
        assert layer(image).shape == (2, 4, 4, 4)
        assert torch.allclose(layer(image), wanted, atol=1e-6)


def test_layers_of_another_rate_begin_alike_and_learn_slower():
    """Adam steps every weight by about the rate; a layer whose weights are multiplied by 0.01 at use moves by less."""
    outputs = []
    for rate in (1.0, 0.01):
        torch.manual_seed(0)
        layer = EqualLinear(16, 4, rate=rate)
        values = drawn(8, 16).float()
        before = layer(values).detach()
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
        layer(values).square().sum().backward()
        optimizer.step()
        outputs.append((before, (layer(values) - before).detach().abs().mean()))
    assert torch.allclose(outputs[0][0], outputs[1][0], atol=1e-5)
    assert outputs[1][1] == pytest.approx(0.01 * float(outputs[0][1]), rel=0.05)


def test_the_minibatch_deviation_is_0_for_one_image_repeated_and_that_of_its_group_else():
    image = drawn(1, 2, 4, 4)
    same = minibatch_deviation(image.repeat(4, 1, 1, 1), 4)
    assert same.shape == (4, 3, 4, 4)
    assert same[:, 2].abs().max() < 1e-3  # the root of the guard, 1e-8
    pair = torch.cat([image, image + 2])  # deviation 1 everywhere
    assert torch.allclose(minibatch_deviation(pair, 2)[:, 2], torch.ones(2, 4, 4, dtype=torch.float64), atol=1e-6)
    assert minibatch_deviation(drawn(3, 2, 4, 4), 2).shape == (3, 3, 4, 4)  # groups of 1: 2 does not divide 3


def test_normalised_rows_have_mean_square_1():
    assert torch.allclose(normalised(5 * drawn(3, 8)).square().mean(1), torch.ones(3, dtype=torch.float64))
