# SPDX-License-Identifier: Apache-2.0
"""How many calls a service gets from this process at a time, and how many may wait for their turn."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.resilience.errors import LocalSaturation

WAITING_PER_PERMIT = 16
RAMP_STEP = 1.0
"""Seconds after which a service that is just back gets twice as many calls at once."""
TRY_AGAIN_AFTER = 1.0


class Bulkhead:
    """At most ``limit`` calls at once and 16 times as many in the queue; whoever comes later is refused."""

    def __init__(self, service: str, limit: int, *, ramp_step: float = RAMP_STEP) -> None:
        if limit < 1:
            raise ValueError(f"bulkhead {service}: the limit must be above zero")
        self.service = service
        self.limit = limit
        self.longest_queue = limit * WAITING_PER_PERMIT
        self._permits = asyncio.Semaphore(limit)
        self._waiting = 0
        self._ramp_step = ramp_step
        self._ramp: asyncio.Task[None] | None = None
        self.held = 0

    async def acquire(self, *, within: float) -> None:
        """Wait for a permit, at most ``within`` seconds.

        Raises:
            LocalSaturation: too many are waiting already, or the time is over.
        """
        if self._permits.locked():
            await self._queue(within)
        else:
            await self._permits.acquire()
        self.held += 1

    async def _queue(self, within: float) -> None:
        if self._waiting >= self.longest_queue:
            raise self._full(f"{self._waiting} calls to {self.service} wait already")
        self._waiting += 1
        try:
            async with asyncio.timeout(within):
                await self._permits.acquire()
        except TimeoutError as error:
            raise self._full(f"no turn for a call to {self.service} within {within:.0f} s") from error
        finally:
            self._waiting -= 1

    def _full(self, detail: str) -> LocalSaturation:
        return LocalSaturation(detail, service=self.service, retry_after=TRY_AGAIN_AFTER)

    def ramp(self) -> None:
        """Begin with one call at a time and double: everybody waited for the service, and it is just back."""
        self.end_ramp()
        self._ramp = asyncio.create_task(self._give_slowly())

    def end_ramp(self) -> None:
        """All permits are there from now on."""
        if self._ramp is not None:
            self._ramp.cancel()

    async def _give_slowly(self) -> None:
        """Hold all permits but one, and give them back step by step."""
        kept, step = 0, 1
        try:
            while kept < self.limit - 1:
                await self._permits.acquire()
                kept += 1
            while kept > 0:
                await asyncio.sleep(self._ramp_step)
                for _ in range(min(step, kept)):
                    self._permits.release()
                    kept -= 1
                step *= 2
        finally:
            for _ in range(kept):
                self._permits.release()

    def release(self) -> None:
        """Give the permit back."""
        self.held -= 1
        self._permits.release()

    @asynccontextmanager
    async def permit(self, *, within: float) -> AsyncIterator[None]:
        """Hold a permit while the block runs."""
        await self.acquire(within=within)
        try:
            yield
        finally:
            self.release()
