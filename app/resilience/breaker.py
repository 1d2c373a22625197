# SPDX-License-Identifier: Apache-2.0
"""The breaker of one service in one process, as aiobreaker's users know it; its only importer.

Type, errors, state labels and listeners are the library's. Its algorithm is not used: it counts on the wall
clock, admits every caller when half-open and lets late results of old calls decide.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, ParamSpec, Protocol, TypeVar
from weakref import WeakSet

import aiobreaker
from aiobreaker.state import CircuitBreakerBaseState, CircuitBreakerState

from app import telemetry
from app.resilience.circuit import ISOLATED_RETRY, Circuit, Clock, Permit
from app.resilience.classify import classify
from app.resilience.errors import Deferral, Verdict
from app.resilience.status import DEFAULT_POLICY, BreakerPolicy, BreakerState

__all__ = ["BreakerOpen", "CircuitBreakerState", "ServiceBreaker"]

P = ParamSpec("P")
T = TypeVar("T")
log = telemetry.logger(__name__)

PROBE_WAIT = 5.0
"""Seconds after which it is worth asking again what became of a probe; it may take longer."""

LABELS = {
    BreakerState.CLOSED: CircuitBreakerState.CLOSED,
    BreakerState.DISABLED: CircuitBreakerState.CLOSED,
    BreakerState.OPEN: CircuitBreakerState.OPEN,
    BreakerState.ISOLATED: CircuitBreakerState.OPEN,
    BreakerState.HALF_OPEN: CircuitBreakerState.HALF_OPEN,
}


class Ramp(Protocol):
    """What lets callers through again step by step once the service is back."""

    def ramp(self) -> None:
        """It is back."""


class BreakerOpen(Deferral, aiobreaker.CircuitBreakerError):  # type: ignore[misc]  # the library is untyped
    """The service's breaker keeps callers away; ``retry_after`` seconds later it may admit one.

    ``probing``: the cool-down is over and another call is trying the service.
    """

    code = "circuit_open"

    def __init__(
        self, detail: str, *, service: str, retry_after: float | None = None, probing: bool = False
    ) -> None:
        super().__init__(detail, service=service, retry_after=retry_after)
        self.message = detail
        self.probing = probing
        self.reopen_time = datetime.now(UTC) + self.time_remaining

    @property
    def time_remaining(self) -> timedelta:
        """As ``retry_after``."""
        return timedelta(seconds=self.retry_after or 0.0)

    def __str__(self) -> str:
        return self.detail


class ServiceBreaker(Circuit, aiobreaker.CircuitBreaker):  # type: ignore[misc]  # the library is untyped
    """A breaker that shares its state with the other processes once it is connected to them."""

    def __init__(
        self, service: str, policy: BreakerPolicy = DEFAULT_POLICY, *, clock: Clock = time.monotonic
    ) -> None:
        Circuit.__init__(self, service, policy, clock=clock)
        self.ramps: WeakSet[Ramp] = WeakSet()
        aiobreaker.CircuitBreaker.__init__(
            self,
            fail_max=policy.fail_max,
            timeout_duration=timedelta(seconds=policy.reset_timeout),
            name=service,
        )

    @property
    def current_state(self) -> CircuitBreakerState:
        """The library's label: CLOSED, OPEN or HALF_OPEN; an open breaker stays so until somebody probes."""
        return LABELS[self.effective]

    @property
    def state(self) -> CircuitBreakerBaseState:
        """The library's state object: a label for listeners, its algorithm is not used."""
        return self._create_new_state(self.current_state)

    @property
    def time_until_open(self) -> timedelta | None:
        """What is left until a call may be admitted; None when one would be now."""
        left = self.time_left()
        return None if left is None else timedelta(seconds=left)

    @property
    def opens_at(self) -> datetime | None:
        """When a call may be admitted, aware UTC; None when one would be now."""
        left = self.time_until_open
        return None if left is None else datetime.now(UTC) + left

    def refusal(self, left: float) -> BreakerOpen:
        """Why callers are kept away, and when it is worth asking again."""
        if self.effective is BreakerState.ISOLATED:
            who = f"{self.service} is isolated by {self._shared.actor or 'an operator'}"
            detail = f"{who}: {self._shared.reason}" if self._shared.reason else who
            return BreakerOpen(detail, service=self.service, retry_after=min(left, ISOLATED_RETRY))
        if self.effective is BreakerState.HALF_OPEN:
            detail = f"{self.service} is being tried by another call"
            return BreakerOpen(detail, service=self.service, retry_after=min(left, PROBE_WAIT), probing=True)
        detail = f"{self.service} is kept away from for {left:.1f} s"
        return BreakerOpen(detail, service=self.service, retry_after=left)

    def moved(self, before: BreakerState, after: BreakerState) -> None:
        """Log it, let callers come back step by step, and tell the listeners."""
        log.warning("breaker_moved", service=self.service, before=before, state=after, error=self.last_error)
        if after is BreakerState.CLOSED:
            for ramp in self.ramps:
                ramp.ramp()
        old, new = (self._create_new_state(LABELS[state]) for state in (before, after))
        for listener in self.listeners:
            try:
                listener.state_change(self, old, new)
            except Exception:  # a listener changes nothing, whatever it does
                log.exception("breaker_listener_failed", service=self.service)

    @asynccontextmanager
    async def permit(self) -> AsyncIterator[Permit]:
        """Admit what runs inside, and count how it ended: for streams, and for what is not HTTP.

        Raises:
            BreakerOpen: it is not admitted.
        """
        permit = self._closed or await self.admit()
        try:
            yield permit
        except Exception as error:
            permit.end(classify(error, service=self.service))
            raise
        except BaseException:
            permit.settle(Verdict.NEUTRAL)
            raise
        permit.settle(Verdict.SUCCESS)

    async def call_async(self, func: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await ``func`` under this breaker; its own error is raised. A returned HTTP error counts."""
        permit = self._closed or await self.admit()
        try:
            result = await func(*args, **kwargs)
        except Exception as error:
            permit.end(classify(error, service=self.service))
            raise
        except BaseException:
            permit.settle(Verdict.NEUTRAL)
            raise
        permit.end(classify(result, service=self.service))
        return result

    def call(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: a coroutine would count as a success before it ran."""
        raise TypeError("use call_async")
