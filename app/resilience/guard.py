# SPDX-License-Identifier: Apache-2.0
"""The layers around every call out, from the outside in.

Deadline, operators' orders, rate gate, retry, bulkhead, breaker, attempt timeout, the call, its class. The
breaker is asked twice: before the queue of the bulkhead, so that nobody waits for a refusal, and after it. A
pause between attempts holds no permit of either. The attempt timeout is innermost, so that a call which hangs
counts as a failure of the service.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from app import telemetry
from app.resilience import deadline, metrics
from app.resilience.breaker import ServiceBreaker
from app.resilience.bulkhead import Bulkhead
from app.resilience.circuit import Permit
from app.resilience.classify import Safety, classify, classify_exception, out_of_time
from app.resilience.deadline import TimeLimit
from app.resilience.errors import CallError, DeadlineExceeded, LocalSaturation, Throttled, Unexpected, Verdict
from app.resilience.fence import Fenced
from app.resilience.retry import SHORTEST_ATTEMPT, Retries, RetryProfile, is_repeatable
from app.resilience.status import ClientPolicy

T = TypeVar("T")
log = telemetry.logger(__name__)

PROBE_MARGIN = 5.0
"""Seconds that a probe's lease outlasts its attempt: nobody probes while it may still succeed."""
ALARMING_PAUSE = 900.0
"""Seconds of a pause that a service asks for from which on somebody should know."""


class Attempt:
    """One try of a call: ``sent`` becomes true when the first byte may have reached the service.

    ``goes_on``: it was answered, but its connection stays in use; whoever ends that gives the bulkhead's
    permit back, and says how it ended under ``permit``, the breaker's.
    """

    __slots__ = ("goes_on", "number", "permit", "sent")

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self.sent = self.goes_on = False
        self.permit: Permit | None = None


class Call(Generic[T]):
    """What is to be done, how often and for how long; ``until`` on ``time.monotonic()``."""

    __slots__ = ("function", "profile", "safety", "until")

    def __init__(
        self, function: Callable[[Attempt], Awaitable[T]], safety: Safety, profile: RetryProfile, until: float
    ) -> None:
        self.function = function
        self.safety = safety
        self.profile = profile
        self.until = until

    def may_repeat(self, error: BaseException, attempt: Attempt) -> bool:
        """Whether to try again after ``attempt`` ended in ``error``."""
        return is_repeatable(error, may_repeat=self.safety is not Safety.UNSAFE or not attempt.sent)


