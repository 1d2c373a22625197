# SPDX-License-Identifier: Apache-2.0
"""What the layers around a call cost: beside nothing, and beside the libraries that they stand in for.

Each contender awaits the same function, which returns at once; what that takes alone is taken off in the same
round. ``app.resilience.call`` is the way of calls that are not HTTP, the guard what both ways go through.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

import aiobreaker
from redis.asyncio import Redis
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from app.embedded import embedded_valkey
from app.redis import open_hasty_redis
from app.resilience import DEFAULT_RETRY, Breakers, Safety, call
from app.resilience.guard import Attempt
from app.resilience.registry import in_use
from bench.report import Comparison, Goal, Report
from bench.rounds import Once, Size, alternate
from tests.servers import scratch_data_folder

OURS, THREE, BARE = "this product's guard", "timeout + aiobreaker + tenacity", "bare await"
SERVICE = "intune"

Call = Callable[[], Awaitable[Any]]


async def measure(size: Size) -> Report:
    """Microseconds, and whether Redis is asked while calls succeed."""
    report = Report("guard")
    breakers, count = Breakers(), size.of(20_000, 300)
    with in_use(breakers):
        compared: dict[str, Once] = {
            name: partial(microseconds, each, count) for name, each in contenders(breakers, size).items()
        }
        for once in compared.values():
            await once()
        found = added(await alternate(compared, size.rounds))
    comparison = Comparison("added to a call that succeeds at once", "µs", found, THREE)
    report.comparisons.append(comparison)
    report.goals.append(
        Goal("the guard's own time", statistics.median(found[OURS]), 22, 10, unit="µs", at_most=True)
    )
    report.notes.append(await asked_of_redis(size.of(200_000, 2000)))
    return report


def added(seen: dict[str, list[float]]) -> dict[str, list[float]]:
    """What is left of each when the bare call of the same round is taken off."""
    bare = seen.pop(BARE)
    return {
        name: [one - nothing for one, nothing in zip(each, bare, strict=True)] for name, each in seen.items()
    }


async def microseconds(once: Call, count: int) -> float:
    """Of one call, on average of so many in a row; of the processor's time, for nothing here waits."""
    began = time.process_time()
    for _ in range(count):
        if await once() != 1:
            raise SystemExit("a call was not made: nothing was measured")
    return (time.process_time() - began) / count * 1e6


async def nothing() -> int:
    """The call that succeeds at once."""
    return 1


async def nothing_tried(_: Attempt) -> int:
    """The same, as the guard calls it."""
    return 1


def contenders(breakers: Breakers, size: Size) -> dict[str, Call]:
    """What is compared, by name; each makes one call."""
    guard = breakers.guard(SERVICE)

    async def guarded() -> int:
        return await guard.run(nothing_tried, safety=Safety.IDEMPOTENT, profile=DEFAULT_RETRY)

    async def called() -> int:
        return await call(SERVICE, nothing)

    return {
        BARE: nothing,
        **libraries(),
        **(peers() if size.peers else {}),
        OURS: guarded,
        "app.resilience.call of this product": called,
    }


def libraries() -> dict[str, Call]:
    """The parts that a stack is usually built of, and one built of them."""
    breaker = aiobreaker.CircuitBreaker(fail_max=5, timeout_duration=timedelta(seconds=60))

    async def timed() -> int:
        async with asyncio.timeout(30):
            return await nothing()

    async def broken() -> Any:
        return await breaker.call_async(nothing)

    async def retried() -> Any:
        return await retrying()(nothing)

    async def all_three() -> Any:
        async def attempt() -> Any:
            return await breaker.call_async(timed)

        return await retrying()(attempt)

    return {"asyncio.timeout": timed, "aiobreaker": broken, "tenacity": retried, THREE: all_three}


def retrying() -> AsyncRetrying:
    """As the guard's profile."""
    return AsyncRetrying(
        stop=stop_after_attempt(3),
        wait=wait_exponential(min=1, max=10),
        retry=retry_if_exception_type(ConnectionError),
        reraise=True,
    )


def peers() -> dict[str, Call]:
    """A breaker and a way to retry of others."""
    import purgatory
    import stamina

    circuits = purgatory.AsyncCircuitBreakerFactory(default_threshold=5, default_ttl=60)

    async def by_purgatory() -> int:
        async with await circuits.get_breaker(SERVICE):
            return await nothing()

    by_stamina: Call = stamina.retry(on=ConnectionError, attempts=3)(nothing)
    return {"purgatory": by_purgatory, "stamina": by_stamina}


async def asked_of_redis(count: int) -> str:
    """How many scripts Redis ran while a connected process made so many calls: only the beat's.

    Raises:
        SystemExit: some calls cost a script.
    """
    with scratch_data_folder() as place:
        async with embedded_valkey(place, report=lambda _: None, durable=False) as valkey:
            breakers = Breakers()
            async with open_hasty_redis(valkey.url) as redis, breakers.shared(redis, process="bench"):
                guard, before, began = (
                    breakers.guard(SERVICE),
                    await scripts_run(valkey.url),
                    time.monotonic(),
                )
                for _ in range(count):
                    await guard.run(nothing_tried, safety=Safety.IDEMPOTENT, profile=DEFAULT_RETRY)
                seconds, ran = time.monotonic() - began, await scripts_run(valkey.url) - before
    if (
        ran > 2 + seconds
    ):  # the beat comes every two seconds, and the first call says that the service is used
        raise SystemExit(f"Redis ran {ran} scripts in {seconds:.1f} s: calls that succeed ask it")
    return f"{count:,} calls of a connected process in {seconds:.1f} s: Redis ran {ran} scripts."


async def scripts_run(url: str) -> int:
    """So far, by Redis' own count."""
    async with Redis.from_url(url) as redis:
        stats = await redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))
