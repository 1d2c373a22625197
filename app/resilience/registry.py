# SPDX-License-Identifier: Apache-2.0
"""The breakers of one process, and how they are asked for by name."""

import functools
import inspect
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, TypeVar, cast

from redis.asyncio import Redis

from app.resilience import metrics
from app.resilience.breaker import ServiceBreaker
from app.resilience.bulkhead import Bulkhead
from app.resilience.circuit import Clock
from app.resilience.classify import Safety
from app.resilience.fleet import PATIENCE, FleetHub, Record, Report, joined
from app.resilience.guard import Attempt, Guard
from app.resilience.retry import DEFAULT_RETRY, RetryProfile
from app.resilience.shared import Shared
from app.resilience.status import (
    DEFAULT_POLICY,
    DEFAULTS,
    FORCED,
    SERVICES,
    BreakerPolicy,
    BreakerState,
    BreakerStatus,
    ClientPolicy,
    StandingOrder,
    UnknownService,
)

P = ParamSpec("P")
T = TypeVar("T")
Answer = TypeVar("Answer")

CONCURRENCY = 10
"""Calls at once of what is not HTTP, per service."""
POOLED = {"database": 1000}
"""What a pool of its own bounds needs no second bound."""


class Breakers:
    """One breaker per service, connected to the other processes while ``shared`` runs."""

    def __init__(
        self, *, policies: Mapping[str, BreakerPolicy] | None = None, clock: Clock = time.monotonic
    ) -> None:
        given = policies or {}
        if unknown := set(given) - set(SERVICES):
            raise UnknownService(min(unknown))
        self._clock = clock
        self._hub: FleetHub | None = None
        self._clients: defaultdict[str, list[ClientPolicy]] = defaultdict(list)
        self._guards: dict[str, Guard] = {}
        self.known: dict[str, ServiceBreaker] = {}
        for service in SERVICES:
            policy = given.get(service) or DEFAULTS.get(service, DEFAULT_POLICY)
            self.known[service] = ServiceBreaker(service, policy, clock=clock)
            metrics.shows(service, BreakerState.CLOSED)

    def get(self, service: str) -> ServiceBreaker:
        """The breaker of a service.

        Raises:
            UnknownService: the message lists the known ones.
        """
        if service not in self.known:
            raise UnknownService(service)
        return self.known[service]

    def guard(self, service: str) -> Guard:
        """The layers around calls that are not HTTP; one per service.

        Raises:
            UnknownService: the message lists the known ones.
        """
        if service not in self._guards:
            limit = POOLED.get(service, CONCURRENCY)
            self._guards[service] = Guard(service, self.get(service), Bulkhead(service, limit))
        return self._guards[service]

    def serves(self, service: str, policy: ClientPolicy) -> None:
        """A client of the service was made; what is in force for it can be read from now on."""
        self._clients[service].append(policy)

    @asynccontextmanager
    async def shared(self, redis: Redis, *, process: str, patience: float = PATIENCE) -> AsyncIterator[None]:
        """Share everything with the other processes on this Redis, as ``process``, while the block runs.

        ``redis`` is to give up on a silent server within a fraction of a second, and not to retry.
        ``patience``: seconds it has for an answer, the most that its silence can add to a probe.
        """
        hub = FleetHub(redis, self.known, process=process, patience=patience, clock=self._clock)
        async with joined(hub, self.known.values()):
            self._hub = hub
            try:
                yield
            finally:
                self._hub = None

    async def statuses(self) -> list[BreakerStatus]:
        """All services, in the order of ``SERVICES``, as all processes see them.

        Raises:
            FleetUnreachable: the shared record cannot be read.
        """
        if self._hub is None:
            return [self._status(breaker, breaker.shared, ()) for breaker in self.known.values()]
        records = await self._hub.insist(Report(service, "read", {}) for service in self.known)
        return [self._read(self._hub, record) for record in records]

    async def status(self, service: str) -> BreakerStatus:
        """One service, as all processes see it.

        Raises:
            UnknownService, FleetUnreachable.
        """
        breaker = self.get(service)
        if self._hub is None:
            return self._status(breaker, breaker.shared, ())
        (record,) = await self._hub.insist([Report(service, "read", {})])
        return self._read(self._hub, record)

    async def reset(self, service: str, *, actor: str, reason: str | None = None) -> BreakerStatus:
        """Close it everywhere, forget the failures, and end any order.

        Raises:
            UnknownService, FleetUnreachable: as each of the following.
        """
        return await self.give(StandingOrder(service, BreakerState.CLOSED, actor, reason))

    async def isolate(
        self, service: str, *, actor: str, reason: str | None = None, expires_at: datetime | None = None
    ) -> BreakerStatus:
        """Keep every caller of every process away."""
        return await self.give(StandingOrder(service, BreakerState.ISOLATED, actor, reason, expires_at))

    async def disable(
        self, service: str, *, actor: str, reason: str | None = None, expires_at: datetime | None = None
    ) -> BreakerStatus:
        """Let everybody through, whatever fails."""
        return await self.give(StandingOrder(service, BreakerState.DISABLED, actor, reason, expires_at))

    async def enable(self, service: str, *, actor: str, reason: str | None = None) -> BreakerStatus:
        """End an isolation or a disabling; changes nothing where there is none."""
        now = await self.status(service)
        return await self.reset(service, actor=actor, reason=reason) if now.state in FORCED else now

    async def give(self, order: StandingOrder, *, only_if_new: bool = False) -> BreakerStatus:
        """Carry out an operator's order in all processes.

        ``only_if_new``: changes nothing where the shared record knows anything of the service.
        """
        breaker, ends = self.get(order.service), order.expires_at
        left = (ends - datetime.now(UTC)).total_seconds() if ends else 0.0
        if self._hub is None:
            breaker.order(order.state, actor=order.actor, reason=order.reason, seconds=left)
            return self._status(breaker, breaker.shared, ())
        given = {
            "state": order.state.value,
            "actor": order.actor,
            "reason": order.reason or "",
            "expires": max(1, round(left * 1000)) if ends else 0,
            "only_if_new": only_if_new,
        }
        (record,) = await self._hub.insist([Report(order.service, "force", given)])
        return self._read(self._hub, record)

    def _read(self, hub: FleetHub, record: Record) -> BreakerStatus:
        breaker, away = self.known[record["service"]], tuple(sorted(record.get("open_in", ())))
        return self._status(breaker, hub.shared(record), away, record["gate"] / 1000)

    def _status(
        self,
        breaker: ServiceBreaker,
        shared: Shared,
        open_in: tuple[str, ...],
        throttled: float | None = None,
    ) -> BreakerStatus:
        alone = self._hub is None
        waits = breaker.gate.remaining() if throttled is None else throttled
        reopens = breaker.opens_at if alone else self._wall(shared.reopens_at or shared.lease_ends_at)
        return BreakerStatus(
            service=breaker.service,
            state=breaker.effective if alone else shared.state,
            policy=breaker.policy,
            fail_counter=breaker.fail_counter if alone else shared.failures,
            opened_at=breaker.own_opened_at if alone else shared.opened_at,
            retry_at=reopens,
            last_error=breaker.last_error if alone else shared.error,
            open_in=open_in,
            actor=shared.actor,
            reason=shared.reason,
            expires_at=self._wall(shared.expires_at),
            throttled_until=datetime.now(UTC) + timedelta(seconds=waits) if waits else None,
            clients=tuple(self._clients[breaker.service]),
        )

    def _wall(self, instant: float) -> datetime | None:
        """An instant of the monotonic clock, aware UTC."""
        return datetime.now(UTC) + timedelta(seconds=instant - self._clock()) if instant else None


