# SPDX-License-Identifier: Apache-2.0
"""A Redis without memory: work waits, and nothing of it is lost."""

from redis.asyncio import Redis

from tests.faults.conftest import Bench, Workers
from tests.waiting import eventually


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
