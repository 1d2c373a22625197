# SPDX-License-Identifier: Apache-2.0
"""Wires in front of the servers that tell a test how far a client has come."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from pydantic import SecretStr
from sqlalchemy import make_url

from app.redis import parse_redis_url
from app.settings import Settings

PLAIN = False
"""For ``verify``: nothing here is TLS, and loading certificates takes longer than many a test."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Wire:
    """What clients send through it; ``reached`` is set as the ``moment``-th piece of it comes by.

    To connect counts as a piece. The piece is passed on, but its answer can only come later.
    """

    def __init__(self, moment: int) -> None:
        self.reached = asyncio.Event()
        self.sent: list[bytes] = []
        self._moment = moment

    def _passes(self, piece: bytes) -> None:
        self.sent.append(piece)
        if len(self.sent) == self._moment:
            self.reached.set()

    async def serve(self, connect: Callable[[], Awaitable[Streams]], *near: *Streams) -> None:
        """One connection, until either end closes it."""
        self._passes(b"")
        far, asked = await connect(), [b""]
        forth = asyncio.create_task(self._carry_forth(near[0], far[1], asked))
        back = asyncio.create_task(self._carry_back(far[0], near[1], asked))
        try:
            await asyncio.wait({forth, back}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (forth, back):
                task.cancel()
            await asyncio.gather(forth, back, return_exceptions=True)
            for writer in (near[1], far[1]):
                writer.close()

    async def _carry_forth(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: list[bytes]
    ) -> None:
        """``asked`` holds what the connection's client said last."""
        while piece := await reader.read(65536):
            self._passes(piece)
            asked[0] = piece
            writer.write(piece)
            await writer.drain()

    async def _carry_back(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: list[bytes]
    ) -> None:
        while piece := await reader.read(65536):
            if await self._keeps_back(asked[0]):
                return
            writer.write(piece)
            await writer.drain()

    async def _keeps_back(self, asked: bytes) -> bool:  # noqa: ARG002 - for those that do
        """Whether the connection ends in place of the answer to ``asked``."""
        return False


class Cutting(Wire):
    """A wire that is cut in place of the answer to the first piece that holds ``marker``.

    ``silent``: it is not cut, but that answer never comes.
    """

    def __init__(self, marker: bytes, *, silent: bool = False) -> None:
        super().__init__(moment=0)
        self.cuts = 0
        self._marker = marker
        self._silent = silent

    async def _keeps_back(self, asked: bytes) -> bool:
        if self._marker not in asked or self.cuts:
            return False
        self.cuts += 1
        if self._silent:
            await asyncio.Event().wait()
        return True


@asynccontextmanager
async def wired(settings: Settings, wire: Wire) -> AsyncIterator[Settings]:
    """The settings with both servers reached through the wire."""
    database, redis = to_database(settings), to_redis(settings)
    async with AsyncExitStack() as stack:
        ports = []
        for connect in (database, redis):
            server = await asyncio.start_server(partial(wire.serve, connect), "127.0.0.1", 0)
            stack.callback(server.close)
            ports.append(server.sockets[0].getsockname()[1])
        yield settings.model_copy(
            update={
                "database_url": SecretStr(database_through(settings, ports[0])),
                "redis_url": SecretStr(redis_through(settings, ports[1])),
            }
        )


def to_database(settings: Settings) -> Callable[[], Awaitable[Streams]]:
    """Connects to PostgreSQL itself."""
    assert settings.database_url is not None
    url = make_url(settings.database_url.get_secret_value())
    host, port = str(url.query.get("host", url.host)), url.port or 5432
    if host.startswith("/"):
        return partial(asyncio.open_unix_connection, f"{host}/.s.PGSQL.{port}")
    return partial(asyncio.open_connection, host, port)


def to_redis(settings: Settings) -> Callable[[], Awaitable[Streams]]:
    """Connects to Redis itself."""
    assert settings.redis_url is not None
    address = parse_redis_url(settings.redis_url.get_secret_value())
    if address.path is not None:
        return partial(asyncio.open_unix_connection, address.path)
    return partial(asyncio.open_connection, *address.hosts[0])


def database_through(settings: Settings, port: int) -> str:
    """The database's URL with another way to the server."""
    assert settings.database_url is not None
    url = make_url(settings.database_url.get_secret_value())
    url = url.difference_update_query(["host"]).set(host="127.0.0.1", port=port)
    return url.render_as_string(hide_password=False)


def redis_through(settings: Settings, port: int) -> str:
    """Redis' URL with another way to the server."""
    assert settings.redis_url is not None
    address = parse_redis_url(settings.redis_url.get_secret_value())
    login = f"{address.username or ''}:{address.password}@" if address.password else ""
    return f"redis://{login}127.0.0.1:{port}/{address.database}"
