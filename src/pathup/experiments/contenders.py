"""The systems of tables 1 and 3, each trained and drawn from in one way, so that a table treats all alike.

A contender is PathUp itself or one of `pathup.baselines`. It is trained to so many steps (from where its run stands),
says how long that took, and draws tiles or enlarges images into a folder that ``pathup evaluate`` reads.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pathup import storage
from pathup.baselines.generating import DrawReport, DrawRequest, draw_from_baseline
from pathup.baselines.ldm import drawing_precision
from pathup.baselines.systems import BASELINES, TrainRequest, train_baseline
from pathup.recipes import Recipe, load_recipe, recipe_with, save_recipe
from pathup.sampling.device import choose_device
from pathup.sampling.runs import GenerateRequest, generate
from pathup.tiles.dataset import TileFolder
from pathup.tiles.making import METADATA_FILE
from pathup.training.runs import train_diffusion

__all__ = [
    "CONTENDERS",
    "Contender",
    "Pace",
    "Setting",
    "Trained",
    "drawn",
    "enlarged",
    "of_model",
    "precision_of",
    "trained",
    "untrained",
]


@dataclass(frozen=True)
class Contender:
    """One system of a table.

    Attributes
    ----------
    name, title
        In file names, and in tables.
    latent
        Whether it is trained on an autoencoder's latents.
    sections
        Of the recipe, where its numbers are: one for each of its parts.
    """

    name: str
    title: str
    latent: bool
    sections: tuple[str, ...]

    def budget(self, recipe: Recipe) -> str:
        """The recipe's steps and tiles a step of each part, in words."""
        parts: list[Any] = []
        for section in self.sections:
            place: Any = recipe
            for name in section.split("."):
                place = getattr(place, name)
            parts.append(place)
        models = len(recipe.level_names) if self.name == "ldm" else 1
        each = f", for each of {models} levels" if models > 1 else ""
        return " and ".join(f"{part.steps:,} steps of {part.batch_size} tiles" for part in parts) + each


def _of_baseline(name: str) -> Contender:
    system = BASELINES[name]
    return Contender(name, system.title, system.takes_autoencoder, system.sections)


GPU_BATCH = 64
"""Tiles that baselines draw at once on a GPU: VQ-GAN's transformer takes as long for one."""

NO_TRAINING = {"steps": 1, "learning_rate": 1e-12}

CONTENDERS = {
    contender.name: contender
    for contender in (
        *(_of_baseline(name) for name in BASELINES),
        Contender("pathup", "PathUp", True, ("diffusion",)),
    )
}
"""By name, in the order of tables."""


@dataclass(frozen=True)
class Setting:
    """What all contenders share.

    Attributes
    ----------
    tiles
        What ``pathup tiles`` wrote.
    output
        Of the experiment: runs are below it.
    recipe
        What all are trained by.
    autoencoder
        Of those that are trained on latents.
    pretrained
        A Stable Diffusion model that PathUp and LDM start from, with its autoencoder; None: from random weights.
    minutes
        Of training, each contender's; unset: the recipe's steps.
    device, workers
        As of the command line.
    """

    tiles: Path
    output: Path
    recipe: Recipe
    autoencoder: str
    pretrained: str | None = None
    minutes: float | None = None
    device: str = "auto"
    workers: int = 0

    @property
    def cpu(self) -> bool:
        """Whether it is all done on the CPU."""
        return choose_device(self.device).type == "cpu"

    def run_of(self, contender: Contender) -> Path:
        """The folder of a contender's run."""
        return self.output / "runs" / contender.name


@dataclass(frozen=True)
class Trained:
    """A trained contender: its model, steps and seconds of training in all, and the tiles that it has seen."""

    model: Path
    steps: int
    seconds: float
    tiles_seen: int

    def notes(self) -> dict[str, float]:
        """All but the place."""
        return {"steps": self.steps, "seconds": self.seconds, "tiles_seen": self.tiles_seen}


@dataclass(frozen=True)
class Pace:
    """Images drawn, and the seconds they took; those that an interrupted run had left behind are in neither."""

    images: int = 0
    seconds: float = 0.0

    def __add__(self, other: Pace) -> Pace:
        return Pace(self.images + other.images, self.seconds + other.seconds)

    def seconds_an_image(self) -> float | None:
        """None where nothing had to be drawn."""
        return self.seconds / self.images if self.images else None


