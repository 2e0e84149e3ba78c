"""Exported folders: what they weigh, what they say, and what they load as."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pathup.errors import PathUpError
from pathup.model.components import load_autoencoder
from pathup.model.export import export_model, save_pipeline
from pathup.model.pipeline import build_pipeline, load_pipeline


@pytest.fixture
def model(tmp_path, recipe, tiny_autoencoder) -> Path:
    """A model whose autoencoder was loaded from a folder, as in training."""
    pipeline = build_pipeline(recipe)
    pipeline.vae = load_autoencoder(tiny_autoencoder)
    save_pipeline(pipeline, tmp_path / "model")
    (tmp_path / "model/recipe.yaml").write_text("name: tiny\n")
    return tmp_path / "model"


def test_no_file_of_a_saved_model_names_where_it_came_from(model, tiny_autoencoder, tmp_path):
    export_model(model, tmp_path / "copy")
    for folder in (model, tmp_path / "copy"):
        texts = [path.read_text() for path in folder.rglob("*.json")]
        assert len(texts) > 5
        assert not [text for text in texts if str(tmp_path) in text or str(tiny_autoencoder.parent) in text]


def test_half_is_half_the_size_and_every_weight_is_the_nearest(model, tmp_path):
    export_model(model, tmp_path / "half", half=True)
    for part in ("unet", "vae"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        whole, half = load_file(model / name), load_file(tmp_path / "half" / name)
        assert {weight.dtype for weight in half.values()} == {torch.float16}
        assert all(torch.equal(half[key], whole[key].half()) for key in whole)
        # headers stay what they are: half of the weights, and a little more
        assert (tmp_path / "half" / name).stat().st_size < 0.75 * (model / name).stat().st_size
    assert (tmp_path / "half/recipe.yaml").read_text() == "name: tiny\n"
    pipeline = load_pipeline(tmp_path / "half")
    assert {p.dtype for m in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for p in m.parameters()} == {
        torch.float32
    }
    drawn = [load_pipeline(folder)("A", seed=3, output_type="pt") for folder in (model, tmp_path / "half")]
    assert (drawn[0] - drawn[1]).abs().max() < 0.05  # 11 significant bits a weight, a few layers deep


def test_saving_half_leaves_the_pipeline_whole(tmp_path, recipe):
    pipeline = build_pipeline(recipe)
    save_pipeline(pipeline, tmp_path / "half", half=True)
    assert {p.dtype for p in pipeline.unet.parameters()} == {torch.float32}
    assert pipeline.unet.conv_in.weight.data_ptr() == pipeline.components["unet"].conv_in.weight.data_ptr()


def test_what_cannot_be_exported_is_one_sentence(model, tmp_path):
    with pytest.raises(PathUpError, match="holds no model"):
        export_model(tmp_path, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("kept")
    with pytest.raises(PathUpError, match="is not empty"):
        export_model(model, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    weights = load_file(model / "unet/diffusion_pytorch_model.safetensors")
    weights["conv_in.bias"][0] = 1e6
    save_file(weights, model / "unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(PathUpError, match="weight of the unet is 1e\\+06, beyond half precision"):
        export_model(model, tmp_path / "out", half=True)


def test_a_full_disk_leaves_no_half_written_model(model, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    from pathup.model import export

    def full(source, target):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(export.shutil, "copyfile", full)
    with pytest.raises(PathUpError, match="the disk is full"):
        export_model(model, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    monkeypatch.undo()
    export_model(model, tmp_path / "out")  # the same command again
    assert load_pipeline(tmp_path / "out").labels == ["A", "B"]
