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

from sqlalchemy import (
    ColumnElement,
    Interval,
    Result,
    RowMapping,
    bindparam,
    func,
    null,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app.domain.operations import (
    KINDS,
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

    ``last_error`` is why the run before this one did not end it, as in ``operations.error``, ``checkpoint``
    how far it came.
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
    checkpoint: Json | None = None


class Beat(StrEnum):
    """What a heartbeat learns."""

    FINE = "fine"
    CANCEL = "cancel"
    LOST = "lost"


CLAIMABLE = """
    status IN ('QUEUED', 'WAITING') AND run_after <= clock_timestamp()
    AND NOT cancel_requested AND (deadline IS NULL OR deadline > clock_timestamp())
"""
TAKEN = """
    status = 'RUNNING', attempt = attempt + 1, fence = fence + 1, version = version + 1, nudged = false,
    lived = false, started_at = coalesce(started_at, clock_timestamp())
"""
SHOWN = """
    operations.id, kind, subject_type, subject_id, deployment_id, correlation_id, attempt, max_attempts,
    deferrals, fence, deadline, args, error, checkpoint
"""
LEFT = """
    status = 'SUCCEEDED', error = NULL, lease_owner = NULL, lease_until = NULL, dispatched_at = NULL,
    cancel_requested = false, finished_at = clock_timestamp(), version = version + 1
"""
CLAIM = (
    text(
        f"UPDATE operations SET {TAKEN}, lease_owner = :owner, lease_until = clock_timestamp() + :lease"  # noqa: S608
        f" WHERE id = :id AND {CLAIMABLE} RETURNING {SHOWN}"
    )
    .bindparams(bindparam("lease", type_=Interval()))
    .columns(args=JSONB, error=JSONB, checkpoint=JSONB)
)
RENEW = text(
    "UPDATE operations SET lease_until = clock_timestamp() + :lease, lived = lived OR :well"
    " WHERE id = :id AND fence = :fence AND status = 'RUNNING' RETURNING cancel_requested"
).bindparams(bindparam("lease", type_=Interval()))
SUCCEED = text(
    f"UPDATE operations SET {LEFT}, result = :result"  # noqa: S608
    " WHERE id = :id AND fence = :fence AND status = 'RUNNING' RETURNING id"
).bindparams(bindparam("result", type_=JSONB(none_as_null=True)))
"""Each operation passes these four, so they are written once: building them costs more than running them."""
ACCUSE = text(
    "UPDATE operations SET lived = false, lease_owner = lease_owner || ' (accused)'"
    " WHERE id = :id AND fence = :fence AND status = 'RUNNING' AND lease_owner NOT LIKE '% (accused)'"
)
"""It has no company any more, whoever is lost with it."""

Connection = AsyncSession | AsyncConnection


async def claim(
    connection: Connection, operation_id: UUID, *, owner: str, lease: timedelta
) -> Claimed | None:
    """Take the operation if it is due and nobody has it; one statement, so of many callers one wins.

    The attempt is counted here, so that work which kills its process runs out of attempts too.
    """
    values = {"id": operation_id, "owner": owner, "lease": lease}
    row = (await connection.execute(CLAIM, values)).mappings().one_or_none()
    return None if row is None else as_claimed(row)


def as_claimed(row: RowMapping) -> Claimed:
    """Of a row with what ``SHOWN`` names; the driver's own does as well."""
    return Claimed(
        id=row["id"],
        kind=OperationKind(row["kind"]),
        subject=Subject(row["subject_type"], row["subject_id"]),
        deployment_id=row["deployment_id"],
        correlation_id=row["correlation_id"],
        attempt=row["attempt"],
        max_attempts=row["max_attempts"],
        deferrals=row["deferrals"],
        fence=row["fence"],
        deadline=row["deadline"],
        args=MappingProxyType(row["args"]),
        last_error=row["error"],
        checkpoint=row["checkpoint"],
    )


def _mine(claimed: Claimed) -> ColumnElement[bool]:
    held = (Operation.fence == claimed.fence) & (Operation.status == OperationStatus.RUNNING)
    return (Operation.id == claimed.id) & held


def _lost(claimed: Claimed) -> LeaseLost:
    detail = f"operation {claimed.id} is no longer held under fence {claimed.fence}"
    return LeaseLost(detail, operation_id=claimed.id)


def _proof(claimed: Claimed) -> dict[str, Any]:
    return {"id": claimed.id, "fence": claimed.fence}


async def heartbeat(connection: Connection, claimed: Claimed, *, lease: timedelta, well: bool = True) -> Beat:
    """Prolong the lease; tells when it is lost or when the work is to be cancelled.

    ``well``: nobody has told the run to stop. Then it has lived: its process outlived the beginning.
    """
    return _beat(await connection.execute(RENEW, _proof(claimed) | {"lease": lease, "well": well}))


def _beat(answer: Result[Any]) -> Beat:
    cancel = answer.scalar_one_or_none()
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


async def hold_alive(session: AsyncSession, claimed: Claimed) -> None:
    """``hold``, for what a run writes on its way: its first write is remembered with the operation."""
    operation = await hold(session, claimed)
    if not operation.lived:
        operation.lived = True
        await session.flush()


async def keep_checkpoint(session: AsyncSession, claimed: Claimed, checkpoint: Json | None) -> None:
    """Remember how far the work has come; None: whoever does it again begins at the beginning."""
    if checkpoint is None:
        await _change(session, claimed, checkpoint=null())
    else:
        await progressed(session, claimed, checkpoint=checkpoint)


async def progressed(session: AsyncSession, claimed: Claimed, **values: Any) -> None:
    """Something is done that nobody does again: what was lost before counts no more. ``values`` with it."""
    await _change(session, claimed, attempt=1, max_attempts=KINDS[claimed.kind].max_attempts, **values)


async def _change(session: AsyncSession, claimed: Claimed, **values: Any) -> None:
    change = update(Operation).where(_mine(claimed)).values(**values)
    await session.execute(change, execution_options={"synchronize_session": False})


async def accuse(connection: Connection, claimed: Claimed) -> None:
    """The run is about to cost its worker the life: that was its own doing, whatever it wrote before."""
    await connection.execute(ACCUSE, _proof(claimed))


async def _hold_with_deployment(session: AsyncSession, claimed: Claimed) -> Operation:
    await lock_deployment(session, claimed.deployment_id)
    return await hold(session, claimed)


async def succeed(connection: Connection, claimed: Claimed, result: Json | None = None) -> None:
    """SUCCEEDED, with ``result``.

    Raises:
        LeaseLost: as every function below that takes ``claimed``.
    """
    done = await connection.execute(SUCCEED, _proof(claimed) | {"result": result})
    if done.one_or_none() is None:
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
    session: AsyncSession, claimed: Claimed, *, delay: timedelta, ended: Ended, parked: bool = False
) -> OperationStatus:
    """Go on after ``delay``: this run made progress, so attempts and deferrals start from nothing.

    ``parked``: it waits for a person or for its time, which counts against no deadline. If what it waits for
    may have come while it ran, it looks again at once.
    """
    operation = await _hold_with_deployment(session, claimed)
    if operation.cancel_requested:
        operation = await end(session, operation, OperationStatus.CANCELLED, failure=None, ended=ended)
    else:
        rules = KINDS[claimed.kind]
        values: dict[str, Any] = {"attempt": 0, "deferrals": 0, "run_after": after(delay), "error": null()}
        values["max_attempts"] = rules.max_attempts
        lifetime = rules.deadline
        if parked and operation.nudged:
            values["run_after"] = after(timedelta(0))
        if parked and lifetime is not None:
            values["deadline"] = after(delay + lifetime)
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
