"""The verb ``pathup view``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def view(
    slide: Annotated[
        Path, typer.Argument(help="A slide, an image (PNG, JPEG, TIFF, WebP), or an OME-TIFF or .dzi of PathUp's.")
    ],
    beside: Annotated[
        Path | None, typer.Argument(metavar="[SLIDE2]", help="Another to show beside it; both zoom and pan as one.")
    ] = None,
    mpp: Annotated[
        list[float] | None,
        typer.Option(help="Micrometres a pixel of an image that records none; given twice, of the first and second."),
    ] = None,
    layout: Annotated[
        Path | None,
        typer.Option(
            help="Layout of the first, to lay over it: a GeoJSON, as 'pathup generate --layout' takes it, or a PNG of "
            "class numbers."
        ),
    ] = None,
    layout_unit: Annotated[
        str, typer.Option(help="What a GeoJSON's coordinates count: px (of the image) or um (micrometres).")
    ] = "px",
    host: Annotated[
        str, typer.Option(help="Address to listen at; the default is for this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 is any that is free.")] = 0,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Show it in the system's browser, where there is one.")
    ] = True,
) -> None:
    """Look at a slide or a generated image in the browser, or at two side by side.

    Nothing is converted first: tiles are read from the file as they are looked at. Ctrl-C ends it; '?' in the browser
    shows the keys.

    Examples: pathup view slide.ome.tiff --layout areas.geojson; pathup view real.svs slide.ome.tiff.
    """
    from pathup.study.viewer import view as run

    run(
        [slide, beside] if beside else [slide],
        mpp=mpp or (),
        layout=layout,
        layout_unit=layout_unit,
        host=host,
        port=port,
        browser=open_browser,
        say=lambda line: typer.echo(line),
    )
