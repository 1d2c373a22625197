# SPDX-License-Identifier: Apache-2.0
"""A plane that is away in the middle of a gate, for longer than its devices may be silent."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from app.client import Json
from app.settings import Settings
from tests.databases import Template
from tests.installation import World, open_world
from tests.servers import Servers
from tests.waiting import eventually

SILENCE, AWAY = 15.0, 20.0
"""Seconds after which a silent device has failed, while its plane answers; seconds without an answer."""
DEVICES, FAILING, OFFLINE = 60, 6, 3
RATES = ("success_rate", "failure_rate")


@pytest.fixture(scope="module")
async def patient_world(
    servers: Servers, template: Template, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("planes")
    async with template.cloned() as url:
        settings = Settings(database_url=SecretStr(url), redis_url=SecretStr(servers.redis_url))
        async with open_world(settings, folder, silence=SILENCE) as world:
            yield world


async def submitted(world: World, name: str) -> Json:
    """To CANARY, whose gate opens only when every device has told that can."""
    odds = {"fail": FAILING / DEVICES, "offline": OFFLINE / DEVICES, "delay": [0.05, 2.0]}
    await world.fleet(rings={"LAB": {"devices": 10}, "CANARY": {"devices": DEVICES, **odds}})
    last = (DEVICES - FAILING - OFFLINE) / DEVICES
    gate = {"min_success_rate": last, "max_failure_rate": FAILING / DEVICES}
    return await world.submit(app_name=name, target_ring="CANARY", gates={"CANARY": gate})


async def numbers(world: World, deployment: Json) -> Any:
    """What was counted of each lane, and what its gate made of it."""
    gates = await world.client.every(f"/deployments/{deployment['id']}/gates")
    measured = [
        {row["name"]: (row["threshold"], row["measured"]) for row in gate["criteria"] if row["name"] in RATES}
        for gate in gates
    ]
    lanes = [(lane["targeted"], lane["success_count"], lane["failure_count"]) for lane in deployment["lanes"]]
    return lanes, [(gate["ring"], gate["verdict"], gate["reason"]) for gate in gates], measured


async def canary(world: World, deployment: Json) -> str:
    now = await world.client.deployment(deployment["id"])
    return str(now["lanes"][1]["status"])


@pytest.mark.long
async def test_a_gate_counts_what_it_would_have_counted_without_the_outage(patient_world: World) -> None:
    world = patient_world
    undisturbed = await world.ended(await submitted(world, "Undisturbed"), within=60)

    interrupted = await submitted(world, "Interrupted")
    await eventually(
        lambda: canary(world, interrupted), within=30, until=lambda status: status == "MEASURING", every=0.05
    )
    await world.faults({"path": "/[!_]*", "reset": True})
    await asyncio.sleep(AWAY)  # the outage itself
    assert await canary(world, interrupted) == "WAITING_PLANE"
    await world.faults()
    after = await world.ended(interrupted, within=90)

    assert (undisturbed["status"], after["status"]) == ("COMPLETED", "COMPLETED")
    assert await numbers(world, after) == await numbers(world, undisturbed)
    assert after["lanes"][1]["failure_count"] == FAILING
