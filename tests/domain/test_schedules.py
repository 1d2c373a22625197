# SPDX-License-Identifier: Apache-2.0
"""Repeated work: each tick once, whoever looks at the clock, and missed ticks by the declared rule."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import operations, outcomes, schedules
from app.domain.operations import OperationKind, Subject
from app.domain.schedules import CatchUp, Rule
from app.models import Operation, Schedule, ScheduleTick
from app.runtime import Runtime

HOUR = timedelta(hours=1)
EVENTS = OperationKind.CHECKPOINT_HISTORY


def rule(catch_up: CatchUp = CatchUp.ONCE, *, every: timedelta = HOUR) -> Rule:
    return Rule("history", EVENTS, Subject("schedule", "history"), every, catch_up, {"of": "all"})


async def declared(session: AsyncSession, rule: Rule, *, due_since: timedelta | None = None) -> Rule:
    """A schedule, with its next tick so long ago if it is given."""
    await schedules.declare(session, [rule])
    if due_since is not None:
        past = select(
            func.date_bin(rule.every, func.clock_timestamp() - due_since, text("'epoch'::timestamptz"))
        )
        await session.execute(update(Schedule).values(next_tick=past.scalar_subquery()))
    session.expire_all()
    return rule


async def now_of(session: AsyncSession) -> datetime:
    found: datetime = (await session.execute(select(func.clock_timestamp()))).scalar_one()
    return found


async def known_to(session: AsyncSession) -> list[Schedule]:
    return list(await session.scalars(select(Schedule).order_by(Schedule.name)))


async def ticks(session: AsyncSession) -> list[ScheduleTick]:
    return list(await session.scalars(select(ScheduleTick).order_by(ScheduleTick.tick)))


async def test_a_new_schedule_waits_for_its_first_tick(session: AsyncSession) -> None:
    known = await declared(session, rule())

    assert await schedules.tick(session, [known]) == []
    (row,) = await known_to(session)
    now = await now_of(session)
    assert now < row.next_tick <= now + HOUR
    assert row.next_tick.timestamp() % 3600 == 0


async def test_a_tick_enqueues_its_work_once(session: AsyncSession) -> None:
    known = await declared(session, rule(), due_since=timedelta(0))

    (operation_id,) = await schedules.tick(session, [known])
    again = await schedules.tick(session, [known])

    assert again == []
    [work] = await operations.find(session, limit=9, kind=EVENTS)
    assert work.id == operation_id
    (tick,) = await ticks(session)
    assert (work.kind, work.subject_id) == (EVENTS.value, "history")
    assert work.args == {"of": "all", "tick": tick.tick.isoformat()}
    assert (tick.operation_id, tick.missed) == (operation_id, 0)


@pytest.mark.parametrize(
    ("every", "within"),
    [(timedelta(minutes=15), HOUR), (HOUR, HOUR), (timedelta(days=7), timedelta(days=7))],
    ids=["more often than its kind's deadline", "as often", "more rarely: nobody else does it before"],
)
async def test_the_work_of_a_tick_has_until_the_next_one_at_least(
    session: AsyncSession, every: timedelta, within: timedelta
) -> None:
    known = await declared(session, rule(every=every), due_since=timedelta(0))
    before = await now_of(session)

    (operation_id,) = await schedules.tick(session, [known])

    work = await operations.get(session, operation_id)
    assert work.deadline is not None
    assert before + within <= work.deadline <= await now_of(session) + within


async def test_of_many_schedulers_one_runs_a_tick(runtime: Runtime) -> None:
    async with runtime.transaction() as session:
        known = await declared(session, rule(), due_since=timedelta(0))

    async def look() -> list[Any]:
        async with runtime.transaction() as session:
            return list(await schedules.tick(session, [known]))

    started = [each for found in await asyncio.gather(*(look() for _ in range(8))) for each in found]

    assert len(started) == 1


@pytest.mark.parametrize(("catch_up", "runs"), [(CatchUp.ONCE, 1), (CatchUp.SKIP, 0)])
async def test_after_three_missed_ticks_the_rule_is_followed(
    session: AsyncSession, catch_up: CatchUp, runs: int
) -> None:
    now = (await now_of(session)).timestamp()
    every = next(length for length in range(86_400, 90_000) if now % length > 600)  # its last tick is late
    interval = timedelta(seconds=every)
    known = await declared(session, rule(catch_up, every=interval), due_since=3 * interval)

    started = await schedules.tick(session, [known])

    assert len(started) == runs
    assert [tick.missed for tick in await ticks(session)] == [3] * runs
    (row,) = await known_to(session)
    assert row.next_tick > await now_of(session)


async def test_nothing_begins_while_the_work_of_the_tick_before_goes_on(session: AsyncSession) -> None:
    known = await declared(session, rule(every=timedelta(milliseconds=1)), due_since=timedelta(0))
    (first,) = await schedules.tick(session, [known])
    session.expire_all()

    assert await schedules.tick(session, [known]) == []
    await operations.cancel(session, first, ended=outcomes.operation_ended)
    session.expire_all()
    assert len(await schedules.tick(session, [known])) == 1

    open_work = await session.scalars(select(Operation).where(Operation.kind == EVENTS.value))
    assert len(open_work.all()) == 2


async def test_another_interval_begins_anew_and_the_same_one_changes_nothing(session: AsyncSession) -> None:
    await declared(session, rule(), due_since=timedelta(0))
    before = (await known_to(session))[0].next_tick

    await declared(session, rule())
    unchanged = (await known_to(session))[0].next_tick
    await declared(session, rule(every=2 * HOUR))
    (changed,) = await known_to(session)

    assert unchanged == before
    assert (changed.every, changed.next_tick > await now_of(session)) == (2 * HOUR, True)


async def test_old_ticks_are_forgotten(session: AsyncSession) -> None:
    known = await declared(session, rule(), due_since=timedelta(0))
    await schedules.tick(session, [known])
    now = await now_of(session)

    assert await schedules.forget_ticks(session, before=now - HOUR) == 0
    assert await schedules.forget_ticks(session, before=now + HOUR) == 1
