# SPDX-License-Identifier: Apache-2.0
"""Durable work: what there is, how it is asked for, stopped and revived. Its workers' side is ``leases``.

An operation that ends without success concerns whoever asked for it. The functions that may end one
therefore take ``ended``, which settles lane and deployment in the same transaction: it is
``app.domain.outcomes.operation_ended``, given as an argument because that module builds on this one.
Where it may run, the deployment's row is locked before the operation's, as everywhere.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, DateTime, func, insert, literal, null, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import IllegalTransition, NotFound, VersionMismatch
from app.models import Deployment, Operation, OperationStatus, new_id
from app.models.base import Json

OPEN = (OperationStatus.QUEUED, OperationStatus.WAITING)
ENDED = (OperationStatus.SUCCEEDED, OperationStatus.FAILED, OperationStatus.CANCELLED)
REVIVABLE = (OperationStatus.FAILED, OperationStatus.CANCELLED)

_S = OperationStatus
MOVES: Mapping[OperationStatus, frozenset[OperationStatus]] = MappingProxyType(
    {
        _S.QUEUED: frozenset({_S.RUNNING, _S.FAILED, _S.CANCELLED}),
        _S.RUNNING: frozenset({_S.QUEUED, _S.WAITING, _S.SUCCEEDED, _S.FAILED, _S.CANCELLED}),
        _S.WAITING: frozenset({_S.RUNNING, _S.FAILED, _S.CANCELLED}),
        _S.SUCCEEDED: frozenset(),
        _S.FAILED: frozenset({_S.QUEUED}),
        _S.CANCELLED: frozenset({_S.QUEUED}),
    }
)
"""What may follow what: a claim makes RUNNING, a revival QUEUED again."""

Ended = Callable[[AsyncSession, Operation], Awaitable[None]]


class OperationKind(StrEnum):
    """What can be done: the names of the job functions."""

    DEPLOY_TO_CONNECTOR = "deploy_to_connector"
    EXECUTE_ROLLBACK = "execute_rollback"
    MEASURE_RING = "measure_ring"
    WITHDRAW_LANE = "withdraw_lane"
    RETRY_DEVICES = "retry_devices"
    CHECK_PLANE = "check_plane"
    COUNT_TARGET = "count_target"
    RECONCILE = "reconcile"
    REPAIR_LANE = "repair_lane"
    SETTLE_EFFECT = "settle_effect"
    CHECKPOINT_HISTORY = "checkpoint_history"
    APPLY_RETENTION = "apply_retention"
    PROCESS_AI_CONVERSATION = "process_ai_conversation"
    EXECUTE_AI_TASK = "execute_ai_task"


class Queue(StrEnum):
    """The lanes of the workers, each with its own concurrency."""

    DEPLOY = "deploy"
    ROLLBACK = "rollback"
    AI = "ai"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """The limits of one kind of work. A job stops by itself at ``soft_limit``, is stopped at ``hard_limit``.

    ``deadline`` bounds the whole operation, waiting included; None: somebody else's clock does.
    """

    queue: Queue
    hard_limit: timedelta
    soft_limit: timedelta
    max_attempts: int = 4
    deadline: timedelta | None = None


_LONG, _LONG_SOFT = timedelta(seconds=300), timedelta(seconds=270)


def _long(queue: Queue, deadline: timedelta | None = None) -> Kind:
    return Kind(queue=queue, hard_limit=_LONG, soft_limit=_LONG_SOFT, deadline=deadline)


def _repeated() -> Kind:
    return _long(Queue.DEFAULT, timedelta(hours=1))


KINDS: Mapping[OperationKind, Kind] = MappingProxyType(
    {
        OperationKind.DEPLOY_TO_CONNECTOR: _long(Queue.DEPLOY, timedelta(hours=24)),
        OperationKind.EXECUTE_ROLLBACK: _long(Queue.ROLLBACK),
        OperationKind.MEASURE_RING: _long(Queue.DEFAULT),
        OperationKind.RETRY_DEVICES: _long(Queue.DEPLOY, timedelta(hours=24)),
        OperationKind.WITHDRAW_LANE: _long(Queue.ROLLBACK, timedelta(days=7)),
        OperationKind.CHECK_PLANE: Kind(
            queue=Queue.DEFAULT,
            hard_limit=timedelta(seconds=60),
            soft_limit=timedelta(seconds=50),
            deadline=timedelta(minutes=15),
        ),
        OperationKind.COUNT_TARGET: _repeated(),
        OperationKind.RECONCILE: _repeated(),
        OperationKind.REPAIR_LANE: _long(Queue.DEPLOY, timedelta(hours=24)),
        OperationKind.SETTLE_EFFECT: _long(Queue.DEFAULT, timedelta(days=7)),
        OperationKind.CHECKPOINT_HISTORY: _repeated(),
        OperationKind.APPLY_RETENTION: _repeated(),
        OperationKind.PROCESS_AI_CONVERSATION: Kind(
            queue=Queue.AI,
            hard_limit=timedelta(seconds=120),
            soft_limit=timedelta(seconds=100),
            deadline=timedelta(hours=1),
        ),
        OperationKind.EXECUTE_AI_TASK: _long(Queue.AI, timedelta(hours=1)),
    }
)


NO_PLANES = frozenset({"external_api", "ai_provider"})
"""Services that work may wait for and that are no planes."""
TOUCHING = (
    OperationKind.DEPLOY_TO_CONNECTOR,
    OperationKind.RETRY_DEVICES,
    OperationKind.EXECUTE_ROLLBACK,
    OperationKind.MEASURE_RING,
)
"""The kinds that move a lane; the first two touch devices that were not touched before."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What an operation is about: ``type`` is ``lane``, ``plane``, ``drift`` …; ``id`` is in our words."""

    type: str
    id: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an operation failed or waits: public class and code, a sentence without secrets, the service."""

    error_class: str
    code: str
    message: str
    service: str | None = None

    def to_json(self) -> Json:
        """As it stands in ``operations.error``. PostgreSQL refuses NUL in text."""
        message = self.message.replace("\x00", "")[:2000]
        return {"class": self.error_class, "code": self.code, "message": message, "service": self.service}

    @classmethod
    def from_json(cls, stored: Json) -> "Failure":
        """As it was stored."""
        return cls(stored["class"], stored["code"], stored["message"], stored["service"])


def after(delay: timedelta) -> ColumnElement[datetime]:
    """``delay`` from now, on the database's clock."""
    return func.clock_timestamp(type_=DateTime(timezone=True)) + literal(delay)


