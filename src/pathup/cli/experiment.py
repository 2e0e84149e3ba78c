"""The verb ``pathup experiment``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pathup.cli.progress import Bars
from pathup.errors import unknown

if TYPE_CHECKING:
    from pathup.experiments.preparation import Step


def experiment(
    name: Annotated[str, typer.Argument(help="table1, table2, table3, pairs, table4, figure5, table6 or denoiser.")],
    data: Annotated[
        Path,
        typer.Option(
            help="What 'pathup tiles' wrote, or what it is to cut (BRACS as downloaded); of table6 the latter."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder to be made; experiments may share one (--resume).")],
    recipe: Annotated[str, typer.Option(help="A recipe's name or file.")] = "atlas",
    autoencoder: Annotated[
        str | None,
        typer.Option(
            help="On whose latents all are trained (a folder, or a model's folder). [default: one is trained first]"
        ),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="Of table1, 3, 4 and pairs: the Stable Diffusion 1.x/2.x that PathUp and LDM start from (folder or "
            "hub id); of table6: the weights that its vision transformer starts from (file)."
        ),
    ] = None,
    synthetic: Annotated[
        list[Path] | None,
        typer.Option(
            help="Of table6, in place of --model: images that 'pathup generate' made; may be given several times."
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="A trained PathUp model: a row of its own in table1, table3 and pairs, the one that draws in table4 "
            "and table6; its autoencoder is taken unless another is given."
        ),
    ] = None,
    baseline: Annotated[
        list[Path] | None,
        typer.Option(
            help="A baseline that was trained or imported elsewhere (longer, another arm, published weights): one more "
            "row in the tables of its kind; may be given several times."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Train each system of table1, 3, 4 and pairs for so long. [default: the recipe's steps]"),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(help="Processes that read tiles beside the training of each system of table1, 3, 4 and pairs."),
    ] = 0,
    features: Annotated[
        list[str] | None, typer.Option(help="As of pathup evaluate; may be given several times. [default: atlas]")
    ] = None,
    generations: Annotated[int, typer.Option(help="From how many seeds table1, 3, 4 and pairs are drawn.")] = 5,
    images: Annotated[
        int,
        typer.Option(
            help="Large images of each class and generation, of table3, 4 and pairs; of each class, of table6."
        ),
    ] = 4,
    seeds: Annotated[int, typer.Option(help="From how many seeds arms of table2, figure5, denoiser are trained.")] = 5,
    steps: Annotated[
        int | None,
        typer.Option(help="Optimiser steps of each arm; the rate falls over the last third. [default: the recipe's]"),
    ] = None,
    count: Annotated[int, typer.Option(help="Tiles drawn (or cropped) of each class and level.")] = 50,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to do, and do nothing.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what this very experiment has begun.")] = False,
) -> None:
    """Train, draw and measure what one of the paper's tables compares, or one of our own.

    table1, table3, table4 and pairs compare PathUp with other systems and with itself; table2, figure5 and denoiser
    compare ways to train it, each from several seeds; table6 compares classifiers with and without its images. What is
    done stays: the same command with --resume goes on after a kill, and started several times at once, on one machine
    or on several with a common disk, its processes share what there is to do.

    Examples: pathup experiment table1 --data tiles --output tables --model models/atlas --minutes 60;
    pathup experiment table2 --data tiles --output ablation --autoencoder models/atlas --steps 1500.
    """
    from pathup.experiments import ablation, tables
    from pathup.experiments.arms import EXPERIMENTS
    from pathup.experiments.comparison import ComparisonRequest

    if name not in (*tables.TABLES, *EXPERIMENTS, "table6"):
        raise unknown("experiment", name, [*tables.TABLES, *EXPERIMENTS, "table6"])
    chosen = tuple(features or ("atlas",))
    if name == "table6":
        from pathup.experiments import table6

        classified = table6.Table6Request(
            data=data, output=output, model=model, synthetic=tuple(synthetic or ()),
            pretrained=None if pretrained is None else Path(pretrained), recipe=recipe, features=chosen[0],
            images=images, seeds=seeds, device=device, threads=threads, resume=resume,
        )  # fmt: skip
        if dry_run:
            typer.echo(told(table6.plan(classified)))
            return
        with Bars() as bars:
            table6.table6(classified, bars)
        typer.echo(f"{output / name}.md, {name}.json and {name}.png written")
        return
    if name in tables.TABLES:
        asked = ComparisonRequest(
            name=name, data=data, output=output, recipe=recipe, autoencoder=autoencoder, pretrained=pretrained,
            model=model, baselines=tuple(baseline or ()), minutes=minutes, workers=workers, features=chosen,
            generations=generations, count=count, images=images, device=device, threads=threads, resume=resume,
        )  # fmt: skip
        if dry_run:
            typer.echo(told(tables.plan(asked)))
            return
        with Bars() as bars:
            tables.compare(asked, bars)
        typer.echo(f"{output / name}.md and {name}.json written")
        return
    request = ablation.AblationRequest(
        name=name, data=data, output=output, autoencoder=autoencoder, recipe=recipe, features=chosen, seeds=seeds,
        steps=steps, count=count, device=device, threads=threads, resume=resume,
    )  # fmt: skip
    if dry_run:
        typer.echo(told(ablation.plan(request)))
        return
    with Bars() as bars:
        ablation.ablation(request, progress=bars)
    typer.echo(f"{output / name}.md, {name}.json and {name}.png written")


def told(steps: list[Step]) -> str:
    """A plan in words, one line a step: done or not, what, and what is known of its cost."""
    lines = [f"{'done' if step.done() else 'to do':>5}  {step.what}" + (f": {step.cost}" if step.cost else "")
             for step in steps]  # fmt: skip
    left = sum(not step.done() for step in steps)
    return "\n".join([*lines, f"{left} of {len(steps)} to do"])
