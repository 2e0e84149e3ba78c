"""A tiny model with random weights: enough for everything that does not look at tissue."""

from __future__ import annotations

import pytest
import torch

from pathup.model.pipeline import PathUpPipeline, build_pipeline
from pathup.recipes import load_recipe


@pytest.fixture(scope="session")
def pipeline() -> PathUpPipeline:
    torch.set_num_threads(1)  # windows this small are slower on two threads than on one
    made = build_pipeline(load_recipe("tiny"))
    for part in (made.vae, made.text_encoder, made.unet):
        part.eval().requires_grad_(False)
    return made
