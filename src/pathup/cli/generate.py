"""The verb ``pathup generate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pathup.cli.progress import Bars
from pathup.errors import PathUpError

if TYPE_CHECKING:
    from pathup.sampling.batching import TilesEstimate
    from pathup.sampling.estimate import Estimate


def generate(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model (it holds model_index.json).")],
    out: Annotated[
        Path,
        typer.Argument(
            help="One file (.png, or a pyramidal slide: .ome.tiff, .dzi) or, for several images, a folder to be made."
        ),
    ],
    label: Annotated[str, typer.Option(help="Class to draw, by its label; 'all' draws every class.")],
    size: Annotated[
        str | None, typer.Option(help="Of a large image, in pixels: WIDTHxHEIGHT or one number. [default: the model's]")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same image.")] = 0,
    count: Annotated[int, typer.Option(help="How many images of each class.")] = 1,
    index: Annotated[
        int | None,
        typer.Option(
            help="Draw this one image of a class again, from 0, into one file: the very image of the run that had this "
            "--count (and --window-batch)."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the scheduler. [default: the model's]")] = None,
    step_power: Annotated[
        float | None,
        typer.Option(
            help="1: steps evenly spread; above: more of them at high noise, for tiles and overviews. "
            "[default: the model's]"
        ),
    ] = None,
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
    layout: Annotated[
        Path | None,
        typer.Option(
            help="GeoJSON of areas with a class each, as QuPath exports; --label is then the class of everything else, "
            "or 'glass' for empty glass."
        ),
    ] = None,
    layout_unit: Annotated[
        str, typer.Option(help="What the layout's coordinates count: px (of the output) or um (micrometres).")
    ] = "px",
    level: Annotated[
        str | None, typer.Option(help="Draw single tiles of this level (patch or overview) instead of large images.")
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(
            help="Micrometres a pixel of single tiles, for a model that takes in scales (between and beyond its levels "
            "too). [default: the level's]"
        ),
    ] = None,
    window_batch: Annotated[
        int | None,
        typer.Option(
            help="Windows, or tiles, at once: it changes memory, speed and last digits only. [default: the model's; "
            "for a long run of tiles, what a short probe finds best]"
        ),
    ] = None,
    shard_size: Annotated[
        int | None,
        typer.Option(
            help="Pack single tiles into WebDataset shards (shard-000000.tar, ...) of about so many, each with its "
            "prompt and metadata. [default: one file a tile]"
        ),
    ] = None,
    windows: Annotated[
        str | None,
        typer.Option(
            help="Of each step of a large image: overlapped (the paper's) or shifted (each step covers the canvas "
            "once, with windows that lie elsewhere; the last steps overlap). [default: the model's]"
        ),
    ] = None,
    window_weight: Annotated[
        str | None,
        typer.Option(
            help="How overlapping windows blend: hann, equation_6 (the paper's) or hard. [default: the model's]"
        ),
    ] = None,
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Cut windows hard, without blending: the same as --window-weight hard.")
    ] = False,
    overlap: Annotated[
        int | None, typer.Option(help="Of neighbouring windows, in latent positions. [default: the model's]")
    ] = None,
    format: Annotated[str, typer.Option(help="Of large images in a folder: png, ome.tiff or dzi.")] = "png",
    preview: Annotated[
        Path | None,
        typer.Option(help="Keep the last preview as this PNG; while the image grows, it is in OUT.unfinished."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would cost (forwards, time, memory, disk), and draw nothing.")
    ] = False,
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, or bf16: the U-Net computes in bfloat16, a third to half of the time where the device has it. "
            "A seed then gives much the same image, not the same."
        ),
    ] = "fp32",
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="Of many single tiles: fuse the U-Net's blocks, some minutes first, then less a tile."
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads. [default: all cores]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what this very run has begun.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an output file that exists, or begin an unfinished one anew.")
    ] = False,
) -> None:
    """Draw tissue: large images from a class's prompt, or single tiles.

    A large image grows from a low-resolution overview, drawn first (or given with --reference). While it grows, what
    is done is kept in OUT.unfinished: the same command with --resume goes on after a kill. Several processes
    (accelerate launch --num_processes N -m pathup generate ...) share its windows, or the tiles of a folder.

    Examples: pathup generate models/atlas slide.ome.tiff --label IC --size 2048x2048;
    pathup generate models/atlas tiles --label all --level patch --count 10000 --shard-size 1000.
    """
    from pathup.sampling.runs import GenerateRequest
    from pathup.sampling.runs import estimate as run_estimate
    from pathup.sampling.runs import generate as run

    if no_weights and window_weight not in (None, "hard"):
        raise PathUpError(
            f"--no-weights cuts windows hard, but --window-weight {window_weight} was given too; leave one out"
        )

    request = GenerateRequest(
        model=model,
        out=out,
        label=label,
        size=size,
        seed=seed,
        count=count,
        index=index,
        steps=steps,
        step_power=step_power,
        guidance=guidance,
        strength=strength,
        scheduler=scheduler,
        reference=reference,
        level=level,
        mpp=mpp,
        layout=layout,
        layout_unit=layout_unit,
        windows=windows,
        window_weight="hard" if no_weights else window_weight,
        overlap=overlap,
        window_batch=window_batch,
        shard_size=shard_size,
        preview=preview,
        format=format,
        precision=precision,
        compiled=compiled,
        device=device,
        threads=threads,
        resume=resume,
        overwrite=overwrite,
    )
    if dry_run:
        typer.echo(told(run_estimate(request)))
        return
    with Bars(counted=("images",)) as bars:
        report = run(request, progress=bars)
    if not report.is_main:
        return
    height, width = report.size_px
    kept = f" ({report.kept} were there)" if report.kept else ""
    plural = "" if report.images == 1 else "s"
    shards = sum(path.suffix == ".tar" for path in report.files)
    kept += f" in {shards} shard{'' if shards == 1 else 's'}" if shards else ""
    typer.echo(f"{report.images} image{plural}{kept} of {width} x {height} px, {report.mpp:g} mpp: {out}")
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in report.seconds.items())
    coverage = f" ({report.coverage:.1f} coverages of the canvas)" if report.coverage else ""
    typer.echo(
        f"{report.forwards} U-Net forwards on {report.device}{coverage}; {stages}; "
        f"peak memory {report.peak_memory_bytes / 2**20:.0f} MiB"
    )


def told(cost: Estimate | TilesEstimate) -> str:
    """An estimate in words, one line a kind of cost."""
    from pathup.sampling.batching import TilesEstimate

    if isinstance(cost, TilesEstimate):
        lines = [
            f"{cost.images} tiles of {cost.size_px[1]} x {cost.size_px[0]} px, {cost.at_once} at once:",
            f"  U-Net forwards  {cost.forwards}",
            f"  time            about {_duration(cost.seconds)}, as a short probe here went",
            f"  memory          about {_amount(cost.memory_bytes)}",
            f"  disk            about {_amount(cost.file_bytes)}",
        ]
        return "\n".join(lines)
    height, width = cost.size_px
    forwards = ", ".join(f"{stage} {count}" for stage, count in cost.forwards.items())
    stages = ", ".join(f"{stage} {_duration(seconds)}" for stage, seconds in cost.seconds.items())
    lines = [
        f"{width} x {height} px" + (f", {cost.images} images; of each:" if cost.images > 1 else ":"),
        f"  U-Net forwards  {sum(cost.forwards.values())} ({forwards}); {cost.coverage:.1f} coverages of the canvas",
        f"  time            about {_duration(sum(cost.seconds.values()))} ({stages}), as a short probe here went",
        f"  memory          about {_amount(cost.memory_bytes)}",
        f"  disk            at most about {_amount(cost.disk_bytes)} while it grows, {_amount(cost.file_bytes)} in "
        f"the end",
    ]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes:.0f} min" if minutes < 120 else f"{hours:.1f} h"


def _amount(count: int) -> str:
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
