"""Table 6: lesion classifiers trained on real tissue alone, with random augmentation, with PathUp's images, with both.

The data flow: PathUp's model draws images of every class, unless there are some already; each arm of each classifier is
trained from each seed with the same tuning and judged by regions of 'test'; predictions are kept as CSV, and all
figures come from them. What is there is not done again, and several processes share the jobs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pathup import storage
from pathup.downstream import judging, runs
from pathup.downstream.scores import Predictions, read_predictions
from pathup.downstream.synthetic import allotted, synthetic_fields
from pathup.errors import PathUpError
from pathup.experiments.classifier_arms import Job, jobs_of
from pathup.experiments.contenders import precision_of
from pathup.experiments.preparation import Step, carry_out
from pathup.experiments.table6_pages import write_table6
from pathup.recipes import Recipe, load_recipe
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
    synthetic: tuple[Path, ...] = ()
    pretrained: Path | None = None
    recipe: str = "atlas"
    features: str = "atlas"
    images: int = 8
    seeds: int = 5
    device: str = "auto"
    threads: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if (self.model is None) == (not self.synthetic):
            raise PathUpError(
                "table6 needs either --model, a PathUp model that was trained on tiles of split 'train', or "
                "--synthetic, images that such a model has drawn"
            )
        for name, least in (("seeds", 2), ("images", 1)):
            if getattr(self, name) < least:
                raise PathUpError(f"{name} is {getattr(self, name)}, but at least {least} were needed")

    @property
    def drawn(self) -> Path:
        """Where the model draws."""
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
    _check_images(request)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    identity = {
        "recipe": recipe.model_dump(mode="json"), "images": request.images, "features": request.features,
        "model": None if request.model is None else model_sha256(request.model),
        "synthetic": [storage.sha256_file(folder / METADATA_FILE) for folder in request.synthetic],
        "pretrained": None if request.pretrained is None else storage.sha256_file(request.pretrained),
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
        "draw synthetic images", (request.drawn / METADATA_FILE).is_file, partial(_draw, request),
        f"{count} images, {request.images} a class",
    )  # fmt: skip
    more = Step(
        "draw more images of rare classes", (request.more / DRAWN).is_file, partial(_draw_more, request),
        "as many as rare classes first takes beyond those", needs=draw.done,
    )  # fmt: skip
    drawing = [] if request.synthetic else [draw, more]

    def needs(job: Job) -> Callable[[], bool]:
        if request.synthetic:
            return lambda: True
        return more.done if job.arm.mixing == "rare_first" else draw.done

    jobs = [
        Step(
            f"train and evaluate {job.classifier}, {job.arm.title}, seed {job.seed}",
            (request.scores_of(job) / "scores.json").is_file, partial(_carry_out, request, job), "", job.name,
            needs(job),
        )
        for job in jobs_of(CLASSIFIERS, request.images, request.seeds)
    ]  # fmt: skip
    return [*drawing, *jobs]


def _check_images(request: Table6Request) -> None:
    """Check that images that were drawn before are as many as the arms take of each class."""
    if not request.synthetic:
        return
    recipe = load_recipe(request.recipe)
    found = Counter(field.label for folder in request.synthetic for field in synthetic_fields(folder, recipe.labels))
    wanted = {label: max(count, request.images) for label, count in _rare_first(request, recipe).items()}
    lacking = [f"{label} {found[label]} of {count}" for label, count in wanted.items() if found[label] < count]
    if lacking:
        raise PathUpError(
            f"the images of --synthetic are too few for --images {request.images} and for filling rare classes first "
            f"({', '.join(lacking)}); draw more of these classes, or ask for fewer"
        )


def _rare_first(request: Table6Request, recipe: Recipe) -> dict[str, int]:
    """How many images each class gets where rare classes are filled first: in all, as many as the arm beside it."""
    real = runs.training_counts(request.data, recipe, request.output / runs.CACHE)
    return allotted(real, request.images * len(recipe.labels), "rare_first")


def _draw(request: Table6Request) -> None:
    _generate(request, request.drawn, "all", request.images, seed=0)


def _draw_more(request: Table6Request) -> None:
    """Draw what the arm that fills rare classes first takes of a class beyond what there is of each.

    It is to get as many images in all as the arm beside it; a class that is rarer than the others then gets more.
    """
    wanted = _rare_first(request, load_recipe(request.recipe))
    lacking = {label: count - request.images for label, count in wanted.items() if count > request.images}
    for label, count in lacking.items():
        _generate(request, request.more / label, label, count, seed=1)
    storage.write_json(request.more / DRAWN, lacking)


def _generate(request: Table6Request, folder: Path, label: str, count: int, *, seed: int) -> None:
    if request.model is None:
        raise PathUpError("table6 needs --model to draw with")
    recipe = load_recipe(request.recipe)
    side = recipe.downstream.field_px or recipe.sampling.size_px
    generate(GenerateRequest(
        model=request.model, out=folder, label=label, size=f"{side}x{side}", count=count, seed=seed,
        device=request.device, resume=True, precision=precision_of(request.model, request.device),
    ))  # fmt: skip


def _carry_out(request: Table6Request, job: Job) -> None:
    arm, cache = job.arm, request.output / runs.CACHE
    changes: dict[str, Any] = {f"downstream.{job.classifier}.seed": job.seed}
    if arm.mixing is not None:
        changes["downstream.mixing"] = arm.mixing
    run = request.output / "runs" / job.name
    folders = [] if arm.per_class == 0 else list(request.synthetic) or [request.drawn]
    if arm.mixing == "rare_first" and not request.synthetic:
        folders += [request.more / label for label in storage.read_json(request.more / DRAWN)]
    runs.train(runs.TrainRequest(
        name=job.classifier, regions=request.data, output=run, recipe=load_recipe(request.recipe),
        synthetic=tuple(folders), per_class=arm.per_class or request.images,
        real_per_class=arm.real_per_class, augment=arm.augment, features=request.features, changes=changes, cache=cache,
        pretrained=request.pretrained if job.classifier == "vit" else None, device=request.device, resume=True,
    ))  # fmt: skip
    judging.evaluate_classifier(judging.EvaluateRequest(
        model=run, regions=request.data, output=request.scores_of(job), cache=cache, device=request.device,
    ))  # fmt: skip
