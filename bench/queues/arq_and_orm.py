# SPDX-License-Identifier: Apache-2.0
"""The usual way to do a whole job: arq brings the id, httpx sends the POST, the ORM writes the status.

Nothing of it is durable: a killed worker's job, an emptied Redis and a lost answer are nobody's concern.
"""

from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import uvloop
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.database import database_url
from app.settings import Settings
from bench.queues import arq_queue
from bench.queues.place import Place, Told

TABLE = "CREATE TABLE IF NOT EXISTS plain_jobs (id uuid PRIMARY KEY, status text NOT NULL, answer int)"


class Base(DeclarativeBase):
    """Of this program's one table."""


class PlainJob(Base):
    """A job as the request that asked for it has stored it."""

    __tablename__ = "plain_jobs"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[str]
    answer: Mapped[int | None]


def work(place: Place, told: Told) -> None:
    """One worker, one client, one pool."""
    uvloop.run(serve(place, told))


async def serve(place: Place, told: Told) -> None:
    """Until killed."""
    url = database_url(Settings.model_validate({"database_url": place.database_url}))
    engine = create_async_engine(url, pool_size=10, max_overflow=10, pool_pre_ping=True)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    limits = httpx.Limits(max_connections=place.jobs, max_keepalive_connections=place.jobs)
    async with httpx.AsyncClient(limits=limits, timeout=10, trust_env=False) as client:

        async def job(_: dict[Any, Any], job_id: str) -> None:
            answer = await client.post(place.target, json={"id": job_id})
            answer.raise_for_status()
            async with sessions() as session, session.begin():
                await write(session, job_id, answer.status_code)
            told.one()

        await arq_queue.serve(place, job)


async def write(session: AsyncSession, job_id: str, answer: int) -> None:
    """Read the job, change it."""
    stored = await session.get_one(PlainJob, UUID(job_id))
    stored.status, stored.answer = "SUCCEEDED", answer


async def enqueue(place: Place, number: int) -> None:
    """Rows first, in one statement, then the queue."""
    ids = [uuid4() for _ in range(number)]
    connection = await asyncpg.connect(place.database_url)
    await connection.execute(TABLE)
    await connection.execute("INSERT INTO plain_jobs SELECT unnest($1::uuid[]), 'QUEUED'", ids)
    await connection.close()
    await arq_queue.enqueue(place, number, *((str(each),) for each in ids))


async def finished(place: Place) -> int:
    """Whose status was written."""
    connection = await asyncpg.connect(place.database_url)
    done = await connection.fetchval("SELECT count(*) FROM plain_jobs WHERE status = 'SUCCEEDED'")
    await connection.close()
    return int(done)
