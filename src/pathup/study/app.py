"""The pages of a study: a reader's, behind an unguessable link, and the administrator's.

The data flow: a link says whose page it is; the page asks where its reader stands, shows the image of that place, and
sends an answer; the answer is on the disk before the next image is served. What the server sends tells nothing of an
image but its place in the reader's order: all images have one size, one length and one kind of name.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route

from pathup.errors import PathUpError
from pathup.study.answers import MOST_COMMENT, Answer, Answers, Progress, RefusedAnswerError, Round
from pathup.study.folder import ADMINISTRATOR, StudyFolder
from pathup.study.web import error_handlers, guards, page, static_files

__all__ = ["study_app"]

WRONG_LINKS = 20
"""Links that are nobody's, from one address within `WINDOW_SECONDS`; after them it is told to wait."""

WINDOW_SECONDS = 60.0
ADDRESSES = 10_000
"""Addresses that are remembered for it, at most."""


class Sent(BaseModel):
    """An answer as a page sends it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    round: Literal["practice", "study"]
    place: int = Field(ge=0, le=100_000)
    turn: int = Field(ge=0, le=1_000_000)
    score: int = Field(ge=1, le=10)
    guess: str | None = None
    comment: str | None = Field(None, max_length=MOST_COMMENT)
    seconds: float | None = Field(None, ge=0, le=1e6, allow_inf_nan=False)


class WrongLinks:
    """How often each address has tried links that are nobody's."""

    def __init__(self) -> None:
        self._tried: defaultdict[str, deque[float]] = defaultdict(deque)

    def too_many(self, address: str) -> bool:
        """Whether an address has to wait."""
        tried, now = self._tried.get(address, deque()), time.monotonic()
        while tried and now - tried[0] > WINDOW_SECONDS:
            tried.popleft()
        return len(tried) >= WRONG_LINKS

    def add(self, address: str) -> None:
        """One more of an address."""
        if len(self._tried) >= ADDRESSES and address not in self._tried:
            self._tried.pop(next(iter(self._tried)))
        self._tried[address].append(time.monotonic())


