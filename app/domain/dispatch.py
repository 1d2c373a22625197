# SPDX-License-Identifier: Apache-2.0
"""Operations as the relay sees them: which are due, which were abandoned, which ran out of time.

Any number of relays may do all of this at once: rows in another's hands are skipped.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Interval, Select, and_, case, func, null, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.domain.operations import (
    KINDS,
    OPEN,
    Ended,
    Failure,
    OperationKind,
    end,
    lock_deployment,
    unavailable,
    wake,
)
from app.models import Operation, OperationStatus

BYSTANDER, IN_COMPANY = 20, 8
"""How often work may lose its worker in a row, getting nowhere, and no attempt is spent: what had lived, what
had company."""
UNLUCKY, LONGEST = 3, 30
"""How often what had lived does not have to wait, and how many seconds anybody waits at most."""
FEWEST_ATTEMPTS = min(rules.max_attempts for rules in KINDS.values())
MOST_ATTEMPTS = max(rules.max_attempts for rules in KINDS.values()) + BYSTANDER
WORKER_LOST = Failure("transient", "worker_lost", "its worker disappeared and no attempt is left")
OUT_OF_TIME = Failure("transient", "deadline", "the deadline passed before it could be finished")


@dataclass(frozen=True, slots=True)
class Due:
    """An operation to be rung for. ``fence`` makes the bell's name new after each claim."""

    id: UUID
    kind: OperationKind
    queue: str
    fence: int


async def dispatch(
    session: AsyncSession, kinds: Iterable[OperationKind], *, ring_again: timedelta, limit: int
) -> list[Due]:
    """Stamp and return at most ``limit`` due operations, the longest due first, that need a (new) wake-up.

    One statement. A wake-up that nobody answered for ``ring_again`` is due again.
    """
    found = due(list(kinds), ring_again=ring_again, limit=limit).cte("due")
    stamped = await session.execute(
        update(Operation)
        .where(Operation.id == found.c.id)
        .values(dispatched_at=func.clock_timestamp())
        .returning(Operation.id, Operation.kind, Operation.queue, Operation.fence, Operation.run_after)
        .execution_options(synchronize_session=False)
    )
    rows = sorted(stamped, key=lambda row: row.run_after)
    return [Due(row.id, OperationKind(row.kind), row.queue, row.fence) for row in rows]


def due(kinds: Collection[OperationKind], *, ring_again: timedelta, limit: int) -> Select[UUID]:
    """Which operations need a (new) wake-up, the longest due first: locked, and without what others hold."""
    now = func.now()  # stable within the statement, so that the partial index serves
    unanswered = or_(Operation.dispatched_at.is_(None), Operation.dispatched_at < now - ring_again)
    return (
        select(Operation.id)
        .where(Operation.status.in_(OPEN), Operation.queue.in_({KINDS[kind].queue.value for kind in kinds}))
        .where(Operation.kind.in_([kind.value for kind in kinds]), Operation.run_after <= now, unanswered)
        .order_by(Operation.run_after)
        .limit(limit)
        .with_for_update(skip_locked=True, key_share=True)
    )


async def undispatch(session: AsyncSession, operation_ids: Sequence[UUID] | None = None) -> None:
    """These wake-ups did not arrive, or none did: the operations are due for one at once."""
    lost = update(Operation).where(Operation.status.in_(OPEN), Operation.dispatched_at.is_not(None))
    if operation_ids is not None:
        lost = lost.where(Operation.id.in_(operation_ids))
    await session.execute(lost.values(dispatched_at=null()).execution_options(synchronize_session=False))


