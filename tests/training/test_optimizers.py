"""Muon on weights of any shape: PyTorch's own on matrices, and what it is by definition on convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pathup.errors import PathUpError
from pathup.model.components import build_components
from pathup.recipes import recipe_with
from pathup.training.optimizers import MatrixMuon, fine_weights


def descended(weight: nn.Parameter, gradients: list[torch.Tensor]) -> torch.Tensor:
    optimizer = MatrixMuon([weight], lr=0.01, weight_decay=0.1)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


def gradients_like(weight: torch.Tensor, count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(weight.shape, generator=generator) for _ in range(count)]


def test_on_a_matrix_it_is_pytorchs_own():
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 24).reshape(4, 6)) for _ in range(2))
    reference = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    gradients = gradients_like(ours)
    for gradient in gradients:
        theirs.grad = gradient.clone()
        reference.step()
    assert torch.equal(descended(ours, gradients), theirs.detach())


def test_a_convolution_is_stepped_in_place_as_its_matrix():
    weight = nn.Conv2d(3, 5, 3).weight
    matrix = nn.Parameter(weight.detach().clone().flatten(1))
    gradients = gradients_like(weight)
    stepped = descended(weight, gradients)
    assert weight.shape == (5, 3, 3, 3)
    assert torch.equal(stepped.flatten(1), descended(matrix, [gradient.flatten(1) for gradient in gradients]))


def test_weights_may_lie_in_another_order_in_memory():
    plain = nn.Parameter(torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(1)))
    turned = nn.Parameter(plain.detach().clone().to(memory_format=torch.channels_last))
    gradients = gradients_like(plain)
    assert torch.equal(descended(turned, gradients), descended(plain, gradients))
    assert turned.is_contiguous(memory_format=torch.channels_last)


def test_a_step_is_near_to_orthogonal_and_of_the_same_length_for_any_scale_of_the_loss():
    sizes = []
    for scale in (1e-3, 1.0, 1e3):
        weight = nn.Parameter(torch.zeros(16, 8, 3, 3))
        step = descended(weight, [scale * gradient for gradient in gradients_like(weight, 1)]).flatten(1)
        values = torch.linalg.svdvals(step) / (0.01 * 0.2 * 72**0.5)  # lr, and the factor of a 16 x 72 matrix
        # the five iterations bring singular values into about 0.7 to 1.2 (Jordan et al. 2024), bfloat16 adds some
        assert values.min() > 0.5 and values.max() < 1.4
        sizes.append(float(step.norm()))
    assert max(sizes) < 1.02 * min(sizes)  # bfloat16 has 8 bits


def test_what_has_no_gradient_stays():
    weight = nn.Parameter(torch.ones(3, 3))
    optimizer = MatrixMuon([weight], lr=0.01, weight_decay=0.1)
    optimizer.step()
    assert torch.equal(weight, torch.ones(3, 3))


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match="fewer than two axes"):
        MatrixMuon([nn.Parameter(torch.zeros(3))], lr=0.01, weight_decay=0.0)


def test_levels_that_attend_first_and_last_layer_and_the_time_stay_with_adamw(recipe):
    unet = build_components(recipe).unet
    names = {id(weight): name for name, weight in unet.named_parameters()}
    chosen = {names[id(weight)] for weight in fine_weights(unet)}
    attends = recipe.model.unet.attention
    last = len(attends) - 1
    fine = {f"down_blocks.{depth}" for depth, one in enumerate(attends) if not one}
    fine |= {f"up_blocks.{last - depth}" for depth, one in enumerate(attends) if not one}
    assert fine  # else this would say nothing
    assert {".".join(name.split(".")[:2]) for name in chosen} == fine
    assert all(name.endswith("weight") for name in chosen)
    assert not any(".norm" in name for name in chosen)


def test_with_fp16_it_is_refused_in_one_sentence(recipe):
    with pytest.raises(PathUpError, match="Muon steps in bfloat16"):
        recipe_with(recipe, {"diffusion.muon_learning_rate": 0.01, "diffusion.precision": "fp16"}, source="here")
