# SPDX-License-Identifier: Apache-2.0
"""What the providers of language models have in common: faults, pace and witness, and their control."""

import asyncio
import json
import math
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandbox import connections
from sandbox.faults import FaultDocument, Faults, play
from sandbox.fleet import Clock
from sandbox.journal import Journal
from sandbox.plane import parse

KEYS = frozenset({"authorization", "api-key", "x-api-key", "cookie"})
REMEMBERED = 500
PING_SECONDS = 0.1
PART = 24
CHARACTERS_PER_TOKEN = 4
WORD = re.compile(r"\s*\S+|\s+\Z")
Words = Annotated[int, Field(ge=0)] | None


class Pace(BaseModel):
    """How an answer comes: seconds before each word, and after how many words it goes wrong.

    Then, of a streamed answer, nothing comes any more, or only pings, or the connection closes, or an error
    comes in the stream. Of a whole one nothing comes, half, or an error instead. An answer that ends with
    fewer words is not touched, so one of tool calls only by 0, which comes before anything but the headers.
    ``once``: the next answer has this pace, and those after it the usual one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    per_word: Annotated[float, Field(ge=0, le=3600)] = 0.0
    silent_after: Words = None
    pings_after: Words = None
    cut_after: Words = None
    error_after: Words = None
    once: bool = False


class Ending(StrEnum):
    """How an answer goes wrong."""

    SILENT = "silent"
    PINGS = "pings"
    CUT = "cut"
    ERROR = "error"


class Forget(BaseModel):
    """The document that empties the witness."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Piece:
    """One event of a streamed answer, as bytes; ``is_word``: it brings a word of its text."""

    frame: bytes
    is_word: bool = False


