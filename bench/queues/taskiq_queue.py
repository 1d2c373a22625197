# SPDX-License-Identifier: Apache-2.0
"""taskiq on Redis streams, which acknowledge what was done; no results are kept."""

import asyncio

import uvloop
from taskiq import compat
from taskiq.api import run_receiver_task

from bench.queues.place import Place, Told

# The last taskiq-redis for the redis that arq needs imports two names that taskiq 0.13 has dropped: for
# results and schedules, which are not used here.
for gone in ("model_dump", "model_validate"):
    vars(compat).setdefault(gone, None)

from taskiq_redis import RedisStreamBroker  # noqa: E402

TOGETHER = 100


def broker_of(place: Place) -> RedisStreamBroker:
    """Both sides'."""
    return RedisStreamBroker(place.redis_url, consumer_id="0", xread_count=100)


def work(place: Place, told: Told) -> None:
    """One worker."""

    async def serve() -> None:
        broker = broker_of(place)
        broker.is_worker_process = True

        @broker.task("noop")  # type: ignore[untyped-decorator]
        async def noop() -> None:
            told.one()

        await broker.startup()
        await run_receiver_task(broker, max_async_tasks=place.jobs, max_prefetch=place.jobs)

    uvloop.run(serve())


async def enqueue(place: Place, number: int) -> None:
    """Many at a time."""
    broker = broker_of(place)

    @broker.task("noop")  # type: ignore[untyped-decorator]
    async def noop() -> None:
        """The worker has the job."""

    await broker.startup()
    for first in range(0, number, TOGETHER):
        await asyncio.gather(*(noop.kiq() for _ in range(min(TOGETHER, number - first))))
    await broker.shutdown()
