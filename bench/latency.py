# SPDX-License-Identifier: Apache-2.0
"""How long a submission takes to the plane on an idle system: until the first request that carries its id."""

import asyncio
import contextlib
import json
import random
import re
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self
from urllib.parse import urlsplit
from uuid import uuid4

import httpx

from app import examples, supervisor
from bench.installation import answering_process, installed
from bench.report import Comparison, Goal, Report
from bench.rounds import Size
from tests.waiting import eventually

CORRELATION = re.compile(rb"x-correlation-id: *([0-9a-f-]{36})", re.IGNORECASE)
ACCEPTED, REACHED = "until it is accepted", "until this product's first request"
EXAMPLE = "ansible-example-agent"
"""Of a plane that sets no limits: after a few submissions a second Intune's would be what is measured."""
PAUSES = 0.2, 0.7
"""Seconds between submissions, by chance: no rhythm of the relay or of the queue is to be met each time."""


async def measure(size: Size) -> Report:
    """One submission at a time, each of another application, to one ring."""
    count = size.of(100, 5)
    async with sandbox() as planes, Ear(planes) as ear, installed(workers=1, sandbox_url=ear.url) as product:
        body = json.loads(examples.make(EXAMPLE, product.place.path / "examples").read_text())
        headers = {"Authorization": f"Bearer {product.token}"}
        async with httpx.AsyncClient(base_url=product.url, headers=headers, trust_env=False) as client:
            await sample(client, body, ear)  # tokens and connections are there before anything counts
            samples = [await sample(client, body, ear) for _ in range(count)]
    return report_of(samples)


def report_of(samples: list[tuple[float, float]]) -> Report:
    """Of pairs of milliseconds: until accepted, until the plane was reached."""
    accepted, reached = ([pair[part] for pair in samples] for part in (0, 1))
    report = Report("latency")
    figures = {ACCEPTED: accepted, REACHED: reached}
    report.comparisons.append(Comparison("one submission on an idle system", "ms", figures, ACCEPTED))
    cuts = statistics.quantiles(reached, n=100, method="inclusive")
    for what, found, floor, target in (("p50", cuts[49], 150, 60), ("p99", cuts[98], 400, 150)):
        report.goals.append(
            Goal(f"accept to first request, {what}", found, floor, target, "ms", at_most=True)
        )
    report.notes.append(f"{len(samples)} submissions, each found at the plane by its correlation id.")
    return report


async def sample(client: httpx.AsyncClient, body: dict[str, object], ear: "Ear") -> tuple[float, float]:
    """Submit once and wait until the plane hears of it; milliseconds to the answer, and to the plane."""
    await asyncio.sleep(random.uniform(*PAUSES))  # noqa: S311 - chance, not secrecy
    correlation = str(uuid4())
    intent = body | {"app_name": f"App {correlation}", "target_ring": "LAB"}
    headers = {"X-Correlation-ID": correlation, "Idempotency-Key": correlation}
    began = time.perf_counter()
    (await client.post("/api/v1/deployments", json=intent, headers=headers)).raise_for_status()
    accepted = time.perf_counter()
    await eventually(lambda: correlation in ear.heard, within=120, every=0.01)
    return (accepted - began) * 1000, (ear.heard[correlation] - began) * 1000


class Ear:
    """Stands before the planes: hands every byte on, and keeps when each correlation id came first."""

    def __init__(self, planes: str) -> None:
        self._planes = urlsplit(planes)
        self.heard: dict[str, float] = {}
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, supervisor.HOST)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://{supervisor.HOST}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            asked, answering = await asyncio.open_connection(self._planes.hostname, self._planes.port)
            await asyncio.gather(self._hand_on(reader, answering, listen=True), self._hand_on(asked, writer))

    async def _hand_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, listen: bool = False
    ) -> None:
        while data := await reader.read(65_536):
            if listen:
                for found in CORRELATION.findall(data):
                    self.heard.setdefault(found.decode(), time.perf_counter())
            writer.write(data)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def sandbox() -> AsyncIterator[str]:
    """The sandbox planes in a process of their own; their address."""
    port = supervisor.free_port()
    async with answering_process(port, "/health", "app.cli", "sandbox", "--port", str(port)) as url:
        yield url
