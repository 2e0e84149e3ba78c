"""Weights in shards: two processes that hold a half each train what one that holds all does, on the joint batch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from pathup.errors import PathUpError
from pathup.model.pipeline import PathUpPipeline, build_pipeline
from pathup.recipes import Recipe
from pathup.slides.images import read_image
from pathup.training.sharding import check_sharding, load_state, placed_like, sharding_is_asked, whole
from tests.processes import run_several
from tests.training.trained import diffusion

ON_CPU = ["--cpu"] if torch.accelerator.is_available() else []
JOINT = {"batch_size": 8}
"""What one process sees at once, of two with the 4 tiles of `tiny` each."""
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]


def command(tiles: Path, output: Path, *more: object, recipe: object = "tiny") -> list[object]:
    """`pathup train diffusion`, of one of two processes."""
    return ["train", "diffusion", *ON_CPU, "--tiles", tiles, "--recipe", recipe, "--output", output, *more]


def losses(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "losses.jsonl").open()]


def kept(run: Path, step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {path.stem: load_file(path) for path in (run / f"checkpoints/step-{step:08d}").glob("*.safetensors")}


def differing(tmp_path: Path, runs: list[str], steps: int, rounding: float) -> list[str]:
    """Where the second run's losses or tensors differ from the first one's by more than `rounding`, or 10 of it."""
    (first, second), (one, other) = (
        [losses(tmp_path / run) for run in runs],
        [kept(tmp_path / run, steps) for run in runs],
    )
    assert len(first) == len(second) == steps and one.keys() == other.keys()
    found = []
    for expected, got in zip(first, second, strict=True):
        assert expected.keys() == got.keys() > {"L_e", "L_r", "gradient_norm", "prompt_gap"}
        for key in got.keys() - {"prompt_gap"}:  # of tiles that have changed prompts, each process among its own
            if got[key] != pytest.approx(expected[key], abs=rounding):
                found.append(f"{key} {expected[key]} {got[key]}")
    for group, tensors in one.items():
        assert tensors.keys() == other[group].keys()
        found += [
            f"{group} {key}"
            for key in tensors
            if not torch.allclose(tensors[key], other[group][key], atol=10 * rounding)
        ]
    return found


def test_halves_train_what_wholes_do_and_go_on_with_what_wholes_began(
    tmp_path: Path, tiny_tiles: Path, tiny_autoencoder: Path, recipe: Recipe
) -> None:
    values = recipe.model_dump(mode="json")
    values["diffusion"] |= {"gradient_accumulation": 2, "decay_steps": 0, "checkpoint_every": 3, "sample_every": 9}
    # z from a second pass that ends at the middle block: layers before it are passed twice before one backward
    values["diffusion"]["feature_entropy"]["source"] = "unprompted"
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    latents = tmp_path / "latents"
    diffusion(tiny_tiles, tmp_path / "joint", tiny_autoencoder, **JOINT, recipe=path, latents=latents, steps=9)
    given = ["--autoencoder", tiny_autoencoder, "--latents", latents, "--resume", "--steps"]
    for steps, more in ((3, ["--shard"]), (6, []), (9, ["--shard"])):
        run_several(2, *command(tiny_tiles, tmp_path / "in turns", *given, steps, *more, recipe=path))
    # sums of gradients in another order, which 9 steps of Adam enlarge
    assert not differing(tmp_path, ["joint", "in turns"], 9, 1e-4)
    # what is written is whole, and drawn from: the same pictures up to what differs above
    drawn = [read_image(tmp_path / run / "sheets/00000009.png").astype(float) for run in ("joint", "in turns")]
    assert abs(drawn[0] - drawn[1]).mean() < 1
    PathUpPipeline.from_pretrained(tmp_path / "in turns/model")


def test_muon_orthogonalises_matrices_of_which_each_process_holds_some_rows(
    tmp_path: Path, tiny_tiles: Path, tiny_autoencoder: Path, recipe: Recipe
) -> None:
    values = recipe.model_dump(mode="json")
    values["diffusion"] |= {"muon_learning_rate": 0.003, "steps": 6, "checkpoint_every": 6, "sample_every": 6}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    latents = tmp_path / "latents"
    diffusion(tiny_tiles, tmp_path / "joint", tiny_autoencoder, **JOINT, recipe=path, latents=latents)
    given = ["--autoencoder", tiny_autoencoder, "--latents", latents, "--shard"]
    run_several(2, *command(tiny_tiles, tmp_path / "halves", *given, recipe=path))
    assert "muon" in kept(tmp_path / "halves", 6)
    # its products are of bfloat16: 6 steps of 0.003 times 0.2 times the root of a side, of which the last bits differ
    assert not differing(tmp_path, ["joint", "halves"], 6, 1e-3)


def test_adapters_of_a_frozen_model_in_shards_with_less_kept_for_the_backward_pass(
    tmp_path: Path, tiny_tiles: Path, recipe: Recipe
) -> None:
    build_pipeline(recipe).save_pretrained(tmp_path / "base")  # stands for a Stable Diffusion that was trained before
    base, latents = tmp_path / "base", tmp_path / "latents"
    told = {"pretrained": str(base), "lora_rank": 2, "gradient_checkpointing": True, "steps": 4, "latents": latents}
    diffusion(tiny_tiles, tmp_path / "joint", **told, **JOINT)
    given = ["--pretrained", base, "--lora-rank", 2, "--gradient-checkpointing", "--steps", 4, "--latents", latents]
    run_several(2, *command(tiny_tiles, tmp_path / "halves", *given, "--shard"))
    joint, halves = (
        {path.relative_to(tmp_path / run): load_file(path) for path in (tmp_path / run).rglob("*.safetensors")}
        for run in ("joint", "halves")
    )
    assert joint.keys() == halves.keys() >= {Path("model/pytorch_lora_weights.safetensors")}
    for path, tensors in joint.items():
        assert tensors.keys() == halves[path].keys()
        assert all(torch.allclose(value, halves[path][key], atol=1e-5) for key, value in tensors.items()), path


_HOLDS = """
import sys
from torch.distributed.tensor import DTensor
from pathup.cli.main import main
from pathup.training.patho_align import PathoAlignTrainer as Trainer

