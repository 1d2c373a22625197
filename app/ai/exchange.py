# SPDX-License-Identifier: Apache-2.0
"""One question over the wire and its answer, whatever the format: time, size and shape are held to limits."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass

import httpx

from app.ai import allowance
from app.ai.contract import SERVICE, Json, Reply
from app.ai.draft import Draft, Wire, read, unreadable
from app.ai.streams import MAX_STREAM_BYTES, Event, events
from app.resilience import ResilientClient, RetryProfile, Safety
from app.resilience.errors import AttemptTimeout, PermanentError, TransientError
from app.resilience.http import CONNECT_TIMEOUT

PATIENCE = RetryProfile(attempts=2, shortest=0.5, longest=5.0, attempt_timeout=30.0, total=65.0)
"""Until an answer begins: a person waits for it."""


class Model(Wire):
    """One that a provider has."""

    id: str


class Models(Wire):
    """Those that it lists."""

    data: list[Model]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A provider's address with all that guards it; ``idle``: seconds between two pieces of an answer.

    ``headers`` are sent with each request.
    """

    http: ResilientClient
    idle: float
    headers: Mapping[str, str]

    async def answer(self, path: str, body: Json, draft: Draft) -> AsyncGenerator[str | Reply, None]:
        """Pose a question; the pieces of text as they come, at last the reply. Raises as a provider does."""
        request = self.http.build_request(
            "POST",
            path,
            json=body,
            headers=self.headers,
            timeout=httpx.Timeout(self.idle, connect=CONNECT_TIMEOUT, pool=None),
            extensions={"safety": Safety.IDEMPOTENT},  # a repeat costs again and changes nothing
        )
        async with self.http.reading(request) as response:
            self._heed(response)
            async with aclosing(self._pieces(response, draft)) as pieces:
                async for piece in pieces:
                    if piece:
                        yield piece
        yield draft.reply()

    async def has(self, path: str, model: str) -> str:
        """Ask for the list of models; whether that one is on it, as a sentence."""
        answer = await self.http.get(path, headers=self.headers)
        listed = {each.id for each in read(Models, answer.content).data}
        lists = "lists" if model in listed else "does not list"
        return f"{self.http.base_url.host} answered and {lists} the model {model}"

    def _heed(self, response: httpx.Response) -> None:
        """Leave the provider alone for as long as it says that no more is allowed."""
        seconds = allowance.pause(response.headers)
        if seconds > 0:
            self.http.pause(seconds)

    async def _pieces(self, response: httpx.Response, draft: Draft) -> AsyncGenerator[str, None]:
        kind = response.headers.get("content-type", "text/event-stream")
        if "json" in kind:
            yield draft.take_whole(await self._whole(response))
            if draft.stop is None:
                raise unreadable()
            return
        if "event-stream" not in kind:
            raise unreadable()
        async with aclosing(events(response.aiter_bytes())) as found:
            while not draft.ended:
                yield await self._next(found, draft)
        if draft.stop is None:
            raise TransientError(f"{SERVICE} ended its answer without saying why", service=SERVICE)

    async def _next(self, found: AsyncGenerator[Event, None], draft: Draft) -> str:
        """The text of the next event that brings something: signs of life alone are not waited out."""
        try:
            async with asyncio.timeout(self.idle):
                async for event in found:
                    piece = draft.take(event)
                    if piece is not None:
                        return piece
        except TimeoutError as error:
            detail = f"{SERVICE} sent nothing more of its answer for {self.idle:g} s"
            raise AttemptTimeout(detail, service=SERVICE) from error
        raise TransientError(f"{SERVICE} broke off before the end of its answer", service=SERVICE)

    async def _whole(self, response: httpx.Response) -> bytes:
        parts, size = [], 0
        async with asyncio.timeout(self.idle):
            async for part in response.aiter_bytes():
                size += len(part)
                if size > MAX_STREAM_BYTES:
                    detail = f"{SERVICE} sent more than {MAX_STREAM_BYTES} bytes"
                    raise PermanentError(detail, service=SERVICE)
                parts.append(part)
        return b"".join(parts)