@dataclass
class Desk:
    """One provider's share of the process."""

    name: str
    journal: Journal
    clock: Clock
    faults: Faults = field(init=False)
    requests: deque[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.faults = Faults(self.journal.table(f"{self.name}/faults"))
        self.requests = deque(maxlen=REMEMBERED)
        self._paces = self.journal.table(f"{self.name}/pace")

    @property
    def pace(self) -> Pace:
        """The pace of the next answer."""
        return Pace.model_validate(self._paces.get("document", {}))

    def go_at(self, pace: Pace) -> None:
        """Set the pace."""
        self._paces.put("document", pace.model_dump())

    def take_pace(self) -> Pace:
        """The pace for an answer that begins now."""
        pace = self.pace
        if pace.once:
            self.go_at(Pace())
        return pace


class Wire(Protocol):
    """What a provider brings: its wire format. ``ping`` and ``overloaded`` are events of a stream."""

    app: ASGIApp
    ping: bytes
    overloaded: bytes
    overloaded_status: int

    def error(self, status: int) -> Response:
        """The vendor's own error body for a status."""
        ...

    def stamp(self) -> dict[str, str]:
        """The headers of every answer; they differ from one to the next."""
        ...


MakeWire = Callable[[Desk], Wire]


class ModelApp:
    """The application of one provider: witness and faults around its wire format, control beside it."""

    def __init__(self, desk: Desk, wire: Wire) -> None:
        self._desk = desk
        self._wire = wire
        self._control = Starlette(routes=self._control_routes())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request to the provider, and keep what it was."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path.startswith("/_sandbox/"):
            await self._control(scope, receive, send)
            return
        body = await whole(receive)
        kept = kept_request(scope, path, body)
        self._desk.requests.append(kept)

        async def note_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept["status"] = message["status"]
                add_missing(message, self._wire.stamp())
            await send(message)

        await self._faulty(path, scope, once_more(body, receive), note_and_send)

    async def _faulty(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        wire = self._wire
        fault = self._desk.faults.choose(scope["method"], (path.removeprefix("/v1"), path))
        if fault is None:
            await wire.app(scope, receive, send)
        else:
            await play(fault, app=wire.app, error=wire.error, scope=scope, receive=receive, send=send)

    def _control_routes(self) -> list[Route]:
        return [
            Route("/_sandbox/faults", self._read_faults, methods=["GET"]),
            Route("/_sandbox/faults", self._write_faults, methods=["PUT"]),
            Route("/_sandbox/requests", self._read_requests, methods=["GET"]),
            Route("/_sandbox/requests", self._forget_requests, methods=["PUT"]),
            Route("/_sandbox/pace", self._read_pace, methods=["GET"]),
            Route("/_sandbox/pace", self._write_pace, methods=["PUT"]),
        ]

    async def _read_faults(self, _: Request) -> Response:
        return JSONResponse(self._desk.faults.document.model_dump())

    async def _write_faults(self, request: Request) -> Response:
        document = await parse(request, FaultDocument)
        if isinstance(document, Response):
            return document
        self._desk.faults.replace(document)
        return await self._read_faults(request)

    async def _read_requests(self, _: Request) -> Response:
        return JSONResponse({"items": list(self._desk.requests)})

    async def _forget_requests(self, request: Request) -> Response:
        document = await parse(request, Forget)
        if isinstance(document, Response):
            return document
        self._desk.requests.clear()
        return await self._read_requests(request)

    async def _read_pace(self, _: Request) -> Response:
        return JSONResponse(self._desk.pace.model_dump())

    async def _write_pace(self, request: Request) -> Response:
        document = await parse(request, Pace)
        if isinstance(document, Response):
            return document
        self._desk.go_at(document)
        return await self._read_pace(request)


async def whole(receive: Receive) -> bytes:
    """A request's body."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


def once_more(body: bytes, receive: Receive) -> Receive:
    """A channel that gives a body that was read already, and then goes on."""
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> Message:
        return unread.pop() if unread else await receive()

    return receiving


def kept_request(scope: Scope, path: str, body: bytes) -> dict[str, Any]:
    """A request as the witness tells it; ``status`` None until it is answered."""
    headers = {name: value for name, value in Headers(scope=scope).items() if name not in KEYS}
    told = {"method": scope["method"], "path": path, "body": as_json(body), "headers": headers}
    return {**told, "status": None}


def as_json(body: bytes) -> Any:
    """What a body says; as text where it is no JSON, None where there is none."""
    try:
        return json.loads(body) if body else None
    except ValueError:
        return body.decode(errors="replace")


def add_missing(message: Message, headers: dict[str, str]) -> None:
    """Add headers to an answer that does not have them."""
    given = MutableHeaders(raw=list(message.get("headers", [])))
    for name, value in headers.items():
        given.setdefault(name, value)
    message["headers"] = given.raw


def ending(pace: Pace, words: int) -> Ending | None:
    """How an answer goes wrong after so many words, if it does."""
    limits = {
        Ending.SILENT: pace.silent_after,
        Ending.PINGS: pace.pings_after,
        Ending.CUT: pace.cut_after,
        Ending.ERROR: pace.error_after,
    }
    return next((how for how, limit in limits.items() if limit is not None and words >= limit), None)


def streamed(request: Request, pieces: Iterable[Piece], *, desk: Desk, wire: Wire) -> Response:
    """An answer as server-sent events, at the pace that is set."""
    events = paced(request, pieces, desk.take_pace(), wire)
    headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
    return StreamingResponse(events, headers=headers)


async def paced(request: Request, pieces: Iterable[Piece], pace: Pace, wire: Wire) -> AsyncIterator[bytes]:
    """The events of an answer, until it is over or goes wrong."""
    words = 0
    for piece in pieces:
        if (how := ending(pace, words)) is not None:
            async for frame in gone_wrong(request, how, wire):
                yield frame
            return
        await asyncio.sleep(pace.per_word if piece.is_word else 0)
        words += piece.is_word
        yield piece.frame


async def gone_wrong(request: Request, how: Ending, wire: Wire) -> AsyncIterator[bytes]:
    """The rest of an answer that goes wrong."""
    if how is Ending.ERROR:
        yield wire.overloaded
    elif how is Ending.CUT:
        await connections.hang_up(request.scope, request.receive)
    elif how is Ending.SILENT:
        await asyncio.Event().wait()  # until the client goes away
    else:
        while True:
            yield wire.ping
            await asyncio.sleep(PING_SECONDS)


async def at_once(request: Request, document: Any, text: str, *, desk: Desk, wire: Wire) -> Response:
    """A whole answer with that text, at the pace that is set."""
    pace, words = desk.take_pace(), len(words_of(text))
    await asyncio.sleep(pace.per_word * words)
    how = ending(pace, words)
    if how is Ending.ERROR:
        return wire.error(wire.overloaded_status)
    if how is Ending.CUT:
        return Half(document)
    while how is not None and (await request.receive())["type"] != "http.disconnect":
        pass
    return JSONResponse(document)


class Half(JSONResponse):
    """Half of an answer; then the connection closes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        half = bytes(self.body)[: len(self.body) // 2]
        await send({"type": "http.response.body", "body": half, "more_body": True})
        await connections.hang_up(scope, receive)


def deepest(error: ValidationError) -> ErrorDetails:
    """The error that tells most: where one of several types may stand, the others' are about all of it."""
    return max(error.errors(), key=lambda each: len(each["loc"]))


def is_place(part: int | str) -> bool:
    """Whether it is part of a place in a body, and not what pydantic calls one of several types."""
    return isinstance(part, int) or (part != "str" and "[" not in part)


def words_of(text: str) -> list[str]:
    """A text in words, each with the space before it; together they are the text."""
    return WORD.findall(text)


def in_parts(arguments: str) -> list[str]:
    """The arguments of a call as a model writes them: bit by bit, in two parts at least."""
    size = max(1, min(PART, len(arguments) // 2))
    return [arguments[start : start + size] for start in range(0, len(arguments), size)]


def tokens(characters: int) -> int:
    """How many tokens so many characters count as."""
    return math.ceil(characters / CHARACTERS_PER_TOKEN)
