"""The verb ``pathup baseline``: the systems that PathUp is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from pathup.cli.progress import Bars
from pathup.cli.train import Cpu, Output, RecipeName, Resume, Seed, Tiles, Wandb, Workers
from pathup.errors import PathUpError

app = typer.Typer(no_args_is_help=True, help="Train and draw from the systems that PathUp is compared with.")


@app.callback()
def baseline() -> None:
    """Train and draw from the systems that PathUp is compared with."""


Name = Annotated[str, typer.Argument(help="stylegan2, vqgan, ldm, ldm-sr or bsrgan.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Another value of the recipe, named from its top (baselines.stylegan2.augmentation=none); may be given "
        "several times.",
    ),
]


@app.command()
def train(
    name: Name,
    tiles: Tiles,
    output: Output,
    recipe: RecipeName = "atlas",
    autoencoder: Annotated[
        str | None, typer.Option(help="On whose latents ldm and ldm-sr are trained (a folder, or a model's folder).")
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Of ldm: start from this Stable Diffusion 1.x/2.x (folder or hub id).")
    ] = None,
    resume: Resume = False,
    steps: Annotated[int | None, typer.Option(help="Of each part, instead of the recipe's number of steps.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Train for about so long instead of the recipe's steps.")
    ] = None,
    seed: Seed = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16, instead of the recipe's.")] = None,
    changes: Set = None,
    cpu: Cpu = False,
    workers: Workers = 0,
    wandb: Wandb = None,
) -> None:
    """Train a baseline on tiles.

    Example: pathup baseline train stylegan2 --tiles tiles --output runs/stylegan2 --recipe atlas.
    """
    from pathup.baselines.systems import TrainRequest, train_baseline
    from pathup.baselines.systems import baseline as system
    from pathup.recipes import load_recipe

    sections = system(name).sections
    asked = {"steps": steps, "seed": seed, "precision": precision}
    own = {f"{part}.{key}": value for part in sections for key, value in asked.items() if value is not None}
    request = TrainRequest(
        tiles=tiles, output=output, recipe=load_recipe(recipe), changes={**own, **changed(changes or [])},
        autoencoder=autoencoder, pretrained=pretrained, minutes=minutes, resume=resume, cpu=cpu,
        workers=workers, wandb_project=wandb,
    )  # fmt: skip
    typer.echo(f"{name} written to {train_baseline(name, request)}")


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(help="A baseline's run, or the model in it.")],
    out: Annotated[Path, typer.Argument(help="Folder to be made.")],
    label: Annotated[str | None, typer.Option(help="Class to draw, by its label; 'all' draws every class.")] = None,
    level: Annotated[str | None, typer.Option(help="Spatial level to draw.")] = None,
    count: Annotated[int, typer.Option(help="How many tiles of each class.")] = 1,
    images: Annotated[
        Path | None, typer.Option(help="For ldm-sr and bsrgan: what to enlarge, a folder of images or one image.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same images.")] = 0,
    batch: Annotated[int, typer.Option(help="Tiles at once: memory and speed only.")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads. [default: all cores]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what this very run has begun.")] = False,
) -> None:
    """Draw tiles from a baseline, or enlarge images with one.

    Examples: pathup baseline generate runs/stylegan2 tiles --label all --level patch --count 100;
    pathup baseline generate runs/bsrgan large --images overviews.
    """
    from pathup.baselines.generating import DrawRequest, draw_from_baseline

    request = DrawRequest(
        model=model, out=out, label=label, level=level, count=count, images=images, seed=seed, batch=batch,
        device=device, threads=threads, resume=resume,
    )  # fmt: skip
    with Bars(counted=("images",)) as bars:
        report = draw_from_baseline(request, bars)
    kept = f" ({report.kept} were there)" if report.kept else ""
    plural = "" if len(report.files) == 1 else "s"
    typer.echo(f"{len(report.files)} image{plural}{kept} in {report.seconds:.1f} s: {out}")


@app.command("import")
def import_published(
    weights: Annotated[Path, typer.Argument(help="BSRGAN's published weights, .pth or .safetensors (x4, RGB).")],
    out: Annotated[Path, typer.Argument(help="Folder to be made: a model as 'pathup baseline train' writes.")],
    recipe: RecipeName = "atlas",
) -> None:
    """Bring BSRGAN's published weights into a model's folder, to enlarge images with.

    Example: pathup baseline import BSRGAN.pth models/bsrgan, then
    pathup baseline generate models/bsrgan large --images overviews.
    """
    from pathup.baselines import bsrgan
    from pathup.recipes import load_recipe

    typer.echo(f"bsrgan written to {bsrgan.import_published(weights, out, load_recipe(recipe))}")


def changed(texts: list[str]) -> dict[str, Any]:
    """Values by their dotted names, of ``NAME=VALUE``; values are read as YAML.

    Raises
    ------
    PathUpError
        One is not of that form.
    """
    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise PathUpError(f"--set {text} was given, but NAME=VALUE was needed (baselines.stylegan2.steps=100)")
        try:
            found[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise PathUpError(f"--set {text}: the value is not valid YAML") from None
    return found
