from __future__ import annotations

import pytest
import torch

from pathup.model.scale import ScaleEncoder


def trained(width: int = 8) -> ScaleEncoder:
    torch.manual_seed(0)
    encoder = ScaleEncoder(width)
    torch.nn.init.normal_(encoder.out.weight)
    return encoder.eval().requires_grad_(False)


def test_a_new_one_leaves_prompts_as_they_are_and_learns():
    encoder, prompts = ScaleEncoder(8), torch.randn(2, 5, 8)
    told = encoder.told(prompts, [0.5, 2.0])
    assert torch.equal(told, prompts)
    told.square().sum().backward()
    assert encoder.out.weight.grad.abs().max() > 0  # though it is zero


def test_the_scale_is_told_in_the_first_token_alone():
    prompts = torch.randn(2, 5, 8)
    told = trained().told(prompts, [0.5, 2.0])
    assert torch.equal(told[:, 1:], prompts[:, 1:])
    assert (told[:, 0] - prompts[:, 0]).abs().amax(1).min() > 0.1


def test_neighbouring_scales_are_told_alike_and_none_in_the_usual_range_like_another():
    """0.1 to 16 micrometres: from a 100x objective to an overview of a whole slide."""
    scales = 2 ** torch.arange(-3.25, 4.01, 0.25)
    told = trained(64)(scales)
    apart = torch.cdist(told, told)
    steps = apart.diagonal(1)
    assert steps.max() < 3 * steps.median()  # no jump
    far = apart[(scales.log2()[:, None] - scales.log2()).abs() >= 1]
    assert far.min() > steps.median()  # an octave away is another scale


def test_it_is_kept_by_diffusers(tmp_path):
    encoder = trained()
    encoder.save_pretrained(tmp_path)
    again = ScaleEncoder.from_pretrained(tmp_path)
    scales = torch.tensor([0.3, 1.7])
    assert torch.equal(again(scales), encoder(scales))


@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16])
def test_prompts_keep_their_precision(precision):
    told = trained().told(torch.zeros(1, 3, 8, dtype=precision), torch.tensor([1.0]))
    assert told.dtype == precision
