# SPDX-License-Identifier: Apache-2.0
"""A request's body that is too large to be held in memory."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

FILE_PIECE = 2**18


@dataclass(frozen=True, slots=True)
class FileBody:
    """A body that is read from disk each time it is sent: what stands before the file, the file, the rest.

    Given to a request as its extension ``body``, together with its ``headers``. ``start`` and ``length``, in
    bytes: only so much of the file, or what there is from there on.
    """

    head: bytes
    path: Path
    tail: bytes
    content_type: str
    start: int = 0
    length: int | None = None

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.head) + self._of_file() + len(self.tail)

    def _of_file(self) -> int:
        there = self.path.stat().st_size - self.start
        return there if self.length is None else min(there, self.length)

    @property
    def headers(self) -> dict[str, str]:
        """What the request says of it."""
        return {"Content-Type": self.content_type, "Content-Length": str(self.size)}

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body from its beginning."""
        yield self.head
        left = self._of_file()
        with self.path.open("rb") as file:
            file.seek(self.start)
            while piece := await asyncio.to_thread(file.read, min(left, FILE_PIECE)):
                left -= len(piece)
                yield piece
        yield self.tail
