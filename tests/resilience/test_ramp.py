# SPDX-License-Identifier: Apache-2.0
"""A service that is just back gets one call at a time, then more and more."""

import asyncio

import pytest

from app.resilience import BreakerOpen, BreakerPolicy, ServiceBreaker
from app.resilience.bulkhead import Bulkhead
from app.resilience.errors import TransientError
from tests.resilience.conftest import Make
from tests.resilience.misbehaving import answer, misbehaving
from tests.waiting import eventually


async def crowd(bulkhead: Bulkhead, size: int) -> list[asyncio.Task[None]]:
    """So many callers, each of which keeps its permit until it is cancelled."""

    async def caller() -> None:
        async with bulkhead.permit(within=10):
            await asyncio.Event().wait()

    return [asyncio.create_task(caller()) for _ in range(size)]


async def test_the_number_of_calls_at_once_doubles_until_all_are_there() -> None:
    bulkhead, seen = Bulkhead("intune", 8, ramp_step=0.05), list[int]()
    bulkhead.ramp()
    callers = await crowd(bulkhead, 12)

    def held() -> int:
        if bulkhead.held not in seen:
            seen.append(bulkhead.held)
        return bulkhead.held

    await eventually(held, until=lambda number: number == 8, within=5, every=0.005)
    for caller in callers:
        caller.cancel()

    assert [number for number in seen if number > 0] == [1, 2, 4, 8]


async def test_a_ramp_that_is_ended_gives_every_permit_back() -> None:
    bulkhead = Bulkhead("intune", 8, ramp_step=60)
    bulkhead.ramp()
    callers = await crowd(bulkhead, 8)
    await eventually(lambda: bulkhead.held, until=lambda number: number == 1, within=5)

    bulkhead.end_ramp()

    await eventually(lambda: bulkhead.held, until=lambda number: number == 8, within=5)
    for caller in callers:
        caller.cancel()


async def test_a_second_recovery_begins_anew_and_loses_no_permit() -> None:
    bulkhead = Bulkhead("intune", 4, ramp_step=0.02)
    for _ in range(3):
        bulkhead.ramp()
        await asyncio.sleep(0)

    callers = await crowd(bulkhead, 6)
    await eventually(lambda: bulkhead.held, until=lambda number: number == 4, within=5)
    for caller in callers:
        caller.cancel()


async def test_a_breaker_that_closes_begins_the_ramp(make: Make) -> None:
    breaker = ServiceBreaker("intune", BreakerPolicy(fail_max=1, reset_timeout=0.05))

    async with misbehaving(answer(503), answer(200, b"{}")) as server:
        client = make(server, breaker=breaker, max_concurrency=8)
        with pytest.raises((TransientError, BreakerOpen)):
            await client.post("/", extensions={"safety": "unsafe"})

        async def back() -> bool:
            try:
                await client.get("/")
            except BreakerOpen:
                return False
            return True

        await eventually(back, within=5, every=0.02)
        bulkhead = client._guard.bulkhead
        callers = await crowd(bulkhead, 8)
        await eventually(lambda: bulkhead.held, within=5)
        assert bulkhead.held == 1
        for caller in callers:
            caller.cancel()
