# SPDX-License-Identifier: Apache-2.0
"""How often, how long, and when not to."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.resilience import BreakerOpen
from app.resilience.errors import (
    CallError,
    LocalSaturation,
    PermanentError,
    Throttled,
    TransientError,
)
from app.resilience.retry import (
    DEFAULT_RETRY,
    NO_RETRY,
    SLOW_SERVICE_RETRY,
    TRANSIENT_RETRY,
    Retries,
    RetryBudget,
    RetryProfile,
    is_repeatable,
)
from tests.waiting import eventually, quickest

QUICK = RetryProfile(attempts=3, shortest=0.01, longest=0.02)


def failing(*errors: CallError) -> tuple[Callable[[], Awaitable[str]], list[float]]:
    """An attempt that raises these one after another, then succeeds; and when it was made."""
    left, made = list(errors), list[float]()

    async def attempt() -> str:
        made.append(time.monotonic())
        if left:
            raise left.pop(0)
        return "done"

    return attempt, made


async def run(attempt: Callable[[], Awaitable[str]], *, may_repeat: bool = True, within: float = 10.0) -> str:
    retries = Retries("intune", QUICK, RetryBudget(), time.monotonic() + within)
    return await retries.run(attempt, lambda error: is_repeatable(error, may_repeat=may_repeat))


def transient(retry_after: float | None = None) -> TransientError:
    return TransientError("down", service="intune", retry_after=retry_after)


def throttled(retry_after: float | None) -> Throttled:
    return Throttled("slow down", service="intune", status=429, retry_after=retry_after)


async def test_a_transient_error_is_tried_again_until_it_works() -> None:
    attempt, made = failing(transient(), transient())

    assert await run(attempt) == "done"
    assert len(made) == 3


async def test_the_last_error_is_the_callers() -> None:
    last = transient()
    attempt, made = failing(transient(), transient(), last)

    with pytest.raises(TransientError) as raised:
        await run(attempt)

    assert raised.value is last
    assert len(made) == 3


@pytest.mark.parametrize(
    "error",
    [
        PermanentError("no", service="intune"),
        BreakerOpen("open", service="intune", retry_after=0.01),
        LocalSaturation("full", service="intune", retry_after=0.01),
        throttled(21.0),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_waiting_in_process_cannot_help_is_raised_at_once(error: CallError) -> None:
    attempt, made = failing(error)

    with pytest.raises(type(error)):
        await run(attempt)

    assert len(made) == 1


async def test_retry_after_is_the_floor_of_the_wait() -> None:
    async def wait() -> float:
        attempt, made = failing(throttled(0.3))
        await run(attempt)
        return made[1] - made[0]

    assert 0.3 <= await quickest(wait, below=0.6) < 0.6


async def test_an_unsafe_call_is_repeated_only_when_it_was_refused_unread() -> None:
    unsafe, made = failing(transient())
    with pytest.raises(TransientError):
        await run(unsafe, may_repeat=False)
    refused, made_again = failing(throttled(None))
    await run(refused, may_repeat=False)

    assert (len(made), len(made_again)) == (1, 2)


async def test_no_sleep_beyond_the_deadline() -> None:
    attempt, made = failing(throttled(19.0))
    started = time.monotonic()

    with pytest.raises(Throttled):
        await run(attempt, within=1.0)

    assert time.monotonic() - started < 15
    assert len(made) == 1


async def test_cancellation_ends_the_retries() -> None:
    attempt, made = failing(throttled(10.0))
    task = asyncio.create_task(run(attempt, within=60.0))
    await eventually(lambda: len(made), within=5)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert len(made) == 1


@given(st.integers(min_value=1, max_value=9))
def test_waits_lie_within_the_required_bounds_and_vary(attempt: int) -> None:
    for profile, shortest, longest in [
        (DEFAULT_RETRY, 1.0, 10.0),
        (TRANSIENT_RETRY, 0.5, 5.0),
        (SLOW_SERVICE_RETRY, 2.0, 30.0),
    ]:
        waits = {profile.wait(attempt) for _ in range(20)}

        assert all(shortest <= wait <= longest for wait in waits)
        assert len(waits) > 1


def test_the_required_profiles() -> None:
    attempts = [
        profile.attempts for profile in (DEFAULT_RETRY, TRANSIENT_RETRY, SLOW_SERVICE_RETRY, NO_RETRY)
    ]

    assert attempts == [3, 2, 5, 1]
    assert {profile.attempt_timeout for profile in (DEFAULT_RETRY, SLOW_SERVICE_RETRY, NO_RETRY)} == {30.0}
