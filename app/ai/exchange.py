# SPDX-License-Identifier: Apache-2.0
"""One question over the wire and its answer, whatever the format: time, size and shape are held to limits."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass

import httpx

from app.ai import allowance
from app.ai.contract import SERVICE, Json, Reply
from app.ai.draft import Draft, Wire, read, unreadable
from app.ai.refusals import PromptRefused
from app.ai.streams import MAX_STREAM_BYTES, Event, events
from app.resilience import ResilientClient, RetryProfile, Safety
from app.resilience.errors import AttemptTimeout, PermanentError, TransientError
from app.resilience.http import CONNECT_TIMEOUT

ATTEMPTS, SHORTEST_WAIT, LONGEST_WAIT = 2, 0.5, 5.0
USUAL_TOTAL = 100.0
"""Seconds for all attempts: a conversation has 110. One that may take longer has its own time, too."""
LIST_PATIENCE = RetryProfile(ATTEMPTS, SHORTEST_WAIT, LONGEST_WAIT, attempt_timeout=30.0, total=65.0)
"""For what no model has to think about."""


def patience(first: float) -> RetryProfile:
    """How long an answer's head is waited for, where its first piece may take ``first`` seconds."""
    total = max(first, min(ATTEMPTS * first + LONGEST_WAIT, USUAL_TOTAL))
    return RetryProfile(ATTEMPTS, SHORTEST_WAIT, LONGEST_WAIT, attempt_timeout=first, total=total)


class Model(Wire):
    """One that a provider has."""

    id: str


class Models(Wire):
    """Those that it lists."""

    data: list[Model]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A provider's address with all that guards it.

    ``first``: seconds from the request to the first piece of an answer, or to the end of one that is not
    streamed; ``idle``: between two pieces. ``headers`` are sent with each request.
    """

    http: ResilientClient
    first: float
    idle: float
    headers: Mapping[str, str]

    async def answer(self, path: str, body: Json, draft: Draft) -> AsyncGenerator[str | Reply, None]:
        """Pose a question; the pieces of text as they come, at last the reply. Raises as a provider does."""
        async with aclosing(self._told(self._question(path, body), draft)) as pieces:
            async for piece in pieces:
                if piece:
                    yield piece
        yield draft.reply()

    def _question(self, path: str, body: Json) -> httpx.Request:
        return self.http.build_request(
            "POST",
            path,
            json=body,
            headers=self.headers,
            timeout=httpx.Timeout(max(self.first, self.idle), connect=CONNECT_TIMEOUT, pool=None),
            extensions={"safety": Safety.IDEMPOTENT},  # a repeat costs again and changes nothing
        )

    async def _told(self, request: httpx.Request, draft: Draft) -> AsyncGenerator[str, None]:
        """The pieces of an answer; or why the provider lets the question through to no model."""
        try:
            async with self.http.reading(request) as response:
                self._heed(response)
                async with aclosing(self._pieces(response, draft)) as pieces:
                    async for piece in pieces:
                        yield piece
        except PromptRefused as refusal:
            yield draft.decline(refusal.words)

    async def has(self, path: str, model: str) -> str:
        """Ask for the list of models; whether that one is on it, as a sentence."""
        answer = await self.http.get(path, headers=self.headers, extensions={"profile": LIST_PATIENCE})
        listed = {each.id for each in read(Models, answer.content).data}
        lists = "lists" if model in listed else "does not list"
        return f"{self.http.base_url.host} answered and {lists} the model {model}"

    def _heed(self, response: httpx.Response) -> None:
        """Leave the provider alone for as long as it says that no more is allowed."""
        seconds = allowance.pause(response.headers, longest=allowance.LONGEST_HINT)
        if seconds > 0:
            self.http.pause(seconds)

    async def _pieces(self, response: httpx.Response, draft: Draft) -> AsyncGenerator[str, None]:
        kind = response.headers.get("content-type", "text/event-stream")
        left = self.first - (time.monotonic() - response.extensions["began"])
        if "json" in kind:
            yield draft.take_whole(await self._whole(response, left))
            if draft.stop is None:
                raise unreadable()
            return
        if "event-stream" not in kind:
            raise unreadable()
        async with aclosing(events(response.aiter_bytes())) as found:
            yield await self._next(found, draft, left, self.first)
            while not draft.ended:
                yield await self._next(found, draft, self.idle, self.idle)
        if draft.stop is None:
            raise TransientError(f"{SERVICE} ended its answer without saying why", service=SERVICE)

    async def _next(self, found: AsyncGenerator[Event, None], draft: Draft, left: float, limit: float) -> str:
        """The text of the next event that brings something: signs of life alone are not waited out.

        ``left``: what is left of ``limit``, in seconds.
        """
        try:
            async with asyncio.timeout(left):
                async for event in found:
                    piece = draft.take(event)
                    if piece is not None:
                        return piece
        except TimeoutError as error:
            detail = f"{SERVICE} sent nothing more of its answer for {limit:g} s"
            raise AttemptTimeout(detail, service=SERVICE) from error
        raise TransientError(f"{SERVICE} broke off before the end of its answer", service=SERVICE)

    async def _whole(self, response: httpx.Response, left: float) -> bytes:
        parts, size = [], 0
        async with asyncio.timeout(left):
            async for part in response.aiter_bytes():
                size += len(part)
                if size > MAX_STREAM_BYTES:
                    detail = f"{SERVICE} sent more than {MAX_STREAM_BYTES} bytes"
                    raise PermanentError(detail, service=SERVICE)
                parts.append(part)
        return b"".join(parts)
