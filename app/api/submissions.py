# SPDX-License-Identifier: Apache-2.0
"""Submissions that arrive together are stored together: one round trip and one commit for all of them."""

import asyncio
from contextlib import suppress
from typing import Any

import asyncpg

from app.domain import intents
from app.domain.idempotency import StoredAnswer
from app.domain.intents import Plan
from app.runtime import Runtime

LANES = 4
"""Transactions at a time: while one waits for the disk or for a lock, the others go on."""

MOST = 8
"""Submissions in one transaction. With more the process idles while it waits, then has all to answer."""


class Submissions:
    """The way of all submissions of this process into the database.

    Nobody is kept waiting for company: while a lane is free a submission leaves at once, and only what comes
    while all are busy shares the next transaction.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lanes = asyncio.Semaphore(LANES)
        self._open: Batch | None = None

    async def accept(self, plan: Plan, **given: Any) -> StoredAnswer | None:
        """As ``intents.accept``, which is asked if the batch did not store this plan.

        One submission that breaks a rule undoes its whole batch; then each goes alone and hears what it did.
        Where the answer to a batch was lost it may be stored all the same: each is looked up by its key.
        """
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            if await self._stored(intents.row(plan, **given)):
                return None
        async with self._runtime.driver() as connection:
            return await intents.accept(connection, plan, **given)

    async def _stored(self, row: intents.Row) -> bool:
        batch = self._open
        if batch is None or len(batch.rows) >= MOST:
            batch = self._open = Batch()
            batch.leaving = asyncio.create_task(self._leave(batch))
        batch.rows.append(row)
        place = len(batch.rows) - 1
        # Shielded: a caller who goes away does not take the others along.
        return (await asyncio.shield(batch.leaving))[place]

    async def _leave(self, batch: "Batch") -> list[bool]:
        async with self._lanes:
            if self._open is batch:
                self._open = None
            async with self._runtime.driver() as connection:
                return await intents.accept_together(connection, batch.rows)


class Batch:
    """Submissions that share a transaction; ``leaving`` tells for each whether it was stored."""

    leaving: asyncio.Task[list[bool]]

    def __init__(self) -> None:
        self.rows: list[intents.Row] = []
