# SPDX-License-Identifier: Apache-2.0
"""A real server that does byte by byte what it is told, and remembers what it was asked."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

HANG = 3600.0


@dataclass
class Received:
    """One request as it came in: ``lines`` are its headers as spelled, the body without its chunks."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    lines: list[tuple[str, str]] = field(default_factory=list)


Behaviour = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Misbehaving:
    """``script`` is used up one behaviour per request; the last one stays."""

    url: str
    script: list[Behaviour] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    busy: int = 0
    most_at_once: int = 0

    def next_behaviour(self) -> Behaviour:
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]


def answer(status: int = 200, body: bytes = b"{}", **headers: str) -> Behaviour:
    """A whole and correct answer; header names with underscores for hyphens."""

    async def behave(_: Received, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status} Told", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()

    return behave


def raw(head: bytes, *, hang: bool = False, keep: bool = False) -> Behaviour:
    """These bytes, then the end of the connection, or silence, or (``keep``) whatever is asked next."""

    async def behave(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await writer.drain()
        if hang:
            await asyncio.sleep(HANG)
        if not keep:
            writer.close()

    return behave


def broken_off(head: bytes) -> Behaviour:
    """These bytes, and when they have arrived a TCP reset."""

    async def behave(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await writer.drain()
        await asyncio.sleep(0.05)
        await reset(request, writer)

    return behave


async def reset(_: Received, writer: asyncio.StreamWriter) -> None:
    """A TCP reset in place of an answer."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def hang(_: Received, __: asyncio.StreamWriter) -> None:
    """Nothing, for ever."""
    await asyncio.sleep(HANG)


def dripping(slow: bytes, *, every: float, after: bytes = b"") -> Behaviour:
    """``after`` at once, then ``slow`` at one byte per so many seconds: no single read is slow."""

    async def behave(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(after)
        for byte in slow:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(every)

    return behave


drip = dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000, every=0.05)
"""A correct answer, head and body, at one byte per 50 ms."""


def slowly(then: Behaviour, seconds: float) -> Behaviour:
    """The same, after some time."""

    async def behave(request: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        await then(request, writer)

    return behave


@contextlib.asynccontextmanager
async def misbehaving(*script: Behaviour, tls: ssl.SSLContext | None = None) -> AsyncIterator[Misbehaving]:
    """Serve on a free port of 127.0.0.1; with ``tls`` as ``https://localhost``."""
    server = Misbehaving(url="", script=list(script) or [answer()])
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        server.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while not writer.is_closing():
                await _exchange(server, reader, writer)
        writer.close()
        tasks.discard(task)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    server.url = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
    try:
        yield server
    finally:
        listener.close()
        for task in [*tasks]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _exchange(server: Misbehaving, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    request = await receive(reader)
    server.received.append(request)
    server.busy += 1
    server.most_at_once = max(server.most_at_once, server.busy)
    try:
        await server.next_behaviour()(request, writer)
    finally:
        server.busy -= 1


async def receive(reader: asyncio.StreamReader) -> Received:
    """One request, whole."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ", 2)
    lines = [(name, value.strip()) for name, _, value in (line.partition(":") for line in head[1:] if line)]
    headers = {name.lower(): value for name, value in lines}
    if headers.get("transfer-encoding") == "chunked":
        body = b"".join([chunk async for chunk in _chunks(reader)])
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, target, headers, body, lines)


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
