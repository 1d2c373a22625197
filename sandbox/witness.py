# SPDX-License-Identifier: Apache-2.0
"""What somebody outside may ask a plane: which requests reached it, and which objects it holds."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandbox.journal import Document, Table

MUTATING = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass
class Exchange:
    """One request on its way through a plane. ``applied`` once the plane has carried it out with success."""

    method: str
    path: str
    effect_key: str | None
    correlation_id: str | None
    applied: bool = False
    noted: bool = False


class Witness:
    """Counts every request, and keeps every mutating one with the status its sender was given.

    ``status`` None: the connection was broken before an answer. ``reads`` are patterns of ``METHOD path``
    that change nothing in spite of their method, ``writes`` of those that do.
    """

    def __init__(
        self,
        *,
        counts: Table,
        mutations: Table,
        clock: Callable[[], float],
        reads: tuple[str, ...],
        writes: tuple[str, ...],
    ) -> None:
        self._counts = counts
        self._mutations = mutations
        self._clock = clock
        self._reads = reads
        self._writes = writes

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """An application that is watched."""

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            exchange: Exchange = scope["sandbox.exchange"]
            self._count(exchange)

            async def note_and_send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    self._note(exchange, message["status"])
                await send(message)

            try:
                await app(scope, receive, note_and_send)
            finally:
                self._note(exchange, None)

        return watched

    def report(self) -> Document:
        """The body of ``GET /_sandbox/requests``."""
        counts = {key: document["count"] for key, document in self._counts.items()}
        return {"counts": counts, "mutations": list(self._mutations.values())}

    def _count(self, exchange: Exchange) -> None:
        key = f"{exchange.method} {exchange.path}"
        self._counts.put_late(key, {"count": self._counts.get(key, {"count": 0})["count"] + 1})

    def _note(self, exchange: Exchange, status: int | None) -> None:
        line = f"{exchange.method} {exchange.path}"
        changes = exchange.method in MUTATING or any(fnmatchcase(line, write) for write in self._writes)
        if exchange.noted or not changes:
            return
        exchange.noted = True
        if any(fnmatchcase(line, read) for read in self._reads):
            return
        document = {
            "method": exchange.method,
            "path": exchange.path,
            "effect_key": exchange.effect_key,
            "correlation_id": exchange.correlation_id,
            "status": status,
            "applied": exchange.applied,
            "at": instant(self._clock()),
        }
        self._mutations.put(f"{len(self._mutations):09d}", document)


def mark_applied(app: ASGIApp) -> ASGIApp:
    """Note, closest to the vendor, whether a request was carried out, whatever becomes of its answer."""

    async def marking(scope: Scope, receive: Receive, send: Send) -> None:
        async def look(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["sandbox.exchange"].applied = message["status"] < 400
            await send(message)

        await app(scope, receive, look)

    return marking


def exchange_of(scope: Scope, path: str) -> Exchange:
    """A request as the witness sees it; what its sender does not tell is None."""
    headers = Headers(scope=scope)
    correlation_id = headers.get("client-request-id") or headers.get("x-correlation-id")
    return Exchange(scope["method"], path, headers.get("x-effect-key"), correlation_id)


def instant(at: float) -> str:
    """An instant as RFC 3339 in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
