"""A tiny model with random weights: enough for everything that does not look at tissue."""

from __future__ import annotations

from pathlib import Path

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


@pytest.fixture(scope="session")
def model(pipeline: PathUpPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as files; not to be changed."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def attentive() -> PathUpPipeline:
    """The same with self-attention in the autoencoder's middle, strong enough to be seen in the pixels."""
    recipe = load_recipe("tiny")
    recipe = recipe.model_copy(update={"autoencoder": recipe.autoencoder.model_copy(update={"mid_attention": True})})
    made = build_pipeline(recipe)
    made.vae.eval().requires_grad_(False)
    for part in (made.vae.encoder, made.vae.decoder):
        layer = part.mid_block.attentions[0]
        for linear in (layer.to_q, layer.to_k, layer.to_v, layer.to_out[0]):
            linear.weight *= 4
    return made
