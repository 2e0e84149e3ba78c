"""A compiled U-Net is the same function, and the middle block's feature is still caught. Without a C++ compiler: the
graphs are traced as for `torch.compile`'s usual backend, and run by PyTorch's own operations."""

from __future__ import annotations

import copy

import pytest
import torch

from pathup.errors import PathUpError
from pathup.model.aligned import UNetWithFeatures
from pathup.model.compiling import compile_blocks
from pathup.model.components import build_unet


@pytest.fixture
def pair(recipe):
    plain = UNetWithFeatures(build_unet(recipe, 4, 16)).train()
    compiled = copy.deepcopy(plain)
    compile_blocks(compiled.unet.to(memory_format=torch.channels_last), backend="aot_eager")
    return plain, compiled


def descended(model: UNetWithFeatures, side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    noisy, prompts = (torch.randn(shape, generator=generator) for shape in ((2, 4, side, side), (2, 8, 16)))
    prediction, z = model(noisy, torch.tensor([100, 900]), prompts, None)
    model.zero_grad()
    (prediction.square().mean() + z[:, 0].sum()).backward()
    return prediction, z, torch.cat([weight.grad.flatten() for weight in model.parameters()])


def test_prediction_feature_and_gradients_are_the_same(pair, recipe):
    side = recipe.sampling.window_latent
    for _ in range(2):  # the second step meets what the first compiled, under a new hook
        for one, other in zip(*(descended(model, side) for model in pair), strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)  # float32, summed in another order


def test_names_of_weights_stay_and_a_copy_is_plain(pair, recipe):
    plain, compiled = pair
    descended(compiled, recipe.sampling.window_latent)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    twin = copy.deepcopy(compiled)
    assert all(block._compiled_call_impl is None for block in twin.unet.down_blocks)


def test_without_a_compiler_a_cpu_says_what_is_needed(recipe, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(PathUpError, match=r"needs a C\+\+ compiler.*apt install g\+\+"):
        compile_blocks(build_unet(recipe, 4, 16))
