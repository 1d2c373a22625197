# SPDX-License-Identifier: Apache-2.0
"""A Redis that is full, killed, emptied, silent, or fails over to an older copy: it only rings."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from app.embedded import Server, embedded_valkey
from app.settings import Settings
from tests.databases import Template
from tests.faults.conftest import Bench, Workers
from tests.installation import World, open_world
from tests.servers import scratch_data_folder
from tests.waiting import eventually
from workers import queues

SLOWEST = 2.0
"""Seconds within which a deployment is accepted, whatever became of Redis; most of it is a busy machine's."""
SECONDS, LONG = 12.0, 60.0
"""How long it is broken, in the middle of rollouts: longer than its clients wait for an answer."""


async def done(bench: Bench) -> int:
    return await bench.count("operations WHERE status = 'SUCCEEDED'")


async def test_a_redis_that_is_full_delays_the_work_and_loses_none(
    bench: Bench, crew: Workers, redis: Redis
) -> None:
    worker = await crew.start()
    await redis.config_set("maxmemory-policy", "noeviction")
    await redis.config_set("maxmemory", "1")
    for _ in range(100):
        await bench.enqueue()
    await eventually(lambda: "relay_failed" in worker.said(), within=10)
    assert worker.process.returncode is None

    await redis.config_set("maxmemory", "0")

    await eventually(lambda: done(bench), until=lambda number: number == 100, within=30)
    assert await bench.count("runs") == 100


@pytest.mark.long
async def test_a_failover_to_an_older_copy_runs_nothing_twice_and_loses_nothing(
    bench: Bench, crew: Workers, redis: Redis
) -> None:
    worker = await crew.start(max_jobs=2)
    first = await held_back(bench, redis, 100)
    copy = {key: (await redis.dump(key), max(await redis.pttl(key), 0)) for key in await redis.keys("*")}
    first()
    await eventually(lambda: done(bench), until=lambda number: number == 102, within=30)
    second = await held_back(bench, redis, 100)

    await redis.flushall()
    for key, (value, left) in copy.items():  # names what is done, and nothing of what waits
        await redis.restore(key, left, value)
    second()

    await eventually(lambda: done(bench), until=lambda number: number == 204, within=60)
    assert await bench.count("runs") == 204
    assert await bench.count("effects_of_jobs") == 204
    assert worker.process.returncode is None


async def held_back(bench: Bench, redis: Redis, number: int) -> Callable[[], None]:
    """Operations that wait in the queue behind two that fill the only worker, and what lets them go on."""
    gate = bench.gate()
    for _ in range(2):
        held = await bench.enqueue("gated", gate=str(gate))
        await eventually(partial(bench.pids, held), within=10)
    for _ in range(number):
        await bench.enqueue()
    key = queues.queue_key("default")
    await eventually(lambda: redis.zcard(key), until=lambda waiting: waiting >= number, within=20)
    return gate.touch


@asynccontextmanager
async def killed(server: Server) -> AsyncIterator[None]:
    """It comes back by itself, with nothing in it."""
    os.kill(server.child.pid, signal.SIGKILL)
    yield


@asynccontextmanager
async def gone(server: Server) -> AsyncIterator[None]:
    await server.child.stop()
    yield
    await server.child.start()


@asynccontextmanager
async def silent(server: Server) -> AsyncIterator[None]:
    """It takes connections and answers nothing."""
    os.kill(server.child.pid, signal.SIGSTOP)
    yield
    os.kill(server.child.pid, signal.SIGCONT)


@asynccontextmanager
async def emptied(server: Server) -> AsyncIterator[None]:
    async with Redis.from_url(server.url) as client:
        await client.flushall()
    yield


@asynccontextmanager
async def full(server: Server) -> AsyncIterator[None]:
    async with Redis.from_url(server.url) as client:
        await client.config_set("maxmemory-policy", "noeviction")
        await client.config_set("maxmemory", "1")
        yield
        await client.config_set("maxmemory", "0")


@pytest.fixture(scope="module")
async def beside(
    template: Template, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[World, Server]]:
    """An installation whose Redis is its own, to be broken."""
    folder = tmp_path_factory.mktemp("world")
    with scratch_data_folder() as place:
        async with embedded_valkey(place, report=print, durable=False) as server, template.cloned() as url:
            settings = Settings(database_url=SecretStr(url), redis_url=SecretStr(server.url))
            async with open_world(settings, folder) as world:
                yield world, server


@pytest.mark.long
@pytest.mark.parametrize(
    ("broken", "seconds", "seen"),
    [
        (killed, SECONDS, "healthy"),
        (gone, SECONDS, "degraded"),
        (silent, LONG, "degraded"),
        (emptied, SECONDS, "healthy"),
        (full, SECONDS, "degraded"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
async def test_rollouts_go_on_and_are_accepted_at_once_whatever_becomes_of_redis(
    beside: tuple[World, Server],
    broken: Callable[[Server], AbstractAsyncContextManager[None]],
    seconds: float,
    seen: str,
) -> None:
    world, server = beside
    await world.faults({"path": "*", "latency": 0.1})
    submitted = [
        await world.submit(app_name=f"{broken.__name__} {number}", target_ring="PILOT") for number in range(3)
    ]
    await world.begun(submitted[0])

    async with broken(server):
        until = time.monotonic() + seconds
        for number in range(10):
            began = time.monotonic()
            name = f"Accepted while {broken.__name__} {number}"
            submitted.append(await world.submit(app_name=name, target_ring="LAB"))
            assert time.monotonic() - began < SLOWEST
        told = set[str]()
        while time.monotonic() < until:
            told.add((await world.client.get("/health"))["status"])  # never 503
            await asyncio.sleep(0.5)
    assert seen in told <= {"healthy", "degraded"}

    await world.all_complete(submitted)
