# SPDX-License-Identifier: Apache-2.0
"""Requests from a process of its own, over so many connections, as fast as they are answered or at a pace."""

import asyncio
import json
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import cast
from urllib.parse import urlsplit
from uuid import uuid4

import uvloop


@dataclass(frozen=True, slots=True)
class Load:
    """What to send. ``bodies`` are JSON texts in which ``{n}`` becomes a name never used before.

    ``pace`` is in requests a second, answered or not; 0: each connection sends when it has its answer.
    """

    url: str
    body: str
    count: int
    connections: int = 32
    pace: float = 0
    token: str = ""


@dataclass(frozen=True, slots=True)
class Answers:
    """How it went: ``latencies`` in ms, sorted; those of a pace count from when the request was due."""

    seconds: float
    statuses: dict[str, int]
    latencies: list[float]

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, hundredths: int) -> float:
        """In ms."""
        return statistics.quantiles(self.latencies, n=100)[hundredths - 1]

    def require(self, status: int) -> "Answers":
        """Itself, if every answer had this status: else nothing was measured."""
        if set(self.statuses) != {str(status)}:
            raise SystemExit(f"not every answer was {status}: {self.statuses}")
        return self


async def send(load: Load) -> Answers:
    """Have a new process send it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.load"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await process.communicate(json.dumps(asdict(load)).encode())
    if process.returncode:
        raise SystemExit(f"the load generator failed with {process.returncode}")
    return Answers(**json.loads(told))


def requests(load: Load) -> Iterator[bytes]:
    """Whole requests, made before anything is measured."""
    target, run = urlsplit(load.url), uuid4().hex
    for number in range(load.count):
        name = f"{run}-{number}"
        body = load.body.replace("{n}", name).encode()
        head = [
            f"POST {target.path} HTTP/1.1",
            f"Host: {target.netloc}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            f"Idempotency-Key: {name}",
            *([f"Authorization: Bearer {load.token}"] if load.token else []),
        ]
        yield "\r\n".join([*head, "", ""]).encode() + body


class Connection(asyncio.Protocol):
    """One connection, one request at a time; answers have a Content-Length."""

    def __init__(self, sender: "Sender") -> None:
        self._sender = sender
        self._rest = b""
        self._began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It can be used."""
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's does not descend from it

    def connection_lost(self, exc: Exception | None) -> None:
        """The server ended it: what was asked stays without an answer."""
        self._sender.lost(exc)

    def ask(self, request: bytes, since: float) -> None:
        """Send one; its time counts from ``since``."""
        self._began = since
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Take one answer, once it is whole."""
        self._rest += data
        head, found, body = self._rest.partition(b"\r\n\r\n")
        if not found or len(body) < content_length(head):
            return
        self._rest = b""
        self._sender.answered(self, head[9:12].decode(), (time.perf_counter() - self._began) * 1000)


def content_length(head: bytes) -> int:
    """Of an answer's body."""
    lowered = head.lower()
    start = lowered.index(b"content-length:") + 15
    return int(lowered[start : lowered.find(b"\r", start) if b"\r" in lowered[start:] else None])


class Sender:
    """All connections together."""

    def __init__(self, all_requests: Sequence[bytes]) -> None:
        self._requests = deque(all_requests)
        self._count = len(all_requests)
        self._idle: deque[Connection] = deque()
        self._late: deque[float] = deque()
        self._statuses: Counter[str] = Counter()
        self._latencies: list[float] = []
        self._done = asyncio.get_running_loop().create_future()
        self._paced = False

    async def run(self, load: Load) -> Answers:
        """Send everything."""
        target = urlsplit(load.url)
        loop = asyncio.get_running_loop()
        connections: list[Connection] = []
        for _ in range(load.connections):
            _, connection = await loop.create_connection(
                lambda: Connection(self), str(target.hostname), target.port or 80
            )
            connections.append(connection)
        began = time.perf_counter()
        if load.pace:
            self._paced = True
            self._idle.extend(connections)
            await self._keep_pace(load, began)
        else:
            for connection in connections[: self._count]:
                connection.ask(self._requests.popleft(), time.perf_counter())
        await self._done
        return Answers(time.perf_counter() - began, dict(self._statuses), sorted(self._latencies))

    async def _keep_pace(self, load: Load, began: float) -> None:
        for number in range(load.count):
            due = began + number / load.pace
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            self._late.append(due)
            self._serve()

    def _serve(self) -> None:
        while self._late and self._idle:
            self._idle.popleft().ask(self._requests.popleft(), self._late.popleft())

    def answered(self, connection: Connection, status: str, milliseconds: float) -> None:
        """One answer is there."""
        self._statuses[status] += 1
        self._latencies.append(milliseconds)
        if len(self._latencies) == self._count:
            self._done.set_result(None)
        elif self._paced:
            self._idle.append(connection)
            self._serve()
        elif self._requests:
            connection.ask(self._requests.popleft(), time.perf_counter())

    def lost(self, error: Exception | None) -> None:
        """A connection has ended."""
        if not self._done.done():
            self._done.set_exception(ConnectionError(f"the server ended a connection: {error}"))


async def main() -> None:
    """What standard input asks for."""
    load = Load(**json.loads(sys.stdin.read()))
    answers = await Sender(list(requests(load))).run(load)
    sys.stdout.write(json.dumps(asdict(answers)))


if __name__ == "__main__":
    uvloop.run(main())
