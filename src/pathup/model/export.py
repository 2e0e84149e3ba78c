"""Writing a pipeline as a diffusers folder that says nothing of the machine it was written on."""

from __future__ import annotations

import shutil
from copy import copy
from pathlib import Path

import torch

from pathup import storage
from pathup.errors import PathUpError
from pathup.model.pipeline import PathUpPipeline, load_pipeline

__all__ = ["HALF_PARTS", "export_model", "forget_origin", "save_pipeline"]

HALF_PARTS = ("unet", "vae")
"""What ``--half`` stores in half precision. The text encoder stays whole: transformers, unlike diffusers, computes in
the precision that it finds in the file."""

_ORIGIN = "_name_or_path"  # diffusers and transformers note here where a part was loaded from


def save_pipeline(pipeline: PathUpPipeline, target: Path, *, half: bool = False) -> None:
    """Write every part of `pipeline` under `target`, as ``PathUpPipeline.from_pretrained`` reads it.

    Parameters
    ----------
    pipeline
        Left as it is.
    target
        Made when missing; files of the same names are replaced.
    half
        Store the U-Net and the autoencoder as float16: half the size. They load as float32 again, each weight
        rounded to the nearest float16 (11 significant bits, fewer below 6e-5).

    Raises
    ------
    PathUpError
        The disk is full or the folder cannot be written; or, with `half`, a weight is beyond float16's 65,504.
    """
    if half:
        pipeline = copy(pipeline)
        for name in HALF_PARTS:
            setattr(pipeline, name, _halved(getattr(pipeline, name), name))
    with storage.clear_disk_errors(target):
        pipeline.save_pretrained(target, safe_serialization=True)
        forget_origin(target)


def forget_origin(folder: Path) -> None:
    """Take the place where a part was loaded from out of every configuration below `folder`."""
    for config in [*folder.rglob("config.json"), *folder.rglob("*_config.json"), *folder.rglob("model_index.json")]:
        content = storage.read_json(config)
        if content.pop(_ORIGIN, None) is not None:
            storage.write_json(config, content)


def export_model(model: Path, target: Path, *, half: bool = False) -> None:
    """Copy a trained model's folder: its parts anew, and the recipe, memory, training values and card beside them.

    Raises
    ------
    PathUpError
        `model` is no PathUp model, or `target` holds files already; and as `save_pipeline`.
    """
    pipeline = load_pipeline(model)
    target = target.absolute()
    if target == Path.cwd():
        raise PathUpError(f"{target} is the folder that you are in, which would be replaced; name a new one")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise PathUpError(f"{target} exists and is not empty; name a new folder for the exported model")
    with storage.atomic_folder(target) as partial:
        save_pipeline(pipeline, partial, half=half)
        for path in model.iterdir():
            if (partial / path.name).exists() or path.name.startswith("."):
                continue
            if path.is_dir():
                shutil.copytree(path, partial / path.name)  # a card's pictures
            else:
                shutil.copyfile(path, partial / path.name)


def _halved(part: torch.nn.Module, name: str) -> torch.nn.Module:
    largest = float(torch.stack([weight.float().abs().max() for weight in part.state_dict().values()]).max())
    if not largest <= torch.finfo(torch.float16).max:  # nor if one is nan, which max hands on
        raise PathUpError(f"a weight of the {name} is {largest:g}, beyond half precision; export without --half")
    twin = type(part).from_config(part.config)  # type: ignore[attr-defined]
    twin.load_state_dict(part.state_dict())
    return twin.half()
