# SPDX-License-Identifier: Apache-2.0
"""Six real processes on one real Redis in front of a service that misbehaves."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial

import pytest
from redis.asyncio import Redis

from app.embedded import Server, embedded_valkey
from app.resilience.fleet import PATIENCE
from app.resilience.guard import PROBE_MARGIN
from tests.resilience.caller import CallerProcess, Json, all_do, callers
from tests.resilience.misbehaving import (
    Behaviour,
    Misbehaving,
    Received,
    answer,
    hang,
    misbehaving,
    reset,
    slowly,
)
from tests.servers import scratch_data_folder
from tests.waiting import eventually, quickest

SIX = 6
SOON = 0.25
"""Seconds within which a change is known everywhere, and the most that a silent Redis may cost."""


@pytest.fixture
async def valkey() -> AsyncIterator[Server]:
    """A Valkey of the test's own."""
    with scratch_data_folder() as place:
        async with embedded_valkey(place, report=print, durable=False) as server:
            yield server


async def in_state(fleet: list[CallerProcess], state: str) -> bool:
    return all(each["state"] == state for each in await all_do(fleet, "state"))


async def open_everywhere(fleet: list[CallerProcess], server: Misbehaving) -> None:
    """Two processes see five failures."""
    server.script = [answer(503)]
    await fleet[0].do("calls", count=3)
    await fleet[1].do("calls", count=2)
    await eventually(partial(in_state, fleet, "open"), within=5)


async def test_what_two_processes_saw_is_known_to_all_within_a_quarter_of_a_second(valkey: Server) -> None:
    async with (
        misbehaving() as server,
        callers(SIX, redis=valkey.url, server=server.url, policy={"reset_timeout": 1.0}) as fleet,
    ):
        assert await quickest(partial(seconds_until_all_know, fleet, server), below=SOON) < SOON


async def seconds_until_all_know(fleet: list[CallerProcess], server: Misbehaving) -> float:
    """From the fifth failure of two processes to the opening of the last breaker."""
    server.script = [answer()]
    await all_do(fleet, "until_good", at_once=1)
    await eventually(partial(in_state, fleet, "closed"), within=5)
    known = [len(each["moves"]) for each in await all_do(fleet, "state")]
    begun, server.script = len(server.received), [answer(503)]
    await fleet[0].do("calls", count=3)
    fifth: float = (await fleet[1].do("calls", count=2))["last"]
    await eventually(partial(in_state, fleet, "open"), within=5)
    states = await all_do(fleet, "state")
    moves = [each["moves"][number] for each, number in zip(states, known, strict=True)]
    assert [state for _, state in moves] == ["open"] * SIX
    assert len(server.received) == begun + 5
    last: float = max(at for at, _ in moves)
    return last - fifth


async def test_half_open_lets_one_request_of_three_hundred_callers_through(valkey: Server) -> None:
    seen_at_end: list[int] = []

    async def fail_then_heal(request: Received, writer: asyncio.StreamWriter) -> None:
        behaviour = [answer(503), answer()][min(len(server.received) - begun - 1, 1)]
        await asyncio.sleep(0.3)  # long enough for everybody else to come
        seen_at_end.append(len(server.received) - begun)
        await behaviour(request, writer)

    async with (
        misbehaving() as server,
        callers(SIX, redis=valkey.url, server=server.url, policy={"reset_timeout": 1.0}) as fleet,
    ):
        await all_do(fleet, "calls", count=1)
        await open_everywhere(fleet, server)
        begun = len(server.received)
        server.script = [fail_then_heal]
        # Fifty at once: what that leaves to Redis is answered in time.
        ends = await all_do(fleet, "until_good", at_once=50, pause=0.1)

    assert seen_at_end[:2] == [1, 2]  # nobody came beside the failed probe, nobody beside the good one
    refused = sum(end["outcomes"].get("circuit_open", 0) for end in ends)
    failed = sum(end["outcomes"].get("transient", 0) for end in ends)
    assert failed == 1
    assert refused > 300


async def test_the_death_of_a_prober_delays_the_next_probe_by_its_lease_at_most(valkey: Server) -> None:
    patience = {"attempt_timeout": 0.5, "total": 5.0}
    lease = patience["attempt_timeout"] + PROBE_MARGIN

    after = await quickest(partial(seconds_until_the_next_probe, valkey, patience, lease), below=lease + 1)

    assert lease - 1 < after < lease + 1


