"""Which baselines there are, and how each is trained, loaded and drawn from.

A baseline is a module of this package with ``check(recipe)``, which raises a PathUpError where the recipe does not fit
it, ``train(request)``, which returns the folder of the model that it wrote, and ``load(model, device)``, which returns
a `TileMaker` or an `Upscaler`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from pathup.baselines.model_folder import ModelFolder, read_model
from pathup.errors import PathUpError, unknown
from pathup.memory import keep_freed_memory
from pathup.processes import check_one_process, computes_on_cpu
from pathup.recipes import Recipe, recipe_with
from pathup.training.runs import ask_for_repeatable_kernels

__all__ = [
    "BASELINES",
    "Baseline",
    "TileMaker",
    "TrainRequest",
    "Upscaler",
    "baseline",
    "check_baseline",
    "load_baseline",
    "train_baseline",
]


class TileMaker(Protocol):
    """A trained system that draws tiles."""

    def draw(self, label: str, level: str, indices: range, seed: int) -> np.ndarray:
        """Tiles of a class and level, uint8 RGB (N, H, W, 3).

        Tile `index` is a function of (seed, label, level, index), whichever others are drawn with it (but for
        rounding: kernels add up in another order for another batch).
        """
        ...


class Upscaler(Protocol):
    """A trained system that enlarges images."""

    factor: int
    """How many times wider and higher they get."""

    def enlarge(self, pixels_HWC: np.ndarray, seed: int, index: int) -> np.ndarray:
        """An image, uint8 RGB (H, W, 3), enlarged to (factor H, factor W, 3); a function of it, `seed` and `index`."""
        ...


@dataclass(frozen=True)
class Baseline:
    """One system.

    Attributes
    ----------
    name, title
        On the command line, and in tables.
    kind
        ``tiles``: it draws tiles of a class and level; ``upscaler``: it enlarges images.
    module
        Of this package.
    sections
        Of the recipe, where its numbers are: one for each of its parts, in their order.
    takes_autoencoder
        Whether it is trained on the latents of an autoencoder that is given.
    """

    name: str
    title: str
    kind: Literal["tiles", "upscaler"]
    module: str
    sections: tuple[str, ...]
    takes_autoencoder: bool = False


BASELINES = {
    system.name: system
    for system in (
        Baseline("stylegan2", "StyleGAN2", "tiles", "stylegan2", ("baselines.stylegan2",)),
        Baseline("vqgan", "VQ-GAN", "tiles", "vqgan", ("baselines.vqgan", "baselines.vqgan.transformer")),
        Baseline("ldm", "LDM", "tiles", "ldm", ("diffusion",), takes_autoencoder=True),
        Baseline(
            "ldm-sr", "LDM (super-resolution)", "upscaler", "ldm_sr", ("baselines.ldm_sr",), takes_autoencoder=True
        ),
        Baseline("bsrgan", "BSRGAN", "upscaler", "bsrgan", ("baselines.bsrgan",)),
    )
}
"""In the order of the paper's tables."""


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """``pathup baseline train``: the fields are its options (docs/commands.md).

    `changes` are of the recipe, named from its top (``baselines.stylegan2.augmentation``). `pretrained` is a Stable
    Diffusion model that ldm starts from, its autoencoder included. With `minutes`, all parts of the training take about
    that long together, instead of the recipe's steps.
    """

    tiles: Path
    output: Path
    recipe: Recipe
    changes: dict[str, Any]
    autoencoder: str | None = None
    pretrained: str | None = None
    minutes: float | None = None
    resume: bool = False
    cpu: bool = False
    workers: int = 0
    wandb_project: str | None = None


def baseline(name: str) -> Baseline:
    """The system of that name.

    Raises
    ------
    PathUpError
        There is none; the nearest is named.
    """
    if name not in BASELINES:
        raise unknown("baseline", name, list(BASELINES))
    return BASELINES[name]


def train_baseline(name: str, request: TrainRequest) -> Path:
    """Train a baseline from where its run stands.

    Returns
    -------
    Path
        Its model's folder, as `load_baseline` reads it.

    Raises
    ------
    PathUpError
        No such baseline, an autoencoder is missing or not wanted, the recipe or the tiles do not fit, several
        processes were launched, or the folder holds another run.
    """
    system = baseline(name)
    if request.pretrained is not None and name != "ldm":
        raise PathUpError(f"{name} is trained from random weights; leave --pretrained out, which is for ldm")
    if system.takes_autoencoder and request.autoencoder is None and request.pretrained is None:
        raise PathUpError(
            f"{name} is trained on latents: --autoencoder was needed, with what 'pathup train autoencoder' wrote or a "
            "model's folder"
        )
    if not system.takes_autoencoder and request.autoencoder is not None:
        raise PathUpError(f"{name} is trained on pixels and takes no autoencoder; leave --autoencoder out")
    check_one_process("a baseline")
    ask_for_repeatable_kernels()
    if computes_on_cpu(request.cpu):
        keep_freed_memory()
    changed = recipe_with(request.recipe, request.changes, source="command line")
    check_baseline(name, changed)
    return Path(_module(system).train(replace(request, recipe=changed, changes={})))


def check_baseline(name: str, recipe: Recipe) -> None:
    """Check, before anything is done, that a baseline can be built by a recipe.

    Raises
    ------
    PathUpError
        No such baseline, or the recipe does not fit it.
    """
    _module(baseline(name)).check(recipe)


def load_baseline(model: Path, device: torch.device | str = "cpu") -> tuple[ModelFolder, TileMaker | Upscaler]:
    """A trained baseline, ready to draw.

    Parameters
    ----------
    model
        What `train_baseline` returned, or the run's folder around it.
    device
        Where to put it.

    Raises
    ------
    PathUpError
        The folder holds no finished baseline.
    """
    found = read_model(model)
    return found, _module(baseline(found.name)).load(found, torch.device(device))


def _module(system: Baseline) -> Any:
    return importlib.import_module(f"pathup.baselines.{system.module}")
