# SPDX-License-Identifier: Apache-2.0
"""What comes together goes together: many callers, one statement."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


class Coalescer(Generic[Key, Item]):
    """Items of many callers in few calls of ``send``, which returns the keys of those it dealt with.

    Nobody is kept waiting for company: while one of ``lanes`` is free an item leaves at once, with those that
    came in the same moment; only what comes while all are busy shares the next call, ``most`` at a time.
    """

    def __init__(
        self, send: Callable[[Mapping[Key, Item]], Awaitable[set[Key]]], *, lanes: int, most: int
    ) -> None:
        self._send = send
        self._lanes = asyncio.Semaphore(lanes)
        self._most = most
        self._open: Batch[Key, Item] | None = None

    async def dealt_with(self, key: Key, item: Item) -> bool:
        """Whether ``send`` dealt with it; if not, or if it failed, only the caller knows what to do.

        Whose key is in the open batch already waits until that has been sent, and is not dealt with.

        Raises:
            Exception: whatever ``send`` raised, to each whose item it was given.
        """
        batch = self._open
        if batch is not None and key in batch.items:
            await asyncio.shield(batch.sent)
            return False
        if batch is None or len(batch.items) >= self._most:
            batch = self._begin()
        batch.items[key] = item
        # Shielded: a caller who goes away does not take the others along.
        return key in await asyncio.shield(batch.sent)

    def _begin(self) -> "Batch[Key, Item]":
        batch = self._open = Batch[Key, Item]()
        batch.sent = asyncio.create_task(self._leave(batch))
        return batch

    async def _leave(self, batch: "Batch[Key, Item]") -> set[Key]:
        async with self._lanes:
            if self._open is batch:
                self._open = None
            return await self._send(batch.items)


class Batch(Generic[Key, Item]):
    """Items that share a call; ``sent`` ends with it."""

    sent: asyncio.Task[set[Key]]

    def __init__(self) -> None:
        self.items: dict[Key, Item] = {}
