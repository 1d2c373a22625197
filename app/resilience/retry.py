# SPDX-License-Identifier: Apache-2.0
"""When to try again, how often, and for how long; the only importer of tenacity."""

import functools
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from app.resilience import deadline, metrics
from app.resilience.classify import classify
from app.resilience.errors import (
    CallError,
    DatabaseConflict,
    Throttled,
    TransientError,
)
from app.resilience.rate_gate import LONGEST_WAIT_IN_PROCESS

P = ParamSpec("P")
T = TypeVar("T")
Clock = Callable[[], float]

SHORTEST_ATTEMPT = 0.1
"""Seconds below which no attempt is begun: it could only be cut."""
CONFLICT_WAITS = (0.01, 0.2)
"""Bounds of the pause before a transaction that lost to another one is tried again."""


@dataclass(frozen=True, slots=True)
class RetryProfile:
    """How often and how patiently; all times in seconds. As a decorator it retries a coroutine function.

    A wait lies between ``shortest`` and a ceiling that doubles with each attempt up to ``longest``;
    ``decorrelated``: the ceiling is three times the wait before. ``total`` bounds the whole call.
    """

    attempts: int
    shortest: float
    longest: float
    attempt_timeout: float = 30.0
    total: float = 110.0
    decorrelated: bool = False

    def wait(self, attempt: int, *, before: float = 0.0) -> float:
        """Seconds to wait after the attempt of that number (from 1); ``before``: the wait before that one."""
        ceiling = before * 3 if self.decorrelated and before else self.shortest * 2**attempt
        return random.uniform(self.shortest, min(self.longest, max(self.shortest, ceiling)))  # noqa: S311 - spreads load, hides nothing

    def __call__(self, function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """Retry ``function`` on errors that may pass, within ``total``; of one attempt the function itself.

        Each decorated function has a budget of its own. Its errors stay its own.
        """
        if self.attempts < 2:
            return function
        budget = RetryBudget()

        @functools.wraps(function)
        async def retried(*args: P.args, **kwargs: P.kwargs) -> T:
            retries = Retries("function", self, budget, deadline.earliest(time.monotonic() + self.total))
            budget.earn()
            return await retries.run(lambda: function(*args, **kwargs), is_worth_repeating)

        return retried


DEFAULT_RETRY = RetryProfile(attempts=3, shortest=1.0, longest=10.0)
TRANSIENT_RETRY = RetryProfile(attempts=2, shortest=0.5, longest=5.0, attempt_timeout=10.0, total=25.0)
SLOW_SERVICE_RETRY = RetryProfile(attempts=5, shortest=2.0, longest=30.0, total=240.0, decorrelated=True)
NO_RETRY = RetryProfile(attempts=1, shortest=0.0, longest=0.0, total=30.0)


def is_worth_repeating(error: BaseException) -> bool:
    """Whether what raised this may do better the next time; for work that may be repeated."""
    found = classify(error, service="external_api")
    return found is not None and is_repeatable(found, may_repeat=True)


def is_repeatable(error: BaseException, *, may_repeat: bool) -> bool:
    """Whether the same request may be sent again now.

    A throttled request was not carried out, so even an unsafe one may be repeated; not where the service
    wants a longer pause than a worker should sleep. Nothing is repeated that the breaker would refuse.
    """
    if isinstance(error, Throttled):
        return (error.retry_after or 0.0) <= LONGEST_WAIT_IN_PROCESS
    if isinstance(error, TransientError | DatabaseConflict):
        return may_repeat and error.kept_away is None
    return False


class RetryBudget:
    """How many retries a service gets from this process, so that its outage is not multiplied.

    Each first attempt earns a tenth of a retry, up to ten; and there are always three per ten seconds. In
    tenths, because floats would drift.
    """

    __slots__ = ("_clock", "_floor", "_tenths")

    FULL, PRICE = 100, 10
    FLOOR, FLOOR_PERIOD = 3, 10.0

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._tenths = self.FULL
        self._floor: deque[float] = deque(maxlen=self.FLOOR)

    def earn(self) -> None:
        """A first attempt is made."""
        if self._tenths < self.FULL:
            self._tenths += 1

    def spend(self) -> bool:
        """Take one retry; False when there is none."""
        if self._tenths >= self.PRICE:
            self._tenths -= self.PRICE
            return True
        now = self._clock()
        if len(self._floor) == self.FLOOR and now - self._floor[0] < self.FLOOR_PERIOD:
            return False
        self._floor.append(now)
        return True

    @property
    def left(self) -> float:
        """Retries that first attempts have earned and nobody has spent."""
        return self._tenths / self.PRICE


class Retries:
    """The attempts of one call. What succeeds at once never enters tenacity, and does not pay for it."""

    __slots__ = ("_budget", "_clock", "_profile", "_service", "_until", "_waited", "broke")

    def __init__(
        self,
        service: str,
        profile: RetryProfile,
        budget: RetryBudget,
        until: float,
        clock: Clock = time.monotonic,
    ) -> None:
        self._service = service
        self._profile = profile
        self._budget = budget
        self._until = until
        self._clock = clock
        self._waited = 0.0
        self.broke = False
        """Whether it could have been tried again, but the budget was spent."""

    async def run(
        self, attempt: Callable[[], Awaitable[T]], repeatable: Callable[[BaseException], bool]
    ) -> T:
        """Await ``attempt`` until it succeeds, fails for good, or nothing is left for another one.

        Raises what the last attempt raised.
        """
        try:
            return await attempt()
        except Exception as error:
            if self._profile.attempts < 2 or not repeatable(error):
                raise
            return await self.after(error, attempt, repeatable)

    async def after(
        self,
        first: BaseException,
        attempt: Callable[[], Awaitable[T]],
        repeatable: Callable[[BaseException], bool],
    ) -> T:
        """Go on after a first attempt that failed with ``first``, which is worth repeating."""
        failed = [first]

        async def replay() -> T:
            if failed:
                raise failed.pop()
            return await attempt()

        retrying = AsyncRetrying(
            stop=self._is_over,
            wait=self._wait,
            retry=retry_if_exception(repeatable),
            before_sleep=self._count,
            reraise=True,
        )
        return await retrying(replay)

    def _wait(self, state: RetryCallState) -> float:
        error = _error_of(state)
        asked = error.retry_after if isinstance(error, CallError) else None
        if isinstance(error, DatabaseConflict):
            self._waited = random.uniform(*CONFLICT_WAITS)  # noqa: S311 - parts those who collided
        else:
            self._waited = self._profile.wait(state.attempt_number, before=self._waited)
        return max(self._waited, asked or 0.0)

    def _is_over(self, state: RetryCallState) -> bool:
        late = self._clock() + state.upcoming_sleep + SHORTEST_ATTEMPT > self._until
        if late or state.attempt_number >= self._profile.attempts:
            return True
        self.broke = not self._budget.spend()
        return self.broke

    def _count(self, state: RetryCallState) -> None:
        error = _error_of(state)
        metrics.retried(self._service, error.code if isinstance(error, CallError) else type(error).__name__)


def _error_of(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