class Guard:
    """What stands between one service and the callers of one client in this process."""

    __slots__ = ("_tally", "breaker", "bulkhead", "service")

    def __init__(self, service: str, breaker: ServiceBreaker, bulkhead: Bulkhead) -> None:
        self.service = service
        self.breaker = breaker
        self.bulkhead = bulkhead
        breaker.ramps.add(bulkhead)
        self._tally = metrics.tally(service)

    def policy(self, profile: RetryProfile) -> ClientPolicy:
        """What is in force here."""
        return ClientPolicy(profile, self.bulkhead.limit, self.bulkhead.longest_queue)

    async def run(
        self, function: Callable[[Attempt], Awaitable[T]], *, safety: Safety, profile: RetryProfile
    ) -> T:
        """Await ``function`` as often as the profile and ``safety`` allow, within the deadline of the work.

        Raises:
            CallError: the class of the last attempt's outcome, or why none was made.
        """
        now = time.monotonic()
        call = Call(function, safety, profile, deadline.earliest(now + profile.total))
        attempt = Attempt()
        self.breaker.budget.earn()
        try:
            return await self._once(call, attempt, now)
        except CallError as error:
            if profile.attempts < 2 or not call.may_repeat(error, attempt):
                raise
            return await self._again(error, call)

    async def _again(self, first: CallError, call: Call[T]) -> T:
        retries = Retries(self.service, call.profile, self.breaker.budget, call.until)
        latest = Attempt()

        async def attempt() -> T:
            nonlocal latest
            latest = Attempt(latest.number + 1)
            return await self._once(call, latest, time.monotonic())

        def repeatable(error: BaseException) -> bool:
            return error is first or call.may_repeat(error, latest)

        try:
            return await retries.after(first, attempt, repeatable)
        except CallError as error:
            if not retries.broke:
                raise
            metrics.rejected(self.service, "retry_budget")
            detail = f"{self.service} fails so often that nothing is tried again now; at last: {error.detail}"
            raise LocalSaturation(detail, service=self.service, retry_after=1.0) from error

    async def _once(self, call: Call[T], attempt: Attempt, now: float) -> T:
        """One attempt through all layers below the retries."""
        breaker, until = self.breaker, call.until
        if breaker.admit_now() is None or breaker.gate.opens_at > now or until - now < SHORTEST_ATTEMPT:
            await self._refuse_early(until)
        if not self.bulkhead.take():
            await self._queue(until)
        try:
            permit = breaker.admit_now() or await self._ask(call.profile)
            return await self._attempt(call, attempt, permit)
        finally:
            if not attempt.goes_on:
                self.bulkhead.release()

    async def _attempt(self, call: Call[T], attempt: Attempt, permit: Permit) -> T:
        began = time.monotonic()
        left, limit = call.until - began, call.profile.attempt_timeout
        try:
            with TimeLimit(min(left, limit)) as timer:
                result = await call.function(attempt)
        except Fenced:
            permit.settle(Verdict.NEUTRAL)
            raise
        except Exception as error:
            is_late = left < limit and timer.expired and isinstance(error, TimeoutError)
            self._tally.took(time.monotonic() - began)
            failure = self._failed(error, attempt, call.safety, permit, is_late=is_late)
            if failure is error:
                raise
            raise failure from error
        except BaseException:
            permit.settle(Verdict.NEUTRAL)
            raise
        self._tally.took(time.monotonic() - began)
        if attempt.goes_on and not permit.probe:
            attempt.permit = permit  # a good head proves nothing wrong that bodies have shown
            return result
        permit.settle(Verdict.SUCCESS)
        if not attempt.goes_on:
            self._tally.good += 1
        return result

    def check(self) -> None:
        """Refuse what would not be admitted now, before anything is done for it.

        Raises:
            BreakerOpen: the breaker, or an operator, keeps callers away.
        """
        try:
            self.breaker.check()
        except CallError as error:
            metrics.rejected(self.service, error.code)
            raise

    async def _refuse_early(self, until: float) -> None:
        """Before a caller queues: what would refuse it anyway, and the pause that the service asked for."""
        self.check()
        try:
            await self.breaker.gate.wait(until=until)
            if until - time.monotonic() < SHORTEST_ATTEMPT:
                detail = f"no time is left for a call to {self.service}"
                raise DeadlineExceeded(detail, service=self.service)
        except CallError as error:
            metrics.rejected(self.service, error.code)
            raise

    async def _queue(self, until: float) -> None:
        try:
            await self.bulkhead.acquire(within=until - time.monotonic())
        except LocalSaturation as error:
            metrics.rejected(self.service, error.code)
            raise

    async def _ask(self, profile: RetryProfile) -> Permit:
        try:
            return await self.breaker.admit(lease=profile.attempt_timeout + PROBE_MARGIN)
        except CallError as error:
            metrics.rejected(self.service, error.code)
            raise

    def _failed(
        self, error: Exception, attempt: Attempt, safety: Safety, permit: Permit, *, is_late: bool
    ) -> CallError:
        """The class of a failed attempt, once breaker, gate, metrics and log know of it."""
        if is_late:
            failure = out_of_time(self.service, safety=safety, sent=attempt.sent)
            permit.settle(Verdict.NEUTRAL)
        else:
            found = classify(error, service=self.service, safety=safety, sent=attempt.sent)
            failure = found if found is not None else Unexpected(repr(error), service=self.service)
            permit.end(failure)
        if isinstance(failure, Throttled) and failure.service == self.service:
            self.pause(failure.retry_after)
        self._tally.failed[failure.code] += 1
        log.info(
            "call_failed",
            service=self.service,
            attempt=attempt.number,
            code=failure.code,
            error_class=failure.error_class,
            status=failure.status,
            kept_away=failure.kept_away,
        )
        return failure

    def ended_well(self, attempt: Attempt) -> None:
        """A body that the caller reads was as it should be, or as much of it as anybody wanted."""
        if not attempt.goes_on:
            return
        attempt.goes_on = False
        self._tally.good += 1
        if attempt.permit is not None:
            attempt.permit.settle(Verdict.SUCCESS)

    def broke_off(self, error: Exception, attempt: Attempt, *, safety: Safety) -> CallError:
        """The class of an error in a body that the caller reads after its call was answered; counted once."""
        attempt.sent = True
        permit = attempt.permit or self.breaker.admit_now()
        if not attempt.goes_on or permit is None:
            return classify_exception(error, service=self.service, safety=safety, sent=True)
        attempt.goes_on = False
        return self._failed(error, attempt, safety, permit, is_late=False)

    def pause(self, seconds: float | None) -> None:
        """Keep the whole fleet from calling for so long; None: the service did not say for how long."""
        self.breaker.gate.throttle(seconds)
        metrics.throttled(self.service)
        if (seconds or 0.0) >= ALARMING_PAUSE:
            log.error("service_asks_for_a_long_pause", service=self.service, seconds=seconds)
