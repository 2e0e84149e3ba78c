"""The benchmark of what limits a model: what is drawn anew from a timestep is real above it, the model's below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.fidelity import drawn_from, reconstructed
from pathup.errors import PathUpError
from pathup.evaluation.tile_sets import TileSet, load_tile_set
from pathup.model.pipeline import PathUpPipeline, build_pipeline
from pathup.recipes import Recipe
from pathup.slides.images import read_image


@pytest.fixture
def pipeline(recipe: Recipe) -> PathUpPipeline:
    return build_pipeline(recipe)


@pytest.fixture
def tiles(tiny_tiles: Path) -> TileSet:
    return load_tile_set(tiny_tiles, "train", split="train").of(level="patch")


def _pixels(tiles: TileSet) -> np.ndarray:
    return np.stack([read_image(file) for file in tiles.files]).astype(np.float64)


def test_who_knows_the_tiles_brings_them_back_from_any_timestep(
    pipeline: PathUpPipeline, tiles: TileSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = pipeline.sampling.model_copy(update={"steps": 10, "scheduler": "unipc"})
    known: list[torch.Tensor] = []
    encode, alphas = pipeline.encode_pixels, pipeline.scheduler.alphas_cumprod

    def remembered(pixels: torch.Tensor) -> torch.Tensor:
        known[:] = [encode(pixels)]
        return known[0]

    def oracle(latents: torch.Tensor, timestep: torch.Tensor, *others: Any) -> torch.Tensor:
        alpha = alphas[int(timestep)]
        noise = (latents - alpha.sqrt() * known[0]) / (1 - alpha).sqrt()
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * known[0]

    monkeypatch.setattr(pipeline, "encode_pixels", remembered)
    monkeypatch.setattr(pipeline, "predict", oracle)
    wanted = _pixels(reconstructed(pipeline, tiles, tmp_path / "reconstructed")[0])
    for timestep in (150, 999):
        made = drawn_from(pipeline, settings, tiles, timestep, tmp_path / str(timestep))
        assert list(made.labels) == list(tiles.labels)
        assert np.abs(_pixels(made) - wanted).max() <= 1  # rounding to 8 bits


def test_an_untrained_model_loses_more_of_a_tile_from_higher_noise(
    pipeline: PathUpPipeline, tiles: TileSet, tmp_path: Path
) -> None:
    settings = pipeline.sampling.model_copy(update={"steps": 10, "guidance": 1.0})
    wanted = _pixels(reconstructed(pipeline, tiles, tmp_path / "reconstructed")[0])
    errors = []
    for timestep in (100, 500, 999):
        made = _pixels(drawn_from(pipeline, settings, tiles, timestep, tmp_path / str(timestep)))
        errors.append(float(np.square(made - wanted).mean()))
    assert 0 < errors[0] < errors[1] < errors[2]


def test_a_timestep_below_every_step_is_one_sentence(pipeline: PathUpPipeline, tiles: TileSet, tmp_path: Path) -> None:
    settings = pipeline.sampling.model_copy(update={"steps": 4})
    with pytest.raises(PathUpError, match="none of the 4 steps is at timestep 5 or below"):
        drawn_from(pipeline, settings, tiles, 5, tmp_path / "none")
