"""The verb ``pathup classify``: lesion classifiers, with and without synthetic tissue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathup.cli.baseline import Set, changed
from pathup.cli.progress import Bars
from pathup.cli.train import RecipeName, Resume, Seed

app = typer.Typer(no_args_is_help=True, help="Lesion classifiers, with and without synthetic tissue.")


@app.callback()
def classify() -> None:
    """Lesion classifiers, with and without synthetic tissue."""


Regions = Annotated[Path, typer.Option(help="What 'pathup tiles' takes: class folders, a region table, slides.")]
Output = Annotated[Path, typer.Option(help="Folder to be made.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads. [default: all cores]")]
Cache = Annotated[
    Path | None,
    typer.Option(help="Where what was read of regions is kept; runs may share it. [default: OUTPUT/.cache]"),
]


@app.command()
def pretrain(
    regions: Regions,
    output: Output,
    recipe: RecipeName = "atlas",
    features: Annotated[str, typer.Option(help="Of the network to learn from: as of pathup evaluate.")] = "atlas",
    seed: Seed = None,
    changes: Set = None,
    cache: Cache = None,
    device: Device = "auto",
    threads: Threads = None,
    resume: Resume = False,
) -> None:
    """Teach a vision transformer a frozen network's features of tissue, for 'classify train vit --pretrained'.

    It sees regions of 'train' alone, and no label. For where no pretrained transformer is at hand.

    Example: pathup classify pretrain --regions regions.csv --output runs/start --features mobilenetv2_035,weights=FILE.
    """
    from pathup.downstream import runs
    from pathup.recipes import load_recipe

    own = {} if seed is None else {"downstream.vit.distillation.seed": seed}
    request = runs.PretrainRequest(
        regions=regions, output=output, recipe=load_recipe(recipe), features=features,
        changes={**own, **changed(changes or [])}, cache=cache, device=device, threads=threads, resume=resume,
    )  # fmt: skip
    typer.echo(f"weights written to {runs.pretrain(request)}")


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="vit or abmil.")],
    regions: Regions,
    output: Output,
    recipe: RecipeName = "atlas",
    synthetic: Annotated[
        list[Path] | None,
        typer.Option(
            help="Images that 'pathup generate' made, for training only; may be given several times. Refused where "
            "they or their generator hold tissue of 'val' or 'test'."
        ),
    ] = None,
    per_class: Annotated[
        int | None,
        typer.Option(help="Synthetic images a class (the recipe's downstream.mixing divides them). [default: all]"),
    ] = None,
    real_per_class: Annotated[
        int | None, typer.Option(help="Real training regions a class, drawn by the seed. [default: all]")
    ] = None,
    augment: Annotated[
        bool, typer.Option("--augment", help="Random augmentation of training images (downstream.augmentations).")
    ] = False,
    features: Annotated[str, typer.Option(help="Of abmil: as of pathup evaluate.")] = "atlas",
    pretrained: Annotated[
        Path | None, typer.Option(help="Of vit: weights of the recipe's model to start from (safetensors).")
    ] = None,
    seed: Seed = None,
    changes: Set = None,
    cache: Cache = None,
    device: Device = "auto",
    threads: Threads = None,
    resume: Resume = False,
) -> None:
    """Train a classifier of regions; the recipe's learning rates are tried, and 'val' decides.

    Example: pathup classify train abmil --regions regions.csv --output runs/abmil --synthetic synthetic --per-class 8.
    """
    from pathup.downstream import runs
    from pathup.downstream.classifiers import classifier
    from pathup.recipes import load_recipe

    own = {} if seed is None else {f"downstream.{classifier(name).name}.seed": seed}
    request = runs.TrainRequest(
        name=name, regions=regions, output=output, recipe=load_recipe(recipe), synthetic=tuple(synthetic or ()),
        per_class=per_class, real_per_class=real_per_class, augment=augment, features=features, pretrained=pretrained,
        changes={**own, **changed(changes or [])}, cache=cache, device=device, threads=threads, resume=resume,
    )  # fmt: skip
    typer.echo(f"{name} written to {runs.train(request)}")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A classifier's run, or the model in it.")],
    regions: Regions,
    output: Output,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    attention: Annotated[
        bool, typer.Option("--attention", help="Of abmil: draw where it looked over every region.")
    ] = False,
    cache: Cache = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Name the classes of regions: predictions.csv, and F-scores a class in scores.json.

    Example: pathup classify evaluate runs/abmil --regions regions.csv --output scores --attention.
    """
    from pathup.downstream import judging

    request = judging.EvaluateRequest(
        model=model, regions=regions, output=output, split=split, attention=attention, cache=cache, device=device,
        threads=threads,
    )  # fmt: skip
    with Bars() as bars:
        scores = judging.evaluate_classifier(request, bars)
    low, high = scores["mean_interval"]
    told = ", ".join(f"{label} {value:.2f}" for label, value in scores["f_scores"].items())
    typer.echo(f"F-scores of {scores['regions']} regions: {told} (95 % interval of the mean {low:.2f} to {high:.2f})")
