# SPDX-License-Identifier: Apache-2.0
"""When a service is kept away from: the state machine behind every breaker, without I/O."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from app.resilience import metrics
from app.resilience.classify import verdict
from app.resilience.errors import CallError, Deferral, FleetUnreachable, Verdict
from app.resilience.rate_gate import RateGate
from app.resilience.retry import RetryBudget
from app.resilience.shared import NEW, Alone, Fleet, Shared
from app.resilience.status import DEFAULT_POLICY, FORCED, BreakerPolicy, BreakerState
from app.resilience.window import RateWindow

Clock = Callable[[], float]

PROBE_LEASE = 35.0
"""Seconds a probe may take before another process may probe: the longest attempt and a little more."""
ISOLATED_RETRY = 60.0
"""Seconds after which work looks again whether an operator's isolation has ended."""


@dataclass(frozen=True, slots=True)
class Permit:
    """What the breaker had seen when a call was admitted: the same for all that begin in the same situation.

    ``token``: the call is the fleet's probe.
    """

    circuit: "Circuit"
    generation: int
    seen: int
    seen_by_all: int
    probe: bool = False
    token: str | None = None

    def settle(self, outcome: Verdict, why: str | None = None) -> None:
        """Tell the breaker how the call ended; ``why``: of a failure, without secrets."""
        self.circuit.settle(self, outcome, why)

    def end(self, error: CallError | None) -> None:
        """Tell the breaker by the error's class; the error is told how long callers are kept away since."""
        if error is None:
            return self.settle(Verdict.SUCCESS)
        outcome = verdict(error, service=self.circuit.service)
        self.settle(outcome, error.brief)
        if outcome is Verdict.FAILURE:
            # what a failed probe of the fleet brings about is known before the others have agreed to it
            whole = self.circuit.policy.reset_timeout
            error.kept_away = whole if self.token else self.circuit.time_left()
        return None


