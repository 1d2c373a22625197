# SPDX-License-Identifier: Apache-2.0
"""What the layers around a call cost: beside nothing, beside other libraries, and over real HTTP.

``python -m bench.guard``; ``--json`` prints one document. All of it is measured in one run, in alternating
rounds; the figures are medians, and only those of one run may be compared.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import timedelta
from typing import Any

import aiobreaker
import httpx
import purgatory
import stamina
from httpx_aiohttp import AiohttpTransport
from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from app.embedded import embedded_valkey
from app.redis import open_hasty_redis
from app.resilience import DEFAULT_RETRY, Breakers, Safety, call, create_resilient_client
from app.resilience.guard import Attempt
from app.resilience.registry import in_use
from bench.answering import answering
from tests.servers import scratch_data_folder

ROUNDS = 9
CALLS = 3000
REQUESTS = 1500
CONCURRENCIES = (1, 32)
SERVICE = "intune"

Once = Callable[[], Awaitable[Any]]
Json = dict[str, Any]


async def nothing() -> int:
    """The call that succeeds at once."""
    return 1


async def nothing_tried(_: Attempt) -> int:
    """The same, as the guard calls it."""
    return 1


def stacks(breakers: Breakers) -> dict[str, Once]:
    """What is compared, by name; each makes one call."""
    breaker = aiobreaker.CircuitBreaker(fail_max=5, timeout_duration=timedelta(seconds=60))
    circuits = purgatory.AsyncCircuitBreakerFactory(default_threshold=5, default_ttl=60)
    guard = breakers.guard(SERVICE)

    async def timed() -> int:
        async with asyncio.timeout(30):
            return await nothing()

    async def broken_by_aiobreaker() -> Any:
        return await breaker.call_async(nothing)

    async def retried_by_tenacity() -> Any:
        return await retrying()(nothing)

    async def all_three() -> Any:
        async def attempt() -> Any:
            return await breaker.call_async(timed)

        return await retrying()(attempt)

    async def by_purgatory() -> int:
        async with await circuits.get_breaker(SERVICE):
            return await nothing()

    by_stamina: Once = stamina.retry(on=ConnectionError, attempts=3)(nothing)

    async def guarded() -> int:
        return await guard.run(nothing_tried, safety=Safety.IDEMPOTENT, profile=DEFAULT_RETRY)

    async def called() -> int:
        return await call(SERVICE, nothing)

    return {
        "bare await": nothing,
        "asyncio.timeout": timed,
        "aiobreaker": broken_by_aiobreaker,
        "tenacity": retried_by_tenacity,
        "timeout + aiobreaker + tenacity": all_three,
        "purgatory": by_purgatory,
        "stamina": by_stamina,
        "this product's guard": guarded,
        "app.resilience.call": called,
    }


def retrying() -> AsyncRetrying:
    """As the guard's profile."""
    return AsyncRetrying(
        stop=stop_after_attempt(3),
        wait=wait_exponential(min=1, max=10),
        retry=retry_if_exception_type(ConnectionError),
        reraise=True,
    )


async def microseconds(once: Once, calls: int) -> float:
    """Of one call, on average of so many in a row."""
    began = time.perf_counter()
    for _ in range(calls):
        await once()
    return (time.perf_counter() - began) / calls * 1e6


async def overhead() -> Json:
    """Microseconds of pure Python that each stack adds to a bare call."""
    breakers = Breakers()
    seen: dict[str, list[float]] = {}
    with in_use(breakers):
        compared = stacks(breakers)
        for _ in range(ROUNDS):
            for name, once in compared.items():
                seen.setdefault(name, []).append(await microseconds(once, CALLS))
    bare = statistics.median(seen["bare await"])
    return {name: round(statistics.median(each) - bare, 2) for name, each in seen.items()}


@contextmanager
def quiet_environment() -> Iterator[None]:
    """No proxy of this machine's stands between the clients and the server."""
    taken = {name: os.environ.pop(name) for name in list(os.environ) if name.lower().endswith("_proxy")}
    try:
        yield
    finally:
        os.environ.update(taken)


