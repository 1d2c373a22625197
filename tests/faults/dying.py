# SPDX-License-Identifier: Apache-2.0
"""Places at which a worker may die around one change of a plane, each held open until it is dead.

Before a commit PostgreSQL itself holds it: a trigger of the test's waits for a lock that the test has. Before
the request, and before its answer, a wire in front of the plane does.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from enum import StrEnum
from functools import partial
from urllib.parse import urlsplit

import asyncpg

from tests.waiting import eventually
from tests.wire import Wire

LOCK = 0x6B696C6C  # "kill"
MUTATING = (b"POST ", b"PUT ", b"PATCH ", b"DELETE ")


class Point(StrEnum):
    """Where in the life of an effect."""

    BEFORE_SENT = "before it is written as sent"
    BEFORE_REQUEST = "before the request reaches the plane"
    BEFORE_ANSWER = "before the answer comes back"
    BEFORE_CONFIRMED = "before it is written as confirmed"
    AFTER_CONFIRMED = "after it is written as confirmed"


HOLD = """
CREATE FUNCTION hold_effect() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.action::text = '{action}' AND NEW.state::text = '{state}' THEN
        PERFORM pg_advisory_xact_lock({lock});
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER hold_effect AFTER UPDATE OF state ON effects FOR EACH ROW EXECUTE FUNCTION hold_effect();
"""
WAITS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND NOT granted"
STATE = "SELECT state::text FROM effects WHERE action::text = $1 ORDER BY id DESC LIMIT 1"


class Holding(Wire):
    """A wire to a plane that keeps the first request with ``marker``, or its answer, and never lets go."""

    def __init__(self, marker: bytes, *, answer: bool) -> None:
        super().__init__(moment=0)
        self._marker = marker
        self._answer = answer
        self.let_go = asyncio.Event()

    async def _carry_forth(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: list[bytes]
    ) -> None:
        while piece := await reader.read(65536):
            wanted = piece.startswith(MUTATING) and self._marker in piece.lower()
            if wanted and not self._answer:
                await self._hold()
                return
            asked[0] = b"armed" if wanted or asked[0] == b"armed" else piece
            writer.write(piece)
            await writer.drain()

    async def _keeps_back(self, asked: bytes) -> bool:
        if asked != b"armed" or not self._answer:
            return False
        await self._hold()
        return True

    async def _hold(self) -> None:
        self.reached.set()
        await self.let_go.wait()


@asynccontextmanager
async def place_to_die(
    point: Point, action: str, *, database: asyncpg.Connection, plane_url: str
) -> AsyncIterator[tuple[str, "Place"]]:
    """Where the plane is to be reached, and how the test waits until a worker has come to the point."""
    async with AsyncExitStack() as stack:
        place, url = Place(point, action, database), plane_url
        if point in {Point.BEFORE_REQUEST, Point.BEFORE_ANSWER}:
            wire = Holding(f"/{action}\r\n".encode(), answer=point is Point.BEFORE_ANSWER)
            parts = urlsplit(plane_url)
            connect = partial(asyncio.open_connection, parts.hostname, parts.port)
            server = await asyncio.start_server(partial(wire.serve, connect), "127.0.0.1", 0)
            stack.callback(server.close)
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            place.wire = wire
        elif point is not Point.AFTER_CONFIRMED:
            state = "SENT" if point is Point.BEFORE_SENT else "CONFIRMED"
            await database.execute(HOLD.format(action=action, state=state, lock=LOCK))
            await database.execute(f"SELECT pg_advisory_lock({LOCK})")
        yield url, place


class Place:
    """One point of one effect."""

    def __init__(self, point: Point, action: str, database: asyncpg.Connection) -> None:
        self.point = point
        self.action = action
        self.wire: Holding | None = None
        self._database = database

    async def reached(self) -> None:
        """Once a worker is held at the point."""
        if self.wire is not None:
            await asyncio.wait_for(self.wire.reached.wait(), 20)
        elif self.point is Point.AFTER_CONFIRMED:
            await eventually(self._state, until=lambda state: state == "CONFIRMED", within=20)
        else:
            await eventually(lambda: self._database.fetchval(WAITS, LOCK), within=20)

    async def _state(self) -> str | None:
        found: str | None = await self._database.fetchval(STATE, self.action)
        return found

    async def leave(self) -> None:
        """Nobody is held any more; what was held is dropped."""
        if self.wire is not None:
            self.wire.let_go.set()
        if self.wire is None and self.point is not Point.AFTER_CONFIRMED:
            await self._database.execute(f"SELECT pg_advisory_unlock({LOCK})")