class Circuit(ABC):
    """Keeps callers away from a service that fails, and lets one probe through when the cool-down is over.

    Two things are kept apart: what this process saw itself (its own failures, its own cool-down), and what
    the fleet decided, which ``adopt`` brings. Either keeps this process away. ``gate`` and ``budget`` are the
    service's rate gate and retry budget in this process.
    """

    def __init__(
        self, service: str, policy: BreakerPolicy = DEFAULT_POLICY, *, clock: Clock = time.monotonic
    ) -> None:
        self.service = service
        self.policy = policy
        self.gate = RateGate(service, clock=clock)
        self.budget = RetryBudget(clock)
        self.last_error: str | None = None
        self.stale_results = 0
        self._clock = clock
        self._fleet: Fleet = Alone()
        self._shared = NEW
        self._own = self._shown = BreakerState.CLOSED
        self._window = RateWindow(policy.window)
        self._generation = 0
        self._failures = self._forgiven = 0
        self._own_opened_at: datetime | None = None
        self._own_reopens_at = 0.0
        self._probe_ends_at = 0.0
        self._asking = False
        self._closed: Permit | None = None
        self._renew()

    @abstractmethod
    def refusal(self, left: float) -> Deferral:
        """What a caller is told who is not admitted for ``left`` seconds."""

    @abstractmethod
    def moved(self, before: BreakerState, after: BreakerState) -> None:
        """The state has changed; must not raise."""

    @property
    def effective(self) -> BreakerState:
        """What decides now: the fleet's state, and where that is closed this process's own."""
        return self._own if self._shared.state is BreakerState.CLOSED else self._shared.state

    @property
    def shared(self) -> Shared:
        """What the fleet knows, as far as this process was told."""
        return self._shared

    @property
    def fail_counter(self) -> int:
        """Failures in a row, as seen by this process."""
        return self._failures - self._forgiven

    @property
    def own_opened_at(self) -> datetime | None:
        """Since when this process keeps itself away by its own decision."""
        return None if self._own is BreakerState.CLOSED else self._own_opened_at

    @property
    def own_time_left(self) -> float:
        """Seconds for which this process keeps itself away by its own decision; 0: it does not."""
        return 0.0 if self._own is BreakerState.CLOSED else max(0.001, self._own_reopens_at - self._clock())

    @property
    def in_use(self) -> bool:
        """Whether a call ended within the last window."""
        return not self._window.is_idle(self._clock())

    def time_left(self) -> float | None:
        """Seconds until a call may be admitted; None when one would be now."""
        if self._closed is not None:
            return None
        left = self._wait_ends_at() - self._clock()
        return left if left > 0 else None

    def _wait_ends_at(self) -> float:
        state = self.effective
        if state is BreakerState.ISOLATED:
            return self._shared.expires_at or self._clock() + ISOLATED_RETRY
        if state is BreakerState.HALF_OPEN:
            return self._probe_ends_at
        return self._own_reopens_at if self._shared.state is BreakerState.CLOSED else self._shared.reopens_at

    def admit_now(self) -> Permit | None:
        """A permit where nothing stands in the way; None: ask ``admit``, which may have to wait for Redis."""
        return self._closed

    def check(self) -> None:
        """Refuse early, before a caller queues for anything; changes nothing.

        Raises:
            BreakerOpen: the call would not be admitted now.
        """
        left = self.time_left()
        if left is not None:
            raise self.refusal(left)

    async def admit(self, *, lease: float = PROBE_LEASE) -> Permit:
        """Let one call through, as the probe if the cool-down is over; a probe has ``lease`` seconds.

        Raises:
            BreakerOpen: the cool-down runs, or another call is the probe, of this process or of the fleet.
        """
        self.check()
        if self._closed is not None:
            return self._closed
        if self._shared.state in FORCED:
            self._end_order()
            return await self.admit(lease=lease)
        if self._shared.state is BreakerState.CLOSED:
            self._own = BreakerState.HALF_OPEN
            self._changed()
            return self._probe(None, lease)
        return await self._ask(lease)

    async def _ask(self, lease: float) -> Permit:
        """Of all callers of this process one asks for the fleet's probe; the others are refused meanwhile."""
        if self._asking:
            raise self.refusal(0.0)
        self._asking = True
        try:
            token = await self._fleet.ask(self.service, lease)
        except FleetUnreachable:
            self._become(BreakerState.HALF_OPEN)
            return self._probe(None, lease)
        finally:
            self._asking = False
        if self._closed is not None:
            return self._closed  # while we asked, somebody else's probe was good
        if token is None:
            raise self.refusal(self.time_left() or 0.0)
        return self._probe(token, lease)

    def _end_order(self) -> None:
        """An operator's order has run out; the others will tell so soon."""
        self._shared = replace(self._shared, state=BreakerState.CLOSED)
        self._changed(forget=True)

    def _probe(self, token: str | None, lease: float) -> Permit:
        self._probe_ends_at = self._clock() + lease
        self._generation += 1  # a probe whose lease ran out may no longer decide
        return Permit(self, self._generation, self._failures, self._shared.sequence, probe=True, token=token)

    def settle(self, permit: Permit, outcome: Verdict, why: str | None = None) -> None:
        """Count an outcome; one that belongs to an earlier state of the breaker is dropped."""
        if permit.generation != self._generation:
            self.stale_results += 1
            metrics.stale_results.labels(self.service).inc()
        elif permit.probe:
            self._settle_probe(permit, outcome, why)
        elif outcome is Verdict.SUCCESS:
            if self._window.good(self._clock()):
                self._fleet.used(self.service)
            if self._failures > self._forgiven or self._shared.failures:
                self._forgive(permit)
        elif outcome is Verdict.FAILURE:
            self._count_failure(why)

    def _forgive(self, permit: Permit) -> None:
        """A success proves wrong the failures that were known when it began, not the later ones."""
        self._forgiven = max(self._forgiven, permit.seen)
        self._fleet.succeeded(self.service, seen=permit.seen_by_all, own=permit.seen)
        self._renew()

    def _count_failure(self, why: str | None) -> None:
        now = self._clock()
        self.last_error = why
        if self._shared.state is BreakerState.DISABLED:
            if not self._shared.expires_at or now < self._shared.expires_at:
                return
            self._end_order()
        self._failures += 1
        if self._window.failed(now):
            self._fleet.used(self.service)
        tripped = self.fail_counter >= self.policy.fail_max or self._is_flapping(now)
        self._renew()
        if tripped:
            self.open()
        self._fleet.failed(self.service, self._failures, tripped=tripped)

    def _is_flapping(self, now: float) -> bool:
        good, failed = self._window.counts(now)
        calls = good + failed
        return calls >= self.policy.minimum_calls and failed >= self.policy.failure_rate * calls

    def _settle_probe(self, permit: Permit, outcome: Verdict, why: str | None) -> None:
        if outcome is Verdict.FAILURE:
            self.last_error = why
        if permit.token is not None:  # the shared record decides, and tells
            self._fleet.probed(self.service, permit.token, outcome, why)
        elif self._shared.state is BreakerState.CLOSED:
            self._settle_own(permit, outcome)
        else:
            self.decide_alone(outcome)

    def _settle_own(self, permit: Permit, outcome: Verdict) -> None:
        if outcome is Verdict.SUCCESS:
            self.close()
            self._fleet.succeeded(self.service, seen=permit.seen_by_all, own=permit.seen)
        elif outcome is Verdict.FAILURE:
            self.open()
            self._failures += 1
            self._fleet.failed(self.service, self._failures, tripped=True)
        else:
            self.half_open()

    def decide_alone(self, outcome: Verdict) -> None:
        """A probe of the fleet's state ended and Redis is silent; it is told once it is back."""
        if outcome is Verdict.SUCCESS:
            self._become(BreakerState.CLOSED)
        elif outcome is Verdict.FAILURE:
            self._become(BreakerState.OPEN, reopens_at=self._clock() + self.policy.reset_timeout)
        else:
            self._probe_ends_at = 0.0

    def _become(self, state: BreakerState, *, reopens_at: float = 0.0) -> None:
        """The fleet's state as this process alone sees it, newer than what it was told."""
        epoch = self._shared.epoch + 1
        self._shared = replace(
            self._shared, state=state, epoch=epoch, reopens_at=reopens_at, failures=0, lease_ends_at=0.0
        )
        self._changed(forget=state is BreakerState.CLOSED)

    def open(self) -> None:
        """Keep this process away for the whole cool-down from now on."""
        self._own_reopens_at = self._clock() + self.policy.reset_timeout
        self._own_opened_at = datetime.now(UTC)
        self._own = BreakerState.OPEN
        self._changed()

    def half_open(self) -> None:
        """Let one probe through now."""
        self._own, self._own_reopens_at = BreakerState.OPEN, self._clock()
        self._changed()

    def close(self) -> None:
        """End this process's own cool-down and forget the failures it saw."""
        self._own = BreakerState.CLOSED
        self._changed(forget=True)

    def order(self, state: BreakerState, *, actor: str, reason: str | None, seconds: float) -> None:
        """What an operator orders of a process without a fleet; ``seconds`` 0: until the next order."""
        forced = state in FORCED
        self._own = BreakerState.CLOSED
        self._shared = Shared(
            state=state,
            epoch=self._shared.epoch + 1,
            expires_at=self._clock() + seconds if forced and seconds else 0.0,
            actor=actor if forced else None,
            reason=reason if forced else None,
        )
        self._changed(forget=True)

    def connect(self, fleet: Fleet) -> None:
        """From now on the fleet is told."""
        self._fleet = fleet
        self.gate.connect(lambda seconds: fleet.throttled(self.service, seconds))

    def adopt(self, news: Shared) -> bool:
        """Take over what the fleet knows; False: it knows less than this process."""
        if (news.epoch, news.revision) < (self._shared.epoch, self._shared.revision):
            return news.epoch == self._shared.epoch
        before, self._shared = self._shared, news
        if news.state is BreakerState.HALF_OPEN:
            self._probe_ends_at = news.lease_ends_at
        if news.epoch == before.epoch and news.state is before.state:
            self._renew()
        else:
            self._own = BreakerState.CLOSED  # the fleet's decision takes the place of our own
            self._changed(forget=news.state is BreakerState.CLOSED)
        return True

    def _changed(self, *, forget: bool = False) -> None:
        if forget:
            self._forgiven = self._failures
            self._window.clear()
        self._generation += 1
        self._renew()
        shown, self._shown = self._shown, self.effective
        if shown is self._shown:
            return
        metrics.moved(self.service, self._shown)
        self.moved(shown, self._shown)

    def _renew(self) -> None:
        """Make the permit of all calls that begin until something changes."""
        clear = self.effective in {BreakerState.CLOSED, BreakerState.DISABLED}
        known = Permit(self, self._generation, self._failures, self._shared.sequence)
        self._closed = known if clear else None
