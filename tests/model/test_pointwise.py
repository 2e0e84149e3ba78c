from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pathup.model.components import build_components
from pathup.model.pointwise import pointwise_products
from pathup.recipes import Recipe

CPU = torch.device("cpu")


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_the_convolution_with_its_gradients(bias: bool) -> None:
    layer, x = nn.Conv2d(6, 10, 1, bias=bias), torch.randn(3, 6, 5, 7, requires_grad=True)

    def passed() -> list[torch.Tensor]:
        y = layer(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    before = passed()
    with pointwise_products(layer, CPU):
        within = passed()
    for one, other in zip(before, within, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_in_bfloat16_a_product_is_as_wide_as_the_convolution(bias: bool) -> None:
    layer, x = nn.Conv2d(6, 10, 1, bias=bias), torch.randn(3, 6, 5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        before = layer(x)
        with pointwise_products(layer, CPU):
            within = layer(x)
    assert within.dtype == before.dtype == torch.bfloat16  # a wider one would widen all that is added to it
    torch.testing.assert_close(within, before, rtol=2**-6, atol=2**-6)  # a rounding more, of 8 bits


def test_a_u_net_predicts_the_same_and_is_left_as_it_was(recipe: Recipe) -> None:
    unet = build_components(recipe).unet.eval()
    given = torch.randn(2, unet.config.in_channels, 16, 16), 5, torch.randn(2, 4, unet.config.cross_attention_dim)
    calls, real = [], torch.bmm

    def counted(*matrices: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return real(*matrices)

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        plain = unet(*given).sample
        patch.setattr(torch, "bmm", counted)
        with pointwise_products(unet, CPU):
            torch.testing.assert_close(unet(*given).sample, plain, rtol=1e-4, atol=1e-5)
        # one a shortcut between blocks of different channels, one into and one out of each transformer
        found = [part for part in unet.modules() if isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1)]
        assert len(calls) == len(found) > 0
        assert torch.equal(unet(*given).sample, plain) and len(calls) == len(found)


def test_other_layers_orders_and_devices_keep_their_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a product was taken")

    monkeypatch.setattr(torch, "bmm", no)
    strided, grouped, wide = nn.Conv2d(4, 4, 1, stride=2), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 3, padding=1)
    x = torch.randn(2, 4, 6, 6)
    with pointwise_products(nn.ModuleList([strided, grouped, wide]), CPU):
        for layer in (strided, grouped, wide):
            layer(x)
    layer = nn.Conv2d(4, 4, 1)
    with pointwise_products(layer, CPU):
        layer(x.to(memory_format=torch.channels_last))
    with pointwise_products(layer, torch.device("cuda")):
        layer(x)


def test_a_copy_made_within_computes_with_its_own_weights() -> None:
    layer, x = nn.Conv2d(4, 4, 1), torch.randn(2, 4, 3, 3)
    with pointwise_products(layer, CPU):
        twin = copy.deepcopy(layer)
        with torch.no_grad():
            twin.weight.zero_()
            twin.bias.fill_(7.0)
        assert (twin(x) == 7).all() and not (layer(x) == 7).any()
