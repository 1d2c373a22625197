# SPDX-License-Identifier: Apache-2.0
"""A worker process whose jobs do what ``args`` say and leave traces in the test's own tables.

``runs`` has a row for each start, whoever may write; ``effects_of_jobs`` one for each permitted effect.
"""

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from pydantic import SecretStr
from sqlalchemy import text

from app.domain.operations import KINDS, Kind, OperationKind
from app.resilience import BreakerOpen, RetryProfile, create_resilient_client
from app.resilience.errors import PermanentError, TransientError
from app.settings import Settings
from tests.waiting import eventually
from workers.context import Again, Done, Job, JobFunction, Outcome
from workers.main import run_worker

TABLES = (
    "CREATE TABLE runs (operation_id uuid, pid int, attempt int, at timestamptz DEFAULT clock_timestamp())",
    "CREATE TABLE effects_of_jobs (operation_id uuid, pid int)",
)
Values = Mapping[str, Any]
QUICK = RetryProfile(attempts=2, shortest=0.01, longest=0.02, attempt_timeout=5.0, total=20.0)


async def note(job: Job) -> None:
    async with job.runtime.autocommit() as connection:
        statement = text("INSERT INTO runs (operation_id, pid, attempt) VALUES (:id, :pid, :attempt)")
        values = {"id": job.claimed.id, "pid": os.getpid(), "attempt": job.claimed.attempt}
        await connection.execute(statement, values)


async def take_effect(job: Job) -> None:
    async with job.transaction() as session:
        statement = text("INSERT INTO effects_of_jobs VALUES (:id, :pid)")
        await session.execute(statement, {"id": job.claimed.id, "pid": os.getpid()})


async def wait_for_gate(job: Job) -> None:
    gate = job.claimed.args["gate"]
    await eventually(lambda: os.path.exists(gate), within=120)  # noqa: PTH110 - a file is the signal


async def do(job: Job) -> Outcome:
    await note(job)
    return await ACTS[job.claimed.args.get("act", "effect")](job)


async def effect(job: Job) -> Outcome:
    await take_effect(job)
    return Done({"pid": os.getpid()})


async def gated(job: Job) -> Outcome:
    await wait_for_gate(job)
    return await effect(job)


async def deaf(job: Job) -> Outcome:
    """Goes on whatever happens, as a job with a bad ``except`` would."""
    while True:
        try:
            await wait_for_gate(job)
        except asyncio.CancelledError:
            continue
        return await effect(job)


async def blocks(_: Job) -> Outcome:
    """Keeps the whole process from doing anything else."""
    time.sleep(600)  # noqa: ASYNC251 - that is the point
    raise AssertionError


async def careful(job: Job) -> Outcome:
    """Writes down that it is about to call, as every effect does; that fails once the work is not its own."""
    await wait_for_gate(job)
    async with job.transaction():
        pass
    return await effect(job)


async def twice(job: Job) -> Outcome:
    await take_effect(job)
    async with job.runtime.autocommit() as connection:
        query = text("SELECT count(*) FROM effects_of_jobs WHERE operation_id = :id")
        number = await connection.scalar(query, {"id": job.claimed.id})
    return Done({"effects": number}) if number == 2 else Again(timedelta(milliseconds=10), "one more")


async def out_of_service(_: Job) -> Outcome:
    raise TransientError("503 Service Unavailable", service="intune", status=503)


async def calls_out(job: Job) -> Outcome:
    """Asks the service at ``url``, with tokens that look new each time."""
    client = create_resilient_client(
        "jira", base_url=job.claimed.args["url"], breakers=job.runtime.breakers, auth=Tokens(), profile=QUICK
    )
    async with client:
        answer = await client.get("/")
    return Done({"status": answer.status_code})


class Tokens:
    """A source of tokens that is always well."""

    header, scheme = "Authorization", "Bearer"

    def __init__(self) -> None:
        self.given = 0

    async def token(self) -> SecretStr:
        return SecretStr(f"token-{self.given}")

    async def renew(self, refused: SecretStr) -> SecretStr:  # noqa: ARG002 - the protocol's
        self.given += 1
        return await self.token()

    def secrets(self) -> tuple[str, ...]:
        return ()


async def refused(_: Job) -> Outcome:
    raise PermanentError("400 Bad Request", service="intune", status=400)


async def fails_at(job: Job) -> Outcome:
    await wait_for_gate(job)
    return await refused(job)


async def kept_away(_: Job) -> Outcome:
    raise BreakerOpen("the breaker is open", service="intune", retry_after=0.01)


async def broken(_: Job) -> Outcome:
    raise KeyError("Bearer abcdefgh12345678")


async def exits(_: Job) -> Outcome:
    raise SystemExit(3)


async def dies(_: Job) -> Outcome:
    os._exit(9)


async def unwritable(_: Job) -> Outcome:
    return Done({"at": object()})


async def with_nan(job: Job) -> Outcome:
    """What Python takes for JSON, and PostgreSQL does not."""
    await wait_for_gate(job)
    return Done({"rate": math.nan})


async def endless(_: Job) -> Outcome:
    await asyncio.Event().wait()
    raise AssertionError


ACTS: Mapping[str, Callable[[Job], Awaitable[Outcome]]] = {
    act.__name__: act
    for act in (
        *(effect, gated, deaf, blocks, careful, twice, out_of_service, refused, calls_out, fails_at),
        *(kept_away, broken, exits, dies, unwritable, with_nan, endless),
    )
}
JOBS: Mapping[OperationKind, JobFunction] = MappingProxyType(dict.fromkeys(OperationKind, do))


def kinds() -> Mapping[OperationKind, Kind]:
    """The limits of the product, or the one that a test sets, in seconds."""
    limit = os.environ.get("EUCORA_TEST_HARD_LIMIT")
    if limit is None:
        return KINDS
    short = timedelta(seconds=float(limit))
    return {kind: replace(rules, hard_limit=short, soft_limit=short / 2) for kind, rules in KINDS.items()}


if __name__ == "__main__":
    run_worker(Settings(), JOBS, kinds())
