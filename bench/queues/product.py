# SPDX-License-Identifier: Apache-2.0
"""The worker of this product with the benchmark's jobs in place of real ones."""

from datetime import timedelta
from uuid import uuid4

import asyncpg
from pydantic import SecretStr

from app.domain.operations import KINDS, OperationKind
from app.doorbell import CHANNEL
from app.models import new_id
from app.resilience import create_resilient_client
from app.resilience.http import ResilientClient
from app.settings import Settings
from bench.queues.place import Place, Told
from workers.context import Done, Job, JobFunction, Outcome
from workers.main import run_worker

KIND = OperationKind.CHECK_PLANE
ENQUEUE = """
INSERT INTO operations (id, kind, queue, subject_type, subject_id, correlation_id, max_attempts, run_after,
    deadline)
SELECT each, $2, $3, 'plane', 'intune', $4, $5, clock_timestamp(), clock_timestamp() + $6::interval
FROM unnest($1::uuid[]) AS each
"""
"""The columns that ``operations.enqueue`` writes, for many at once."""


def work(place: Place, told: Told) -> None:
    """One worker; how many run at once is all that is set."""
    settings = Settings.model_validate(
        {
            "database_url": SecretStr(place.database_url),
            "redis_url": SecretStr(place.redis_url),
            "worker": {"max_jobs": place.jobs},
        }
    )
    run_worker(settings, {KIND: Posting(place) if place.target else nothing(told)})


def nothing(told: Told) -> JobFunction:
    """A job that does nothing."""

    async def noop(_: Job) -> Outcome:
        told.one()
        return Done()

    return noop


class Posting:
    """A job that sends one POST through the product's client, which the process makes once."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._client: ResilientClient | None = None

    async def __call__(self, job: Job) -> Outcome:
        """Of one operation; its result is what was answered."""
        if self._client is None:
            self._client = create_resilient_client(
                "intune", max_concurrency=self._place.jobs, breakers=job.runtime.breakers
            )
        answer = await self._client.post(self._place.target, json={"id": str(job.claimed.id)})
        return Done({"status": answer.status_code})


async def enqueue(place: Place, number: int) -> None:
    """All in one statement, then the doorbell."""
    rules = KINDS[KIND]
    values = (KIND.value, rules.queue.value, uuid4(), rules.max_attempts, rules.deadline or timedelta(days=1))
    connection = await asyncpg.connect(place.database_url)
    await connection.execute(ENQUEUE, [new_id() for _ in range(number)], *values)
    await connection.execute(f"NOTIFY {CHANNEL}")
    await connection.close()


async def all_ended(connection: asyncpg.Connection) -> bool:
    """Whether no operation waits or runs."""
    return bool(
        await connection.fetchval(
            "SELECT NOT EXISTS (SELECT FROM operations WHERE status IN ('QUEUED', 'WAITING'))"
            " AND NOT EXISTS (SELECT FROM operations WHERE status = 'RUNNING')"
        )
    )


async def finished(place: Place) -> int:
    """Whose success is stored, each after one attempt."""
    connection = await asyncpg.connect(place.database_url)
    done = await connection.fetchval(
        "SELECT count(*) FROM operations WHERE status = 'SUCCEEDED' AND kind = $1 AND fence = 1", KIND.value
    )
    await connection.close()
    return int(done)