async def seconds_until_the_next_probe(valkey: Server, patience: Json, lease: float) -> float:
    """From the death of the process that was probing."""
    async with (
        misbehaving() as server,
        callers(
            SIX, redis=valkey.url, server=server.url, policy={"reset_timeout": 0.5}, profile=patience
        ) as fleet,
    ):
        await all_do(fleet, "calls", count=1)
        await open_everywhere(fleet, server)
        server.script = [hang]
        begun = len(server.received)
        prober, *others = fleet
        probing = asyncio.create_task(prober.do("until_good", at_once=1))
        await eventually(lambda: len(server.received) > begun, within=5)
        asked_at = time.monotonic()
        prober.process.kill()
        probing.cancel()
        server.script = [answer()]

        calling = asyncio.create_task(all_do(others, "until_good", at_once=5))
        await eventually(lambda: len(server.received) > begun + 1, within=2 * lease)
        probed_after = time.monotonic() - asked_at
        await calling
    return probed_after


async def test_a_silent_redis_delays_no_call_and_the_fifth_failure_still_opens(valkey: Server) -> None:
    async with (
        misbehaving() as server,
        callers(SIX, redis=valkey.url, server=server.url, patience=PATIENCE) as fleet,
    ):
        await all_do(fleet, "calls", count=5)
        os.kill(valkey.child.pid, signal.SIGSTOP)
        try:
            assert await quickest(partial(longest_wait_but_six, fleet), below=SOON) < SOON
            server.script = [answer(503)]
            bad = await all_do(fleet, "calls", count=10)
            states = await all_do(fleet, "state")
        finally:
            os.kill(valkey.child.pid, signal.SIGCONT)

        await eventually(partial(in_state, fleet, "open"), within=5)

    assert all(each["outcomes"] == {"transient": 5, "circuit_open": 5} for each in bad)
    assert all(each["state"] == "open" for each in states)


async def longest_wait_but_six(fleet: list[CallerProcess]) -> float:
    """Of six hundred good calls, in seconds."""
    good = await all_do(fleet, "calls", count=100)
    assert all(each["outcomes"] == {"ok": 100} for each in good)
    waits = sorted(wait for each in good for wait in each["waits"])
    return float(waits[len(waits) * 99 // 100])


async def test_calls_to_a_service_that_is_well_cost_redis_nothing(valkey: Server) -> None:
    async with misbehaving() as server, callers(2, redis=valkey.url, server=server.url) as fleet:
        await all_do(fleet, "calls", count=10)
        before, began = await commands(valkey), time.monotonic()
        for end in await all_do(fleet, "calls", count=1500, at_once=4):
            assert end["outcomes"] == {"ok": 1500}
        spent, beats = await commands(valkey) - before, (time.monotonic() - began) / 1.6 + 1

    assert spent <= beats * 2 * 18 + 1, "only the comparison that each process makes every two seconds"
    assert spent < 3000 / 4


async def commands(valkey: Server) -> int:
    """How many scripts Redis ran, however they were asked for."""
    async with Redis.from_url(valkey.url) as redis:
        stats = await redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))


async def test_a_dead_service_gets_five_requests_of_a_process_then_one_for_each_cool_down(
    valkey: Server,
) -> None:
    cool_down = 1.0
    patience = {"attempts": 3, "shortest": 0.01, "longest": 0.02}
    async with (
        misbehaving(answer()) as server,
        callers(
            SIX,
            redis=valkey.url,
            server=server.url,
            policy={"reset_timeout": cool_down},
            profile=patience,
        ) as fleet,
    ):
        await all_do(fleet, "calls", count=1)
        server.script, begun, began = [reset], len(server.received), time.monotonic()
        ends = await all_do(fleet, "calls", count=167, pause=0.02)
        cool_downs = (time.monotonic() - began) / cool_down
        requests = len(server.received) - begun

    assert sum(sum(end["outcomes"].values()) for end in ends) == SIX * 167
    assert requests <= SIX * 5 + cool_downs + 1
    assert cool_downs > 2


