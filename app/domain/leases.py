# SPDX-License-Identifier: Apache-2.0
"""Operations as their workers see them: claimed, held, and left in a state that tells what happened.

Every write presents the fence of its claim, so a worker that lost its lease writes nothing: ``LeaseLost``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, func, null, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain.operations import (
    OPEN,
    Ended,
    Failure,
    OperationKind,
    Subject,
    after,
    end,
    leave,
    lock_deployment,
    past_deadline,
    unavailable,
    wake,
)
from app.errors import LeaseLost
from app.models import Operation, OperationStatus
from app.models.base import Json


@dataclass(frozen=True, slots=True)
class Claimed:
    """An operation as the worker that holds it sees it. ``attempt`` counts this run too.

    ``last_error`` is why the run before this one did not end it, as in ``operations.error``.
    """

    id: UUID
    kind: OperationKind
    subject: Subject
    deployment_id: UUID | None
    correlation_id: UUID
    attempt: int
    max_attempts: int
    deferrals: int
    fence: int
    deadline: datetime | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    last_error: Json | None = None


class Beat(StrEnum):
    """What a heartbeat learns."""

    FINE = "fine"
    CANCEL = "cancel"
    LOST = "lost"


async def claim(session: AsyncSession, operation_id: UUID, *, owner: str, lease: timedelta) -> Claimed | None:
    """Take the operation if it is due and nobody has it; one statement, so of many callers one wins.

    The attempt is counted here, so that work which kills its process runs out of attempts too.
    """
    now = func.clock_timestamp()
    claimed = await session.scalar(
        update(Operation)
        .where(Operation.id == operation_id, Operation.status.in_(OPEN), Operation.run_after <= now)
        .where(~Operation.cancel_requested, Operation.deadline.is_(None) | (Operation.deadline > now))
        .values(
            status=OperationStatus.RUNNING,
            attempt=Operation.attempt + 1,
            fence=Operation.fence + 1,
            lease_owner=owner,
            lease_until=after(lease),
            started_at=func.coalesce(Operation.started_at, now),
            version=Operation.version + 1,
        )
        .returning(Operation),
        execution_options={"populate_existing": True},
    )
    return None if claimed is None else _as_claimed(claimed)


def _as_claimed(row: Operation) -> Claimed:
    return Claimed(
        id=row.id,
        kind=OperationKind(row.kind),
        subject=Subject(row.subject_type, row.subject_id),
        deployment_id=row.deployment_id,
        correlation_id=row.correlation_id,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        deferrals=row.deferrals,
        fence=row.fence,
        deadline=row.deadline,
        args=MappingProxyType(row.args),
        last_error=row.error,
    )


def _mine(claimed: Claimed) -> ColumnElement[bool]:
    held = (Operation.fence == claimed.fence) & (Operation.status == OperationStatus.RUNNING)
    return (Operation.id == claimed.id) & held


def _lost(claimed: Claimed) -> LeaseLost:
    detail = f"operation {claimed.id} is no longer held under fence {claimed.fence}"
    return LeaseLost(detail, operation_id=claimed.id)


async def heartbeat(session: AsyncSession, claimed: Claimed, *, lease: timedelta) -> Beat:
    """Prolong the lease; tells when it is lost or when the work is to be cancelled."""
    renew = update(Operation).where(_mine(claimed)).values(lease_until=after(lease))
    cancel = await session.scalar(renew.returning(Operation.cancel_requested))
    if cancel is None:
        return Beat.LOST
    return Beat.CANCEL if cancel else Beat.FINE


async def look(session: AsyncSession, claimed: Claimed) -> Beat:
    """What a heartbeat would learn, without prolonging anything."""
    cancel = await session.scalar(select(Operation.cancel_requested).where(_mine(claimed)))
    if cancel is None:
        return Beat.LOST
    return Beat.CANCEL if cancel else Beat.FINE


async def hold(session: AsyncSession, claimed: Claimed) -> Operation:
    """Lock the operation until the transaction ends, so that nobody can take it before that.

    To be called last: whoever lost the lease then writes nothing, and the deployment's row is locked first.

    Raises:
        LeaseLost: somebody else holds it, or it has ended.
    """
    query = select(Operation).where(_mine(claimed)).with_for_update(key_share=True)
    operation = await session.scalar(query, execution_options={"populate_existing": True})
    if operation is None:
        raise _lost(claimed)
    return operation


async def _hold_with_deployment(session: AsyncSession, claimed: Claimed) -> Operation:
    await lock_deployment(session, claimed.deployment_id)
    return await hold(session, claimed)


async def succeed(session: AsyncSession, claimed: Claimed, result: Json | None = None) -> None:
    """SUCCEEDED, with ``result``.

    Raises:
        LeaseLost: as every function below that takes ``claimed``.
    """
    done = await session.scalar(
        update(Operation)
        .where(_mine(claimed))
        .values(
            status=OperationStatus.SUCCEEDED,
            result=null() if result is None else result,
            error=null(),
            lease_owner=None,
            lease_until=None,
            dispatched_at=None,
            cancel_requested=False,
            finished_at=func.clock_timestamp(),
            version=Operation.version + 1,
        )
        .returning(Operation.id)
    )
    if done is None:
        raise _lost(claimed)


async def fail(session: AsyncSession, claimed: Claimed, failure: Failure, *, ended: Ended) -> OperationStatus:
    """FAILED: repeating cannot help."""
    operation = await _hold_with_deployment(session, claimed)
    operation = await end(session, operation, OperationStatus.FAILED, failure=failure, ended=ended)
    return operation.status


async def finish_cancel(session: AsyncSession, claimed: Claimed, *, ended: Ended) -> OperationStatus:
    """CANCELLED, by the worker that was asked to stop."""
    operation = await _hold_with_deployment(session, claimed)
    operation = await end(session, operation, OperationStatus.CANCELLED, failure=None, ended=ended)
    return operation.status


async def retry(
    session: AsyncSession, claimed: Claimed, failure: Failure, *, delay: timedelta, ended: Ended
) -> OperationStatus:
    """Run again after ``delay``; FAILED when the attempts are spent, CANCELLED when that was asked for."""
    operation = await _hold_with_deployment(session, claimed)
    if operation.cancel_requested:
        operation = await end(session, operation, OperationStatus.CANCELLED, failure=None, ended=ended)
    elif operation.attempt >= operation.max_attempts:
        operation = await end(session, operation, OperationStatus.FAILED, failure=failure, ended=ended)
    else:
        values = {"run_after": after(delay), "error": failure.to_json()}
        operation = await leave(session, operation, OperationStatus.WAITING, **values)
    return operation.status


async def defer(
    session: AsyncSession, claimed: Claimed, failure: Failure, *, delay: timedelta, ended: Ended
) -> OperationStatus:
    """Wait ``delay``, at most until the deadline, without spending the attempt.

    Past the deadline FAILED (``plane_unavailable``), CANCELLED when that was asked for.
    """
    operation = await _hold_with_deployment(session, claimed)
    if operation.cancel_requested:
        operation = await end(session, operation, OperationStatus.CANCELLED, failure=None, ended=ended)
    elif await past_deadline(session, operation):
        failed = unavailable(failure)
        operation = await end(session, operation, OperationStatus.FAILED, failure=failed, ended=ended)
    else:
        operation = await leave(
            session,
            operation,
            OperationStatus.WAITING,
            attempt=operation.attempt - 1,
            deferrals=operation.deferrals + 1,
            run_after=func.least(after(delay), Operation.deadline),
            error=failure.to_json(),
        )
    return operation.status


async def again(
    session: AsyncSession, claimed: Claimed, *, delay: timedelta, ended: Ended
) -> OperationStatus:
    """Go on after ``delay``: this run made progress, so attempts and deferrals start from nothing."""
    operation = await _hold_with_deployment(session, claimed)
    if operation.cancel_requested:
        operation = await end(session, operation, OperationStatus.CANCELLED, failure=None, ended=ended)
    else:
        values = {"attempt": 0, "deferrals": 0, "run_after": after(delay), "error": null()}
        operation = await leave(session, operation, OperationStatus.WAITING, **values)
        wake(session)
    return operation.status


async def give_back(session: AsyncSession, claimed: Claimed, *, ended: Ended) -> OperationStatus:
    """QUEUED again at once, the attempt returned: the worker goes, the work stays."""
    operation = await _hold_with_deployment(session, claimed)
    if operation.cancel_requested:
        operation = await end(session, operation, OperationStatus.CANCELLED, failure=None, ended=ended)
    else:
        values = {"attempt": operation.attempt - 1, "run_after": after(timedelta(0))}
        operation = await leave(session, operation, OperationStatus.QUEUED, **values)
        wake(session)
    return operation.status
