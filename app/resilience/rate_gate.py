# SPDX-License-Identifier: Apache-2.0
"""When a service that asked its callers to slow down may be called again: one instant for the whole fleet."""

import asyncio
import random
import time
from collections.abc import Callable

from app.resilience.errors import Throttled

LONGEST_WAIT_IN_PROCESS = 20.0
"""Longer than this nobody sleeps: the work is put off, and the worker takes other work."""
SPREAD, WIDEST_SPREAD = 0.1, 1.0
"""Waiters come back within a tenth of the wait, at most a second, so that they do not come all at once."""
UNTOLD_WAIT = 1.0
"""Seconds to wait where the service says that it is too much, but not for how long."""


Spread = Callable[[float], None]
"""Tells the other processes of a pause of so many seconds."""


def tell_nobody(_: float) -> None:
    """A process without a fleet."""


class RateGate:
    """Closed until ``opens_at``, on the process's monotonic clock; an earlier instant never replaces it."""

    __slots__ = ("_clock", "_spread", "opens_at", "service")

    def __init__(self, service: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.service = service
        self.opens_at = 0.0
        self._clock = clock
        self._spread: Spread = tell_nobody

    def connect(self, spread: Spread) -> None:
        """From now on ``throttle`` tells the other processes too."""
        self._spread = spread

    def remaining(self) -> float:
        """Seconds until calls may leave again; 0 when they may now."""
        return max(0.0, self.opens_at - self._clock())

    def throttle(self, seconds: float | None) -> None:
        """The service asked for a pause of so many seconds; None: it did not say for how long."""
        wait = UNTOLD_WAIT if seconds is None else seconds
        self.close_for(wait)
        self._spread(wait)

    def close_for(self, seconds: float) -> None:
        """As another process was told."""
        self.opens_at = max(self.opens_at, self._clock() + seconds)

    async def wait(self, *, until: float) -> None:
        """Sleep until calls may leave again.

        Raises:
            Throttled: that is after ``until``, or longer than a worker should sleep.
        """
        while (left := self.remaining()) > 0:
            if left > min(until - self._clock(), LONGEST_WAIT_IN_PROCESS):
                detail = f"{self.service} asked for a pause, {left:.1f} s of it are left"
                raise Throttled(detail, service=self.service, retry_after=left)
            spread = random.uniform(0, min(left * SPREAD, WIDEST_SPREAD))  # noqa: S311 - spreads load
            await asyncio.sleep(min(left + spread, max(left, until - self._clock())))
