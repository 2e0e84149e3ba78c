"""`pathup export`: a trained model's folder, made small and free of paths, to pass on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder that 'pathup train diffusion' wrote.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the copy.")],
    half: Annotated[bool, typer.Option("--half", help="Store weights in half precision: half the size.")] = False,
) -> None:
    """Copy a trained model to pass on: a plain diffusers folder that names no path of this machine."""
    from pathup.model.export import export_model

    export_model(model, out, half=half)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    typer.echo(f"model written to {out} ({size / 2**20:.0f} MiB)")
