"""Training by `pathup train` within the tests' own process, without its start of some seconds."""

from __future__ import annotations

from pathlib import Path

from pathup.training.runs import train_diffusion

QUIET = {"resume": False, "cpu": True, "workers": 0, "wandb_project": None}
"""What every trainer is told here."""


def diffusion(tiles: Path, output: Path, autoencoder: Path | None = None, **changes: object) -> Path:
    """`pathup train diffusion`: settings of the command by their names, everything else is a value of the recipe."""
    settings = {
        "pretrained": None,
        "autoencoder": None if autoencoder is None else str(autoencoder),
        "level": None,
        "latents": None,
        "gradient_checkpointing": False,
        "recorded": False,
        **QUIET,
    }
    settings |= {key: changes.pop(key) for key in list(changes) if key in settings}
    recipe = str(changes.pop("recipe", "tiny"))
    return train_diffusion(tiles, output, recipe, changes=changes, **settings)
