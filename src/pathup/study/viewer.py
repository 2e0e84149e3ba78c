"""The slide viewer: one image, or two side by side, in a browser.

A request names an image and a tile by numbers alone; they are looked up among the images that were opened at the start,
so that no path from a request reaches the file system.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pathup.errors import PathUpError
from pathup.study.deep_tiles import DeepImage, open_tiles
from pathup.study.layers import LayoutLayer, read_layer
from pathup.study.web import bound, error_handlers, guards, page, serve, static_files

__all__ = ["MAGNIFICATIONS", "same_field", "view", "viewer_app"]

MAGNIFICATIONS = (1.0, 2.5, 5.0, 10.0, 20.0, 40.0)
"""Of the buttons. At 10x a pixel of the screen shows 1 um, so that 40x is 0.25 um."""

_SAME_FIELD = 0.02
"""Two images show the same field where their sides differ by less, relative: a rim is cut to whole latents or tiles."""


class LocalHost:
    """Middleware: a request is for this machine by one of its own names, or is refused with 403.

    Else a page from elsewhere could have its own name lead here, and read what is served (DNS rebinding).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http":
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if not _is_loopback(re.sub(r":\d+$", "", host)):
                await PlainTextResponse("this is not the address that PathUp told", 403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def same_field(one: DeepImage, other: DeepImage) -> bool:
    """Whether two images show the same extent: in micrometres, or in proportions where either lacks its scale."""
    if one.extent and other.extent:
        pairs = zip(one.extent, other.extent, strict=True)
        return all(abs(a / b - 1) < _SAME_FIELD for a, b in pairs)
    return abs(one.size[0] / one.size[1] * other.size[1] / other.size[0] - 1) < _SAME_FIELD


def viewer_app(slides: Sequence[DeepImage], layout: LayoutLayer | None = None, *, local: bool = True) -> Starlette:
    """The viewer's web app.

    Parameters
    ----------
    slides
        One image, or two.
    layout
        What may be laid over the first; over the second as well where that shows the same field.
    local
        Whether only requests to names of this machine are answered.
    """
    same = all(same_field(slides[0], other) for other in slides[1:])
    values = {
        "title": ", ".join(slide.path.name for slide in slides),
        "panels": [_panel(number, slide) for number, slide in enumerate(slides)],
        "same_field": same,
        "layout": layout,
        "laid_over": len(slides) if same else 1,
        "magnifications": [(key, f"{times:g}", f"{10 / times:g}") for key, times in enumerate(MAGNIFICATIONS, start=1)],
        "has_scale": any(slide.mpp for slide in slides),
    }

    def index(_: Request) -> Response:
        return page("viewer.html", values)

    def descriptor(request: Request) -> Response:
        return Response(_slide(request).descriptor(), media_type="application/xml")

    def tile(request: Request) -> Response:
        slide, at = _slide(request), request.path_params
        if at["ending"] != slide.ending:
            raise HTTPException(404)
        try:
            content = slide.tile(at["level"], at["column"], at["row"])
        except LookupError:
            raise HTTPException(404, f"{slide.path.name} has no such tile") from None
        except PathUpError as error:
            raise HTTPException(500 if slide.path.exists() else 404, str(error)) from error
        return Response(content, media_type=slide.media_type(at["level"]))

    def _slide(request: Request) -> DeepImage:
        number: int = request.path_params["number"]
        if number >= len(slides):
            raise HTTPException(404, "there is no such image")
        return slides[number]

    def areas(_: Request) -> Response:
        if layout is None:
            raise HTTPException(404, "there is no layout")
        return JSONResponse(layout.content)

    def picture(_: Request) -> Response:
        if layout is None or layout.picture is None:
            raise HTTPException(404, "there is no layout")
        return Response(layout.picture, media_type="image/png")

    return Starlette(
        routes=[
            Route("/", index),
            Route("/slides/{number:int}.dzi", descriptor),
            Route("/slides/{number:int}_files/{level:int}/{column:int}_{row:int}.{ending}", tile),
            Route("/layout.json", areas),
            Route("/layout.png", picture),
            Mount("/static", static_files()),
        ],
        middleware=[*([Middleware(LocalHost)] if local else []), *guards()],
        exception_handlers=error_handlers(),
    )


def _panel(number: int, slide: DeepImage) -> dict[str, Any]:
    width, height = slide.size
    told = f"{width:,} × {height:,} px".replace(",", "\u202f")
    if slide.mpp and slide.extent:
        mpp = " × ".join(dict.fromkeys(f"{value:.4g}" for value in slide.mpp))
        told += f" · {mpp} µm/px · {_lengths(*slide.extent)}"
    return {"number": number, "name": slide.path.name, "told": told, "size": slide.size, "mpp": slide.mpp}


def _lengths(width: float, height: float) -> str:
    """Two lengths, in micrometres, in words."""
    if max(width, height) < 1000:
        return f"{width:.0f} × {height:.0f} µm"
    return f"{width / 1000:.3g} × {height / 1000:.3g} mm"


def view(
    paths: Sequence[Path],
    *,
    mpp: Sequence[float] = (),
    layout: Path | None = None,
    layout_unit: str = "px",
    host: str = "127.0.0.1",
    port: int = 0,
    browser: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Show images until interrupted.

    Parameters
    ----------
    paths
        One or two images.
    mpp
        Micrometres a pixel of images that record none: one number for all, or one for each.
    layout, layout_unit
        As `layers.read_layer` takes them; of the first image.
    host, port
        Where to listen; port 0 is any that is free.
    browser
        Whether to show the page in the system's browser.
    say
        Told the address.

    Raises
    ------
    PathUpError
        An image, the layout or the address is of no use.
    """
    if len(mpp) > len(paths):
        raise PathUpError(f"--mpp was given {len(mpp)} times, but there are {len(paths)} images; give it once for each")
    stated = list(mpp) if len(mpp) == len(paths) else [mpp[0] if mpp else None] * len(paths)
    slides = [open_tiles(path, scale) for path, scale in zip(paths, stated, strict=True)]
    layer = read_layer(layout, slides[0], layout_unit) if layout is not None else None
    local = _is_loopback(host)
    listening = bound(host, port)
    listening.listen()  # from now on a browser waits for its answer
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}/"
    app = viewer_app(slides, layer, local=local)
    with suppress(KeyboardInterrupt):
        say(address)
        if not local:
            say("whoever can reach this machine can look at these images; Ctrl-C ends it")
        if browser and (sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            webbrowser.open(address)
        serve(app, listening)
