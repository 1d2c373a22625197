# SPDX-License-Identifier: Apache-2.0
"""Rollouts on every plane, and one across three, while all planes misbehave and are away for a while."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app import examples
from app.client import Json
from app.connectors.contract import Plane
from app.settings import BreakerSettings, Settings
from tests.databases import Template
from tests.installation import World, open_world
from tests.servers import Servers
from tests.waiting import eventually

NAMES = (
    "firefox",
    "jamf-firefox",
    "sccm-example-editor",
    "landscape-example-editor",
    "ansible-example-agent",
    "three-planes",
)
WEATHER = [
    {"path": "/[!_]*", "probability": 0.05, "status": 503},
    {"path": "/[!_]*", "probability": 0.01, "reset": True},
    {"path": "/[!_]*", "probability": 0.01, "reset": True, "after": True},
]
"""One request in twenty is refused, one in fifty ends in a reset, half of those after it was carried out."""


EVERYBODY = {ring: {"min_success_rate": 1.0} for ring in ("LAB", "CANARY", "PILOT")}


@pytest.fixture
async def planes_world(servers: Servers, template: Template, tmp_path: Path) -> AsyncIterator[World]:
    """An installation for one story, with nothing installed yet; what opened is tried again soon."""
    quick = {plane.value: BreakerSettings(reset_timeout=3) for plane in Plane}
    async with template.cloned() as url:
        settings = Settings(database_url=SecretStr(url), redis_url=SecretStr(servers.redis_url))
        async with open_world(settings, tmp_path, breakers=quick, backoff=0.3) as world:
            yield world


@pytest.fixture(autouse=True)
async def healthy(planes_world: World) -> None:
    """Each story begins with healthy planes and fleets."""
    await all_faults(planes_world)
    for plane in Plane:
        await planes_world.fleet(plane=plane)


async def all_faults(world: World, *items: dict[str, Any]) -> None:
    await asyncio.gather(*(world.faults(*items, plane=plane) for plane in Plane))


async def submitted(world: World, name: str) -> Json:
    """An example up to PILOT, whose rings are left only when every device has it."""
    intent = json.loads(examples.make(name, world.folder / "packages").read_text())
    return await world.client.post("/deployments", intent | {"target_ring": "PILOT", "gates": EVERYBODY})


BAD = {
    "jamf-firefox": "Mozilla Firefox",
    "sccm-example-editor": "Example Editor",
    "landscape-example-editor": "example-editor",
    "ansible-example-agent": "Example Agent",
}
"""Examples on the planes beside Intune, and what their fleets call the product."""


async def test_a_bad_version_is_taken_back_from_every_plane(planes_world: World) -> None:
    world = planes_world
    for name, product in BAD.items():
        version = json.loads((examples.folder() / f"{name}.json").read_text())["version"]
        bad = {f"{product} {version}": {"CANARY": {"fail": 0.3}}}
        await world.fleet(plane=name.partition("-")[0], apps=bad)

    began = await asyncio.gather(*(submitted(world, name) for name in BAD))
    ended = [await world.ended(deployment, within=90) for deployment in began]

    assert [deployment["status"] for deployment in ended] == ["ROLLED_BACK"] * len(BAD)
    for deployment, product in zip(ended, BAD.values(), strict=True):
        (plane,) = deployment["planes"]
        touched = await world.devices(plane, product=product, version=deployment["app_version"])
        assert {device["ring"] for device in touched} == {"LAB", "CANARY"}
        left = {item["version"] for device in touched for item in device["installed"]}
        assert left == ({deployment["rollback_version"]} if deployment["rollback_version"] else set())


@pytest.mark.parametrize("outage", [10.0, pytest.param(60.0, marks=pytest.mark.long)])
async def test_all_planes_complete_through_faults_and_a_while_without_any_of_them(
    planes_world: World, outage: float
) -> None:
    world = planes_world
    await all_faults(world, *WEATHER)
    deployments = await asyncio.gather(*(submitted(world, name) for name in NAMES))
    await asyncio.gather(*(left_lab(world, deployment) for deployment in deployments))

    await all_faults(world, {"path": "/[!_]*", "reset": True})
    began = time.monotonic()
    held = await eventually(
        lambda: statuses(world, deployments), within=outage, until=lambda now: "WAITING_PLANE" in now
    )
    await eventually(lambda: time.monotonic() - began, within=90, until=lambda gone: gone >= outage)
    assert not {"FAILED", "ROLLING_BACK", "ROLLED_BACK"} & (held | await statuses(world, deployments))
    await all_faults(world, *WEATHER)

    ended = [await world.ended(deployment, within=180) for deployment in deployments]

    for deployment in ended:
        told = [
            (lane["plane"], lane["ring"], lane["success_count"], lane["targeted"])
            for lane in deployment["lanes"]
        ]
        assert deployment["status"] == "COMPLETED", deployment
        assert all(success == targeted > 0 for _, _, success, targeted in told), told
        assert not any(lane["failure_count"] for lane in deployment["lanes"])
        await world.one_object_each(deployment)


async def left_lab(world: World, deployment: Json) -> None:
    await eventually(
        lambda: world.client.deployment(deployment["id"]),
        within=90,
        until=lambda now: any(lane["status"] == "PROMOTED" for lane in now["lanes"]),
        every=0.3,
    )


async def statuses(world: World, deployments: list[Json]) -> set[str]:
    found = [await world.client.deployment(deployment["id"]) for deployment in deployments]
    return {lane["status"] for deployment in found for lane in deployment["lanes"]}
