# SPDX-License-Identifier: Apache-2.0
"""Authentication that belongs to a connection: every leg of a call's handshake goes over the same one."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable

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
        """The answer to the last leg, its body still to be read; ``follow`` sends one leg.

        Where an earlier handshake was cut short its connection may understand no other: one that ends
        refused on a connection that served before is played once more on a new one.
        """
        extensions, anew = request.extensions, False
        while True:
            wire, is_new = (self._made(), True) if anew or not self._idle else (self._idle.pop(), False)
            try:
                response = await self._played(wire, request, follow)
            finally:
                request.extensions = extensions
                request.headers.pop("Authorization", None)  # belongs to the connection it was made on
            if is_new or response.status_code != httpx.codes.UNAUTHORIZED:
                return response
            anew = True

    async def _played(self, wire: Wire, request: httpx.Request, follow: Follow) -> httpx.Response:
        """Leg by leg; the connection may be used again unless something went wrong on it."""
        try:
            response = await self._legs(wire, request, follow)
            if response.status_code == httpx.codes.UNAUTHORIZED:
                await _finish(response)
                await self._drop(wire)
                return response
        except BaseException:
            await self._drop(wire)  # in the middle of a handshake nobody can go on with it
            raise
        self._idle.append(wire)
        return response

    async def _legs(self, wire: Wire, request: httpx.Request, follow: Follow) -> httpx.Response:
        flow = self._auth.async_auth_flow(_leg(request, 0))
        try:
            response = await follow(wire, await anext(flow))
            for number in range(1, MOST_LEGS):
                try:
                    following = await flow.asend(response)
                except StopAsyncIteration:
                    break
                await _finish(response)
                response = await follow(wire, _leg(following, number))
            return response
        finally:
            await flow.aclose()

    async def _drop(self, wire: Wire) -> None:
        if wire in self._all:
            self._all.remove(wire)
        await wire.aclose()

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
