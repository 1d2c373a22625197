# SPDX-License-Identifier: Apache-2.0
"""The breaker, on a clock of the test's own."""

import aiobreaker
import pytest

from app.resilience import SERVICES, BreakerOpen, BreakerPolicy, Breakers, ServiceBreaker
from app.resilience.breaker import CircuitBreakerState
from app.resilience.circuit import PROBE_LEASE, Permit
from app.resilience.errors import TransientError, Verdict


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> ServiceBreaker:
    return ServiceBreaker("intune", clock=clock)


async def fail(breaker: ServiceBreaker, times: int) -> None:
    for _ in range(times):
        (await breaker.admit()).settle(Verdict.FAILURE)


async def test_the_fifth_failure_in_a_row_opens_for_sixty_seconds(
    breaker: ServiceBreaker, clock: Clock
) -> None:
    await fail(breaker, 4)
    assert breaker.current_state is CircuitBreakerState.CLOSED
    await fail(breaker, 1)

    clock.now += 10
    with pytest.raises(BreakerOpen) as refused:
        (await breaker.admit())

    assert refused.value.retry_after == pytest.approx(50.0)
    assert refused.value.service == "intune"
    assert breaker.time_until_open is not None
    assert breaker.time_until_open.total_seconds() == pytest.approx(50.0)
    assert breaker.opens_at is not None


async def test_a_success_forgives_only_what_came_before_it_began(breaker: ServiceBreaker) -> None:
    await fail(breaker, 2)
    early = await breaker.admit()
    await fail(breaker, 2)

    early.settle(Verdict.SUCCESS)

    assert breaker.fail_counter == 2


async def test_neutral_outcomes_neither_open_nor_forgive(breaker: ServiceBreaker) -> None:
    await fail(breaker, 4)
    for _ in range(20):
        (await breaker.admit()).settle(Verdict.NEUTRAL)

    assert breaker.fail_counter == 4
    assert breaker.current_state is CircuitBreakerState.CLOSED


async def test_half_open_admits_one_probe_and_its_success_closes(
    breaker: ServiceBreaker, clock: Clock
) -> None:
    await fail(breaker, 5)
    clock.now += 60

    probe = await breaker.admit()
    refused = 0
    for _ in range(50):
        with pytest.raises(BreakerOpen):
            (await breaker.admit())
        refused += 1
    probe.settle(Verdict.SUCCESS)

    assert refused == 50
    assert breaker.current_state is CircuitBreakerState.CLOSED
    assert breaker.fail_counter == 0
    assert breaker.opens_at is None
    assert (await breaker.admit()).probe is False


async def test_a_failed_probe_opens_for_the_whole_time_again(breaker: ServiceBreaker, clock: Clock) -> None:
    await fail(breaker, 5)
    clock.now += 60

    (await breaker.admit()).settle(Verdict.FAILURE)

    assert breaker.current_state is CircuitBreakerState.OPEN
    clock.now += 59.9
    with pytest.raises(BreakerOpen):
        breaker.check()
    clock.now += 0.2
    breaker.check()


async def test_a_cancelled_probe_hands_over_at_once(breaker: ServiceBreaker, clock: Clock) -> None:
    await fail(breaker, 5)
    clock.now += 60
    (await breaker.admit()).settle(Verdict.NEUTRAL)

    assert (await breaker.admit()).probe


async def test_a_probe_that_never_ends_loses_its_lease_and_its_say(
    breaker: ServiceBreaker, clock: Clock
) -> None:
    await fail(breaker, 5)
    clock.now += 60
    lost = await breaker.admit()
    clock.now += PROBE_LEASE

    second = await breaker.admit()
    lost.settle(Verdict.SUCCESS)

    assert second.probe
    assert breaker.current_state is CircuitBreakerState.HALF_OPEN
    assert breaker.stale_results == 1


async def test_results_of_calls_begun_before_it_opened_change_nothing(
    breaker: ServiceBreaker, clock: Clock
) -> None:
    early: list[Permit] = [(await breaker.admit()) for _ in range(10)]
    await fail(breaker, 5)
    clock.now += 30

    for number, permit in enumerate(early):
        permit.settle(Verdict.FAILURE if number % 2 else Verdict.SUCCESS)

    assert breaker.stale_results == 10
    assert breaker.time_until_open is not None
    assert breaker.time_until_open.total_seconds() == pytest.approx(30.0)


async def test_listeners_see_the_librarys_states(breaker: ServiceBreaker) -> None:
    seen: list[tuple[str, str]] = []

    class Listener(aiobreaker.CircuitBreakerListener):  # type: ignore[misc]
        def state_change(self, _: object, before: object, after: object) -> None:
            seen.append((type(before).__name__, type(after).__name__))

    breaker.add_listener(Listener())
    await fail(breaker, 5)

    assert seen == [("CircuitClosedState", "CircuitOpenState")]


async def test_call_async_raises_the_callers_own_error_also_when_it_trips(breaker: ServiceBreaker) -> None:
    async def refuse() -> None:
        raise ConnectionRefusedError("own")

    for _ in range(5):
        with pytest.raises(ConnectionRefusedError, match="own"):
            await breaker.call_async(refuse)
    with pytest.raises(BreakerOpen):
        await breaker.call_async(refuse)


async def test_call_async_counts_neither_bugs_nor_refusals(breaker: ServiceBreaker) -> None:
    async def bug() -> None:
        raise KeyError("ours")

    async def fine() -> int:
        return 7

    for _ in range(9):
        with pytest.raises(KeyError):
            await breaker.call_async(bug)

    assert await breaker.call_async(fine) == 7
    assert breaker.fail_counter == 0


async def test_the_synchronous_call_is_refused(breaker: ServiceBreaker) -> None:
    with pytest.raises(TypeError):
        breaker.call(print)


@pytest.mark.parametrize(("fail_max", "reset_timeout"), [(0, 60.0), (5, 0.0), (5, -1.0)])
async def test_a_breaker_that_could_never_work_is_refused(fail_max: int, reset_timeout: float) -> None:
    with pytest.raises(ValueError, match="above zero"):
        BreakerPolicy(fail_max=fail_max, reset_timeout=reset_timeout)


async def test_the_registry_knows_its_services_and_lists_them_for_others(clock: Clock) -> None:
    breakers = Breakers(clock=clock)

    assert len(SERVICES) == 18
    assert breakers.get("intune") is breakers.get("intune")
    assert breakers.get("database").timeout_duration.total_seconds() == 30
    assert breakers.get("jamf").timeout_duration.total_seconds() == 60
    with pytest.raises(ValueError, match="vulnerability_scanner"):
        breakers.get("nobody")


async def test_a_manual_half_open_and_close(breaker: ServiceBreaker) -> None:
    await fail(breaker, 5)
    breaker.half_open()
    assert (await breaker.admit()).probe
    breaker.close()
    assert breaker.state.state is CircuitBreakerState.CLOSED
    assert isinstance(BreakerOpen("x", service="intune"), Exception)
    assert not issubclass(BreakerOpen, TransientError)
