# SPDX-License-Identifier: Apache-2.0
"""All processes tell the database's time, whatever their own clocks say."""

import asyncio
from datetime import UTC, datetime, timedelta

from app.clock import SharedClock, awake, begun
from app.runtime import Runtime, database_time
from tests.factories import NOON
from tests.waiting import eventually

HOUR, MOMENT = timedelta(hours=1), timedelta(seconds=2)


def test_until_the_database_has_told_it_is_the_machines_time() -> None:
    assert SharedClock(lambda: NOON)() == NOON


def test_a_wrong_or_jumping_clock_is_not_believed_any_more() -> None:
    wall = [NOON - HOUR]
    clock = SharedClock(lambda: wall[0])

    clock.tell(NOON, asked=awake())
    wall[0] = NOON + 5 * HOUR

    assert NOON <= clock() < NOON + MOMENT


def test_an_answer_that_agrees_within_its_own_delay_moves_nothing() -> None:
    clock = SharedClock(lambda: NOON)
    clock.tell(NOON, asked=awake())
    before = clock()

    clock.tell(before - timedelta(seconds=1), asked=awake() - 10)

    assert before <= clock() < before + MOMENT


def test_a_database_whose_time_was_set_is_followed() -> None:
    clock = SharedClock(lambda: NOON)
    clock.tell(NOON, asked=awake())

    clock.tell(NOON + HOUR, asked=awake())

    assert NOON + HOUR <= clock() < NOON + HOUR + MOMENT


async def test_it_is_asked_until_it_tells_and_outlives_an_outage(runtime: Runtime) -> None:
    clock, known, asked = SharedClock(lambda: NOON), asyncio.Event(), list[int]()

    async def ask() -> datetime:
        asked.append(1)
        if len(asked) % 2:
            raise OSError
        return await database_time(runtime)

    keeping = asyncio.create_task(clock.keep(ask, known=known, every=0.01, again=0.01))
    await begun(known)
    await eventually(lambda: len(asked) >= 4, within=5)
    keeping.cancel()

    assert abs(clock() - datetime.now(UTC)) < timedelta(minutes=1)


async def test_a_process_goes_on_without_a_first_answer() -> None:
    clock, known = SharedClock(lambda: NOON), asyncio.Event()

    async def away() -> datetime:
        raise OSError

    keeping = asyncio.create_task(clock.keep(away, known=known))
    await begun(known)
    assert not keeping.done()
    keeping.cancel()

    assert clock() == NOON
