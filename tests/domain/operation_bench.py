# SPDX-License-Identifier: Apache-2.0
"""What the tests of operations, leases and dispatch share: operations made, held, and moved through time."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import dispatch, leases, operations
from app.domain.leases import Claimed
from app.domain.operations import Failure, OperationKind, Subject
from app.models import Operation, OperationStatus
from app.runtime import Runtime
from tests.waiting import eventually

T = TypeVar("T")
LEASE = timedelta(seconds=30)
SOON = timedelta(0)
SUBJECT = Subject("plane", "intune")
OUTAGE = Failure("transient", "circuit_open", "the breaker is open", "intune")
REFUSED = Failure("permanent", "permanent", "the plane refused it", "intune")
DEPLOY = OperationKind.DEPLOY_TO_CONNECTOR


class Told:
    """Who was told of an ending or a revival: what stands for lanes and deployments here."""

    def __init__(self) -> None:
        self.of: list[tuple[UUID, OperationStatus]] = []

    async def ended(self, session: AsyncSession, operation: Operation) -> None:
        stored = await operations.get(session, operation.id)
        self.of.append((stored.id, stored.status))


async def enqueue(runtime: Runtime, kind: OperationKind = DEPLOY, **values: Any) -> UUID:
    values = {"subject": SUBJECT, "correlation_id": uuid4(), **values}
    return await within(runtime, lambda session: operations.enqueue(session, kind, **values))


async def claim(runtime: Runtime, operation_id: UUID, *, owner: str = "test") -> Claimed | None:
    return await within(
        runtime, lambda session: leases.claim(session, operation_id, owner=owner, lease=LEASE)
    )


async def claimed(runtime: Runtime, operation_id: UUID | None = None) -> Claimed:
    """An operation, by default a new one, in our hands."""
    mine = await claim(runtime, operation_id or await enqueue(runtime))
    assert mine is not None
    return mine


async def within(runtime: Runtime, act: Callable[[AsyncSession], Awaitable[T]]) -> T:
    async with runtime.transaction() as session:
        return await act(session)


async def row(runtime: Runtime, operation_id: UUID) -> Operation:
    return await within(runtime, lambda session: operations.get(session, operation_id))


async def alter(runtime: Runtime, operation_id: UUID, change: str) -> None:
    """What the passing of time would have done."""
    statement = text(f"UPDATE operations SET {change} WHERE id = :id")
    await within(runtime, lambda session: session.execute(statement, {"id": operation_id}))


async def seconds_until(runtime: Runtime, operation_id: UUID, column: str = "run_after") -> float:
    query = text(f"SELECT extract(epoch FROM {column} - clock_timestamp()) FROM operations WHERE id = :id")
    async with runtime.transaction() as session:
        return float(await session.scalar(query, {"id": operation_id}) or 0)


async def sweep(runtime: Runtime, told: Told) -> int:
    """One round of a relay; how many were queued again."""
    queued = await within(runtime, dispatch.reclaim)
    for operation_id in await within(runtime, dispatch.hopeless):
        await within(runtime, partial(dispatch.give_up, operation_id=operation_id, ended=told.ended))
    return queued


async def due(runtime: Runtime, *, ring_again: float = 10, limit: int = 100) -> list[UUID]:
    found = await within(
        runtime,
        lambda session: dispatch.dispatch(
            session, OperationKind, ring_again=timedelta(seconds=ring_again), limit=limit
        ),
    )
    return [item.id for item in found]


async def waits_for_lock(runtime: Runtime) -> None:
    """Until some session waits for a row."""
    query = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )

    async def waiting() -> int:
        async with runtime.autocommit() as connection:
            return await connection.scalar(query) or 0

    await eventually(waiting, within=5)
