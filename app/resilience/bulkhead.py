# SPDX-License-Identifier: Apache-2.0
"""How many calls a service gets from this process at a time, and how many may wait for their turn."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

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
        self._free = limit
        self._turns: deque[asyncio.Future[None]] = deque()
        self._ramp_step = ramp_step
        self._ramp: asyncio.Task[None] | None = None
        self.held = 0

    def take(self) -> bool:
        """A permit at once, if one is free: then nobody waits, for what is given back goes to those first."""
        if self._free == 0:
            return False
        self._free -= 1
        self.held += 1
        return True

    @property
    def waiting(self) -> int:
        """Calls in the queue."""
        return len(self._turns)

    async def acquire(self, *, within: float) -> None:
        """Wait for a permit, at most ``within`` seconds.

        Raises:
            LocalSaturation: too many are waiting already, or the time is over.
        """
        if self.take():
            return
        if self.waiting >= self.longest_queue:
            raise self._full(f"{self.waiting} calls to {self.service} wait already")
        try:
            async with asyncio.timeout(within):
                await self._turn()
        except TimeoutError as error:
            raise self._full(f"no turn for a call to {self.service} within {within:.0f} s") from error
        self.held += 1

    async def _turn(self) -> None:
        """Wait in the queue until a permit is handed over."""
        turn = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):  # perhaps it was passed over before we came to know of this
                    self._turns.remove(turn)
            else:
                self._pass_on()  # it was handed over at the very moment
            raise

    def _pass_on(self) -> None:
        """Hand a permit to whoever waits longest; else it is free."""
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

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
                await self._one_less()
                kept += 1
            while kept > 0:
                await asyncio.sleep(self._ramp_step)
                for _ in range(min(step, kept)):
                    self._pass_on()
                    kept -= 1
                step *= 2
        finally:
            for _ in range(kept):
                self._pass_on()

    async def _one_less(self) -> None:
        if self._free > 0:
            self._free -= 1
        else:
            await self._turn()

    def release(self) -> None:
        """Give the permit back."""
        self.held -= 1
        self._pass_on()

    @asynccontextmanager
    async def permit(self, *, within: float) -> AsyncIterator[None]:
        """Hold a permit while the block runs."""
        await self.acquire(within=within)
        try:
            yield
        finally:
            self.release()