taken = Trainer._train_step
def step(self, *given):
    values = taken(self, *given)
    held = [*self.model.state_dict().values(), *self.average.tensors.values()]
    for optimizer in self.optimizers.values():
        held += [one for state in optimizer.state.values() for one in state.values() if one.ndim]
    share = sum(one.to_local().numel() for one in held if isinstance(one, DTensor)) / sum(one.numel() for one in held)
    print(f"holds {share:.3f}", flush=True)
    return values
Trainer._train_step = step
main()
"""


def test_each_process_holds_its_share_as_accelerates_configuration_may_ask_for(
    tmp_path: Path, tiny_tiles: Path, tiny_autoencoder: Path
) -> None:
    told = ["--autoencoder", tiny_autoencoder, "--precision", "bf16", "--steps", 1]
    configuration = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # what `accelerate launch` makes of its file
    script = tmp_path / "holds.py"
    script.write_text(_HOLDS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **configuration}
    line = [*LAUNCHER, script, *command(tiny_tiles, tmp_path / "run", *told)]
    ended = subprocess.run([str(part) for part in line], env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    shares = [float(share) for share in re.findall(r"holds ([\d.]+)", ended.stdout)]
    # of weights, averages and moments; rows of odd counts cannot be halved
    assert len(shares) == 2 and shares == pytest.approx([0.5, 0.5], abs=0.01)


def test_what_shards_cannot_have_is_a_sentence(recipe: Recipe) -> None:
    plain = recipe.diffusion
    check_sharding(2, plain, compiled=False)
    refused: list[tuple[int, dict[str, Any], bool, str]] = [
        (1, {}, False, "this run has one process"),
        (2, {"precision": "fp16"}, False, "this run has fp16"),
        (2, {"adam_8bit": True}, False, "this run has --adam-8bit"),
        (2, {}, True, "this run has --compile"),
    ]
    for processes, changes, compiled, sentence in refused:
        with pytest.raises(PathUpError, match=sentence):
            check_sharding(processes, plain.model_copy(update=changes), compiled=compiled)


def test_the_flag_or_a_launchers_configuration_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert sharding_is_asked(True) and not sharding_is_asked(False)
    for asked, sentence in (
        ({"FSDP_VERSION": "1"}, "version 1 of FSDP, but weights are sharded by version 2; set fsdp_version: 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, r"\(fsdp_offload_params\), which training cannot do; set it to false"),
    ):
        for name, value in ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} | asked).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(PathUpError, match=sentence):
            sharding_is_asked(False)
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "false")
    assert sharding_is_asked(False)
    assert "ACCELERATE_USE_FSDP" not in os.environ  # else Accelerate would shard too


def test_whole_tensors_stay_what_they_are_and_a_state_is_put_back_whole() -> None:
    module, values = nn.Linear(2, 3), {"bias": torch.arange(3.0)}
    weight = module.weight.detach().clone()
    load_state(module, values)
    assert torch.equal(module.bias, values["bias"]) and torch.equal(module.weight, weight)
    values["bias"].add_(1)
    assert module.bias[0] == 0  # copied
    assert placed_like(values["bias"], module.bias) is not values["bias"]
    assert whole(values)["bias"] is values["bias"] and whole(values, keep=False) == {}
    with pytest.raises(KeyError):
        load_state(module, {"unknown": torch.zeros(1)})