def alternating(*behaviours: Behaviour) -> Behaviour:
    """One after the other, again and again."""
    number = 0

    async def behave(request: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        number += 1
        await behaviours[number % len(behaviours)](request, writer)

    return behave


async def test_a_service_that_fails_every_second_time_is_not_called_much_more_often(valkey: Server) -> None:
    never_opens = {"minimum_calls": 10_000}
    patience = {"attempts": 3, "shortest": 0.001, "longest": 0.002}
    async with (
        misbehaving(alternating(answer(), answer(503))) as server,
        callers(1, redis=valkey.url, server=server.url, policy=never_opens, profile=patience) as fleet,
    ):
        end = await fleet[0].do("calls", count=1000)

    assert sum(end["outcomes"].values()) == 1000
    assert set(end["outcomes"]) <= {"ok", "local_saturation"}
    assert len(server.received) <= 1.2 * 1000


async def test_a_service_that_fails_every_second_time_is_left_alone_within_a_minute(valkey: Server) -> None:
    async with (
        misbehaving(alternating(answer(), answer(503))) as server,
        callers(SIX, redis=valkey.url, server=server.url) as fleet,
    ):
        await all_do(fleet, "calls", count=60, pause=0.01)
        await eventually(partial(in_state, fleet, "open"), within=5)
        requests = len(server.received)
        later = await all_do(fleet, "calls", count=1)

    assert requests < SIX * 60
    assert [end["outcomes"] for end in later] == [{"circuit_open": 1}] * SIX
    assert len(server.received) == requests


async def seconds_until_all_have_called(
    valkey: Server, pause: Callable[[], Behaviour], least: float
) -> float:
    """From when the first of three processes was asked to pause; nobody comes within ``least`` seconds."""
    patience = {"attempts": 3, "shortest": 0.01, "longest": 0.02, "total": 30.0}
    times: list[float] = []

    async def note(request: Received, writer: asyncio.StreamWriter) -> None:
        times.append(time.monotonic())
        await (throttled if len(times) == 1 else answer())(request, writer)

    throttled = pause()
    async with Redis.from_url(valkey.url) as redis:
        await redis.flushdb()
    async with (
        misbehaving() as server,
        callers(3, redis=valkey.url, server=server.url, profile=patience) as fleet,
    ):
        await all_do(fleet, "calls", count=1)
        server.script = [note]
        first = asyncio.create_task(fleet[0].do("calls", count=1))
        await eventually(lambda: len(times) == 1, within=5)
        await eventually(lambda: gate_is_known(valkey), within=5)
        rest: list[Json] = await all_do(fleet[1:], "calls", count=1)
        assert [end["outcomes"] for end in [await first, *rest]] == [{"ok": 1}] * 3
    assert min(times[1:]) - times[0] >= least
    return max(times) - times[0]


async def test_a_pause_that_one_process_was_asked_for_is_kept_by_all(valkey: Server) -> None:
    def pause() -> Behaviour:
        return answer(429, Retry_After="7")

    assert await quickest(partial(seconds_until_all_have_called, valkey, pause, 7.0), below=9.0) < 9.0


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_pause_until_a_date_counts_from_the_services_own_clock(valkey: Server, hours: int) -> None:
    def pause() -> Behaviour:
        there = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=hours)
        then = there + timedelta(seconds=2)
        date, retry_after = (format_datetime(at, usegmt=True) for at in (there, then))
        return answer(429, Date=date, Retry_After=retry_after)

    assert await quickest(partial(seconds_until_all_have_called, valkey, pause, 2.0), below=4.0) < 4.0


async def gate_is_known(valkey: Server) -> bool:
    async with Redis.from_url(valkey.url) as redis:
        return float(await redis.hget("eucora:breaker:{intune}", "gate") or 0) > 0


async def test_one_sick_process_keeps_only_itself_away(valkey: Server) -> None:
    async with (
        misbehaving() as well,
        misbehaving(answer(503)) as sick,
        callers(3, redis=valkey.url, server=well.url) as healthy,
        callers(1, redis=valkey.url, server=sick.url, policy={"reset_timeout": 1.0}) as poisoned,
    ):
        await all_do(healthy, "calls", count=5)
        for _ in range(4):
            await poisoned[0].do("calls", count=5)
            good = await all_do(healthy, "calls", count=5)
            assert all(end["outcomes"] == {"ok": 5} for end in good)

        assert (await poisoned[0].do("state"))["state"] == "open"
        assert await in_state(healthy, "closed")
        sick.script = [slowly(answer(), 0.01)]
        await poisoned[0].do("until_good", at_once=3)

        assert await in_state([*healthy, *poisoned], "closed")
