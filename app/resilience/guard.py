# SPDX-License-Identifier: Apache-2.0
"""The layers around every call out, in this order: deadline, retry, bulkhead, breaker, attempt timeout."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from app.resilience.breaker import ServiceBreaker
from app.resilience.bulkhead import Bulkhead
from app.resilience.classify import Safety, Verdict, classify_exception, verdict
from app.resilience.errors import CallError
from app.resilience.retry import RetryProfile, with_retry

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Attempt:
    """One try of a call: ``sent`` becomes true when the first byte may have reached the service."""

    sent: bool = False


@dataclass(frozen=True, slots=True)
class Guard:
    """What stands between one service and its callers in this process."""

    service: str
    breaker: ServiceBreaker
    bulkhead: Bulkhead

    async def run(
        self, function: Callable[[Attempt], Awaitable[T]], *, safety: Safety, profile: RetryProfile
    ) -> T:
        """Await ``function`` as often as the profile and ``safety`` allow.

        Raises:
            CallError: the class of the last attempt's outcome, or why none was made.
        """
        deadline = time.monotonic() + profile.total
        latest = Attempt()

        async def attempt() -> T:
            nonlocal latest
            latest = Attempt()
            return await self._once(
                function, latest, safety=safety, limit=profile.attempt_timeout, deadline=deadline
            )

        def may_repeat() -> bool:
            return safety is not Safety.UNSAFE or not latest.sent

        return await with_retry(attempt, profile=profile, deadline=deadline, may_repeat=may_repeat)

    async def _once(
        self,
        function: Callable[[Attempt], Awaitable[T]],
        attempt: Attempt,
        *,
        safety: Safety,
        limit: float,
        deadline: float,
    ) -> T:
        self.breaker.check()
        async with self.bulkhead.permit(within=deadline - time.monotonic()):
            permit = self.breaker.admit()
            outcome = Verdict.NEUTRAL
            cut_short = deadline - time.monotonic() < limit
            try:
                async with asyncio.timeout_at(self._limit(limit, deadline)):
                    result = await function(attempt)
                outcome = Verdict.SUCCESS
            except Exception as error:
                failure = classify_exception(error, service=self.service, safety=safety, sent=attempt.sent)
                if not (cut_short and isinstance(error, TimeoutError)):
                    outcome = verdict(failure, service=self.service)
                self._tell(failure, outcome)
                if failure is error:
                    raise
                raise failure from error
            finally:
                permit.settle(outcome)
            return result

    @staticmethod
    def _limit(limit: float, deadline: float) -> float:
        """When this attempt ends, on the event loop's clock."""
        return asyncio.get_running_loop().time() + min(limit, deadline - time.monotonic())

    def _tell(self, failure: CallError, outcome: Verdict) -> None:
        log.info(
            "call to %s failed: %s",
            self.service,
            failure.code,
            extra={"status": failure.status, "verdict": outcome.value},
        )
