# SPDX-License-Identifier: Apache-2.0
"""What a job is given and what it may answer."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import leases, operations
from app.domain.leases import Claimed
from app.domain.operations import Failure
from app.models.base import Json
from app.runtime import Runtime


class CancelRequested(Exception):
    """Somebody asked for the operation to be stopped."""


class WorkFailed(Exception):
    """The work came to nothing, for a reason that repeating cannot help: its operation has FAILED so."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Done:
    """The work is finished; ``result`` is kept on the operation."""

    result: Json | None = None


@dataclass(frozen=True, slots=True)
class Again:
    """There was progress and there is more to do, or to look at, after ``delay``. No attempt is spent.

    ``parked``: it waits for a person or for its time, which counts against no deadline.
    """

    delay: timedelta = timedelta(0)
    reason: str = ""
    parked: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One run of one operation: transaction, call, transaction; never a call inside a transaction."""

    runtime: Runtime
    claimed: Claimed
    soft_deadline: float = field(repr=False)
    """On ``time.monotonic()``: when to stop at the next good place."""

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """A transaction that commits only while the operation is still held by this run.

        The check is the last statement and locks the operation until the commit: a fenced worker writes
        nothing, and the operation's row is locked after the deployment's, as everywhere.

        Raises:
            LeaseLost: nothing was written.
        """
        async with self.runtime.transaction() as session:
            yield session
            await leases.hold_alive(session, self.claimed)

    @asynccontextmanager
    async def holding(self) -> AsyncIterator[AsyncSession]:
        """The same with the check first, and the deployment's lock before it: for rows that are locked last.

        Raises:
            LeaseLost: nothing was written.
        """
        async with self.runtime.transaction() as session:
            await operations.lock_deployment(session, self.claimed.deployment_id)
            await leases.hold_alive(session, self.claimed)
            yield session

    def out_of_time(self) -> bool:
        """Whether the soft limit is reached: keep what there is and answer ``Again``."""
        return self.time_left() <= timedelta(0)

    def time_left(self) -> timedelta:
        """Until the soft limit; negative past it."""
        return timedelta(seconds=self.soft_deadline - time.monotonic())


Outcome = Done | Again
JobFunction = Callable[[Job], Awaitable[Outcome]]
