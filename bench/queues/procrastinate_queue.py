# SPDX-License-Identifier: Apache-2.0
"""procrastinate: the other queue here that keeps its jobs, and their ends, in PostgreSQL."""

import asyncpg
import uvloop
from procrastinate import App, PsycopgConnector

from bench.queues.place import Place, Told


def app_of(place: Place, *, connections: int) -> App:
    """Both sides'."""
    return App(
        connector=PsycopgConnector(
            conninfo=place.database_url, min_size=min(4, connections), max_size=connections
        )
    )


async def prepare(place: Place) -> None:
    """Its tables."""
    app = app_of(place, connections=1)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


def work(place: Place, told: Told) -> None:
    """One worker, with as many connections as this product's has in its pool."""

    async def serve() -> None:
        app = app_of(place, connections=10)

        @app.task(name="noop")  # type: ignore[untyped-decorator]
        async def noop() -> None:
            told.one()

        async with app.open_async():
            await app.run_worker_async(concurrency=place.jobs, install_signal_handlers=False)

    uvloop.run(serve())


async def enqueue(place: Place, number: int) -> None:
    """All in one statement."""
    app = app_of(place, connections=1)

    @app.task(name="noop")  # type: ignore[untyped-decorator]
    async def noop() -> None:
        """The worker has the job."""

    async with app.open_async():
        await noop.batch_defer_async(*({} for _ in range(number)))


async def finished(place: Place) -> int:
    """Whose success is stored."""
    connection = await asyncpg.connect(place.database_url)
    done = await connection.fetchval("SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'")
    await connection.close()
    return int(done)
