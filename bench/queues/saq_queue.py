# SPDX-License-Identifier: Apache-2.0
"""SAQ: waits in Redis for what comes, keeps nothing of what is done."""

import asyncio
from typing import Any

import uvloop
from redis.asyncio import Redis
from saq import Worker
from saq.queue.redis import RedisQueue

from bench.queues.place import Place, Told

TOGETHER = 100


def work(place: Place, told: Told) -> None:
    """One worker."""

    async def noop(_: Any) -> None:
        told.one()

    async def serve() -> None:
        queue = RedisQueue(Redis.from_url(place.redis_url))
        await Worker(queue, functions=[("noop", noop)], concurrency=place.jobs).start()

    uvloop.run(serve())


async def enqueue(place: Place, number: int) -> None:
    """Many at a time."""
    queue = RedisQueue(Redis.from_url(place.redis_url), max_concurrent_ops=TOGETHER)
    await queue.connect()
    for first in range(0, number, TOGETHER):
        together = min(TOGETHER, number - first)
        await asyncio.gather(*(queue.enqueue("noop", ttl=-1) for _ in range(together)))
    await queue.disconnect()
