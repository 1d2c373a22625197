# SPDX-License-Identifier: Apache-2.0
"""Successes that come together are written together: one statement, and one commit, for all of them."""

from collections.abc import Mapping
from contextlib import suppress
from uuid import UUID

import asyncpg

from app.coalescing import Coalescer
from app.domain import batches, leases
from app.domain.batches import Success
from app.domain.leases import Claimed
from app.models.base import Json
from app.runtime import Runtime

LANES = 2
"""Statements at a time: while one waits for the disk, the next one fills."""

MOST = 100
"""Successes in one statement: as many as a worker has slots."""


class Successes:
    """The way of all successes of this process into the database."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._together = Coalescer[UUID, Success](self._write, lanes=LANES, most=MOST)

    async def write(self, claimed: Claimed, result: Json | None) -> None:
        """As ``leases.succeed``, which is asked where the batch did not write it: it tells why.

        Raises:
            LeaseLost: somebody else holds the operation, or it has ended.
            TypeError, ValueError: the result is no JSON.
        """
        success = Success.of(claimed, result)
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            if await self._together.dealt_with(claimed.id, success):
                return
        async with self._runtime.autocommit(guarded=False) as connection:
            await leases.succeed(connection, claimed, result)

    async def _write(self, successes: Mapping[UUID, Success]) -> set[UUID]:
        async with self._runtime.driver(guarded=False) as connection:
            return await batches.succeed(connection, list(successes.values()))
