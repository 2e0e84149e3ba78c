"""What all of PathUp's pages have in common: headers, what becomes of errors, static files, how they are served.

Everything a page needs is served by PathUp itself: no other host is asked for anything, and the content security policy
says so to the browser.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jinja2
import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pathup.errors import PathUpError

__all__ = [
    "BODY_LIMIT",
    "bound",
    "error_handlers",
    "guards",
    "page",
    "serve",
    "static_files",
]

BODY_LIMIT = 16_384
"""Bytes of a request's body, at most: an answer with a long comment has 3,000."""

_VIEWER_STYLE = "sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE="
"""Of the one style element that OpenSeadragon 6.1.1 adds to a page."""

HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; script-src 'self'; style-src 'self' '{_VIEWER_STYLE}'; img-src 'self' blob: data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
"""Of every response; one that says otherwise keeps its own. Links are secrets: no other host is told them, and nothing
is kept."""


class SecureHeaders:
    """Middleware: `HEADERS` on every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers)


class SameOrigin:
    """Middleware: whatever changes something comes from our own pages.

    A browser says where a request comes from, in ``Origin`` and ``Sec-Fetch-Site``; one that says another place, or
    nothing, is refused with 403.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD") and not _is_own(Headers(scope=scope)):
            refused = PlainTextResponse("this request does not come from PathUp's own page", 403)
            await refused(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_own(headers: Headers) -> bool:
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return False
    origin = urlsplit(headers.get("origin", ""))
    return origin.scheme in ("http", "https") and bool(origin.netloc) and origin.netloc == headers.get("host")


class BodyLimit:
    """Middleware: a body of more than `BODY_LIMIT` bytes is refused with 413, whatever its header says of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = Headers(scope=scope).get("content-length", "0")
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > BODY_LIMIT:
                raise HTTPException(413, "the request is too large")
            return message

        if not said.isdecimal() or int(said) > BODY_LIMIT:
            await PlainTextResponse("the request is too large", 413)(scope, receive, send)
            return
        await self._app(scope, limited, send)


def guards() -> list[Middleware]:
    """The middleware of every app."""
    return [Middleware(SecureHeaders), Middleware(SameOrigin), Middleware(BodyLimit)]


def static_files() -> StaticFiles:
    """The style sheets and scripts that come with PathUp."""
    return StaticFiles(packages=[("pathup.study", "static")])


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("pathup.study", "pages"), autoescape=True, undefined=jinja2.StrictUndefined
)


def page(name: str, values: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    """A template of ``pages/`` with values, all of which are escaped."""
    return HTMLResponse(_ENVIRONMENT.get_template(name).render(**values), status)


async def _told(request: Request, error: Exception) -> Response:
    """A known error as its one sentence, for a person or for a script."""
    status, said = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "")
    sentence = {404: "there is no such page", 405: "that is not possible here"}.get(status, "")
    said = said if said and said not in ("Not Found", "Method Not Allowed") else sentence or "something went wrong here"
    of_script = any("application/json" in request.headers.get(name, "") for name in ("accept", "content-type"))
    response = JSONResponse({"error": said}, status) if of_script else page("error.html", {"said": said}, status)
    response.headers.update(getattr(error, "headers", None) or {})
    return response


def error_handlers() -> dict[Any, Any]:
    """What becomes of errors: one sentence, never a trace."""
    return {HTTPException: _told, Exception: _told}


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes any that is free.

    Raises
    ------
    PathUpError
        The port is in use, or the host is not this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise PathUpError(f"port {port} is in use; name another with --port, or 0 for any that is free") from error
        raise PathUpError(f"cannot listen at {host}, port {port}: {error}; name another --host or --port") from error
    return listening


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Serve an app until it is interrupted. Nothing is logged: the links in requests are secrets."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=3, lifespan="off"
    )
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def asset(name: str) -> Path:
    """Where a static file lies."""
    return Path(str(resources.files("pathup.study") / "static" / name))
