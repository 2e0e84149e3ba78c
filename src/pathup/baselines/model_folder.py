"""The folder of a trained baseline: its recipe, its weights, and ``baseline.json``, which says what it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pathup import __version__, storage
from pathup.errors import PathUpError
from pathup.recipes import Recipe, load_recipe, save_recipe

__all__ = ["ModelFolder", "read_model", "save_weights", "writing_model"]

NOTE = "baseline.json"


@dataclass(frozen=True)
class ModelFolder:
    """A trained baseline on disk.

    Attributes
    ----------
    folder
        Where its files are.
    name
        Which baseline it is.
    recipe
        What it was trained by.
    notes
        What ``baseline.json`` says: ``steps``, ``seconds`` of training, ``tiles`` (the fingerprint of its tiles), and
        what the baseline added.
    """

    folder: Path
    name: str
    recipe: Recipe
    notes: dict[str, Any]

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The weights of ``NAME.safetensors``.

        Raises
        ------
        PathUpError
            The file is missing or damaged.
        """
        path = self.folder / f"{name}.safetensors"
        try:
            return dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise PathUpError(f"{path} cannot be read ({error}); train or copy the baseline again") from error

    def sha256(self) -> str:
        """One hash of the model: of the names and contents of its files."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        lines = [f"{storage.sha256_file(path)} {path.relative_to(self.folder).as_posix()}" for path in files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@contextmanager
def writing_model(target: Path, name: str, recipe: Recipe, notes: dict[str, Any]) -> Iterator[Path]:
    """Yield a temporary folder for a baseline's weights; it becomes `target` when all of it is written.

    Raises
    ------
    PathUpError
        The disk is full or the folder cannot be written.
    """
    with storage.atomic_folder(target) as partial:
        yield partial
        save_recipe(recipe, partial / "recipe.yaml")
        storage.write_json(partial / NOTE, {"pathup": __version__, "baseline": name, **notes})


def save_weights(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Write ``NAME.safetensors``."""
    kept = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with storage.clear_disk_errors(folder / f"{name}.safetensors"):
        save_file(kept, folder / f"{name}.safetensors")


def read_model(folder: Path) -> ModelFolder:
    """A trained baseline: its folder, or that of the run around it.

    Raises
    ------
    PathUpError
        There is none, or its files cannot be read.
    """
    found = next((place for place in (folder, folder / "model") if (place / NOTE).is_file()), None)
    if found is None:
        raise PathUpError(
            f"{folder} holds no trained baseline: {NOTE} was needed, as 'pathup baseline train' writes at the end"
        )
    notes = dict(storage.read_json(found / NOTE))
    if not isinstance(notes.get("baseline"), str):
        raise PathUpError(f"{found / NOTE} does not say which baseline it is of; train it again")
    return ModelFolder(found, notes["baseline"], load_recipe(str(found / "recipe.yaml")), notes)