class _Study:
    """The study that an app serves."""

    def __init__(self, folder: StudyFolder, answers: Answers) -> None:
        self.folder, self.answers, self.wrong = folder, answers, WrongLinks()

    # -- whose page it is -----------------------------------------------------------------------------------

    def _owner(self, request: Request) -> int:
        whose = self.folder.owner(request.path_params["link"])
        if whose is not None:  # whatever others at the same address have tried
            return whose
        address = request.client.host if request.client else ""
        if self.wrong.too_many(address):
            raise HTTPException(429, "too many links that are not known; wait a minute", {"retry-after": "60"})
        self.wrong.add(address)
        raise HTTPException(404, "this link is not known; ask whoever sent it for a new one")

    def _reader(self, request: Request) -> int:
        whose = self._owner(request)
        if whose == ADMINISTRATOR:
            raise HTTPException(404, "this link is not known; ask whoever sent it for a new one")
        return whose

    # -- where a reader stands ------------------------------------------------------------------------------

    def _standing(self, known: Progress) -> tuple[Round | None, int]:
        """The round and the place that come next; None when all is done."""
        if known.practice < self.folder.count("practice"):
            return "practice", known.practice
        if known.study < self.folder.count("study"):
            return "study", known.study
        return None, 0

    def _state(self, reader: int) -> dict[str, Any]:
        """What a page has to know."""
        known = self.answers.progress(reader)
        round_, place = self._standing(known)
        counts = {name: self.folder.count(name) for name in ("practice", "study")}
        return {
            "consented": known.consented is not None, "round": round_, "place": place, "turn": known.turn,
            "counts": counts,
        }  # fmt: skip

    def _may_see(self, reader: int, round_: Round, place: int) -> bool:
        """Whether a reader has come to an image: it has an answer, or is the next."""
        known = self.answers.progress(reader)
        now, next_place = self._standing(known)
        if known.consented is None:
            return False
        done = known.practice if round_ == "practice" else known.study
        return place < done or (round_ == now and place == next_place)

    # -- pages ----------------------------------------------------------------------------------------------

    async def reader_page(self, request: Request) -> Response:
        """Consent and instructions, then the reading."""
        reader = self._reader(request)
        state = self._state(reader)
        values = {
            "title": self.folder.title, "link": request.path_params["link"], "counts": state["counts"],
            "labels": self.folder.labels, "mpp": self.folder.mpp, "side_px": self.folder.side_px,
            "has_begun": state["turn"] > 0,
        }  # fmt: skip
        return page("reading.html" if state["consented"] else "consent.html", values)

    async def consent(self, request: Request) -> Response:
        """A reader agrees to take part."""
        reader = self._reader(request)
        await asyncio.wrap_future(self.answers.consent(reader))
        return RedirectResponse(f"/r/{request.path_params['link']}", 303)

    async def state(self, request: Request) -> Response:
        """Where a reader stands, as JSON."""
        return JSONResponse(self._state(self._reader(request)))

    async def earlier(self, request: Request) -> Response:
        """A reader's own answer to an image, as JSON, so that it can be changed."""
        reader, (round_, place) = self._reader(request), _image_of(request)
        found = await run_in_threadpool(self.answers.newest, reader, round_, place)
        if found is None:
            raise HTTPException(404, "this image has no answer yet")
        return JSONResponse({"score": found.score, "guess": found.guess, "comment": found.comment})

    async def image(self, request: Request) -> Response:
        """An image that a reader has come to."""
        reader, (round_, place) = self._reader(request), _image_of(request)
        if not self._may_see(reader, round_, place):
            raise HTTPException(404, "this image comes later")
        content = await run_in_threadpool(_content, self.folder.file_of(reader, round_, place))
        return Response(content, media_type="image/jpeg")

    async def answer(self, request: Request) -> Response:
        """Keep an answer; the response, which comes when it is on the disk, says where the reader stands then."""
        reader = self._reader(request)
        try:
            sent = Sent.model_validate_json(await request.body())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise HTTPException(422, f"this is no answer: {where} {first['msg'].lower()}") from error
        if sent.guess is not None and sent.guess not in self.folder.labels:
            raise HTTPException(422, "this is no answer: guess is no class of the study")
        if sent.place >= self.folder.count(sent.round):
            raise HTTPException(404, "there is no such image")
        if not self._may_see(reader, sent.round, sent.place):
            raise HTTPException(409, "this image comes later")
        try:
            await asyncio.wrap_future(self.answers.give(Answer(reader=reader, **sent.model_dump())))
        except RefusedAnswerError as refused:
            raise HTTPException(409, str(refused)) from refused
        except PathUpError as problem:
            raise HTTPException(507, "the answer could not be kept; tell whoever runs the study") from problem
        return JSONResponse(self._state(reader))

    async def administration(self, request: Request) -> Response:
        """Who has read how much; no score of anyone."""
        if self._owner(request) != ADMINISTRATOR:
            raise HTTPException(404, "this link is not known; ask whoever sent it for a new one")
        links = {whose: link for link, whose in self.folder.links().items()}
        known = [self.answers.progress(reader) for reader in range(len(self.folder.readers))]
        rows = [
            {"name": name, "link": f"{request.base_url}r/{links[reader]}", "progress": known[reader]}
            for reader, name in enumerate(self.folder.readers)
        ]
        return page("administration.html", {"title": self.folder.title, "rows": rows, "images": len(self.folder.images),
                                            "count": self.folder.count("study")})  # fmt: skip


def _image_of(request: Request) -> tuple[Round, int]:
    round_ = request.path_params["round"]
    if round_ not in ("practice", "study") or request.path_params["place"] > 100_000:
        raise HTTPException(404, "there is no such image")
    return round_, request.path_params["place"]


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise HTTPException(500, "the image cannot be read; tell whoever runs the study") from error


def study_app(folder: StudyFolder, answers: Answers) -> Starlette:
    """The app of a study."""
    study = _Study(folder, answers)

    def get(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
        return Route(path, endpoint)

    def post(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
        return Route(path, endpoint, methods=["POST"])

    image = "/r/{link}/{round}/{place:int}"
    return Starlette(
        routes=[
            get("/r/{link}", study.reader_page), post("/r/{link}/consent", study.consent),
            get("/r/{link}/state", study.state), get(f"{image}/image.jpg", study.image),
            get(f"{image}/answer", study.earlier), post("/r/{link}/answer", study.answer),
            get("/admin/{link}", study.administration), Mount("/static", static_files()),
        ],
        middleware=guards(),
        exception_handlers=error_handlers(),
    )  # fmt: skip
