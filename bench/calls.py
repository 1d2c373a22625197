# SPDX-License-Identifier: Apache-2.0
"""Requests a second of the product's HTTP client, beside plain httpx and httpx over aiohttp.

All three send the same small GET to a server in a process of its own, which answers at once and counts: with
an answer that takes no time, what is measured is the clients. The product's has its guard around each call:
deadline, retries, bulkhead, breaker, attempt timeout, correlation and the limit of an answer's size.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial

import httpx
from httpx_aiohttp import AiohttpTransport

from app.resilience import Breakers, create_resilient_client
from app.resilience.registry import in_use
from bench.answering import Server, answering
from bench.report import Comparison, Goal, Report
from bench.rounds import Once, Size, alternate

OURS, PLAIN, OVER_AIOHTTP = "this product's client", "httpx", "httpx over aiohttp"
CALLERS = (1, 8, 32, 96)
JUDGED = 32
CONNECTIONS = 32


async def measure(size: Size) -> Report:
    """Each number of callers, one after the other, through the same three clients."""
    report, requests = Report("calls"), size.of(1500, 96)
    with quiet_environment(), in_use(Breakers()):
        async with answering() as server, AsyncExitStack() as stack:
            clients = clients_of(server)
            for client in clients.values():
                await stack.enter_async_context(client)
            for callers in CALLERS:
                report.comparisons.append(await compared(clients, callers, requests, size.rounds))
            sent = len(clients) * len(CALLERS) * (size.rounds + 1) * requests
            await require_answered(server, sent)
    report.goals += [
        Goal(f"the client / httpx, {JUDGED} callers", each.ratio(OURS), 3, 5)
        for callers, each in zip(CALLERS, report.comparisons, strict=True)
        if callers == JUDGED
    ]
    report.notes.append(f"{sent:,} requests were sent, and the server answered as many.")
    return report


def clients_of(server: Server) -> dict[str, httpx.AsyncClient]:
    """The three, each with as many connections; their answers are the same."""
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    return {
        PLAIN: httpx.AsyncClient(base_url=server.url, limits=limits),
        OVER_AIOHTTP: httpx.AsyncClient(base_url=server.url, transport=AiohttpTransport(limits=limits)),
        OURS: create_resilient_client("intune", base_url=server.url, max_concurrency=CONNECTIONS),
    }


async def compared(
    clients: dict[str, httpx.AsyncClient], callers: int, requests: int, rounds: int
) -> Comparison:
    """All clients with so many callers; the first round opens connections and does not count."""
    once: dict[str, Once] = {
        name: partial(per_second, client, callers, requests) for name, client in clients.items()
    }
    for each in once.values():
        await each()
    title = f"GET requests to the same server, {callers} caller{'s' if callers > 1 else ''}"
    return Comparison(title, "a second", await alternate(once, rounds), PLAIN)


async def per_second(client: httpx.AsyncClient, callers: int, requests: int) -> float:
    """Of so many callers that share the requests of one round."""
    left = iter(range(requests))

    async def caller() -> None:
        for _ in left:
            (await client.get("/")).raise_for_status()

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return requests / (time.perf_counter() - began)


async def require_answered(server: Server, sent: int) -> None:
    """Every request reached the server, and none twice, or nothing was measured."""
    answered = await server.count()
    if answered != sent:
        raise SystemExit(f"{sent} requests were sent and {answered} answered: nothing was measured")


@contextmanager
def quiet_environment() -> Iterator[None]:
    """No proxy of this machine's stands between the clients and the server."""
    taken = {name: os.environ.pop(name) for name in list(os.environ) if name.lower().endswith("_proxy")}
    try:
        yield
    finally:
        os.environ.update(taken)
