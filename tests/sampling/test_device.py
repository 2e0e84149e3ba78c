"""The device, and the precision that it computes in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pathup.baselines.ldm import drawing_precision
from pathup.errors import PathUpError
from pathup.recipes import load_recipe, recipe_with
from pathup.sampling.device import choose_device, computes_bfloat16, reduced_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("has", [True, False])
def test_a_model_that_learnt_in_bfloat16_is_drawn_in_it_where_the_device_computes_in_it(monkeypatch, has):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has, raising=False)
    assert computes_bfloat16(CPU) == has
    assert computes_bfloat16(torch.device("cuda"))
    learnt = recipe_with(load_recipe("tiny"), {"diffusion.precision": "bf16"}, source="test")
    assert drawing_precision(learnt, CPU) == ("bf16" if has else "fp32")
    assert drawing_precision(load_recipe("tiny"), CPU) == "fp32"  # it learnt in that
    with reduced_precision(SimpleNamespace(dtype=torch.float32, device=CPU)):
        assert torch.is_autocast_enabled("cpu") == has


def test_unknown_devices_are_one_sentence():
    with pytest.raises(PathUpError, match="unknown device 'gpu'"):
        choose_device("gpu")
