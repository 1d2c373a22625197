# SPDX-License-Identifier: Apache-2.0
"""The order of the layers: one test for each pair of neighbours of which the order can be told."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from app import telemetry
from app.resilience import (
    DEFAULT_RETRY,
    NO_RETRY,
    BreakerOpen,
    BreakerPolicy,
    BreakerState,
    RetryProfile,
    Safety,
    ServiceBreaker,
    deadline,
)
from app.resilience.bulkhead import Bulkhead
from app.resilience.errors import (
    AmbiguousError,
    AttemptTimeout,
    AuthError,
    CallError,
    DeadlineExceeded,
    JobAction,
    LocalSaturation,
    ServerError,
    Throttled,
    TransientError,
    Verdict,
)
from app.resilience.guard import Attempt, Guard
from app.resilience.retry import RetryBudget
from tests.logs import captured_lines
from tests.waiting import eventually

QUICK = RetryProfile(attempts=3, shortest=0.01, longest=0.02, attempt_timeout=2.0, total=10.0)
SOON_OVER = RetryProfile(attempts=3, shortest=0.01, longest=0.02, attempt_timeout=0.7, total=5.0)
PATIENT = RetryProfile(attempts=2, shortest=0.5, longest=0.6, attempt_timeout=0.3, total=5.0)
Work = Callable[[Attempt], Awaitable[str]]


@pytest.fixture
def breaker() -> ServiceBreaker:
    return ServiceBreaker("intune")


@pytest.fixture
def guard(breaker: ServiceBreaker) -> Guard:
    return Guard("intune", breaker, Bulkhead("intune", 1))


def transient(**facts: float) -> TransientError:
    return TransientError("503", service="intune", status=503, retry_after=facts.get("retry_after"))


def fails(*errors: Exception | float, then: str = "done") -> tuple[Work, list[float]]:
    """Raises these one after another (a number: hangs so long), then succeeds; and when it was begun."""
    left, begun = list(errors), list[float]()

    async def work(attempt: Attempt) -> str:
        begun.append(time.monotonic())
        attempt.sent = True
        error = left.pop(0) if left else None
        if isinstance(error, Exception):
            raise error
        await asyncio.sleep(error or 0)
        return then

    return work, begun


async def run(
    guard: Guard, work: Work, profile: RetryProfile = QUICK, safety: Safety = Safety.IDEMPOTENT
) -> str:
    return await guard.run(work, safety=safety, profile=profile)


async def test_the_deadline_of_the_work_bounds_the_whole_call(guard: Guard) -> None:
    work, begun = fails(*[5.0] * 9)
    began = time.monotonic()

    with deadline.within(began + 1.0), pytest.raises(CallError):
        await run(guard, work, SOON_OVER)

    assert time.monotonic() - began < 30
    assert 0 < len(begun) < QUICK.attempts


async def test_a_deadline_says_nothing_of_the_service_but_an_attempt_timeout_does(
    guard: Guard, breaker: ServiceBreaker
) -> None:
    work, _ = fails(5.0, 5.0)

    with deadline.within(time.monotonic() + 0.25), pytest.raises(DeadlineExceeded):
        await run(guard, work)
    assert breaker.fail_counter == 0
    with pytest.raises(AttemptTimeout):
        await run(guard, work, RetryProfile(attempts=1, shortest=0, longest=0, attempt_timeout=0.1))

    assert breaker.fail_counter == 1


async def test_an_unsafe_call_that_the_deadline_cuts_is_ambiguous_and_still_neutral(
    guard: Guard, breaker: ServiceBreaker
) -> None:
    work, _ = fails(5.0)

    with deadline.within(time.monotonic() + 0.6), pytest.raises(AmbiguousError):
        await run(guard, work, safety=Safety.UNSAFE)

    assert breaker.fail_counter == 0


async def test_no_attempt_begins_without_time_for_it(guard: Guard) -> None:
    work, begun = fails()

    with deadline.within(time.monotonic() + 0.05), pytest.raises(DeadlineExceeded):
        await run(guard, work)

    assert begun == []


async def test_an_isolated_service_is_refused_before_its_pause_is_waited_for(
    guard: Guard, breaker: ServiceBreaker
) -> None:
    breaker.gate.throttle(19.0)
    breaker.order(BreakerState.ISOLATED, actor="alice", reason="maintenance", seconds=0)
    work, begun = fails()
    began = time.monotonic()

    with pytest.raises(BreakerOpen, match="isolated by alice: maintenance"):
        await run(guard, work)

    assert time.monotonic() - began < 15
    assert begun == []


async def test_the_pause_of_a_service_holds_before_every_attempt(
    guard: Guard, breaker: ServiceBreaker
) -> None:
    first, begun = fails(transient())
    breaker.gate.throttle(0.3)
    began = time.monotonic()

    async def throttled_meanwhile(attempt: Attempt) -> str:
        try:
            return await first(attempt)
        finally:
            breaker.gate.throttle(0.4)

    assert await run(guard, throttled_meanwhile) == "done"

    assert begun[0] - began >= 0.3
    assert begun[1] - begun[0] >= 0.4


async def test_a_long_pause_is_handed_to_the_work_at_once(guard: Guard, breaker: ServiceBreaker) -> None:
    breaker.gate.throttle(3600)
    work, begun = fails()
    began = time.monotonic()

    with pytest.raises(Throttled) as raised:
        await run(guard, work)

    assert time.monotonic() - began < 30
    assert raised.value.retry_after == pytest.approx(3600, abs=60)
    assert raised.value.defers
    assert begun == []


async def test_a_wait_between_attempts_holds_no_permit_of_the_bulkhead(guard: Guard) -> None:
    failing, begun = fails(transient())
    waiting = asyncio.create_task(run(guard, failing, PATIENT))
    await eventually(lambda: begun and guard.bulkhead.held == 0, within=5)
    other, _ = fails()

    assert await run(guard, other, NO_RETRY) == "done"
    assert not waiting.done()
    assert await waiting == "done"


async def test_a_caller_is_refused_by_the_breaker_before_it_queues(
    guard: Guard, breaker: ServiceBreaker
) -> None:
    gate = asyncio.Event()

    async def holding(_: Attempt) -> str:
        await gate.wait()
        return "done"

    holder = asyncio.create_task(run(guard, holding, DEFAULT_RETRY))
    await eventually(lambda: guard.bulkhead.held, within=5)
    breaker.open()

    with pytest.raises(BreakerOpen):
        await asyncio.wait_for(run(guard, holding), 20)
    gate.set()
    assert await holder == "done"


async def test_a_caller_that_queued_is_not_let_through_an_open_breaker(
    guard: Guard, breaker: ServiceBreaker
) -> None:
    gate = asyncio.Event()

    async def holding(_: Attempt) -> str:
        await gate.wait()
        return "done"

    holder = asyncio.create_task(run(guard, holding, DEFAULT_RETRY))
    await eventually(lambda: guard.bulkhead.held, within=5)
    work, begun = fails()
    queued = asyncio.create_task(run(guard, work))
    await eventually(lambda: guard.bulkhead.waiting, within=5)
    breaker.open()
    gate.set()

    with pytest.raises(BreakerOpen):
        await queued
    assert begun == []
    await holder


async def test_a_full_bulkhead_says_nothing_of_the_service(guard: Guard, breaker: ServiceBreaker) -> None:
    gate = asyncio.Event()

    async def holding(_: Attempt) -> str:
        await gate.wait()
        return "done"

    some = [asyncio.create_task(run(guard, holding, DEFAULT_RETRY)) for _ in range(17)]
    await eventually(lambda: guard.bulkhead.waiting == 16, within=5)

    with pytest.raises(LocalSaturation) as raised:
        await run(guard, holding)
    gate.set()
    await asyncio.gather(*some)

    assert raised.value.defers
    assert breaker.fail_counter == 0
    assert guard.bulkhead.held == 0


async def test_a_call_that_hangs_counts_because_the_timeout_is_inside_the_breaker(
    guard: Guard, breaker: ServiceBreaker
) -> None:
    hanging, _ = fails(*[9.0] * 9)
    once = RetryProfile(attempts=1, shortest=0, longest=0, attempt_timeout=0.05)

    for _ in range(5):
        with pytest.raises(AttemptTimeout):
            await run(guard, hanging, once)

    assert breaker.effective is BreakerState.OPEN


async def test_each_attempt_counts_because_the_retries_are_outside_the_breaker(
    guard: Guard, breaker: ServiceBreaker
) -> None:
    work, begun = fails(*[transient() for _ in range(9)])

    with pytest.raises(TransientError):
        await run(guard, work)
    assert breaker.fail_counter == 3
    with pytest.raises(TransientError) as tripped:
        await run(guard, work)

    assert len(begun) == 5  # the fifth opened it, and nothing is tried against an open breaker
    assert tripped.value.status == 503  # the caller's own error
    assert tripped.value.kept_away == pytest.approx(60, abs=30)
    assert tripped.value.defers


async def test_a_failure_of_somebody_else_on_the_way_does_not_count(
    guard: Guard, breaker: ServiceBreaker
) -> None:
    work, _ = fails(*[AuthError("no", service="entra_id") for _ in range(9)])

    for _ in range(9):
        with pytest.raises(AuthError):
            await run(guard, work)

    assert breaker.fail_counter == 0


async def test_a_cancelled_call_is_neutral_and_leaves_nothing_behind(
    guard: Guard, breaker: ServiceBreaker
) -> None:
    hanging, begun = fails(60.0)
    task = asyncio.create_task(run(guard, hanging, DEFAULT_RETRY))
    await eventually(lambda: begun, within=5)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert breaker.fail_counter == 0
    assert guard.bulkhead.held == 0


async def test_a_cancelled_probe_frees_the_next_one(guard: Guard, breaker: ServiceBreaker) -> None:
    breaker.open()
    breaker.half_open()
    hanging, begun = fails(60.0)
    task = asyncio.create_task(run(guard, hanging, DEFAULT_RETRY))
    await eventually(lambda: begun, within=5)
    with pytest.raises(BreakerOpen):
        await run(guard, hanging)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    work, _ = fails()

    assert await run(guard, work) == "done"
    assert breaker.effective is BreakerState.CLOSED


async def test_an_empty_budget_is_a_deferral_that_tells_what_failed(
    guard: Guard, breaker: ServiceBreaker
) -> None:
    while breaker.budget.spend():
        pass
    work, begun = fails(ServerError("it broke", service="intune", status=500))

    with pytest.raises(LocalSaturation, match="it broke") as raised:
        await run(guard, work)

    assert len(begun) == 1
    assert raised.value.action is JobAction.DEFER
    assert isinstance(raised.value.__cause__, ServerError)


def test_a_budget_refills_with_calls_and_is_never_quite_empty() -> None:
    now = 0.0
    budget = RetryBudget(lambda: now)

    spent = 0
    while budget.spend():
        spent += 1
    assert spent == 10 + 3
    for _ in range(20):
        budget.earn()
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    now = 10.0

    assert [budget.spend() for _ in range(4)] == [True, True, True, False]
    for _ in range(1000):
        budget.earn()
    assert budget.left == 10


async def test_every_attempt_rejection_and_retry_is_counted_and_logged(
    guard: Guard, breaker: ServiceBreaker
) -> None:
    before = {name: sample(name, **labels) for name, labels in COUNTED.items()}
    work, _ = fails(transient())
    with captured_lines() as written:
        await run(guard, work)
        lines = written()
    breaker.open()
    with pytest.raises(BreakerOpen):
        await run(guard, work)

    assert {name: sample(name, **labels) - before[name] for name, labels in COUNTED.items()} == {
        "eucora_call_attempts_total": 1,
        "eucora_call_retries_total": 1,
        "eucora_call_rejections_total": 1,
        "eucora_breaker_transitions_total": 1,
    }
    (line,) = [line for line in lines if line["event"] == "call_failed"]
    told = {name: line[name] for name in ("service", "attempt", "code", "error_class", "status")}
    assert told == {
        "service": "intune",
        "attempt": 1,
        "code": "transient",
        "error_class": "transient",
        "status": 503,
    }


COUNTED = {
    "eucora_call_attempts_total": {"outcome": "transient"},
    "eucora_call_retries_total": {"reason": "transient"},
    "eucora_call_rejections_total": {"reason": "circuit_open"},
    "eucora_breaker_transitions_total": {"state": "open"},
}


def sample(name: str, **labels: str) -> float:
    return telemetry.registry.get_sample_value(name, {"service": "intune", **labels}) or 0.0


async def test_a_pause_of_more_than_a_quarter_of_an_hour_is_told_to_somebody(guard: Guard) -> None:
    work, _ = fails(Throttled("429", service="intune", status=429, retry_after=1000.0))

    with captured_lines() as written, pytest.raises(Throttled):
        await run(guard, work)

    (line,) = [line for line in written() if line["event"] == "service_asks_for_a_long_pause"]
    assert (line["level"], line["seconds"]) == ("error", 1000.0)


async def test_a_service_that_fails_now_and_then_opens_by_its_rate() -> None:
    breaker = ServiceBreaker("intune", BreakerPolicy(minimum_calls=20))
    guard = Guard("intune", breaker, Bulkhead("intune", 1))
    for _ in range(9):
        for outcome in (Verdict.SUCCESS, Verdict.FAILURE):
            (await breaker.admit()).settle(outcome)
    assert breaker.effective is BreakerState.CLOSED
    (await breaker.admit()).settle(Verdict.SUCCESS)
    (await breaker.admit()).settle(Verdict.FAILURE)

    with pytest.raises(BreakerOpen):
        await run(guard, fails()[0])
    assert breaker.time_until_open is not None
    assert breaker.time_until_open > timedelta(seconds=50)


async def test_the_times_of_good_and_failed_attempts_are_counted(guard: Guard) -> None:
    before = sample("eucora_call_attempt_seconds_count"), sample("eucora_call_attempts_total", outcome="ok")
    work, _ = fails(transient())

    await run(guard, work)

    assert sample("eucora_call_attempt_seconds_count") - before[0] == 2
    assert sample("eucora_call_attempt_seconds_bucket", le="120.0") - before[0] == 2
    assert sample("eucora_call_attempts_total", outcome="ok") - before[1] == 1