async def reclaim(session: AsyncSession, *, limit: int = 500) -> int:
    """Queue again what a silent worker held, if attempts are left; how many.

    A run that dies with its worker before it has lived may be what killed it: it has its attempts and no
    more. One that had lived was a bystander, most likely, and of several that had not all but one were: they
    are given another attempt in place of the lost one, ``BYSTANDER`` times at most, or ``IN_COMPANY`` times
    where company is all that speaks for them. Then they wait, longer each time and not as long as each other:
    what was only unlucky comes into other company, what kills its worker late does not do so all the time.
    """
    abandoned = (
        select(Operation.id)
        .where(_abandoned(), ~_spent(), ~Operation.cancel_requested)
        .limit(limit)
        .with_for_update(skip_locked=True, key_share=True)
    )
    queued = await session.scalars(
        update(Operation)
        .where(Operation.id.in_(abandoned.scalar_subquery()))
        .values(
            status=OperationStatus.QUEUED,
            max_attempts=Operation.max_attempts + case((_is_bystander(), 1), else_=0),
            lost_with=case((Operation.lived, null()), else_=Operation.lease_owner),
            lease_owner=null(),
            lease_until=null(),
            dispatched_at=null(),
            run_after=func.clock_timestamp() + _patience(),
            version=Operation.version + 1,
        )
        .returning(Operation.id)
        .execution_options(synchronize_session=False)
    )
    number = len(queued.all())
    if number:
        wake(session)
    return number


def _abandoned() -> ColumnElement[bool]:
    return and_(Operation.status == OperationStatus.RUNNING, Operation.lease_until < func.now())


def _is_bystander() -> ColumnElement[bool]:
    in_company = and_(Operation.max_attempts < FEWEST_ATTEMPTS + IN_COMPANY, _had_company())
    return or_(and_(Operation.lived, Operation.max_attempts < MOST_ATTEMPTS), in_company)


def _had_company() -> ColumnElement[bool]:
    """Whether other work that has not lived is lost with the same worker: leases end one after the other."""
    other = aliased(Operation)
    others = select(other.id).where(other.id != Operation.id).correlate(Operation)
    still = others.where(other.status == OperationStatus.RUNNING, ~other.lived)
    still = still.where(other.lease_owner == Operation.lease_owner)
    return or_(still.exists(), others.where(other.lost_with == Operation.lease_owner).exists())


def _patience() -> ColumnElement[timedelta]:
    """Nothing for the first losses, then twice as long each time; half of it by chance, to part company.

    What only company speaks for parts at once, so that next time it is seen who did it.
    """
    losses = Operation.max_attempts - FEWEST_ATTEMPTS
    free = case((and_(~Operation.lived, _is_bystander()), 0), else_=UNLUCKY)
    longest = case((losses >= free, func.least(func.power(2, losses - free), LONGEST)), else_=0)
    seconds = longest * (1 - func.random() / 2)
    return func.make_interval(0, 0, 0, 0, 0, 0, seconds, type_=Interval())


def _spent() -> ColumnElement[bool]:
    return and_(Operation.attempt >= Operation.max_attempts, ~_is_bystander())


def _hopeless() -> ColumnElement[bool]:
    spent = or_(_spent(), Operation.cancel_requested)
    late = and_(Operation.status.in_(OPEN), Operation.deadline < func.now())
    return or_(and_(_abandoned(), spent), late)


async def hopeless(session: AsyncSession, *, limit: int = 100) -> list[UUID]:
    """Operations to be ended one by one by ``give_up``: abandoned for the last time, or out of time."""
    return list(await session.scalars(select(Operation.id).where(_hopeless()).limit(limit)))


async def give_up(session: AsyncSession, operation_id: UUID, *, ended: Ended) -> Operation | None:
    """End one hopeless operation, CANCELLED if that was asked for, else FAILED; None if another relay did."""
    deployment_id = await session.scalar(select(Operation.deployment_id).where(Operation.id == operation_id))
    await lock_deployment(session, deployment_id)
    query = select(Operation).where(Operation.id == operation_id, _hopeless())
    operation = await session.scalar(query.with_for_update(skip_locked=True, key_share=True))
    if operation is None:
        return None
    if operation.cancel_requested:
        return await end(session, operation, OperationStatus.CANCELLED, failure=None, ended=ended)
    return await end(session, operation, OperationStatus.FAILED, failure=_reason(operation), ended=ended)


def _reason(operation: Operation) -> Failure:
    if operation.status is OperationStatus.RUNNING:
        return WORKER_LOST
    if operation.error is None:
        return OUT_OF_TIME
    if operation.deferrals == 0:
        last = Failure.from_json(operation.error)
        return replace(OUT_OF_TIME, message=f"{OUT_OF_TIME.message}: {last.message}", service=last.service)
    return unavailable(Failure.from_json(operation.error))
