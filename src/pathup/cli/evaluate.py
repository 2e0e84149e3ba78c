"""The verb ``pathup evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathup.cli.progress import Bars


def evaluate(
    real: Annotated[
        Path, typer.Argument(help="Real tiles: what 'pathup tiles' wrote, a folder of tiles or images, or a slide.")
    ],
    fake: Annotated[
        Path, typer.Argument(help="Synthetic tiles or images: what 'pathup generate' wrote, a folder, or a slide.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to be made, for results.json, results.md, index.html, plots.")],
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="Network whose features tiles are compared by; may be given several times: atlas, inception, vgg16, "
            "dinov2, clip, hf-hub:OWNER/NAME, a folder, or a timm model with local weights "
            "(mobilenetv2_035,weights=FILE). [default: atlas]"
        ),
    ] = None,
    runs: Annotated[
        list[Path] | None,
        typer.Option(help="Another generation like FAKE, for mean and standard deviation; may be given several times."),
    ] = None,
    large: Annotated[
        list[Path] | None,
        typer.Option(help="Large images of the same generator, or a folder of them, to look for seams in."),
    ] = None,
    large_real: Annotated[
        list[Path] | None,
        typer.Option(help="Real large images, or a folder of them: what the ratio at random lines of real tissue is."),
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(help="Real training tiles. [default: the split train, where REAL is what 'pathup tiles' wrote]"),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of REAL that synthetic tiles are held against.")] = "test",
    level: Annotated[str | None, typer.Option(help="This spatial level alone.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="This part alone; may be given several times: fidelity, consistency, morphology, copying, seams. "
            "[default: all that the tiles allow]"
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=2, help="Most tiles on each side of a comparison.")] = 10_000,
    crop: Annotated[
        int | None, typer.Option(min=8, help="Compare random crops of this side, in pixels, of larger images.")
    ] = None,
    crops: Annotated[int, typer.Option(min=1, help="How many crops of each set.")] = 1000,
    mpp: Annotated[
        float | None, typer.Option(help="Micrometres per pixel of images that record none (nuclei need it).")
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            help="Window grid of large images: PITCH or PITCH+OFFSET in pixels. [default: the one that "
            "'pathup generate' recorded; otherwise it is searched for]"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    replicates: Annotated[int, typer.Option(min=0, help="Of the bootstrap; 0: no intervals.")] = 1000,
    subset_size: Annotated[int, typer.Option(min=2, help="Of KID's subsets, at most.")] = 1000,
    subsets: Annotated[int, typer.Option(min=1, help="Of KID.")] = 100,
    cache: Annotated[
        Path | None, typer.Option(help="Folder where features are kept. [default: pathup in the user's cache folder]")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither keep features nor use kept ones.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: all cores]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output folder that exists.")] = False,
) -> None:
    """Measure synthetic tiles beside real ones: fidelity, morphology, seams, class consistency and copying.

    Every figure stands beside the same figure of real tiles against real ones, with the same counts.

    Examples: pathup evaluate tiles synthetic --output report;
    pathup evaluate tiles run1 --runs run2 --runs run3 --output report --features inception --features vgg16.
    """
    from pathup.evaluation.runs import EvaluateRequest
    from pathup.evaluation.runs import evaluate as run

    request = EvaluateRequest(
        real=real,
        fake=fake,
        output=output,
        features=tuple(features or ["atlas"]),
        runs=tuple(runs or ()),
        large=tuple(large or ()),
        large_real=tuple(large_real or ()),
        train=train,
        split=split,
        level=level,
        only=tuple(only or ()),
        count=count,
        crop=crop,
        crops=crops,
        mpp=mpp,
        grid=grid,
        seed=seed,
        replicates=replicates,
        subset_size=subset_size,
        subsets=subsets,
        cache=cache,
        keep=not no_cache,
        device=device,
        threads=threads,
        overwrite=overwrite,
    )
    with Bars() as bars:
        report = run(request, progress=bars)
    if not report.is_main:
        return
    for line in report.lines:
        typer.echo(line)
    typer.echo(f"report: {output / 'index.html'} ({output / 'results.md'}, {output / 'results.json'})")
