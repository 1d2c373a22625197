# SPDX-License-Identifier: Apache-2.0
"""A forward proxy that notes what it is asked for, and leads everything to one server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Proxy:
    """``asked``: method, target and headers (names in lower case) of the first request per connection."""

    address: str
    refuses: bool = False
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)


@contextlib.asynccontextmanager
async def forward_proxy(to: str, *, refuses: bool = False) -> AsyncIterator[Proxy]:
    """Serve on a free port; ``to`` is the URL of the one server. ``refuses``: 407 to everything."""
    target = urlsplit(to)
    proxy = Proxy(address="", refuses=refuses)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await _serve(proxy, reader, writer, (target.hostname or "", target.port or 0))
        writer.close()
        tasks.discard(task)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        listener.close()
        for task in [*tasks]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _serve(
    proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: tuple[str, int]
) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, place, _ = first.split(" ")
    pairs = (line.partition(": ") for line in lines if line)
    proxy.asked.append((method, place, {name.lower(): value for name, _, value in pairs}))
    if proxy.refuses:
        writer.write(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
        return
    far_reader, far_writer = await asyncio.open_connection(*target)
    if method == "CONNECT":
        writer.write(b"HTTP/1.1 200 Go on\r\n\r\n")
    else:
        far_writer.write(head)
    try:
        await asyncio.gather(_carry(reader, far_writer), _carry(far_reader, writer))
    finally:
        far_writer.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()
    writer.close()