async def over_http() -> Json:
    """Requests per second of each client, at one and at many callers; the server counts what came."""
    found: Json = {}
    with quiet_environment(), in_use(Breakers()):
        async with answering() as server, AsyncExitStack() as stack:
            clients = {
                "httpx": httpx.AsyncClient(base_url=server.url, limits=httpx.Limits(max_connections=32)),
                "httpx over aiohttp": httpx.AsyncClient(base_url=server.url, transport=AiohttpTransport()),
                "this product's client": create_resilient_client(
                    SERVICE, base_url=server.url, max_concurrency=32
                ),
            }
            for client in clients.values():
                await stack.enter_async_context(client)
            for callers in CONCURRENCIES:
                found[f"{callers} callers"] = await compared_over_http(clients, callers)
            sent = ROUNDS * REQUESTS * len(clients) * len(CONCURRENCIES)
            answered = await server.count()
            if answered != sent:
                raise SystemExit(f"{sent} requests were sent and {answered} answered: this measures nothing")
    return found


async def compared_over_http(clients: dict[str, httpx.AsyncClient], callers: int) -> Json:
    """Median requests per second of each client."""
    seen: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, client in clients.items():
            seen.setdefault(name, []).append(await requests_per_second(client, callers))
    return {name: round(statistics.median(each)) for name, each in seen.items()}


async def requests_per_second(client: httpx.AsyncClient, callers: int) -> float:
    """Of so many callers that share the requests of one round."""
    left = iter(range(REQUESTS))

    async def caller() -> None:
        for _ in left:
            (await client.get("/")).raise_for_status()

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return REQUESTS / (time.perf_counter() - began)


async def redis_commands() -> Json:
    """What a connected fleet asks of Redis while calls succeed: only the beat of every two seconds."""
    with scratch_data_folder() as place:
        async with embedded_valkey(place, report=lambda _: None, durable=False) as valkey:
            breakers = Breakers()
            async with open_hasty_redis(valkey.url) as redis, breakers.shared(redis, process="bench"):
                guard, calls = breakers.guard(SERVICE), 20 * CALLS
                before, began = await scripts_run(valkey.url), time.perf_counter()
                for _ in range(calls):
                    await guard.run(nothing_tried, safety=Safety.IDEMPOTENT, profile=DEFAULT_RETRY)
                seconds = time.perf_counter() - began
                return {
                    "calls": calls,
                    "seconds": round(seconds, 2),
                    "scripts": await scripts_run(valkey.url) - before,
                }


async def scripts_run(url: str) -> int:
    """So far, by Redis' own count."""
    async with Redis.from_url(url) as redis:
        stats = await redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


async def measure() -> Json:
    """Everything, one after the other."""
    return {
        "python": sys.version.split()[0],
        "load": os.getloadavg()[0],
        "rounds": ROUNDS,
        "added_microseconds": await overhead(),
        "requests_per_second": await over_http(),
        "redis": await redis_commands(),
    }


def show(found: Json) -> None:
    """As tables."""
    console = Console()
    added = found["added_microseconds"]
    ours = added["this product's guard"]
    table = Table(title=f"µs added to a call that succeeds at once (load {found['load']:.1f})", box=None)
    for column in ("", "µs", "beside the guard"):
        table.add_column(column, justify="left" if not column else "right")
    for name, each in added.items():
        table.add_row(name, f"{each:.2f}", f"{each / ours:.2f}")
    console.print(table)
    for callers, seen in found["requests_per_second"].items():
        table = Table(title=f"requests/s over HTTP, {callers}", box=None)
        for column in ("", "requests/s", "beside httpx"):
            table.add_column(column, justify="left" if not column else "right")
        for name, each in seen.items():
            table.add_row(name, str(each), f"{each / seen['httpx']:.2f}")
        console.print(table)
    redis = found["redis"]
    console.print(f"Redis: {redis['scripts']} scripts in {redis['seconds']} s and {redis['calls']} calls")


def main() -> None:
    """Measure, and show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    found = asyncio.run(measure())
    if arguments.json:
        print(json.dumps(found, indent=2))  # noqa: T201
    else:
        show(found)


if __name__ == "__main__":
    main()
