# SPDX-License-Identifier: Apache-2.0
"""A way to PostgreSQL that can be shut: connections end, and new ones are refused, until it is open again.

Or it falls silent: connections stay, and nothing passes.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from pydantic import SecretStr

from app.settings import Settings
from tests.wire import Streams, database_through, to_database


class Gate:
    """In front of a server; open at first."""

    def __init__(self, connect: Callable[[], Awaitable[Streams]]) -> None:
        self._connect = connect
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.StreamWriter] = set()
        self._speaks = asyncio.Event()
        self._speaks.set()
        self.port = 0

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shut()

    async def open(self) -> None:
        """Let callers through, at the same place as before."""
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def shut(self) -> None:
        """End what passes, and refuse what comes."""
        if self._server is not None:
            self._server.close()
        for writer in self._passing:
            writer.transport.abort()

    def hush(self) -> None:
        """Nothing passes any more, either way, and nobody is told so."""
        self._speaks.clear()

    def speak(self) -> None:
        """What was held back passes, and what follows."""
        self._speaks.set()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await self._connect()
        ends = {writer, far_writer}
        self._passing |= ends
        carrying = [
            asyncio.create_task(self._carry(reader, far_writer)),
            asyncio.create_task(self._carry(far_reader, writer)),
        ]
        await asyncio.wait(carrying, return_when=asyncio.FIRST_COMPLETED)
        for task in carrying:
            task.cancel()
        self._passing -= ends
        for end in ends:
            end.close()
            with contextlib.suppress(OSError):
                await end.wait_closed()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                await self._speaks.wait()
                writer.write(piece)
                await writer.drain()


@asynccontextmanager
async def gated(settings: Settings) -> AsyncIterator[tuple[Settings, Gate]]:
    """The settings with PostgreSQL behind a gate."""
    async with Gate(to_database(settings)) as gate:
        through = SecretStr(database_through(settings, gate.port))
        yield settings.model_copy(update={"database_url": through}), gate
