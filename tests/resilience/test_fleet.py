# SPDX-License-Identifier: Apache-2.0
"""The shared record, between several registries in this process on one real Redis."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis

from app.embedded import Server, embedded_valkey
from app.redis import open_hasty_redis
from app.resilience import BreakerOpen, BreakerPolicy, Breakers, BreakerState, ServiceBreaker, fleet
from app.resilience.circuit import Permit
from app.resilience.errors import FleetUnreachable, Verdict
from app.resilience.fleet import FleetHub
from app.resilience.status import StandingOrder
from tests.servers import scratch_data_folder
from tests.waiting import eventually

QUICK = BreakerPolicy(reset_timeout=0.3)
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


class Installation:
    """Processes of one installation, as far as breakers go."""

    def __init__(self, valkey: Server, stack: AsyncExitStack) -> None:
        self.valkey = valkey
        self._stack = stack
        self._number = 0

    async def process(self, policy: BreakerPolicy = QUICK) -> Breakers:
        """One more."""
        breakers = Breakers(policies={"intune": policy})
        redis = await self._stack.enter_async_context(open_hasty_redis(self.valkey.url))
        self._number += 1
        await self._stack.enter_async_context(breakers.shared(redis, process=f"process-{self._number}"))
        return breakers

    async def using(self, number: int) -> list[ServiceBreaker]:
        """The breakers of so many processes that use the service."""
        made = [(await self.process()).get("intune") for _ in range(number)]
        for breaker in made:
            await settle(breaker, Verdict.SUCCESS)
        await eventually(self.users, until=lambda users: users == number, within=5)
        return made

    async def users(self) -> int:
        async with Redis.from_url(self.valkey.url) as redis:
            return int(await redis.zcard("eucora:breaker:{intune}:users"))

    async def forget(self) -> None:
        """Redis comes back with nothing."""
        async with Redis.from_url(self.valkey.url) as redis:
            await redis.flushall()


@pytest.fixture(scope="module")
async def valkey() -> AsyncIterator[Server]:
    with scratch_data_folder() as place:
        async with embedded_valkey(place, report=print, durable=False) as server:
            yield server


@pytest.fixture
async def installation(valkey: Server) -> AsyncIterator[Installation]:
    async with AsyncExitStack() as stack:
        installation = Installation(valkey, stack)
        await installation.forget()
        yield installation


async def settle(breaker: ServiceBreaker, *outcomes: Verdict) -> None:
    for outcome in outcomes:
        (await breaker.admit()).settle(outcome, "transient (503)")


async def fail(breaker: ServiceBreaker, times: int) -> None:
    await settle(breaker, *[Verdict.FAILURE] * times)


async def reaches(state: BreakerState, *breakers: ServiceBreaker, within: float = 5) -> None:
    await eventually(lambda: {each.effective for each in breakers} == {state}, within=within)


async def opened(installation: Installation, number: int = 3) -> list[ServiceBreaker]:
    """So many processes that all keep away."""
    breakers = await installation.using(number)
    await fail(breakers[0], 3)
    await fail(breakers[1], 2)
    await reaches(OPEN, *breakers)
    return breakers


async def probe(*breakers: ServiceBreaker) -> ServiceBreaker:
    """The one that is let through once the cool-down is over."""

    async def admitted() -> ServiceBreaker | None:
        for breaker in breakers:
            try:
                permit = await breaker.admit()
            except BreakerOpen:
                continue
            assert permit.probe
            assert permit.token
            probes[breaker] = permit
            return breaker
        return None

    found = await eventually(admitted, within=5)
    assert found is not None
    return found


probes: dict[ServiceBreaker, Permit] = {}


async def test_a_success_anywhere_forgives_the_failures_it_came_after(installation: Installation) -> None:
    first, second, third = await installation.using(3)
    await fail(first, 2)
    await fail(second, 2)
    await eventually(lambda: third.shared.failures == 4, within=5)

    await settle(third, Verdict.SUCCESS)
    await eventually(lambda: first.shared.failures == 0, within=5)
    await fail(second, 2)
    await eventually(lambda: third.shared.failures == 2, within=5)

    assert {each.effective for each in (first, third)} == {CLOSED}


async def test_the_only_process_that_uses_a_service_decides_for_all(installation: Installation) -> None:
    (only,) = await installation.using(1)
    idle = (await installation.process()).get("intune")

    await fail(only, 5)

    await reaches(OPEN, only, idle)
    assert only.shared.state is OPEN


async def test_a_reader_is_told_who_keeps_away_alone(installation: Installation) -> None:
    sick, well, _ = await installation.using(3)
    reader = await installation.process()

    await fail(sick, 5)

    async def away() -> tuple[str, ...]:
        return (await reader.status("intune")).open_in

    assert await eventually(away, within=5) == ("process-1",)
    assert (await reader.status("intune")).state is CLOSED
    assert (sick.effective, well.effective) == (OPEN, CLOSED)


async def test_two_that_keep_away_alone_are_enough(installation: Installation) -> None:
    first, second, third = await installation.using(3)
    await fail(first, 5)
    await eventually(lambda: third.shared.failures == 5, within=5)
    await settle(third, Verdict.SUCCESS)
    await eventually(lambda: third.shared.failures == 0, within=5)

    await fail(second, 5)

    await reaches(OPEN, third)


async def test_a_failed_probe_opens_again_and_a_good_one_closes_everywhere(
    installation: Installation,
) -> None:
    breakers = await opened(installation)

    first = await probe(*breakers)
    await reaches(HALF_OPEN, *breakers)
    first.settle(probes[first], Verdict.FAILURE, "transient (502)")
    await reaches(OPEN, *breakers)
    assert {each.shared.error for each in breakers} == {"transient (502)"}
    second = await probe(*breakers)
    second.settle(probes[second], Verdict.SUCCESS)

    await reaches(CLOSED, *breakers)
    assert {each.fail_counter for each in breakers} == {0}


async def test_a_probe_that_was_cancelled_hands_over(installation: Installation) -> None:
    breakers = await opened(installation)
    first = await probe(*breakers)

    first.settle(probes[first], Verdict.NEUTRAL)

    await probe(*[each for each in breakers if each is not first])


async def test_whoever_is_cancelled_while_asking_gives_the_probe_back(installation: Installation) -> None:
    breakers = await opened(installation)
    await eventually(lambda: breakers[0].time_left() is None, within=5)
    asking = asyncio.create_task(breakers[0].admit())
    await asyncio.sleep(0)  # it has asked, and waits for the answer
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    await probe(*breakers)


async def test_an_emptied_redis_is_filled_again_by_those_who_know(installation: Installation) -> None:
    breakers = await installation.using(2)
    registry = await installation.process()
    await registry.isolate("intune", actor="alice", reason="maintenance")
    await reaches(BreakerState.ISOLATED, *breakers)

    await installation.forget()

    newcomer = await installation.process()

    async def known() -> bool:
        status = await newcomer.status("intune")
        return (status.state, status.actor, status.reason) == (
            BreakerState.ISOLATED,
            "alice",
            "maintenance",
        )

    await eventually(known, within=5)
    assert {each.effective for each in breakers} == {BreakerState.ISOLATED}


async def test_a_new_process_knows_what_the_others_know(installation: Installation) -> None:
    await opened(installation)
    registry = await installation.process(BreakerPolicy(reset_timeout=60))
    await registry.isolate("jira", actor="alice")

    newcomer = await installation.process()

    assert newcomer.get("jira").effective is BreakerState.ISOLATED
    assert newcomer.get("intune").effective in {OPEN, HALF_OPEN}


async def test_what_was_decided_while_redis_was_silent_is_told_when_it_is_back(
    installation: Installation, valkey: Server
) -> None:
    breakers = await opened(installation, 2)
    os.kill(valkey.child.pid, signal.SIGSTOP)
    try:

        async def admitted_alone() -> bool:
            try:
                permit = await breakers[0].admit()
            except BreakerOpen:
                return False
            assert permit.token is None
            permit.settle(Verdict.SUCCESS)
            return True

        await eventually(admitted_alone, within=10)
        assert breakers[0].effective is CLOSED
        assert breakers[1].effective is not CLOSED
    finally:
        os.kill(valkey.child.pid, signal.SIGCONT)

    await reaches(CLOSED, *breakers, within=10)


async def test_an_order_with_an_end_ends_everywhere(installation: Installation) -> None:
    (breaker,) = await installation.using(1)
    registry = await installation.process()

    await registry.isolate("intune", actor="alice", expires_at=datetime.now(UTC) + timedelta(seconds=0.6))
    await reaches(BreakerState.ISOLATED, breaker)

    permit = await eventually(lambda: admitted(breaker), within=5)
    assert permit is not None
    assert not permit.probe
    await reaches(CLOSED, breaker)
    assert (await registry.status("intune")).actor is None


async def admitted(breaker: ServiceBreaker) -> Permit | None:
    try:
        return await breaker.admit()
    except BreakerOpen:
        return None


async def test_an_order_is_restored_only_where_nothing_is_known(installation: Installation) -> None:
    registry = await installation.process()
    order = StandingOrder("jira", BreakerState.DISABLED, "alice", "as before")
    await registry.isolate("intune", actor="bob")

    await registry.give(order, only_if_new=True)
    await registry.give(StandingOrder("intune", BreakerState.DISABLED, "alice"), only_if_new=True)

    assert (await registry.status("jira")).state is BreakerState.DISABLED
    assert (await registry.status("intune")).state is BreakerState.ISOLATED


async def test_an_order_outlasts_a_moment_without_redis(installation: Installation, valkey: Server) -> None:
    registry = await installation.process()
    os.kill(valkey.child.pid, signal.SIGSTOP)
    try:
        given = asyncio.create_task(registry.isolate("intune", actor="alice"))
        await eventually(lambda: registry._hub is not None and registry._hub._silent_until > 0, within=5)
    finally:
        os.kill(valkey.child.pid, signal.SIGCONT)

    assert (await given).state is BreakerState.ISOLATED


async def test_without_redis_a_process_starts_and_decides_alone(unused_tcp_port: int) -> None:
    breakers = Breakers(policies={"intune": QUICK})
    url = f"redis://127.0.0.1:{unused_tcp_port}/0"
    async with open_hasty_redis(url) as redis, breakers.shared(redis, process="lonely"):
        intune = breakers.get("intune")
        await fail(intune, 5)
        assert intune.effective is OPEN
        with pytest.raises(FleetUnreachable):
            await breakers.status("intune")
        with pytest.raises(FleetUnreachable):
            await breakers.isolate("intune", actor="alice")


async def test_what_waits_to_be_told_is_bounded(valkey: Server) -> None:
    breakers = Breakers()
    async with open_hasty_redis(valkey.url) as redis:
        hub = FleetHub(redis, breakers.known, process="busy")
        for _ in range(fleet.MOST_WAITING + 5):
            hub.throttled("intune", 1.0)

        assert len(hub._reports) == fleet.MOST_WAITING


async def test_a_reset_is_adopted_by_a_process_that_keeps_away_alone(installation: Installation) -> None:
    sick, *_ = await installation.using(3)
    registry = await installation.process()
    await fail(sick, 5)
    assert sick.effective is OPEN

    await registry.reset("intune", actor="alice")

    await reaches(CLOSED, sick)
    assert sick.fail_counter == 0