def wake(session: AsyncSession) -> None:
    """Have the relays woken once the transaction is committed."""
    session.info["wake"] = True


async def enqueue(
    session: AsyncSession,
    kind: OperationKind,
    *,
    subject: Subject,
    correlation_id: UUID,
    deployment_id: UUID | None = None,
    args: Json | None = None,
    delay: timedelta = timedelta(0),
    deadline: timedelta | None = None,
    operation_id: UUID | None = None,
) -> UUID:
    """Record work to be done once the caller's transaction is committed; its id, a new one by default.

    ``args`` is JSON, ids and plain values only. ``deadline`` counts from now; None takes the kind's.
    """
    rules, operation_id = KINDS[kind], operation_id or new_id()
    lifetime = deadline or rules.deadline
    await session.execute(
        insert(Operation).values(
            id=operation_id,
            kind=kind.value,
            queue=rules.queue.value,
            subject_type=subject.type,
            subject_id=subject.id,
            deployment_id=deployment_id,
            correlation_id=correlation_id,
            args=args or {},
            max_attempts=rules.max_attempts,
            run_after=after(delay),
            deadline=null() if lifetime is None else after(lifetime),
        )
    )
    wake(session)
    return operation_id


async def hasten(session: AsyncSession, deployment_id: UUID | None = None) -> None:
    """What waits without an error, for a person or for its time, looks again at once.

    Of one deployment everything that moves its lanes, of all deployments (None) what is to touch devices.
    What a plane asked to wait for goes on waiting. What runs now may be about to wait: it is nudged.
    """
    kinds = TOUCHING[:2] if deployment_id is None else TOUCHING
    touching = update(Operation).where(Operation.kind.in_([kind.value for kind in kinds]))
    if deployment_id is not None:
        touching = touching.where(Operation.deployment_id == deployment_id)
    options = {"synchronize_session": False}
    due = func.least(Operation.run_after, func.clock_timestamp())
    waiting = touching.where(Operation.status.in_(OPEN), Operation.error.is_(None))
    await session.execute(waiting.values(run_after=due, dispatched_at=null()), execution_options=options)
    running = touching.where(Operation.status == OperationStatus.RUNNING)
    await session.execute(running.values(nudged=True), execution_options=options)
    wake(session)


async def leave(
    session: AsyncSession, operation: Operation, status: OperationStatus, **values: Any
) -> Operation:
    """Write a state that is not RUNNING. The row is locked by the caller.

    Raises:
        IllegalTransition: the table does not have the move.
    """
    if status not in MOVES[operation.status]:
        raise IllegalTransition(
            f"operation {operation.id} is {operation.status.value}, not to be {status.value}"
        )
    values = {"lease_owner": None, "lease_until": None, "dispatched_at": None, **values}
    change = update(Operation).where(Operation.id == operation.id)
    changed = await session.execute(
        change.values(status=status, version=Operation.version + 1, **values).returning(Operation),
        execution_options={"populate_existing": True},
    )
    return changed.scalar_one()


async def end(
    session: AsyncSession,
    operation: Operation,
    status: OperationStatus,
    *,
    failure: Failure | None,
    ended: Ended,
) -> Operation:
    """FAILED or CANCELLED, for good unless revived. The caller has locked deployment and operation."""
    values: dict[str, Any] = {"finished_at": func.clock_timestamp(), "cancel_requested": False}
    if failure is not None:
        values["error"] = failure.to_json()
    operation = await leave(session, operation, status, **values)
    await ended(session, operation)
    return operation


