# SPDX-License-Identifier: Apache-2.0
"""Four times as many callers as the service can take, who give up at any moment."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path

import httpx
import pytest

from app.resilience import NO_RETRY, BreakerState, ResilientClient, ServiceBreaker, deadline
from app.resilience.errors import DeadlineExceeded, LocalSaturation
from tests.resilience.conftest import Make
from tests.resilience.misbehaving import answer, misbehaving, slowly
from tests.resilience.parity import checked_out
from tests.waiting import eventually

SLOTS = 5
SERVICE_TIME = 0.1
CAPACITY = SLOTS / SERVICE_TIME
"""Calls per second."""
OFFERED = 4 * CAPACITY
EXPECTED = {httpx.Response, asyncio.CancelledError, TimeoutError, DeadlineExceeded, LocalSaturation}


async def patient(client: ResilientClient) -> httpx.Response:
    return await client.get("/")


async def with_a_deadline(client: ResilientClient, seconds: float) -> httpx.Response:
    with deadline.within(time.monotonic() + seconds):
        return await client.get("/")


async def with_a_timeout(client: ResilientClient, seconds: float) -> httpx.Response:
    async with asyncio.timeout(seconds):
        return await client.get("/")


def caller(client: ResilientClient, chance: random.Random) -> Coroutine[None, None, httpx.Response]:
    """One of the ways to call; limits around the time that a call takes, and around that of the queue."""
    seconds = chance.uniform(0, chance.choice([2, 20])) * SERVICE_TIME
    longer = 2 * SERVICE_TIME + seconds
    ways = [patient(client), with_a_deadline(client, longer), with_a_timeout(client, seconds)]
    chosen = chance.choice(ways)
    for way in ways:
        if way is not chosen:
            way.close()
    return chosen


async def overload(client: ResilientClient, chance: random.Random, *, seconds: float) -> Counter[type]:
    """Offer calls at an even rate, whatever becomes of them, and cancel every fourth at some moment."""
    loop, began, calls = asyncio.get_running_loop(), time.monotonic(), list[asyncio.Task[httpx.Response]]()
    while (passed := time.monotonic() - began) < seconds:
        while len(calls) < passed * OFFERED:
            calls.append(asyncio.create_task(caller(client, chance)))
            if chance.random() < 0.25:
                loop.call_later(chance.uniform(0, 16 * SERVICE_TIME), calls[-1].cancel)
        await asyncio.sleep(0.005)
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    return Counter(type(outcome) for outcome in outcomes)


def open_files() -> int:
    return len([*Path("/dev/fd").iterdir()])


@pytest.mark.parametrize("seconds", [8.0, pytest.param(120.0, marks=pytest.mark.long)])
async def test_no_slot_is_lost_and_half_of_the_capacity_does_good(make: Make, seconds: float) -> None:
    breaker, tasks, files = ServiceBreaker("intune"), asyncio.all_tasks(), open_files()
    async with misbehaving(slowly(answer(), SERVICE_TIME)) as server:
        client = make(server, profile=NO_RETRY, breaker=breaker, max_concurrency=SLOTS)

        outcomes = await overload(client, random.Random(50), seconds=seconds)
        left = checked_out(client), client._guard.bulkhead.held
        server.most_at_once = 0
        following = await asyncio.gather(*(client.get("/") for _ in range(SLOTS)))
        await client.aclose()

    assert outcomes.keys() <= EXPECTED, outcomes
    assert outcomes.total() > 0.9 * OFFERED * seconds
    assert all(outcomes[kind] > 0 for kind in EXPECTED), outcomes
    assert outcomes[httpx.Response] >= 0.5 * CAPACITY * seconds, outcomes
    assert left == (0, 0)
    assert [response.status_code for response in following] == [200] * SLOTS
    assert server.most_at_once == SLOTS
    assert (breaker.fail_counter, breaker.effective) == (0, BreakerState.CLOSED)
    await eventually(lambda: asyncio.all_tasks() - tasks, within=5, until=lambda more: not more)
    await eventually(open_files, within=5, until=lambda now: now <= files)
