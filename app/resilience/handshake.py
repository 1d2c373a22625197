# SPDX-License-Identifier: Apache-2.0
"""Authentication that belongs to a connection: every leg of a call's handshake goes over the same one."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx

from app.resilience.classify import Safety
from app.resilience.transport import Wire

Follow = Callable[[Wire, httpx.Request], Awaitable[httpx.Response]]


class Handshakes:
    """``auth`` played over connections of which each serves one call at a time.

    Once authenticated a connection stays open, and may serve later calls without a handshake.
    """

    def __init__(self, auth: httpx.Auth, verify: ssl.SSLContext | None) -> None:
        self._auth = auth
        self._verify = verify
        self._idle: list[Wire] = []
        self._all: list[Wire] = []

    async def exchange(self, request: httpx.Request, follow: Follow) -> httpx.Response:
        """The answer to the last leg, its body still to be read; ``follow`` sends one leg."""
        async with self._one() as wire:
            flow = self._auth.async_auth_flow(_leg(request, 0))
            try:
                response = await follow(wire, await anext(flow))
                for number in range(1, MOST_LEGS):
                    try:
                        following = await flow.asend(response)
                    except StopAsyncIteration:
                        return response
                    await _finish(response)
                    response = await follow(wire, _leg(following, number))
                return response
            finally:
                await flow.aclose()

    @asynccontextmanager
    async def _one(self) -> AsyncIterator[Wire]:
        """A connection for one call; the client's bulkhead bounds how many there are."""
        wire = self._idle.pop() if self._idle else self._made()
        try:
            yield wire
        except BaseException:
            self._all.remove(wire)  # in the middle of a handshake nobody can go on with it
            await wire.aclose()
            raise
        self._idle.append(wire)

    def _made(self) -> Wire:
        wire = Wire(1, self._verify)
        self._all.append(wire)
        return wire

    def secrets(self) -> tuple[str, ...]:
        """What must be cut out of every text, if the authentication tells."""
        told: Callable[[], tuple[str, ...]] = getattr(self._auth, "secrets", tuple)
        return told()

    async def aclose(self) -> None:
        """Close every connection."""
        await asyncio.gather(*(wire.aclose() for wire in self._all))


MOST_LEGS = 5
"""Of one handshake; NTLM has three."""


def _leg(request: httpx.Request, number: int) -> httpx.Request:
    """After the first leg the connection may not be changed any more, so no repeat on another one."""
    if number:
        request.extensions = {**request.extensions, "safety": Safety.UNSAFE}
    return request


async def _finish(response: httpx.Response) -> None:
    """Read a challenge to its end, so that its connection goes on."""
    try:
        await response.aread()
    finally:
        await response.aclose()
