# SPDX-License-Identifier: Apache-2.0
"""When to try again, and for how long; the only importer of tenacity."""

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from app.resilience.errors import CallError, Throttled, TransientError

T = TypeVar("T")

LONGEST_WAIT_IN_PROCESS = 20.0
SHORTEST_ATTEMPT = 0.1


@dataclass(frozen=True, slots=True)
class RetryProfile:
    """How often and how patiently; all times in seconds.

    A wait lies between ``shortest`` and the exponential ceiling, which ends at ``longest``; ``total`` bounds
    the whole call.
    """

    attempts: int
    shortest: float
    longest: float
    attempt_timeout: float = 30.0
    total: float = 110.0

    def wait(self, attempt: int, retry_after: float | None = None) -> float:
        """Seconds to wait after the attempt of that number, never less than the service asked for."""
        ceiling = min(self.longest, self.shortest * 2 ** (attempt - 1))
        jittered = random.uniform(self.shortest, max(self.shortest, ceiling))  # noqa: S311 - spreads load, hides nothing
        return max(jittered, retry_after or 0.0)


DEFAULT_RETRY = RetryProfile(attempts=3, shortest=1.0, longest=10.0)
TRANSIENT_RETRY = RetryProfile(attempts=2, shortest=0.5, longest=5.0, attempt_timeout=10.0, total=25.0)
SLOW_SERVICE_RETRY = RetryProfile(attempts=5, shortest=2.0, longest=30.0, total=240.0)
NO_RETRY = RetryProfile(attempts=1, shortest=0.0, longest=0.0, total=30.0)


def is_repeatable(error: BaseException, *, may_repeat: bool) -> bool:
    """Whether the same request may be sent again now.

    A throttled request was not carried out, so even an unsafe one may be repeated; not where the service
    wants a longer pause than a worker should sleep.
    """
    if isinstance(error, Throttled):
        return (error.retry_after or 0.0) <= LONGEST_WAIT_IN_PROCESS
    return isinstance(error, TransientError) and may_repeat


async def with_retry(
    attempt: Callable[[], Awaitable[T]],
    *,
    profile: RetryProfile,
    deadline: float,
    may_repeat: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Await ``attempt`` until it succeeds, fails for good, or ``deadline`` (of ``clock``) leaves no time.

    tenacity is entered with the first failure only: calls that succeed at once do not pay for it.
    """
    try:
        return await attempt()
    except CallError as error:
        if profile.attempts < 2 or not is_repeatable(error, may_repeat=may_repeat()):
            raise
        failed = [error]

    async def replay() -> T:
        if failed:
            raise failed.pop()
        return await attempt()

    def is_over(state: RetryCallState) -> bool:
        late = clock() + state.upcoming_sleep + SHORTEST_ATTEMPT > deadline
        return late or state.attempt_number >= profile.attempts

    return await AsyncRetrying(
        stop=is_over,
        wait=lambda state: profile.wait(state.attempt_number, _asked_to_wait(state)),
        retry=retry_if_exception(lambda error: is_repeatable(error, may_repeat=may_repeat())),
        reraise=True,
    )(replay)


def _asked_to_wait(state: RetryCallState) -> float | None:
    error = state.outcome.exception() if state.outcome else None
    return error.retry_after if isinstance(error, CallError) else None
