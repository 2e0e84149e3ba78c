"""Tables that compare ways to train: each arm trained from several seeds, sampled and measured, then set side by side.

The data flow: an arm and a seed are a job, which trains (a model, or one for each level), draws tiles of every class
and level, measures them beside real test tiles and keeps its figures as one JSON file; what is there is not done
again, so a killed experiment goes on, and several processes share the jobs. When all are there, figures are
averaged over seeds and arms are compared seed by seed.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from pathup import storage
from pathup.errors import PathUpError
from pathup.evaluation.encoders import load_features
from pathup.evaluation.tile_sets import TileSet, load_tile_set
from pathup.experiments.arms import ARMS, Arm, Experiment, experiment
from pathup.experiments.pages import write_pages
from pathup.experiments.preparation import Ground, Step, carry_out
from pathup.experiments.yardstick import Yardstick
from pathup.recipes import Recipe, load_recipe, save_recipe
from pathup.sampling.device import choose_device
from pathup.sampling.runs import GenerateRequest, generate, model_sha256
from pathup.training.runs import changed_recipe, train_diffusion

__all__ = ["AblationRequest", "Job", "ablation", "jobs_of", "memory_spread", "plan"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class AblationRequest:
    """``pathup experiment``: the fields are its arguments and options (docs/commands.md)."""

    name: str
    data: Path
    output: Path
    autoencoder: str | None = None
    recipe: str = "atlas"
    features: tuple[str, ...] = ("atlas",)
    seeds: int = 5
    steps: int | None = None
    count: int = 50
    device: str = "auto"
    threads: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        experiment(self.name)
        for name, least in (("seeds", 2), ("count", 10)):
            if getattr(self, name) < least:
                raise PathUpError(f"{name} is {getattr(self, name)}, but at least {least} were needed")


@dataclass(frozen=True)
class Job:
    """One arm from one seed."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """In the names of its files."""
        return f"{self.arm.name}_{self.seed}"


def jobs_of(asked: Experiment, seeds: int) -> list[Job]:
    """All jobs of an experiment, seed by seed, so that an unfinished one has all arms of the first seeds."""
    return [Job(ARMS[name], seed) for seed in range(seeds) for name in asked.arms]


def ablation(request: AblationRequest, progress: Progress | None = None) -> dict[str, Any]:
    """Carry out an experiment, from where it stands; several processes may carry out the same one.

    Returns
    -------
    dict
        What ``NAME.json`` holds.

    Raises
    ------
    PathUpError
        An option is out of range, an arm does not fit the recipe, the folder holds another experiment, or training,
        sampling or measuring fails.
    """
    asked, tell = experiment(request.name), progress or (lambda stage, done, total: None)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    recipe = changed_recipe(load_recipe(request.recipe), "diffusion", {"steps": request.steps})
    for name in asked.arms:
        ARMS[name].changed(recipe)  # an arm that does not fit the recipe is told before anything is trained
    ground = _ground(request, recipe)
    identity = {
        "recipe": recipe.model_dump(mode="json"), "tiles": ground.fingerprint(), "autoencoder": request.autoencoder,
        "features": list(request.features), "count": request.count,
    }  # fmt: skip
    storage.claim_folder(request.output, "experiment", identity, resume=request.resume)
    save_recipe(recipe, request.output / "recipe.yaml")
    ground.prepare(request.output / "locks")
    bench = _Bench(request, ground, [level.name for level in recipe.tiles.levels], recipe.diffusion.steps)
    jobs = jobs_of(asked, request.seeds)
    carry_out([bench.step_of(job) for job in jobs], request.output / "locks", tell)
    tell("table", len(jobs), len(jobs))
    found = [(job, storage.read_json(bench.figures_of(job))) for job in jobs]
    rows = [row for _, figures in found for row in figures["rows"]]
    learnt = [{"arm": job.arm.name, "seed": job.seed, **learning(figures)} for job, figures in found]
    return write_pages(request.output, asked, rows, learnt, bench.floor(), request.seeds)


def plan(request: AblationRequest) -> list[Step]:
    """What an experiment consists of, in its order; nothing is done or written.

    Raises
    ------
    PathUpError
        An option is out of range, or an arm does not fit the recipe.
    """
    asked = experiment(request.name)
    recipe = changed_recipe(load_recipe(request.recipe), "diffusion", {"steps": request.steps})
    ground, levels = _ground(request, recipe), [level.name for level in recipe.tiles.levels]
    bench = _Bench(request, ground, levels, recipe.diffusion.steps, recipe)
    for name in asked.arms:
        ARMS[name].changed(recipe)
    return ground.steps() + [bench.step_of(job) for job in jobs_of(asked, request.seeds)]


def _ground(request: AblationRequest, recipe: Recipe) -> Ground:
    cpu = choose_device(request.device).type == "cpu"
    return Ground(request.data, request.output, recipe, request.autoencoder, cpu)


class _Bench:
    """What all jobs share, and how one is carried out."""

    def __init__(
        self, request: AblationRequest, ground: Ground, levels: list[str], steps: int, recipe: Recipe | None = None
    ) -> None:
        self._request, self._ground, self._levels, self._steps = request, ground, levels, steps
        self._recipe = recipe or load_recipe(str(request.output / "recipe.yaml"))
        self._made: Yardstick | None = None

    @property
    def _yardstick(self) -> Yardstick:
        if self._made is None:
            device = choose_device(self._request.device)
            encoders = [load_features(name, device) for name in self._request.features]
            cache = self._request.output / "features"
            self._made = Yardstick(self._ground.tiles, encoders, self._request.count, cache)
        return self._made

    def figures_of(self, job: Job) -> Path:
        """Where a job's figures are kept."""
        return self._request.output / "figures" / f"{job.name}.json"

    def step_of(self, job: Job) -> Step:
        """A job as a step of the experiment."""
        spec = self._recipe.diffusion
        cost = f"{spec.steps:,} steps of {spec.batch_size} tiles, then {self._request.count} tiles of each class and "
        what = f"train, draw and measure '{job.arm.title}', seed {job.seed}"
        return Step(what, self.figures_of(job).is_file, partial(self.carry_out, job), cost + "level", job.name)

    def carry_out(self, job: Job) -> None:
        """Train, draw, measure; what takes room and is not needed again is removed."""
        started = time.perf_counter()
        models = {level: self._trained(job, level) for level in self._parts(job)}
        spent = time.perf_counter() - started
        rows = []
        for level in self._levels:
            model = models[level if job.arm.a_model_a_level else None]
            own = self._drawn(job, model, level)
            for encoder in self._yardstick.encoders:
                told = {"arm": job.arm.name, "seed": job.seed, "level": level, "features": encoder.name}
                rows.append({**told, **self._yardstick.figures(own, encoder, level)})
        about = {
            "training_seconds": spent,
            "models": {str(level): model_sha256(model) for level, model in models.items()},
            "losses": {str(level): _last_losses(model.parent) for level, model in models.items()},
            "memory_spread": {
                str(level): memory_spread(model)
                for level, model in models.items()
                if job.arm.changes.get("diffusion.feature_entropy.enabled")
            },
        }
        self.figures_of(job).parent.mkdir(parents=True, exist_ok=True)
        storage.write_json(self.figures_of(job), {**about, "rows": rows})
        for model in models.values():
            shutil.rmtree(model.parent / "checkpoints", ignore_errors=True)

    def floor(self) -> list[dict[str, Any]]:
        """Real training tiles, as many, in the place of an arm's."""
        tiles = self._yardstick.floor()
        return [
            {"arm": "floor", "level": level, "features": encoder.name, **self._yardstick.figures(tiles, encoder, level)}
            for encoder in self._yardstick.encoders
            for level in self._levels
        ]

    def _parts(self, job: Job) -> list[str | None]:
        return list(self._levels) if job.arm.a_model_a_level else [None]

    def _trained(self, job: Job, level: str | None) -> Path:
        run = self._request.output / "runs" / (job.name if level is None else f"{job.name}_{level}")
        steps = self._steps if level is None else max(1, self._steps // len(self._levels))
        if (run / "model" / "training.json").is_file():
            return run / "model"
        recipe = job.arm.changed(self._recipe)
        own = self._request.output / "arms" / f"{job.arm.name}.yaml"
        own.parent.mkdir(exist_ok=True)
        save_recipe(recipe, own)
        turned = f"_turned_{job.seed}" if recipe.diffusion.orientations > 1 else ""  # which turns, its seed decides
        latents = f"{level or 'all'}{turned}"
        return train_diffusion(
            self._ground.tiles,
            run,
            str(own),
            pretrained=None,
            autoencoder=self._ground.autoencoder,
            level=level,
            latents=self._request.output / "latents" / latents,
            resume=True,
            changes={
                "seed": job.seed, "steps": steps, "keep_checkpoints": 1, "sample_every": steps,
                "decay_steps": steps // 3,
            },
            cpu=choose_device(self._request.device).type == "cpu",
            workers=0,
            wandb_project=None,
            gradient_checkpointing=False,
        )  # fmt: skip

    def _drawn(self, job: Job, model: Path, level: str) -> TileSet:
        out = self._request.output / "tiles" / job.name / level
        generate(GenerateRequest(
            model=model, out=out, label="all", level=level, count=self._request.count, seed=job.seed,
            device=self._request.device, resume=True,
        ))  # fmt: skip
        return load_tile_set(out, f"{job.name}, {level}")


def learning(figures: dict[str, Any]) -> dict[str, float]:
    """Of a job: its losses at the end and the spread of its memory, means over its models, and seconds of training."""
    losses = list(figures["losses"].values())
    means = {name: float(np.mean([of[name] for of in losses])) for name in losses[0]}
    spreads = list(figures["memory_spread"].values())
    spread = {"memory_spread": float(np.mean(spreads))} if spreads else {}
    return {**means, **spread, "training_seconds": figures["training_seconds"]}


def memory_spread(model: Path) -> float:
    """How far the memory's anchors lie apart: 1 less the mean cosine of two; 0 where all are one direction."""
    memory_KD = load_file(model / "feature_memory.safetensors")["memory_KD"].double()
    unit = torch.nn.functional.normalize(memory_KD, dim=1)
    count = len(unit)
    cosines = float((unit @ unit.T).sum() - count)
    return 1 - cosines / (count * (count - 1))


def _last_losses(run: Path) -> dict[str, float]:
    """Mean of each loss over the last tenth of the lines that a run logged."""
    lines = list(_lines(run / "losses.jsonl"))
    last = lines[-max(1, len(lines) // 10) :]
    names = {name for line in last for name in line if name.startswith("L_")}
    return {name: float(np.mean([line[name] for line in last if name in line])) for name in sorted(names)}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as handle:
        yield from (json.loads(line) for line in handle if line.strip())
