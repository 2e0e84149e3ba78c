from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pathup.errors import PathUpError
from pathup.model.encoder import TissueEncoder, load_encoder, save_encoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_encoder(TissueEncoder([8, 8, 16, 24], 64), tmp_path / "encoder", {"recipe": "tiny"})
    return tmp_path / "encoder"


def test_features_are_the_pooled_last_two_stages_and_survive_saving(folder: Path) -> None:
    encoder = load_encoder(folder)
    pixels = torch.randn(3, 3, 64, 64)
    features = encoder(pixels)
    assert features.shape == (3, encoder.width) == (3, 16 + 24)
    stages = encoder.network(pixels)
    assert [stage.shape[-1] for stage in stages] == [4, 2]  # 1/16 and 1/32 of 64 px
    assert torch.equal(features, torch.cat([stage.mean((2, 3)) for stage in stages], 1))
    assert torch.equal(load_encoder(folder)(pixels), features)
    assert not any(parameter.requires_grad for parameter in encoder.parameters()) and not encoder.training
    assert json.loads((folder / "config.json").read_text())["recipe"] == "tiny"


def test_half_precision_weights_are_read_as_single(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file({k: v.half() if v.is_floating_point() else v for k, v in load_file(path).items()}, path)
    assert {parameter.dtype for parameter in load_encoder(folder).parameters()} == {torch.float32}


def test_damaged_folders_are_one_sentence(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps({"channels": [8, 8, 16, 32], "input_px": 64}))
    with pytest.raises(PathUpError, match=r"model.safetensors cannot be loaded"):
        load_encoder(folder)
    config.write_text("{}")
    with pytest.raises(PathUpError, match="no configuration of a tissue encoder"):
        load_encoder(folder)
    config.unlink()
    with pytest.raises(PathUpError, match="does not exist"):
        load_encoder(folder)
