"""Atomic checkpoints: a folder counts only when its manifest, written last, matches every file.

A checkpoint is written to a temporary folder, flushed file by file, given a manifest with the SHA-256 of each
file, renamed, and only then are older ones pruned. A process killed at any moment leaves the newest complete
checkpoint in place.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pathup import storage
from pathup.errors import PathUpError
from pathup.training.sharding import placed_like

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors saved under `name`, on the CPU.

        They are copied out of the file, which is only mapped into memory: what happens to it later does not
        change them.
        """
        return {key: value.clone() for key, value in load_file(self.folder / f"{name}.safetensors").items()}

    def values(self) -> dict[str, Any]:
        """The plain values saved beside the tensors."""
        return dict(storage.read_json(self.folder / "values.json"))


def save_checkpoint(
    root: Path, step: int, groups: dict[str, dict[str, torch.Tensor]], values: dict[str, Any], *, keep: int
) -> Checkpoint:
    """Write the checkpoint of `step` under `root` atomically, then prune all but the newest `keep`.

    Parameters
    ----------
    root
        The folder of all checkpoints of a run.
    step
        Optimiser steps done.
    groups
        Tensors by name of file.
    values
        JSON values.

    Raises
    ------
    PathUpError
        The disk is full or not writable; earlier checkpoints are untouched.
    """
    final = root / f"step-{step:08d}"
    temporary = root / f".partial-{step:08d}"
    with storage.clear_disk_errors(final):
        root.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(root)
        temporary.mkdir()
        try:
            for name, tensors in groups.items():
                kept = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
                save_file(kept, temporary / f"{name}.safetensors")
            (temporary / "values.json").write_text(json.dumps(values), encoding="utf-8")
            files = sorted(temporary.iterdir())
            for file in files:
                storage.fsync_path(file)
            manifest = {"step": step, "files": {file.name: storage.sha256_file(file) for file in files}}
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
            storage.fsync_path(temporary / MANIFEST)
            storage.fsync_path(temporary)
            if final.exists():  # the same step, found damaged and done again
                os.replace(final, root / f".removing-{step:08d}")
            os.replace(temporary, final)
            storage.fsync_path(root)
            _mark(root).touch()
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    _prune(root, keep)
    return Checkpoint(final, step)


def newest_checkpoint(root: Path) -> Checkpoint | None:
    """The newest complete checkpoint; damaged newer ones are skipped with a warning that names them.

    Returns None where no checkpoint was ever completed.

    Raises
    ------
    PathUpError
        There are checkpoints, but none is complete, or there were some and they are gone: training must not start over
        unasked.
    """
    found = sorted((p for p in root.glob("step-*") if p.is_dir()), reverse=True)
    for folder in found:
        reason = _damage(folder)
        if reason is None:
            return Checkpoint(folder, int(folder.name.removeprefix("step-")))
        warnings.warn(f"checkpoint {folder} is skipped: {reason}", stacklevel=2)
    if found:
        raise PathUpError(
            f"none of the {len(found)} checkpoints in {root} is complete, so there is nothing to resume from; "
            "restore one from a backup, or remove the run's folder to start over"
        )
    if _mark(root).exists():
        raise PathUpError(
            f"this run has written checkpoints to {root}, but none is there now, so there is nothing to resume from; "
            "put them back, or remove the run's folder to start over"
        )
    return None


def remove_after(root: Path, step: int) -> None:
    """Remove the checkpoints of later steps than `step`, so that a run goes on from before."""
    for folder in root.glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)


def _mark(root: Path) -> Path:
    """A file beside `root` that says that it once held a complete checkpoint."""
    return root.with_name(f".{root.name}.begun")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state of an optimiser as plain tensors, ``{parameter index}.{name}``.

    Where it nests them (bitsandbytes does), ``{parameter index}.{name}.{name within}``.
    """
    tensors: dict[str, torch.Tensor] = {}
    for index, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            if isinstance(value, dict):  # copied: a file holds no tensor twice, and these share their tables
                tensors |= {f"{index}.{name}.{key}": torch.as_tensor(one).clone() for key, one in value.items()}
            else:
                tensors[f"{index}.{name}"] = torch.as_tensor(value)
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; hyperparameters stay those of the recipe.

    Moments get their parameter's memory format, which a file does not keep: fused optimisers step through both as they
    lie in memory. Where parameters are in shards, so are they, one after the other.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, name, *within = key.split(".")
        entry, parameter = state.setdefault(int(index), {}), parameters[int(index)]
        plain: Any = value
        if value.shape == parameter.shape:
            plain = torch.empty_like(parameter, dtype=value.dtype).copy_(placed_like(value, parameter))
        elif not value.ndim and not value.is_floating_point():
            plain = int(value)  # bitsandbytes counts in an integer
        if within:
            entry.setdefault(name, {})[".".join(within)] = plain
        else:
            entry[name] = plain
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _damage(folder: Path) -> str | None:
    try:
        files = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {MANIFEST} is missing or unreadable"
    if "values.json" not in files:
        return f"its {MANIFEST} does not list what a checkpoint holds"
    for name, digest in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        try:
            whole = storage.sha256_file(file) == digest
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if not whole:
            return f"{name} is damaged (its SHA-256 is not the manifest's)"
    return None


def _prune(root: Path, keep: int) -> None:
    for folder in sorted(root.glob("step-*"), reverse=True)[keep:]:
        doomed = folder.with_name(f".removing-{folder.name}")
        os.replace(folder, doomed)  # so that a kill during removal leaves nothing that looks like a checkpoint
        shutil.rmtree(doomed, ignore_errors=True)


def _clear_leftovers(root: Path) -> None:
    for pattern in (".partial-*", ".removing-*"):
        for folder in root.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)
