# SPDX-License-Identifier: Apache-2.0
"""Work that is done again and again: its ticks, each run once, and what becomes of those that were missed.

Ticks are the multiples of ``every`` since 1970 on the database's clock, so that all schedulers mean the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Row, delete, func, literal, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import operations
from app.domain.operations import OperationKind, Subject
from app.models import Operation, Schedule, ScheduleTick, new_id


class CatchUp(StrEnum):
    """What becomes of ticks that nobody was there for: the last of them is run late, or none is."""

    ONCE = "once"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Rule:
    """One schedule: what each tick enqueues. No tick begins before the work of the one before has ended.

    The work has its kind's time, and where the next tick is later than that, until then: what it has left
    undone at its deadline nobody else would do before.
    """

    name: str
    kind: OperationKind
    subject: Subject
    every: timedelta
    catch_up: CatchUp
    args: Mapping[str, Any] = field(default_factory=dict)


LATE = timedelta(seconds=60)
"""How late a tick may be dealt with and still not be missed; half its interval where that is less."""

DUE = text("""
    SELECT name, next_tick, date_bin(every, clock_timestamp(), 'epoch') AS tick, clock_timestamp() AS now
    FROM schedules WHERE name = ANY(:names) AND next_tick <= clock_timestamp()
    ORDER BY name FOR UPDATE SKIP LOCKED
""")


async def declare(session: AsyncSession, rules: Iterable[Rule]) -> None:
    """Have these schedules exist as they are now; a new one, or one with another interval, begins anew."""
    for rule in rules:
        first = func.date_bin(rule.every, func.clock_timestamp(), text("'epoch'::timestamptz"))
        row = insert(Schedule).values(
            name=rule.name,
            every=rule.every,
            catch_up=rule.catch_up.value,
            next_tick=first + literal(rule.every),
        )
        new = row.excluded
        await session.execute(
            row.on_conflict_do_update(
                index_elements=[Schedule.name],
                set_={"every": new.every, "catch_up": new.catch_up, "next_tick": new.next_tick},
                where=(Schedule.every != new.every) | (Schedule.catch_up != new.catch_up),
            )
        )


async def tick(session: AsyncSession, rules: Iterable[Rule]) -> list[UUID]:
    """Enqueue the work of every tick that has come; the operations. Locks the schedules that are due.

    Any number may do this at once: a locked schedule is another's, and a tick that was dealt with is over.
    """
    known = {rule.name: rule for rule in rules}
    due = (await session.execute(DUE, {"names": list(known)})).all()
    started = [await _deal_with(session, known[row.name], row) for row in due]
    return [operation_id for operation_id in started if operation_id is not None]


async def _deal_with(session: AsyncSession, rule: Rule, row: Row[Any]) -> UUID | None:
    schedule = await session.get_one(Schedule, rule.name)
    schedule.next_tick = row.tick + rule.every
    missed = round((row.tick - row.next_tick) / rule.every)
    late = row.now - row.tick > min(LATE, rule.every / 2)
    if late and rule.catch_up is CatchUp.SKIP:
        return None
    operation_id = None if await _still_works(session, rule) else new_id()
    kept = insert(ScheduleTick).values(
        name=rule.name, tick=row.tick, operation_id=operation_id, missed=missed
    )
    new = await session.execute(kept.on_conflict_do_nothing().returning(ScheduleTick.name))
    if operation_id is None or new.one_or_none() is None:
        return None
    return await _enqueue(session, rule, row.tick, operation_id)


async def _enqueue(session: AsyncSession, rule: Rule, at: datetime, operation_id: UUID) -> UUID:
    lifetime = operations.KINDS[rule.kind].deadline
    return await operations.enqueue(
        session,
        rule.kind,
        operation_id=operation_id,
        subject=rule.subject,
        correlation_id=new_id(),
        args={**rule.args, "tick": at.isoformat()},
        deadline=None if lifetime is None else max(lifetime, rule.every),
    )


async def _still_works(session: AsyncSession, rule: Rule) -> bool:
    """Whether the work of the last tick that had any has not ended."""
    query = (
        select(Operation.status)
        .join(ScheduleTick, ScheduleTick.operation_id == Operation.id)
        .where(ScheduleTick.name == rule.name)
        .order_by(ScheduleTick.tick.desc())
        .limit(1)
    )
    status = await session.scalar(query)
    return status is not None and status not in operations.ENDED


async def forget_ticks(session: AsyncSession, *, before: datetime) -> int:
    """Drop what is known of ticks of long ago; how many."""
    old = delete(ScheduleTick).where(ScheduleTick.created_at < before).returning(ScheduleTick.name)
    return len((await session.scalars(old, execution_options={"synchronize_session": False})).all())