async def lock_deployment(session: AsyncSession, deployment_id: UUID | None) -> None:
    """Taken before the operation's lock wherever the operation may end without success."""
    if deployment_id is not None:
        query = select(Deployment.id).where(Deployment.id == deployment_id)
        await session.execute(query.with_for_update(key_share=True))


async def past_deadline(session: AsyncSession, operation: Operation) -> bool:
    """Whether the operation's time is over, on the database's clock."""
    if operation.deadline is None:
        return False
    return bool(await session.scalar(select(func.clock_timestamp() >= operation.deadline)))


def unavailable(failure: Failure) -> Failure:
    """What a deferral becomes when the deadline passes: ``plane_unavailable``, or its own code elsewhere."""
    message = f"the deadline passed while waiting: {failure.message}"
    code = failure.code if failure.service in NO_PLANES else "plane_unavailable"
    return Failure(failure.error_class, code, message, failure.service)


async def lock(session: AsyncSession, operation_id: UUID, *, version: int | None = None) -> Operation:
    """The operation, locked after its deployment.

    Raises:
        NotFound: no such operation.
        VersionMismatch: ``version`` is given and is not the current one.
    """
    await lock_deployment(session, (await get(session, operation_id)).deployment_id)
    query = select(Operation).where(Operation.id == operation_id).with_for_update(key_share=True)
    operation = (await session.execute(query, execution_options={"populate_existing": True})).scalar_one()
    if version is not None and operation.version != version:
        raise VersionMismatch(f"operation {operation_id} is at version {operation.version}, not {version}")
    return operation


async def cancel(
    session: AsyncSession, operation_id: UUID, *, ended: Ended, version: int | None = None
) -> Operation:
    """Stop the operation; needs no live worker. A running one is told by its next heartbeat.

    Raises:
        NotFound, VersionMismatch: see ``lock``.
        IllegalTransition: it succeeded or failed already.
    """
    operation = await lock(session, operation_id, version=version)
    if operation.status in {OperationStatus.SUCCEEDED, OperationStatus.FAILED}:
        raise IllegalTransition(f"operation {operation_id} is {operation.status} and cannot be cancelled")
    if operation.status is OperationStatus.CANCELLED:
        return operation
    if operation.status is not OperationStatus.RUNNING or await lease_is_over(session, operation):
        return await end(session, operation, OperationStatus.CANCELLED, failure=None, ended=ended)
    if not operation.cancel_requested:
        operation.cancel_requested = True
        operation.version += 1
        await session.flush()
    return operation


async def lease_is_over(session: AsyncSession, operation: Operation) -> bool:
    """Whether the worker that held the operation has been silent for too long."""
    return bool(await session.scalar(select(func.clock_timestamp() > operation.lease_until)))


async def revive(
    session: AsyncSession, operation_id: UUID, *, revived: Ended, version: int | None = None
) -> Operation:
    """Queue a failed or cancelled operation again with fresh attempts and a fresh deadline.

    Raises:
        NotFound, VersionMismatch: see ``lock``.
        IllegalTransition: it is in another state.
    """
    operation = await lock(session, operation_id, version=version)
    if operation.status not in REVIVABLE:
        raise IllegalTransition(f"operation {operation_id} is {operation.status}, not FAILED or CANCELLED")
    rules = KINDS[OperationKind(operation.kind)]
    operation = await leave(
        session,
        operation,
        OperationStatus.QUEUED,
        attempt=0,
        max_attempts=rules.max_attempts,
        deferrals=0,
        run_after=after(timedelta(0)),
        deadline=null() if rules.deadline is None else after(rules.deadline),
        finished_at=null(),
        error=null(),
    )
    await revived(session, operation)
    wake(session)
    return operation


async def get(session: AsyncSession, operation_id: UUID) -> Operation:
    """One operation.

    Raises:
        NotFound: no such operation.
    """
    operation = await session.scalar(select(Operation).where(Operation.id == operation_id))
    if operation is None:
        raise NotFound(f"there is no operation {operation_id}")
    return operation


async def find(
    session: AsyncSession,
    *,
    limit: int,
    before: tuple[datetime, UUID] | None = None,
    kind: OperationKind | None = None,
    status: OperationStatus | None = None,
    subject_type: str | None = None,
    subject_id: str | None = None,
    deployment_id: UUID | None = None,
) -> list[Operation]:
    """At most ``limit`` operations, newest first; ``before`` is (created_at, id) of the last one seen."""
    query = select(Operation).order_by(Operation.created_at.desc(), Operation.id.desc()).limit(limit)
    filters = {
        "kind": kind,
        "status": status,
        "subject_type": subject_type,
        "subject_id": subject_id,
        "deployment_id": deployment_id,
    }
    query = query.filter_by(**{name: value for name, value in filters.items() if value is not None})
    if before is not None:
        query = query.where(tuple_(Operation.created_at, Operation.id) < tuple_(*map(literal, before)))
    return list(await session.scalars(query))