def trained(contender: Contender, setting: Setting) -> Trained:
    """Train a contender, from where its run stands.

    Raises
    ------
    PathUpError
        The recipe does not fit, or training fails.
    """
    start = setting.pretrained if contender.name in ("pathup", "ldm") else None
    autoencoder = setting.autoencoder if contender.latent and start is None else None
    if contender.name != "pathup":
        model = train_baseline(contender.name, TrainRequest(
            tiles=setting.tiles, output=setting.run_of(contender), recipe=setting.recipe, changes={},
            autoencoder=autoencoder, pretrained=start, minutes=setting.minutes, resume=True, cpu=setting.cpu,
            workers=setting.workers,
        ))  # fmt: skip
        return of_model(model)
    own = setting.output / "recipe.yaml"
    return of_model(train_diffusion(
        setting.tiles, setting.run_of(contender), str(own), pretrained=start, autoencoder=autoencoder,
        level=None, latents=None, resume=True, changes={}, cpu=setting.cpu, workers=setting.workers, wandb_project=None,
        gradient_checkpointing=False, minutes=setting.minutes,
    ))  # fmt: skip


def untrained(contender: Contender, setting: Setting) -> Path:
    """A contender's model with the weights that training begins with: one step, too small to move them.

    On the tiles of one region a class, so that nothing long has to be computed first.
    """
    own = replace(setting, output=setting.output / "untrained", minutes=None, workers=0)
    tiny = {f"{section}.{name}": value for section in contender.sections for name, value in NO_TRAINING.items()}
    if contender.name in ("vqgan", "bsrgan"):
        tiny[f"{contender.sections[0]}.perceptual_steps"] = 1
    if "diffusion" in contender.sections:
        tiny["diffusion.decay_steps"] = 0
        if setting.recipe.diffusion.muon_learning_rate is not None:
            tiny["diffusion.muon_learning_rate"] = NO_TRAINING["learning_rate"]
    recipe = recipe_with(setting.recipe, tiny, source="untrained")
    own.output.mkdir(parents=True, exist_ok=True)
    with storage.held(own.output / "untrained.lock"):  # other processes may be at another generation, or table
        save_recipe(recipe, own.output / "recipe.yaml")
        own = replace(own, tiles=few_tiles(setting), recipe=recipe)
        return trained(contender, own).model


def few_tiles(setting: Setting) -> Path:
    """The training tiles of the first region of each class, as a folder of their own (by hard links, or copies)."""
    out, split = setting.output / "untrained" / "tiles", "train"
    if (out / split / METADATA_FILE).is_file():
        return out
    whole = TileFolder.load(setting.tiles, split, setting.recipe)
    first: dict[str, str] = {}
    for record in whole.records:
        first.setdefault(record.label, record.region)
    chosen = [place for place, record in enumerate(whole.records) if first[record.label] == record.region]
    for place in chosen:
        target = out / split / whole.records[place].file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            _linked(whole.path(place), target)
    save_recipe(setting.recipe, out / "recipe.yaml")
    rows = [json.dumps(asdict(whole.records[place]), ensure_ascii=False) for place in chosen]
    storage.write_text(out / split / METADATA_FILE, "".join(f"{row}\n" for row in rows))
    return out


def _linked(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copy2(source, target)


def of_model(model: Path) -> Trained:
    """A trained model, and what its training took by its own notes (0 where an older one does not say)."""
    baseline = model / "baseline.json"
    notes = storage.read_json(baseline if baseline.is_file() else model / "training.json")
    seconds = float(notes.get("seconds", 0.0))
    return Trained(model, int(notes.get("steps", 0)), seconds, int(notes.get("tiles_seen", 0)))


def drawn(contender: Contender, model: Path, out: Path, *, level: str, count: int, seed: int, device: str) -> Pace:
    """Draw `count` tiles of each class at a level into a folder, from where it stands."""
    if contender.name != "pathup":
        few = DrawRequest.batch if choose_device(device).type == "cpu" else GPU_BATCH
        request = DrawRequest(
            model=model, out=out, label="all", level=level, count=count, seed=seed, batch=few, device=device,
            resume=True,
        )  # fmt: skip
        return pace_of(draw_from_baseline(request))
    report = generate(GenerateRequest(
        model=model, out=out, label="all", level=level, count=count, seed=seed, device=device, resume=True,
        precision=precision_of(model, device),
    ))  # fmt: skip
    return Pace(len(report.files) - report.kept, report.seconds["total"])


def pace_of(report: DrawReport) -> Pace:
    """What a report of a baseline's drawing says of it."""
    return Pace(len(report.files) - report.kept, report.seconds)


def precision_of(model: Path, device: str) -> str:
    """What a PathUp model is drawn in, by its own recipe and on that device (`drawing_precision`)."""
    return drawing_precision(load_recipe(model / "recipe.yaml"), choose_device(device))


def enlarged(contender: Contender, model: Path, images: Path, out: Path, *, seed: int, device: str) -> Pace:
    """Enlarge every image of a folder into another, from where it stands."""
    request = DrawRequest(model=model, out=out, images=images, seed=seed, device=device, resume=True)
    return pace_of(draw_from_baseline(request))
