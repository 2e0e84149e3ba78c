"""Checkpoints: complete or not there, also on a full disk."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
import torch

from pathup.errors import PathUpError
from pathup.training import checkpoints
from pathup.training.checkpoints import newest_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint


def save(root, step, value=1.0, keep=2):
    return save_checkpoint(root, step, {"unet": {"w": torch.full((3,), value)}}, {"step": step}, keep=keep)


def test_what_is_saved_comes_back_and_older_ones_are_pruned(tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, step, float(step))
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 10
    assert torch.equal(newest.tensors("unet")["w"], torch.full((3,), 10.0))
    assert newest.values() == {"step": 10}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000010"]


def test_checkpoints_that_are_gone_are_no_reason_to_start_over(tmp_path):
    root = tmp_path / "checkpoints"
    shutil.rmtree(save(root, 1).folder)
    with pytest.raises(PathUpError, match=r"has written checkpoints to .* none is there now"):
        newest_checkpoint(root)
    shutil.rmtree(root)
    with pytest.raises(PathUpError, match="none is there now"):
        newest_checkpoint(root)


@pytest.mark.parametrize("manifest", ["{}", '{"files": {}}', '{"files": 3}', "[]", "null"])
def test_a_manifest_that_lists_nothing_is_damaged(tmp_path, manifest):
    save(tmp_path, 1)
    (save(tmp_path, 2).folder / "manifest.json").write_text(manifest)
    with pytest.warns(UserWarning, match="step-00000002 is skipped: its manifest.json"):
        newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 1


def test_no_folder_is_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize("damage", ["truncated", "missing file", "flipped byte", "no manifest"])
def test_a_damaged_one_is_skipped_by_name(tmp_path, damage):
    save(tmp_path, 1)
    folder = save(tmp_path, 2).folder
    file = folder / "unet.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[:-1])
    elif damage == "missing file":
        file.unlink()
    elif damage == "flipped byte":
        content[-1] ^= 1
        file.write_bytes(content)
    else:
        (folder / "manifest.json").unlink()
    with pytest.warns(UserWarning, match="step-00000002 is skipped"):
        newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 1


@pytest.mark.parametrize("fails_at", ["manifest", "rename"])
def test_a_kill_or_full_disk_while_writing_leaves_the_older_one(tmp_path, monkeypatch, fails_at):
    save(tmp_path, 1)

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if fails_at == "manifest":
            patch.setattr(checkpoints.storage, "sha256_file", full)
        else:
            patch.setattr(checkpoints.os, "replace", full)
        with pytest.raises(PathUpError, match="the disk is full"):
            save(tmp_path, 2)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_an_optimizer_goes_on_as_if_it_had_not_stopped():
    def make():
        layer = torch.nn.Linear(3, 2)
        torch.nn.init.constant_(layer.weight, 0.5)
        torch.nn.init.constant_(layer.bias, 0.0)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)

    def step(layer, optimizer, value):
        optimizer.zero_grad()
        layer(torch.full((1, 3), value)).square().sum().backward()
        optimizer.step()

    whole, optimizer = make()
    for value in (1.0, 2.0, 3.0):
        step(whole, optimizer, value)
    first, before = make()
    step(first, before, 1.0)
    second, after = make()
    second.load_state_dict(first.state_dict())
    restore_optimizer(after, optimizer_tensors(before))
    for value in (2.0, 3.0):
        step(second, after, value)
    assert torch.equal(whole.weight, second.weight)


def test_restored_moments_lie_in_memory_as_their_parameters_do():
    # a fused optimiser steps through both as they lie: a channels-last weight with a plain moment went wrong silently
    def stepped(optimizer: torch.optim.Optimizer, weight: torch.Tensor, seed: int) -> None:
        weight.grad = torch.randn(
            weight.shape, generator=torch.Generator().manual_seed(seed)
        ).contiguous(memory_format=torch.channels_last)  # fmt: skip
        optimizer.step()

    def made() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        values = torch.arange(2.0 * 3 * 2 * 2).reshape(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
        weight = torch.nn.Parameter(values)
        return weight, torch.optim.AdamW([weight], lr=0.1, fused=True)

    weight, optimizer = made()
    stepped(optimizer, weight, 0)
    own = optimizer_tensors(optimizer)
    kept = {name: value.clone(memory_format=torch.contiguous_format) for name, value in own.items()}  # as in a file
    copy, other = made()
    copy.data.copy_(weight.data)
    restore_optimizer(other, kept)
    for seed in (1, 2):
        stepped(optimizer, weight, seed)
        stepped(other, copy, seed)
    assert torch.equal(weight, copy)
