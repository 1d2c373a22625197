# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL goes away in the middle of rollouts."""

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from pydantic import SecretStr

from app.client import Json, Refused
from app.settings import BreakerSettings, Settings
from tests.faults.gate import Gate, gated
from tests.installation import World, open_world
from tests.servers import Servers, Template
from tests.waiting import eventually


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
    await eventually(
        lambda: world.client.deployment(submitted[0]["id"]),
        until=lambda now: now["lanes"][0]["status"] != "PENDING",
        within=20,
    )

    gate.shut()
    began = time.monotonic()
    await eventually(lambda: refused(world), within=10, every=0.2)
    await asyncio.sleep(seconds - (time.monotonic() - began))
    await gate.open()
    await eventually(lambda: answers(world), within=20, every=0.2)

    done = [await world.ended(deployment, within=90) for deployment in submitted]
    assert {deployment["status"] for deployment in done} == {"COMPLETED"}
    assert {lane["failure_count"] for deployment in done for lane in deployment["lanes"]} == {0}
    for deployment in done:
        await world.one_object_each(deployment)
        assert await gapless(world, deployment)


async def answers(world: World) -> bool:
    """Whether the API has its database again."""
    try:
        await world.client.get("/deployments")
    except Refused:
        return False
    return True


async def refused(world: World) -> bool:
    """Whether the API says that it cannot, for how long, and so does its health."""
    headers = {"Authorization": f"Bearer {world.installation.token}", "Idempotency-Key": "outage"}
    async with httpx.AsyncClient(
        base_url=f"{world.installation.url}/api/v1", headers=headers, trust_env=False, timeout=15
    ) as http:
        answer = await http.post("/deployments", json=world.intent(app_name="Not now", target_ring="LAB"))
        health = await http.get("/health/")
    told = answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
    return told and health.status_code == 503


async def gapless(world: World, deployment: Json) -> bool:
    told = await world.client.every(f"/deployments/{deployment['id']}/events")
    return [event["sequence"] for event in told] == list(range(1, len(told) + 1))
