# SPDX-License-Identifier: Apache-2.0
"""Faults on demand, the same for each plane: latency, statuses, resets and half answers, before or after."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandbox import connections
from sandbox.journal import Table


class Fault(BaseModel):
    """What happens to requests whose method and path match; paths are shell patterns below the plane.

    ``status`` None lets the request through after ``latency`` seconds. ``after`` carries the request out
    first and then loses or replaces its answer. ``body`` replaces the vendor's own error body.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Annotated[str, Field(min_length=1, max_length=20)] = "*"
    path: Annotated[str, Field(min_length=1, max_length=1000)] = "*"
    probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    status: Annotated[int, Field(ge=200, le=599)] | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    latency: Annotated[float, Field(ge=0, le=3600)] = 0.0
    reset: bool = False
    half_body: bool = False
    after: bool = False
    body: str | None = None


class FaultDocument(BaseModel):
    """The faults in force, and switches of the plane itself; lifetimes in seconds.

    A shorter ``token_lifetime`` also ends tokens that were issued before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: Annotated[list[Fault], Field(max_length=1000)]
    throttle: bool = True
    token_lifetime: Annotated[float, Field(ge=0, le=86_400)] = 3599.0
    sas_lifetime: Annotated[float, Field(ge=0, le=86_400)] = 3600.0


@dataclass
class Answer:
    """A whole answer, caught before it is sent."""

    status: int = 500
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    async def take(self, message: Message) -> None:
        """Catch one ASGI message of the answer."""
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message.get("headers", []))
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")


class Faults:
    """The faults of one plane: kept in its journal, thrown by dice that fall the same way after each PUT."""

    def __init__(self, table: Table) -> None:
        self._table = table
        stored = table.get("document", {"items": []})
        self.document = FaultDocument.model_validate(stored)
        self._dice = random.Random(7)  # noqa: S311  (repeatable on purpose)

    def replace(self, document: FaultDocument) -> None:
        """Put other faults in force."""
        self._table.put("document", document.model_dump())
        self.document = document
        self._dice = random.Random(7)  # noqa: S311  (repeatable on purpose)

    def choose(self, method: str, paths: tuple[str, ...]) -> Fault | None:
        """The first fault that matches one of the request's spellings and whose dice fall."""
        for fault in self.document.items:
            matches = fnmatchcase(method, fault.method) and any(
                fnmatchcase(path, fault.path) for path in paths
            )
            if matches and self._dice.random() < fault.probability:
                return fault
        return None


ErrorAnswer = Callable[[int], Response]


async def play(
    fault: Fault, *, app: ASGIApp, error: ErrorAnswer, scope: Scope, receive: Receive, send: Send
) -> None:
    """Let a fault happen to one request."""
    await asyncio.sleep(fault.latency)
    if fault.status is None and not (fault.reset or fault.half_body or fault.headers):
        await app(scope, receive, send)
        return
    answer = Answer()
    if fault.after or (fault.status is None and not fault.reset):
        await app(scope, receive, answer.take)
    if fault.reset:
        await connections.reset(scope, receive)
        return
    if fault.status is not None:
        answer = error_answer(fault, fault.status, error)
    answer.headers += [(name.lower().encode(), value.encode()) for name, value in fault.headers.items()]
    await deliver(answer, scope, receive, send, half=fault.half_body)


def error_answer(fault: Fault, status: int, error: ErrorAnswer) -> Answer:
    """The answer in place of the real one: the vendor's error body, or the body that the fault brings."""
    if status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
        return Answer(status)  # HTTP allows these no body
    response = error(status) if fault.body is None else Response(fault.body, status)
    given = {name.lower().encode() for name in fault.headers}
    headers = [(name, value) for name, value in response.raw_headers if name not in given]
    return Answer(status, headers, bytes(response.body))


async def deliver(answer: Answer, scope: Scope, receive: Receive, send: Send, *, half: bool) -> None:
    """Send an answer; by half, only the first half of the body that its headers declare."""
    start: dict[str, Any] = {
        "type": "http.response.start",
        "status": answer.status,
        "headers": answer.headers,
    }
    if half and not answer.body:
        await connections.reset(scope, receive)  # there is no half of nothing
        return
    await send(start)
    body = answer.body[: len(answer.body) // 2] if half else answer.body
    await send({"type": "http.response.body", "body": body, "more_body": half})
    if half:
        await connections.hang_up(scope, receive)
