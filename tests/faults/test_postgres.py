# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL goes away, or crashes, in the middle of rollouts; a row of it is locked for long."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest
from arq import ArqRedis
from pydantic import SecretStr
from redis.asyncio import Redis

from app.client import Refused
from app.domain.dispatch import Due
from app.domain.operations import OperationKind
from app.models import OperationStatus
from app.settings import BreakerSettings, Settings
from tests.databases import Template
from tests.faults.conftest import Bench, Workers
from tests.faults.gate import Gate, gated
from tests.faults.storm import crash_postgres
from tests.installation import World, open_world
from tests.servers import Servers
from tests.waiting import eventually
from tests.wire import PLAIN
from workers import queues


@pytest.fixture(scope="module")
async def behind(
    servers: Servers, template: Template, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[World, Gate]]:
    """An installation whose PostgreSQL is behind a gate."""
    folder = tmp_path_factory.mktemp("world")
    async with template.cloned() as url:
        settings = Settings(database_url=SecretStr(url), redis_url=SecretStr(servers.redis_url))
        soon = {"database": BreakerSettings(reset_timeout=2)}
        async with gated(settings) as (through, gate), open_world(through, folder, breakers=soon) as world:
            yield world, gate


@pytest.mark.parametrize("seconds", [6, pytest.param(40, marks=pytest.mark.long)])
async def test_an_outage_in_the_middle_of_rollouts_is_told_and_costs_no_device(
    behind: tuple[World, Gate], seconds: int
) -> None:
    world, gate = behind
    await world.faults({"path": "*", "latency": 0.1})
    names = [f"Through {seconds} s {number}" for number in range(4)]
    submitted = [await world.submit(app_name=name, target_ring="PILOT") for name in names]
    await world.begun(submitted[0])

    gate.shut()
    began = time.monotonic()
    await eventually(lambda: refused(world), within=10, every=0.2)
    await asyncio.sleep(seconds - (time.monotonic() - began))
    await gate.open()
    await eventually(lambda: answers(world), within=20, every=0.2)

    await world.all_complete(submitted)


@pytest.mark.long
async def test_a_postgresql_that_crashes_in_the_middle_of_rollouts_costs_no_device(tmp_path: Path) -> None:
    soon = {"database": BreakerSettings(reset_timeout=2)}
    async with open_world(Settings(), tmp_path, breakers=soon) as world:
        await world.faults({"path": "*", "latency": 0.1})
        names = [f"Crashed {number}" for number in range(4)]
        submitted = [await world.submit(app_name=name, target_ring="PILOT") for name in names]
        for ring in range(2):
            await world.begun(submitted[0], ring=ring)
            crash_postgres(world)
            await eventually(lambda: answers(world), within=30, every=0.2)

        await world.all_complete(submitted)


@pytest.mark.long
async def test_a_row_that_is_locked_for_long_delays_its_own_work_and_no_other(
    bench: Bench, crew: Workers, redis: Redis, database: asyncpg.Connection
) -> None:
    locked = await bench.enqueue()
    async with database.transaction():
        await database.execute("SELECT FROM operations WHERE id = $1 FOR UPDATE", locked)
        worker = await crew.start()  # on a Redis of its own: an installation of this module may still run
        await queues.ring(
            ArqRedis(redis.connection_pool), [Due(locked, OperationKind.CHECK_PLANE, "default", 1)]
        )
        others = [await bench.enqueue() for _ in range(20)]

        for other in others:
            assert (await bench.ended(other)).status is OperationStatus.SUCCEEDED
        await eventually(lambda: "claim_failed" in worker.said(), within=20)
        assert await bench.pids(locked) == []

    done = await bench.ended(locked, within=30)
    assert (done.status, done.attempt) == (OperationStatus.SUCCEEDED, 1)
    assert await bench.pids(locked) == [worker.pid]


async def answers(world: World) -> bool:
    """Whether the API has its database again."""
    try:
        await world.client.get("/deployments")
    except (Refused, httpx.TransportError):
        return False
    return True


async def refused(world: World) -> bool:
    """Whether the API says that it cannot, for how long, and so does its health."""
    headers = {"Authorization": f"Bearer {world.installation.token}", "Idempotency-Key": "outage"}
    async with httpx.AsyncClient(
        verify=PLAIN,
        base_url=f"{world.installation.url}/api/v1",
        headers=headers,
        trust_env=False,
        timeout=15,
    ) as http:
        answer = await http.post("/deployments", json=world.intent(app_name="Not now", target_ring="LAB"))
        health = await http.get("/health/")
    told = answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
    return told and health.status_code == 503
