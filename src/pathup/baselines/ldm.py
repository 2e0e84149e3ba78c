"""LDM: PathUp's own diffusion model without patho-align and feature entropy, one model a level.

The data flow: each level's tiles are encoded, and `pathup.training.patho_align` is trained on them with one neutral
prompt for all, by the recipe's `diffusion`; a level that is finished is not trained again. The models, each a folder
that PathUp and diffusers load, then become one: a level is drawn from its own. No model is told the class: tiles of two
classes differ by their noise alone.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pathup import storage
from pathup.baselines.model_folder import ModelFolder, writing_model
from pathup.baselines.systems import TrainRequest
from pathup.errors import PathUpError, unknown
from pathup.model.components import load_autoencoder
from pathup.model.pipeline import PathUpPipeline, load_pipeline
from pathup.recipes import Recipe, recipe_with, save_recipe
from pathup.sampling.device import computes_bfloat16
from pathup.tiles.dataset import TileFolder
from pathup.training.budget import PLAN_FILE
from pathup.training.latents import encoder_sha256
from pathup.training.patho_align import PathoAlignTrainer
from pathup.training.runs import FREE_TO_CHANGE, diffusion_trainer, train_for
from pathup.training.sheets import to_pixels

__all__ = ["LDM", "check", "drawing_precision", "load", "train"]

WITHOUT = {"diffusion.patho_align": False, "diffusion.feature_entropy.enabled": False}
"""What makes PathUp's training that of a plain latent diffusion model."""


class LDM:
    """Draws tiles: of each level from the model that was trained on it.

    Parameters
    ----------
    pipelines
        By level.
    """

    def __init__(self, pipelines: dict[str, PathUpPipeline]) -> None:
        self._pipelines = pipelines

    def draw(self, label: str, level: str, indices: range, seed: int) -> np.ndarray:
        """Tiles of a level, uint8 RGB (N, H, W, 3), by the pipeline's own sampling values.

        The noise that a tile is made of is a function of (seed, label, level, index), as PathUp's own is. That is all
        that the label decides: the model is not told of it.

        Raises
        ------
        PathUpError
            No such label or level, or the model's predictions are not finite.
        """
        if level not in self._pipelines:
            raise unknown("level", level, self._pipelines)
        pipeline = self._pipelines[level]
        one_by_one = [range(index, index + 1) for index in indices]
        images = [
            torch.as_tensor(pipeline(label, level, len(span), first_index=span.start, seed=seed, output_type="pt"))
            for span in ([indices] if indices.step == 1 and len(indices) else one_by_one)
        ]
        return to_pixels(2 * torch.cat(images) - 1)


def check(recipe: Recipe) -> None:
    """Check that every level's model has a folder of its own.

    Raises
    ------
    PathUpError
        A level is called as the folder of the finished model.
    """
    if "model" in recipe.level_names:
        raise PathUpError("a level is named 'model', as the finished model's folder is; give it another name")


def train(request: TrainRequest) -> Path:
    """Train a model for each level, from where the run stands; returns the folder that holds all.

    Each level has the recipe's steps, or its share of the minutes. ``baseline.json`` says, in all and of each level:
    ``steps``, ``tiles_seen`` and ``seconds`` of training.

    Raises
    ------
    PathUpError
        The recipe and the autoencoder do not fit each other, the folder holds another run, or training diverges or
        finds the disk full.
    """
    recipe = recipe_with(request.recipe, WITHOUT, source="ldm")
    levels = [level.name for level in recipe.tiles.levels]
    tiles = TileFolder.load(request.tiles, "train", recipe)
    begun = storage.claim_folder(
        request.output, "baseline train", _identity(request, recipe, tiles), resume=request.resume
    )
    existed = {path.name for path in request.output.iterdir()}
    save_recipe(recipe, request.output / "recipe.yaml")
    minutes = None if request.minutes is None else request.minutes / len(levels)
    for level in levels:
        if not _is_finished(request.output / level, recipe.diffusion.steps, minutes):
            try:
                trainer = _trainer(request, level)
            except PathUpError:
                if not begun and level == levels[0]:  # nothing was trained, so a corrected command is not another run
                    _forget(request.output, existed)
                raise
            train_for(trainer, minutes, workers=request.workers)
    return _gather(request, recipe, levels, tiles)


