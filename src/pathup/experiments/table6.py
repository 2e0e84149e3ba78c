"""Table 6: lesion classifiers trained on real tissue alone, with random augmentation, with PathUp's images, with both.

The data flow: PathUp's model draws images of every class; each arm of each classifier is trained from each seed with
the same tuning and judged by regions of 'test'; predictions are kept as CSV, and all figures come from them. What is
there is not done again, and several processes share the jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pathup import storage
from pathup.downstream import runs
from pathup.downstream.scores import Predictions, read_predictions
from pathup.downstream.synthetic import allotted
from pathup.errors import PathUpError
from pathup.experiments.classifier_arms import Job, jobs_of
from pathup.experiments.contenders import precision_of
from pathup.experiments.preparation import Step, carry_out
from pathup.experiments.table6_pages import write_table6
from pathup.recipes import load_recipe
from pathup.sampling.runs import GenerateRequest, generate, model_sha256
from pathup.tiles.making import METADATA_FILE

__all__ = ["CLASSIFIERS", "Table6Request", "plan", "table6"]

Progress = Callable[[str, int, int], None]

CLASSIFIERS = ("vit", "abmil")

DRAWN = "drawn.json"


@dataclass(frozen=True, kw_only=True)
class Table6Request:
    """``pathup experiment table6``: the fields are its options (docs/commands.md)."""

    data: Path
    output: Path
    model: Path | None
    recipe: str = "atlas"
    features: str = "atlas"
    images: int = 8
    seeds: int = 5
    device: str = "auto"
    threads: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if self.model is None:
            raise PathUpError("table6 needs --model, a PathUp model that was trained on tiles of split 'train'")
        for name, least in (("seeds", 2), ("images", 1)):
            if getattr(self, name) < least:
                raise PathUpError(f"{name} is {getattr(self, name)}, but at least {least} were needed")

    @property
    def generator(self) -> Path:
        """The model that draws."""
        if self.model is None:
            raise PathUpError("table6 needs --model")
        return self.model

    @property
    def synthetic(self) -> Path:
        """Where synthetic images are."""
        return self.output / "synthetic"

    @property
    def more(self) -> Path:
        """Where more images of rare classes are, a folder a class, once ``drawn.json`` there says how many."""
        return self.output / "synthetic_more"

    def scores_of(self, job: Job) -> Path:
        """Where a job's predictions and scores are."""
        return self.output / "scores" / job.name


def table6(request: Table6Request, progress: Progress | None = None) -> dict[str, Any]:
    """Carry out the experiment, from where it stands; several processes may carry out the same one.

    Returns
    -------
    dict
        What ``table6.json`` holds.

    Raises
    ------
    PathUpError
        The recipe, the regions or the model do not fit, the generator has seen tissue that is held back, the folder
        holds another experiment, or drawing or training fails.
    """
    recipe, tell = load_recipe(request.recipe), progress or (lambda stage, done, total: None)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    identity = {
        "recipe": recipe.model_dump(mode="json"), "model": model_sha256(request.generator), "images": request.images,
        "features": request.features,
    }  # fmt: skip
    storage.claim_folder(request.output, "experiment table6", identity, resume=request.resume)
    steps, jobs = plan(request), jobs_of(CLASSIFIERS, request.images, request.seeds)
    carry_out(steps, request.output / "locks", tell)
    tell("table", len(steps), len(steps))
    found: dict[Job, Predictions] = {job: read_predictions(request.scores_of(job) / "predictions.csv") for job in jobs}
    notes = {job: storage.read_json(request.scores_of(job) / "scores.json")["model"] for job in jobs}
    return write_table6(request.output, request.images, request.seeds, recipe, found, notes)


def plan(request: Table6Request) -> list[Step]:
    """What the experiment consists of, in its order; nothing is done or written."""
    recipe = load_recipe(request.recipe)
    count = request.images * len(recipe.labels)
    draw = Step(
        "draw synthetic images", (request.synthetic / METADATA_FILE).is_file, partial(_draw, request),
        f"{count} images, {request.images} a class",
    )  # fmt: skip
    more = Step(
        "draw more images of rare classes", (request.more / DRAWN).is_file, partial(_draw_more, request),
        "as many as rare classes first takes beyond those", needs=draw.done,
    )  # fmt: skip
    jobs = [
        Step(
            f"train and evaluate {job.classifier}, {job.arm.title}, seed {job.seed}",
            (request.scores_of(job) / "scores.json").is_file, partial(_carry_out, request, job), "", job.name,
            more.done if job.arm.mixing == "rare_first" else draw.done,
        )
        for job in jobs_of(CLASSIFIERS, request.images, request.seeds)
    ]  # fmt: skip
    return [draw, more, *jobs]


def _draw(request: Table6Request) -> None:
    _generate(request, request.synthetic, "all", request.images, seed=0)


def _draw_more(request: Table6Request) -> None:
    """Draw what the arm that fills rare classes first takes of a class beyond what there is of each.

    It is to get as many images in all as the arm beside it; a class that is rarer than the others then gets more.
    """
    recipe = load_recipe(request.recipe)
    real = runs.training_counts(request.data, recipe, request.output / "cache")
    wanted = allotted(real, request.images * len(recipe.labels), "rare_first")
    lacking = {label: count - request.images for label, count in wanted.items() if count > request.images}
    for label, count in lacking.items():
        _generate(request, request.more / label, label, count, seed=1)
    storage.write_json(request.more / DRAWN, lacking)


def _generate(request: Table6Request, folder: Path, label: str, count: int, *, seed: int) -> None:
    recipe = load_recipe(request.recipe)
    side = recipe.downstream.field_px or recipe.sampling.size_px
    generate(GenerateRequest(
        model=request.generator, out=folder, label=label, size=f"{side}x{side}", count=count, seed=seed,
        device=request.device, resume=True, precision=precision_of(request.generator),
    ))  # fmt: skip


def _carry_out(request: Table6Request, job: Job) -> None:
    arm, cache = job.arm, request.output / "cache"
    changes: dict[str, Any] = {f"downstream.{job.classifier}.seed": job.seed}
    if arm.mixing is not None:
        changes["downstream.mixing"] = arm.mixing
    run = request.output / "runs" / job.name
    folders = [request.synthetic] if arm.per_class != 0 else []
    if arm.mixing == "rare_first":
        folders += [request.more / label for label in storage.read_json(request.more / DRAWN)]
    runs.train(runs.TrainRequest(
        name=job.classifier, regions=request.data, output=run, recipe=load_recipe(request.recipe),
        synthetic=tuple(folders), per_class=arm.per_class or request.images,
        real_per_class=arm.real_per_class, augment=arm.augment, features=request.features, changes=changes, cache=cache,
        device=request.device, resume=True,
    ))  # fmt: skip
    runs.evaluate_classifier(runs.EvaluateRequest(
        model=run, regions=request.data, output=request.scores_of(job), cache=cache, device=request.device,
    ))  # fmt: skip