_current = Breakers()


@contextmanager
def in_use(breakers: Breakers) -> Iterator[None]:
    """Have the functions below use these while the block runs; a process opens one runtime."""
    global _current  # noqa: PLW0603 - what is asked for by name needs one place per process
    before, _current = _current, breakers
    try:
        yield
    finally:
        _current = before


def current() -> Breakers:
    """Those of this process."""
    return _current


async def get_breaker(service: str) -> ServiceBreaker:
    """The breaker of a service in this process.

    Raises:
        UnknownService: the message lists the known ones.
    """
    return _current.get(service)


async def check_breaker_status(service: str) -> BreakerStatus:
    """See ``Breakers.status``."""
    return await _current.status(service)


async def get_all_breaker_status() -> dict[str, BreakerStatus]:
    """See ``Breakers.statuses``; by service."""
    return {status.service: status for status in await _current.statuses()}


async def reset_breaker(service: str, *, actor: str = "system", reason: str | None = None) -> BreakerStatus:
    """See ``Breakers.reset``."""
    return await _current.reset(service, actor=actor, reason=reason)


def with_circuit_breaker(service: str) -> Callable[[Callable[P, Answer]], Callable[P, Answer]]:
    """Put anything that is awaited, or an asynchronous generator, under the breaker of a service.

    Raises:
        UnknownService: when it is decorated, not when it is called.
    """
    if service not in SERVICES:
        raise UnknownService(service)

    def decorate(function: Callable[P, Answer]) -> Callable[P, Answer]:
        async def awaited(*args: P.args, **kwargs: P.kwargs) -> Any:
            return await _current.get(service).call_async(cast("Any", function), *args, **kwargs)

        async def generated(*args: P.args, **kwargs: P.kwargs) -> AsyncIterator[Any]:
            async with _current.get(service).permit():
                async for item in cast("Any", function)(*args, **kwargs):
                    yield item

        guarded: Any = generated if inspect.isasyncgenfunction(function) else awaited
        return cast("Callable[P, Answer]", functools.update_wrapper(guarded, function))

    return decorate


async def call(
    service: str,
    function: Callable[..., Awaitable[T]],
    *args: Any,
    profile: RetryProfile = DEFAULT_RETRY,
    safety: Safety = Safety.IDEMPOTENT,
) -> T:
    """Await ``function(*args)``, which is not HTTP, through all layers that stand around HTTP calls.

    ``safety``: whether it may be done twice. Whatever it raises is raised as a class of ``errors``.

    Raises:
        CallError: the class of the last attempt's outcome, or why none was made.
    """

    async def attempted(attempt: Attempt) -> T:
        attempt.sent = True
        return await function(*args)

    return await _current.guard(service).run(attempted, safety=safety, profile=profile)