def load(model: ModelFolder, device: torch.device) -> LDM:
    """A trained model, ready to draw, in bfloat16 where it was trained in that.

    Raises
    ------
    PathUpError
        A level's model is missing or damaged.
    """
    levels = [level.name for level in model.recipe.tiles.levels]
    precision = drawing_precision(model.recipe, device)
    return LDM({level: load_pipeline(model.folder / level, device=device, precision=precision) for level in levels})


def drawing_precision(recipe: Recipe, device: torch.device) -> str:
    """The precision that a diffusion model is drawn in, in comparisons.

    bfloat16 where it learnt in that, and the device computes in it.
    """
    return "bf16" if recipe.diffusion.precision == "bf16" and computes_bfloat16(device) else "fp32"


def _identity(request: TrainRequest, recipe: Recipe, tiles: TileFolder) -> dict[str, Any]:
    """What makes two runs the same run, as `diffusion_trainer` sees it, of all levels."""
    return {
        "baseline": "ldm",
        "recipe": {
            "classes": [spec.model_dump() for spec in recipe.classes],
            "model": recipe.model.model_dump(mode="json"),
            "diffusion": recipe.diffusion.model_dump(mode="json", exclude=FREE_TO_CHANGE),
        },
        "muon": recipe.diffusion.muon_learning_rate is not None,
        "tiles": tiles.fingerprint(),
        "encoder": encoder_sha256(load_autoencoder(str(request.autoencoder or request.pretrained))),
        "pretrained": request.pretrained,
    }


def _trainer(request: TrainRequest, level: str) -> PathoAlignTrainer:
    """The trainer of one level, in a folder of its own; the run around it is the one that may be resumed or not."""
    return diffusion_trainer(
        request.tiles,
        request.output / level,
        str(request.output / "recipe.yaml"),
        pretrained=request.pretrained,
        autoencoder=request.autoencoder,
        level=level,
        latents=None,
        resume=True,
        changes={},
        cpu=request.cpu,
        wandb_project=request.wandb_project,
        gradient_checkpointing=False,
    )


def _is_finished(run: Path, steps: int, minutes: float | None) -> bool:
    """Whether a level's model has all of its steps: the recipe's, or those that were planned for the minutes."""
    made, planned = run / "model" / "training.json", run / PLAN_FILE
    if minutes is not None:
        plan = storage.read_json(planned) if planned.is_file() else {}
        if plan.get("minutes") != minutes:
            return False
        steps = int(plan["steps"])
    return made.is_file() and int(storage.read_json(made)["steps"]) >= steps


def _gather(request: TrainRequest, recipe: Recipe, levels: list[str], tiles: TileFolder) -> Path:
    """Put the levels' models into one folder."""
    runs = {level: request.output / level for level in levels}
    parts = {}
    for level, run in runs.items():
        made = storage.read_json(run / "model" / "training.json")
        parts[level] = {
            "steps": int(made["steps"]),
            "seconds": float(made["seconds"]),
            "tiles_seen": int(made["tiles_seen"]),
        }
    sums = {name: round(sum(part[name] for part in parts.values()), 1) for name in ("steps", "seconds", "tiles_seen")}
    notes = {**sums, "tiles": tiles.fingerprint(), "levels": parts}
    with writing_model(request.output / "model", "ldm", recipe, notes) as partial:
        for level, run in runs.items():
            shutil.copytree(run / "model", partial / level)
    return request.output / "model"


def _forget(folder: Path, existed: set[str]) -> None:
    """Give up a run that had only just been begun."""
    for name in ("recipe.yaml", storage.IDENTITY_FILE):
        (folder / name).unlink(missing_ok=True)
    if existed <= {storage.IDENTITY_FILE} and not any(folder.iterdir()):
        folder.rmdir()
