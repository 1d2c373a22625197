# SPDX-License-Identifier: Apache-2.0
"""Server-sent events out of a body's pieces, however it was cut.

Source: the HTML standard, "Server-sent events", parsing and interpreting an event stream.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from typing import NamedTuple

from app.ai.contract import SERVICE
from app.resilience.errors import PermanentError

MAX_LINE_BYTES = 2**20
MAX_STREAM_BYTES = 10 * 2**20
LINE_END = re.compile(rb"\r\n|\n|\r")
MARK = b"\xef\xbb\xbf"
"""What may stand before the first line of a text in UTF-8."""


class Event(NamedTuple):
    """One event: its name, empty where it has none, and its data."""

    name: str
    data: str


class Lines:
    """Bytes in, whole lines out; linear in their size, however small the pieces are.

    Raises:
        PermanentError: a line, or all of them, are larger than an answer's can be.
    """

    def __init__(self) -> None:
        self._begun: list[bytes] = []
        self._line = self._all = 0
        self._after_return = False

    def of(self, piece: bytes) -> Iterator[bytes]:
        """The lines that end in this piece."""
        self._measure(len(piece), MAX_STREAM_BYTES)
        if self._after_return and piece.startswith(b"\n"):  # the other half of a line's end
            piece = piece[1:]
            self._after_return = False
        if piece:
            self._after_return = piece.endswith(b"\r")
        first, *others = LINE_END.split(piece)
        self._begin(first)
        for other in others:
            yield b"".join(self._begun)
            self._begun, self._line = [], 0
            self._begin(other)

    def _measure(self, size: int, limit: int) -> None:
        self._all += size
        if self._all > limit:
            raise PermanentError(f"{SERVICE} sent more than {limit} bytes", service=SERVICE)

    def _begin(self, part: bytes) -> None:
        self._line += len(part)
        if self._line > MAX_LINE_BYTES:
            raise PermanentError(
                f"{SERVICE} sent a line of more than {MAX_LINE_BYTES} bytes", service=SERVICE
            )
        self._begun.append(part)


class Assembly:
    """Lines in, whole events out; comments and what is unknown are left out."""

    def __init__(self) -> None:
        self._name = ""
        self._data: list[str] = []
        self._is_first = True

    def take(self, line: bytes) -> Event | None:
        """The event that this line ends, if it ends one with data."""
        if self._is_first:
            line, self._is_first = line.removeprefix(MARK), False
        if not line:
            return self._ended()
        field, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        return None

    def _ended(self) -> Event | None:
        event = Event(self._name, "\n".join(self._data)) if self._data else None
        self._name, self._data = "", []
        return event


async def events(pieces: AsyncIterable[bytes]) -> AsyncGenerator[Event, None]:
    """The events of a stream; one that is cut at its end is none.

    Raises:
        PermanentError: it is larger than an answer can be.
    """
    lines, assembly = Lines(), Assembly()
    async for piece in pieces:
        for line in lines.of(piece):
            event = assembly.take(line)
            if event is not None:
                yield event
