"""Adapters and 8-bit moments: what a run trains and keeps, that it resumes exactly, and what diffusers makes of it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from pathup import PathUpPipeline
from pathup.errors import PathUpError
from pathup.model.components import build_components
from pathup.model.pipeline import build_pipeline
from pathup.recipes import Recipe
from pathup.training.adapters import add_adapters, has_adapters, merge_adapters, trained_state
from pathup.training.checkpoints import newest_checkpoint
from tests.training.test_runs import same_tensors
from tests.training.trained import diffusion

RANK = 2

# not among what tests need: diffusers imports it wherever it is, which takes every command over a second
eight_bit = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install 'pathup[finetune]'"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    """A model of the tiny recipe, standing for a Stable Diffusion that was trained before."""
    folder = tmp_path_factory.mktemp("base") / "model"
    build_pipeline(recipe).save_pretrained(folder)
    return folder


def _train(tiles: Path, output: Path, base: Path, **changes: Any) -> Path:
    return diffusion(tiles, output, pretrained=str(base), **changes)


def _stopped(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have training end after so many steps, as a kill right after a checkpoint would."""
    from pathup.training import patho_align

    real = patho_align.PathoAlignTrainer._train_step

    def step(self: Any, *arguments: Any) -> Any:
        if self.step == steps:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(patho_align.PathoAlignTrainer, "_train_step", step)


def test_a_u_net_with_new_adapters_predicts_what_it_did_and_merged_ones_what_they_did(recipe: Recipe) -> None:
    unet = build_components(recipe).unet.eval()
    width, channels = unet.config.cross_attention_dim, unet.config.in_channels
    given = torch.randn(1, channels, 16, 16), torch.tensor([7]), torch.randn(1, 4, width)
    names, plain = set(unet.state_dict()), unet(*given).sample
    add_adapters(unet, RANK, seed=0)
    assert has_adapters(unet) and torch.equal(unet(*given).sample, plain)
    ours = [weight for weight in unet.parameters() if weight.requires_grad]
    assert {min(weight.shape) for weight in ours} == {RANK} and set(trained_state(unet)) < set(unet.state_dict())
    with torch.no_grad():
        for weight in ours:
            weight += 0.1
    changed = unet(*given).sample
    assert not torch.allclose(changed, plain, atol=1e-3)
    merge_adapters(unet)
    assert set(unet.state_dict()) == names
    torch.testing.assert_close(unet(*given).sample, changed, rtol=1e-4, atol=1e-5)  # the same sum in another order


def test_adapters_are_drawn_by_the_seed(recipe: Recipe) -> None:
    def drawn(seed: int) -> torch.Tensor:
        unet = build_components(recipe).unet
        add_adapters(unet, RANK, seed)
        return torch.cat([weight.flatten() for weight in unet.parameters() if weight.requires_grad])

    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))


def test_a_run_trains_and_keeps_adapters_alone_and_diffusers_reads_them(
    tmp_path: Path, tiny_tiles: Path, base: Path
) -> None:
    model = _train(tiny_tiles, tmp_path / "run", base, steps=3, lora_rank=RANK)
    checkpoint = newest_checkpoint(tmp_path / "run/checkpoints")
    assert checkpoint is not None
    kept = checkpoint.tensors("model")
    assert kept and all("lora_" in name for name in kept)
    assert checkpoint.tensors("average").keys() == kept.keys()
    # the model is a whole one, whose attentions alone differ from the base's
    before, after = (load_file(folder / "unet/diffusion_pytorch_model.safetensors") for folder in (base, model))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".attentions." in name and ".to_" in name for name in changed)
    # the adapters alone, put on the base by diffusers, are that model
    start = PathUpPipeline.from_pretrained(base)
    parts = {name: getattr(start, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    theirs = StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    theirs.load_lora_weights(model)
    ours = PathUpPipeline.from_pretrained(model).unet.eval()
    given = torch.randn(1, ours.config.in_channels, 16, 16), 5, torch.randn(1, 4, ours.config.cross_attention_dim)
    torch.testing.assert_close(theirs.unet.eval()(*given).sample, ours(*given).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_rank": RANK},
        pytest.param({"adam_8bit": True}, marks=eight_bit),
        pytest.param({"lora_rank": RANK, "adam_8bit": True}, marks=eight_bit),
    ],
)
def test_a_stopped_run_with_less_memory_goes_on_exactly(
    tmp_path: Path, tiny_tiles: Path, base: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    changes = {**changes, "steps": 7, "checkpoint_every": 3}
    whole = _train(tiny_tiles, tmp_path / "whole", base, **changes)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _stopped(5, patch)
        _train(tiny_tiles, tmp_path / "broken", base, **changes)
    broken = _train(tiny_tiles, tmp_path / "broken", base, resume=True, **changes)
    same_tensors(*(tmp_path / run / "checkpoints/step-00000007" for run in ("whole", "broken")))
    same_tensors(whole / "unet", broken / "unet")
    assert (tmp_path / "whole/losses.jsonl").read_text() == (tmp_path / "broken/losses.jsonl").read_text()


@eight_bit
def test_moments_of_8_bits_are_kept_as_such_and_a_run_learns_with_them(
    tmp_path: Path, tiny_tiles: Path, base: Path
) -> None:
    changes = {"steps": 4, "seed": 1}
    trained = {bits: _train(tiny_tiles, tmp_path / str(bits), base, adam_8bit=bits == 8, **changes) for bits in (8, 32)}
    checkpoint = newest_checkpoint(tmp_path / "8/checkpoints")
    assert checkpoint is not None
    moments = [value for name, value in checkpoint.tensors("optimizer").items() if name.endswith(("state1", "state2"))]
    eight = sum(value.numel() for value in moments if value.dtype == torch.uint8)
    assert eight > 0.5 * sum(value.numel() for value in moments)  # bitsandbytes leaves those under 4096 values whole
    before, low, full = (
        torch.cat([v.flatten() for v in load_file(folder / "unet/diffusion_pytorch_model.safetensors").values()])
        for folder in (base, trained[8], trained[32])
    )
    moved = torch.nn.functional.cosine_similarity(low - before, full - before, dim=0)
    assert moved > 0.95  # rounding of moments turns the path of four steps little


def test_adapters_need_a_pretrained_u_net_and_the_libraries(
    tmp_path: Path, tiny_tiles: Path, tiny_autoencoder: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PathUpError, match="give --pretrained"):
        diffusion(tiny_tiles, tmp_path / "run", tiny_autoencoder, lora_rank=RANK)
    assert not (tmp_path / "run").exists()
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(PathUpError, match=r"need peft; install it: pip install 'pathup\[finetune\]'"):
        _train(tiny_tiles, tmp_path / "run", base, lora_rank=RANK)
    with pytest.raises(PathUpError, match=r"needs bitsandbytes; install it: pip install 'pathup\[finetune\]'"):
        _train(tiny_tiles, tmp_path / "run", base, adam_8bit=True)
    assert not (tmp_path / "run").exists()
