# SPDX-License-Identifier: Apache-2.0
"""The TCP connection under a request, so that a fault can break it: ASGI itself has no word for that."""

import asyncio
import os
import socket
import struct

from starlette.types import Receive, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_transports: dict[tuple[str, int], asyncio.Transport] = {}


class BreakableProtocol(HttpToolsProtocol):
    """uvicorn's own protocol, which also remembers the connection of each peer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Remember the connection by the peer's address, which is unique while it lives."""
        super().connection_made(transport)
        if self.client is not None:
            _transports[self.client] = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self.client is not None:
            _transports.pop(self.client, None)
        super().connection_lost(exc)


def connection_of(scope: Scope) -> asyncio.Transport | None:
    """The connection a request came by: the same object as long as it lives; None outside our server."""
    peer = scope.get("client")
    return _transports.get(tuple(peer)) if peer else None


async def reset(scope: Scope, receive: Receive) -> None:
    """Break the connection so that the peer gets a TCP reset."""
    transport = _transport(scope)
    linger_zero(transport)
    transport.abort()
    await _gone(receive)


async def hang_up(scope: Scope, receive: Receive) -> None:
    """Close the connection in the middle of an answer, after what was already written has been sent."""
    _transport(scope).close()
    await _gone(receive)


def linger_zero(transport: asyncio.Transport) -> None:
    """Make the close of this socket a reset (RST) instead of a polite end (FIN)."""
    inner = transport.get_extra_info("socket")
    with socket.socket(fileno=os.dup(inner.fileno())) as double:
        double.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _transport(scope: Scope) -> asyncio.Transport:
    transport = connection_of(scope)
    if transport is None:
        raise ConnectionResetError("there is no connection to break: serve the sandbox with sandbox.main")
    return transport


async def _gone(receive: Receive) -> None:
    """Wait until the server has seen the end, so that it does not complain about a missing answer."""
    while (await receive())["type"] != "http.disconnect":
        pass
