# SPDX-License-Identifier: Apache-2.0
"""arq, tuned: it looks every 10 ms, runs many at once and keeps no results."""

import asyncio
from itertools import repeat
from typing import Any

import uvloop
from arq.connections import RedisSettings, create_pool
from arq.worker import Worker, func

from bench.queues.place import Place, Told

TOGETHER = 100


def work(place: Place, told: Told) -> None:
    """One worker."""

    async def noop(_: dict[Any, Any]) -> None:
        told.one()

    uvloop.run(serve(place, noop))


async def serve(place: Place, job: Any) -> None:
    """With this one job."""
    worker = Worker(
        functions=[func(job, name="job", keep_result=0)],
        redis_settings=RedisSettings.from_dsn(place.redis_url),
        max_jobs=place.jobs,
        poll_delay=0.01,
        keep_result=0,
        handle_signals=False,
    )
    await worker.async_run()


async def enqueue(place: Place, number: int, *arguments: tuple[Any, ...]) -> None:
    """Many at a time; ``arguments``: one tuple for each job."""
    pool = await create_pool(RedisSettings.from_dsn(place.redis_url))
    given = list(arguments or repeat((), number))
    for first in range(0, number, TOGETHER):
        await asyncio.gather(*(pool.enqueue_job("job", *each) for each in given[first : first + TOGETHER]))
    await pool.aclose()
