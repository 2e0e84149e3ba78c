"""The verb ``pathup experiment``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathup.cli.progress import Bars


def experiment(
    name: Annotated[str, typer.Argument(help="table2, figure5 or denoiser.")],
    tiles: Annotated[Path, typer.Argument(help="What 'pathup tiles' wrote.")],
    output: Annotated[Path, typer.Argument(help="Folder to be made; both experiments may share one (--resume).")],
    autoencoder: Annotated[
        str, typer.Option(help="On whose latents all arms are trained (a folder, or a model's folder).")
    ],
    recipe: Annotated[str, typer.Option(help="A recipe's name or file.")] = "atlas",
    features: Annotated[
        list[str] | None, typer.Option(help="As of pathup evaluate; may be given several times. [default: atlas]")
    ] = None,
    seeds: Annotated[int, typer.Option(help="From how many seeds each arm is trained.")] = 5,
    steps: Annotated[
        int | None,
        typer.Option(help="Optimiser steps of each arm; the rate falls over the last third. [default: the recipe's]"),
    ] = None,
    count: Annotated[int, typer.Option(help="Tiles drawn of each class and level.")] = 50,
    share: Annotated[
        str, typer.Option(help="I/N: do every N-th job from the I-th, so that N processes share an experiment.")
    ] = "0/1",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what this very experiment has begun.")] = False,
) -> None:
    """Train, draw and measure the arms of one of the paper's tables, or of our own, from several seeds each.

    What is done stays: the same command with --resume goes on after a kill.

    Example: pathup experiment table2 tiles ablation --autoencoder models/atlas --steps 1500.
    """
    from pathup.experiments.ablation import AblationRequest, ablation

    request = AblationRequest(
        name=name, tiles=tiles, output=output, autoencoder=autoencoder, recipe=recipe,
        features=tuple(features or ("atlas",)), seeds=seeds, steps=steps, count=count, share=share, device=device,
        threads=threads, resume=resume,
    )  # fmt: skip
    with Bars() as bars:
        found = ablation(request, progress=bars)
    if "waiting" in found:
        names = ", ".join(found["waiting"])
        typer.echo(f"this share is done; {len(found['waiting'])} jobs of others are missing: {names}")
        return
    typer.echo(f"{output / name}.md, {name}.json and {name}.png written")
