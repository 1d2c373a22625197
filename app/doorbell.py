# SPDX-License-Identifier: Apache-2.0
"""The wake-up of the relays: at most one ``NOTIFY`` per 20 ms, after the commits, on a connection of its own.

Inside the accepting transaction a ``NOTIFY`` takes a lock that serialises commits. A lost wake-up costs
half a second, because relays also poll; so nothing here ever raises into the caller.
"""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import asyncpg
from sqlalchemy import URL
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

from app import telemetry

CHANNEL = "eucora_due"
APART = 0.02
BACK_OFF = (0.1, 5.0)
TIMEOUT = 5.0

log = telemetry.logger(__name__)


async def connect(url: URL, *, application_name: str) -> Any:
    """A plain asyncpg connection that belongs to no pool; closes with the caller."""
    _, arguments = PGDialect_asyncpg().create_connect_args(url)  # type: ignore[no-untyped-call]
    names = {"host", "port", "user", "password", "database", "ssl", "passfile", "krbsrvname"}
    known = {name: value for name, value in arguments.items() if name in names}
    settings = {"application_name": application_name}
    return await asyncpg.connect(**known, timeout=TIMEOUT, command_timeout=TIMEOUT, server_settings=settings)


class Doorbell:
    """``ring`` after a commit that made work due; entered and left as an async context."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._rung = asyncio.Event()
        self._connection: Any = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._serve(), name="doorbell")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def ring(self) -> None:
        """Have the relays look for due work; returns at once, and many calls make one wake-up."""
        self._rung.set()

    async def _serve(self) -> None:
        wait = BACK_OFF[0]
        try:
            while True:
                await self._rung.wait()
                try:
                    await self._notify()
                except Exception as error:  # noqa: BLE001 - a dying session raises anything; the bell must not die
                    log.warning("doorbell_failed", error=repr(error), again_in=wait)
                    await self._hang_up()
                    await asyncio.sleep(wait)
                    wait = min(wait * 2, BACK_OFF[1])
                else:
                    wait = BACK_OFF[0]
                    await asyncio.sleep(APART)
        finally:
            await self._hang_up()

    async def _notify(self) -> None:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._url, application_name="eucora doorbell")
        self._rung.clear()
        try:
            await self._connection.execute(f"NOTIFY {CHANNEL}")
        except BaseException:
            self._rung.set()  # not told yet: the next connection tells it
            raise

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
