# SPDX-License-Identifier: Apache-2.0
"""One breaker per service and process; the only importer of aiobreaker.

Type, states and listeners are the library's. Its algorithm is not used: it counts on the wall clock, admits
every caller when half-open and lets late results of old calls decide.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, ParamSpec, TypeVar

import aiobreaker
from aiobreaker.state import CircuitBreakerBaseState, CircuitBreakerState

from app.resilience.classify import Safety, Verdict, classify_exception, verdict
from app.resilience.errors import BreakerOpen

__all__ = [
    "SERVICES",
    "BreakerPolicy",
    "Breakers",
    "CircuitBreakerState",
    "Permit",
    "ServiceBreaker",
    "get_breaker",
]

P = ParamSpec("P")
T = TypeVar("T")
Clock = Callable[[], float]

SERVICES = (
    "intune",
    "jamf",
    "sccm",
    "landscape",
    "ansible",
    "servicenow",
    "jira",
    "freshservice",
    "splunk",
    "elastic",
    "datadog",
    "entra_id",
    "active_directory",
    "defender",
    "vulnerability_scanner",
    "ai_provider",
    "database",
    "external_api",
)
FAIL_MAX = 5
RESET_TIMEOUT = 60.0
PROBE_LEASE = 35.0


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """After how many failures in a row a breaker opens, and for how many seconds."""

    fail_max: int = FAIL_MAX
    reset_timeout: float = RESET_TIMEOUT


DATABASE_POLICY = BreakerPolicy(reset_timeout=30.0)


@dataclass(slots=True)
class Permit:
    """One admitted call: what the breaker had seen when it began. Settled once, whatever happens."""

    breaker: "ServiceBreaker"
    epoch: int
    seen: int
    probe: bool

    def settle(self, outcome: Verdict) -> None:
        """Tell the breaker how the call ended."""
        self.breaker.settle(self, outcome)


class ServiceBreaker(aiobreaker.CircuitBreaker):  # type: ignore[misc]  # the library is untyped
    """Opens after ``fail_max`` failures in a row; ``reset_timeout`` seconds later lets one probe through."""

    def __init__(
        self,
        service: str,
        *,
        fail_max: int = FAIL_MAX,
        reset_timeout: float = RESET_TIMEOUT,
        clock: Clock = time.monotonic,
    ) -> None:
        if fail_max < 1 or reset_timeout <= 0:
            raise ValueError(f"breaker {service}: fail_max and reset_timeout must be above zero")
        self._label = CircuitBreakerState.CLOSED
        super().__init__(fail_max=fail_max, timeout_duration=timedelta(seconds=reset_timeout), name=service)
        self.service = service
        self.stale_results = 0
        self._clock = clock
        self._state: CircuitBreakerBaseState = self._create_new_state(CircuitBreakerState.CLOSED)
        self._epoch = 0
        self._failures = 0
        self._forgiven = 0
        self._reopens_at = 0.0
        self._probe_ends_at: float | None = None

    @property
    def current_state(self) -> CircuitBreakerState:
        """CLOSED, OPEN or HALF_OPEN; an open breaker stays so until somebody probes."""
        return self._label

    @property
    def state(self) -> CircuitBreakerBaseState:
        """The library's state object: a label, its algorithm is not used."""
        return self._state

    @property
    def fail_counter(self) -> int:
        """Failures in a row, as seen by this process."""
        return self._failures - self._forgiven

    @property
    def time_until_open(self) -> timedelta | None:
        """What is left of the cool-down; None when there is none."""
        left = self._reopens_at - self._clock()
        return timedelta(seconds=left) if self._label is CircuitBreakerState.OPEN and left > 0 else None

    @property
    def opens_at(self) -> datetime | None:
        """When the next probe is let through, aware UTC; None unless open."""
        left = self.time_until_open
        return None if left is None else datetime.now(UTC) + left

    def check(self) -> None:
        """Refuse early, before a caller queues for anything; changes nothing.

        Raises:
            BreakerOpen: the call would not be admitted now.
        """
        if self._label is CircuitBreakerState.CLOSED:
            return
        left = self._time_left()
        if left > 0:
            raise BreakerOpen(
                f"{self.service} is kept away from for {left:.1f} s", service=self.service, retry_after=left
            )

    def _time_left(self) -> float:
        """Seconds until a call would be admitted."""
        if self._label is CircuitBreakerState.OPEN:
            return self._reopens_at - self._clock()
        return 0.0 if self._probe_ends_at is None else self._probe_ends_at - self._clock()

    def admit(self) -> Permit:
        """Let one call through, as the probe if the cool-down is over.

        Raises:
            BreakerOpen: the cool-down runs, or another call is the probe.
        """
        self.check()
        probe = self._label is not CircuitBreakerState.CLOSED
        if probe:
            if self._label is CircuitBreakerState.OPEN:
                self._move(CircuitBreakerState.HALF_OPEN)
            self._epoch += 1  # a probe whose lease ran out may no longer decide
            self._probe_ends_at = self._clock() + PROBE_LEASE
        return Permit(self, self._epoch, self._failures, probe)

    def settle(self, permit: Permit, outcome: Verdict) -> None:
        """Count an outcome; one that belongs to an earlier state of the breaker is dropped."""
        if permit.epoch != self._epoch:
            self.stale_results += 1
        elif permit.probe:
            self._settle_probe(outcome)
        elif outcome is Verdict.SUCCESS:
            self._forgiven = max(self._forgiven, permit.seen)
        elif outcome is Verdict.FAILURE:
            self._failures += 1
            if self.fail_counter >= self.fail_max:
                self.open()

    def _settle_probe(self, outcome: Verdict) -> None:
        self._probe_ends_at = None
        if outcome is Verdict.SUCCESS:
            self.close()
        elif outcome is Verdict.FAILURE:
            self.open()

    def open(self) -> None:
        """Keep callers away for the whole cool-down from now on."""
        self._reopens_at = self._clock() + self.timeout_duration.total_seconds()
        self._move(CircuitBreakerState.OPEN)

    def half_open(self) -> None:
        """Let one probe through now."""
        self._move(CircuitBreakerState.HALF_OPEN)

    def close(self) -> None:
        """Let everybody through and forget the failures."""
        self._forgiven = self._failures
        self._move(CircuitBreakerState.CLOSED)

    def _move(self, label: CircuitBreakerState) -> None:
        self._epoch += 1
        self._probe_ends_at = None
        previous, self._label = self._state, label
        self._state = self._create_new_state(label, prev_state=previous)
        for listener in self.listeners:
            listener.state_change(self, previous, self._state)

    async def call_async(self, func: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await ``func`` under this breaker; its own error is raised, classified for the count only."""
        permit = self.admit()
        outcome = Verdict.NEUTRAL
        try:
            result = await func(*args, **kwargs)
            outcome = Verdict.SUCCESS
        except Exception as error:
            seen = classify_exception(error, service=self.service, safety=Safety.IDEMPOTENT, sent=True)
            outcome = verdict(seen, service=self.service)
            raise
        finally:
            permit.settle(outcome)
        return result

    def call(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: a coroutine would count as a success before it ran."""
        raise TypeError("use call_async")


@dataclass(slots=True)
class Breakers:
    """The breakers of one process, made when first asked for."""

    clock: Clock = time.monotonic
    policies: Mapping[str, BreakerPolicy] = field(default_factory=dict)
    known: dict[str, ServiceBreaker] = field(default_factory=dict)

    def get(self, service: str) -> ServiceBreaker:
        """The breaker of a service.

        Raises:
            ValueError: no such service; the message lists the known ones.
        """
        if service not in SERVICES:
            raise ValueError(f"unknown service {service!r}; known are {', '.join(SERVICES)}")
        if service not in self.known:
            policy = self.policies.get(service, DATABASE_POLICY if service == "database" else BreakerPolicy())
            self.known[service] = ServiceBreaker(
                service, fail_max=policy.fail_max, reset_timeout=policy.reset_timeout, clock=self.clock
            )
        return self.known[service]


_PROCESS = Breakers()


def get_breaker(service: str) -> ServiceBreaker:
    """Look up the breaker of a service in this process."""
    return _PROCESS.get(service)
