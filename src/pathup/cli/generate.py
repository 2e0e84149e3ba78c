"""The verb ``pathup generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathup.cli.progress import Bars


def generate(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model (it holds model_index.json).")],
    out: Annotated[
        Path,
        typer.Argument(
            help="One file (.png, or .ome.tiff for a pyramidal slide) or, for several images, a folder to be made."
        ),
    ],
    label: Annotated[str, typer.Option(help="Class to draw, by its label; 'all' draws every class.")],
    size: Annotated[
        str | None, typer.Option(help="Of a large image, in pixels: WIDTHxHEIGHT or one number. [default: the model's]")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same image.")] = 0,
    count: Annotated[int, typer.Option(help="How many images of each class.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Steps of the scheduler. [default: the model's]")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; 1 is none and twice as fast. [default: the model's]")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="How much of the enlarged overview is drawn anew, above 0 to 1. [default: the model's]"),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="ddim, dpmpp_2m, unipc, euler or a diffusers class. [default: the model's]")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="An 8-bit RGB image that lays out the large one, in place of a drawn overview.")
    ] = None,
    level: Annotated[
        str | None, typer.Option(help="Draw single tiles of this level (patch or overview) instead of large images.")
    ] = None,
    window_batch: Annotated[
        int | None,
        typer.Option(help="Windows, or tiles, at once: it changes memory and speed only. [default: the model's]"),
    ] = None,
    weights: Annotated[
        bool | None,
        typer.Option("--weights/--no-weights", help="Blend windows by weight or cut them hard. [default: the model's]"),
    ] = None,
    format: Annotated[str, typer.Option(help="Of large images in a folder: png or ome.tiff.")] = "png",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads. [default: all cores]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a folder that this very run has begun.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output file that exists.")] = False,
) -> None:
    """Draw tissue: large images from a class's prompt, or single tiles.

    A large image grows from a low-resolution overview, drawn first (or given with --reference).

    Examples: pathup generate models/atlas slide.ome.tiff --label IC --size 2048x2048;
    pathup generate models/atlas tiles --label all --level patch --count 200.
    """
    from pathup.sampling.runs import GenerateRequest
    from pathup.sampling.runs import generate as run

    request = GenerateRequest(
        model=model,
        out=out,
        label=label,
        size=size,
        seed=seed,
        count=count,
        steps=steps,
        guidance=guidance,
        strength=strength,
        scheduler=scheduler,
        reference=reference,
        level=level,
        window_batch=window_batch,
        weighted=weights,
        format=format,
        device=device,
        threads=threads,
        resume=resume,
        overwrite=overwrite,
    )
    with Bars(counted=("images",)) as bars:
        report = run(request, progress=bars)
    images = [path for path in report.files if path.suffix != ".jsonl"]
    height, width = report.size_px
    kept = f" ({report.kept} were there)" if report.kept else ""
    plural = "" if len(images) == 1 else "s"
    typer.echo(f"{len(images)} image{plural}{kept} of {width} x {height} px, {report.mpp:g} mpp: {out}")
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in report.seconds.items())
    typer.echo(
        f"{report.forwards} U-Net forwards on {report.device}; {stages}; "
        f"peak memory {report.peak_memory_bytes / 2**20:.0f} MiB"
    )
