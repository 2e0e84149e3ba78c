"""``pathup tiles``: cut labelled regions or slides into tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table


def tiles(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="What to cut: a folder of class folders with images (BRACS's tree, with or without train/val/test), "
            "a region table (.csv with the columns file and label), a slide, or a folder of slides.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Shipped recipe (bracs, atlas, tiny) or a YAML file.")],
    annotations: Annotated[
        Path | None,
        typer.Option(help="QuPath GeoJSON of the slide, or a folder of them; without it, SLIDE.geojson beside each."),
    ] = None,
    patients: Annotated[Path | None, typer.Option(help="CSV with the columns slide and patient.")] = None,
    mpp: Annotated[
        float | None, typer.Option(min=1e-3, help="Micrometres per pixel of sources that record none.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes; the result is the same.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
) -> None:
    """Cut labelled regions or annotated slides into tiles for training.

    Writes lossless PNGs and one metadata.jsonl a split (train, val, test) into OUT.
    """
    from pathup.recipes import load_recipe
    from pathup.tiles.making import make_tiles

    summary = make_tiles(
        source,
        out,
        load_recipe(recipe),
        annotations=annotations,
        patients=patients,
        mpp=mpp,
        workers=workers,
        resume=resume,
    )
    _print(summary, out)


def _print(summary: dict[str, Any], out: Path) -> None:
    console = Console()
    table = Table(title=f"tiles in {out}")
    table.add_column("split")
    table.add_column("level")
    splits: dict[str, dict[str, dict[str, int]]] = summary["tiles"]
    labels = list(next(iter(next(iter(splits.values())).values())))
    for column in (*labels, "all"):
        table.add_column(column, justify="right")
    for split, levels in splits.items():
        for level, counts in levels.items():
            if not any(any(c.values()) for c in levels.values()):
                continue
            table.add_row(split, level, *(str(counts[label]) for label in labels), str(sum(counts.values())))
    console.print(table)
    for level, reasons in summary["left_out"].items():
        if reasons:
            console.print(f"left out at level {level}: " + ", ".join(f"{n} {why}" for why, n in reasons.items()))
    for warning in summary["warnings"]:
        console.print(f"note: {warning}")
