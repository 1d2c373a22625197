# SPDX-License-Identifier: Apache-2.0
"""A body that the caller reads after its call was answered."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import httpx

from app.resilience.classify import Safety
from app.resilience.errors import CallError
from app.resilience.guard import Attempt, Guard


class StreamedBody(httpx.AsyncByteStream):
    """A body read by the caller, whose failures are of the classes of ``errors`` and known to the breaker.

    ``is_judged_by_reader``: its reader says whether it was good; else it was if nothing broke.
    """

    def __init__(self, body: Any, guard: Guard, safety: Safety) -> None:
        self._body = body
        self._guard = guard
        self._safety = safety
        self._holds_permit = True
        self.attempt = Attempt()
        self.is_judged_by_reader = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._body:
                yield part
            self._let_go()
        except (httpx.TransportError, aiohttp.ClientError, OSError) as error:
            raise self.failure(error) from error

    def failure(self, error: Exception) -> CallError:
        """The class of what went wrong with it, counted."""
        return self._guard.broke_off(error, self.attempt, safety=self._safety)

    def ended_well(self) -> None:
        """It was good."""
        self._guard.ended_well(self.attempt)

    def _let_go(self) -> None:
        """The connection serves others from here on."""
        if self._holds_permit:
            self._holds_permit = False
            self._guard.bulkhead.release()

    async def aclose(self) -> None:
        """Give connection and permit back; what was not judged was good."""
        try:
            await self._body.aclose()
        finally:
            self._let_go()
            if not self.is_judged_by_reader:
                self.ended_well()


@asynccontextmanager
async def judged(response: httpx.Response) -> AsyncIterator[httpx.Response]:
    """Close the answer at the end of the block; as the block ends, so did the call.

    Whoever is stopped has seen nothing.

    Raises:
        CallError: the class of what the block raised.
    """
    body = response.stream
    try:
        if not isinstance(body, StreamedBody):  # read already, and no more can go wrong with it
            yield response
            return
        body.is_judged_by_reader = True
        try:
            yield response
        except Exception as error:
            failure = body.failure(error)
            if failure is error:
                raise
            raise failure from error
        body.ended_well()
    finally:
        await response.aclose()
