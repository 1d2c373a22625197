# SPDX-License-Identifier: Apache-2.0
"""What was read a moment ago, kept in the process so that the accept path need not read it again."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

LIFETIME = 2.0
MAX_KEPT = 10_000


class Recent(Generic[Key, Value]):
    """Values at most ``lifetime`` seconds old, counted from when their reading began.

    Callers that miss the same key at the same time share one reading. None is never kept, so that
    guessed keys cost no memory.
    """

    def __init__(self, read: Callable[[Key], Awaitable[Value | None]], *, lifetime: float = LIFETIME) -> None:
        self._read = read
        self._lifetime = lifetime
        self._kept: dict[Key, tuple[float, Value]] = {}
        self._reading: dict[Key, asyncio.Task[Value | None]] = {}

    async def get(self, key: Key) -> Value | None:
        """The value, read now unless it was read a moment ago."""
        kept = self._kept.get(key)
        if kept is not None and kept[0] > time.monotonic():
            return kept[1]
        reading = self._reading.get(key)
        if reading is None:
            reading = self._reading[key] = asyncio.create_task(self._read_and_keep(key))
            reading.add_done_callback(lambda done: self._forget(key, done))
        return await asyncio.shield(reading)

    def clear(self) -> None:
        """Forget everything: this process has written. What is being read now is not kept either."""
        self._kept.clear()
        self._reading.clear()

    async def _read_and_keep(self, key: Key) -> Value | None:
        until = time.monotonic() + self._lifetime
        value = await self._read(key)
        if value is not None and self._reading.get(key) is asyncio.current_task():
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            self._kept[key] = (until, value)
        return value

    def _forget(self, key: Key, done: asyncio.Task[Value | None]) -> None:
        if self._reading.get(key) is done:
            del self._reading[key]
        if not done.cancelled():
            done.exception()  # seen, even if every caller has gone
