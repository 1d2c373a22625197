# SPDX-License-Identifier: Apache-2.0
"""Somebody changes a plane by hand, or the plane lies: it is seen, believed, put back or told."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

import sandbox
from app.client import Json
from app.database import database_url
from app.settings import HousekeepingSettings, ReconciliationSettings, Settings
from tests.databases import Template, connected
from tests.installation import World, open_world
from tests.sandbox.tenant import APPS, SCOPE, assignment
from tests.servers import Servers
from tests.waiting import eventually
from tests.wire import PLAIN

TICKS = "SELECT count(*) FROM operations WHERE args ? 'tick'"
QUICK = ReconciliationSettings(every=1, critical_every=1, apart=0.5, repair_after=30)


@pytest.fixture(scope="module")
async def world(
    servers: Servers, template: Template, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """An installation that looks at its planes every second."""
    async with template.cloned() as url:
        settings = Settings(
            database_url=SecretStr(url),
            redis_url=SecretStr(servers.redis_url),
            reconciliation=QUICK,
            housekeeping=HousekeepingSettings(checkpoint=1, retention=1),
        )
        async with open_world(settings, tmp_path_factory.mktemp("world"), workers=1) as world:
            yield world


@pytest.fixture(autouse=True)
async def healthy(world: World) -> None:
    await world.faults()
    await world.fleet()


@pytest.fixture
async def graph(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """The tenant as its administrator reaches it, past the control plane."""
    credentials = {"client_id": sandbox.CLIENT_ID, "client_secret": sandbox.CLIENT_SECRET}
    form = {"grant_type": "client_credentials", "scope": SCOPE, **credentials}
    answer = await world.sandbox.post("/intune/oauth2/v2.0/token", data=form)
    headers = {"Authorization": f"Bearer {answer.raise_for_status().json()['access_token']}"}
    base = f"{world.sandbox.base_url}/intune/v1.0"
    async with httpx.AsyncClient(verify=PLAIN, base_url=base, headers=headers, trust_env=False) as client:
        yield client


async def drift_of(world: World, deployment: Json) -> list[Json]:
    return await world.client.every("/drift", deployment_id=deployment["id"])


async def until_drift(world: World, deployment: Json, status: str, *, within: float = 20) -> Json:
    """The deployment's only drift, once it is in this state."""
    found = await eventually(
        lambda: drift_of(world, deployment),
        until=lambda rows: [row["status"] for row in rows] == [status],
        within=within,
    )
    return found[0]


async def story_of(world: World, deployment: Json) -> list[str]:
    told = await world.client.every(f"/deployments/{deployment['id']}/events")
    return [event["type"] for event in told]


async def app_of(world: World, deployment: Json) -> str:
    lanes = (await world.client.deployment(deployment["id"]))["lanes"]
    return str(lanes[0]["external_id"])


async def assigned(graph: httpx.AsyncClient, app_id: str) -> list[Json]:
    answer = await graph.get(f"{APPS}/{app_id}/assignments")
    items: list[Json] = answer.raise_for_status().json()["value"]
    return items


async def completed(world: World, name: str, ring: str, **given: Any) -> Json:
    submitted = await world.submit(app_name=name, target_ring=ring, **given)
    return await world.ended(submitted, into={"COMPLETED"})


async def test_an_assignment_that_somebody_deleted_is_put_back(
    world: World, graph: httpx.AsyncClient
) -> None:
    deployment = await completed(world, "Deleted by hand", "LAB")
    app_id = await app_of(world, deployment)
    (there,) = await assigned(graph, app_id)

    (await graph.delete(f"{APPS}/{app_id}/assignments/{there['id']}")).raise_for_status()

    found = await until_drift(world, deployment, "RESOLVED")
    (again,) = await assigned(graph, app_id)
    assert (found["type"], found["severity"], found["repairs"]) == ("missing_assignment", "high", 1)
    assert again["target"] == there["target"]
    told = await story_of(world, deployment)
    assert told[-4:] == ["drift.found", "drift.repair_ordered", "drift.repaired", "drift.resolved"]
    effects = {effect["key"].rpartition("/LAB/")[2]: effect for effect in await world.effects_of(deployment)}
    assert effects["assign/2"]["state"] == "CONFIRMED"
    await world.one_object_each(deployment)


async def test_beyond_canary_and_for_scopes_a_person_is_asked(world: World, graph: httpx.AsyncClient) -> None:
    deployment = await completed(world, "Widened by hand", "LAB")
    app_id = await app_of(world, deployment)
    stranger = (await world.control("intune", "fleet"))["rings"]["GLOBAL"]["ref"]

    (await graph.post(f"{APPS}/{app_id}/assignments", json=assignment(stranger))).raise_for_status()

    found = await until_drift(world, deployment, "ESCALATED")
    assert (found["type"], found["observed"]) == ("scope_mismatch", {"others": [stranger]})
    assert (await story_of(world, deployment))[-2:] == ["drift.found", "drift.escalated"]
    filtered = await world.client.every("/drift", severity="high", type="scope_mismatch")
    assert found["id"] in {row["id"] for row in filtered}
    assert await world.client.every("/drift", type="compliance_drift") == []


async def test_a_plane_that_says_yes_and_does_nothing_is_found_out_and_never_promotes_by_itself(
    world: World, graph: httpx.AsyncClient
) -> None:
    lie = {"id": "00000000-0000-0000-0000-000000000000", "intent": "required"}
    await world.faults(
        {"method": "POST", "path": "*/assignments", "status": 201, "body": str(lie).replace("'", '"')}
    )
    submitted = await world.submit(app_name="Said to be there", target_ring="LAB")

    found = await eventually(
        lambda: drift_of(world, submitted),
        until=lambda rows: bool(rows) and rows[0]["status"] == "OPEN",
        within=20,
    )
    lanes = (await world.client.deployment(submitted["id"]))["lanes"]
    assert (found[0]["type"], lanes[0]["status"]) == ("missing_assignment", "MEASURING")
    assert lanes[0]["success_count"] == 0
    assert await assigned(graph, await app_of(world, submitted)) == []
    assert "lane.promoted" not in await story_of(world, submitted)


async def test_schedules_run_each_tick_once_and_checkpoint_the_history(world: World) -> None:
    async def done(kind: str) -> list[Json]:
        found = await world.client.get("/operations", kind=kind, status="SUCCEEDED")
        items: list[Json] = found["items"]
        return items

    for kind in ("checkpoint_history", "apply_retention", "reconcile"):
        await eventually(lambda: done(kind), until=lambda found: len(found) >= 3, within=20)  # noqa: B023
    async with connected(database_url(world.installation.settings)) as connection:
        assert await connection.fetchval(TICKS) >= 9
        assert await connection.fetch(f"{TICKS} GROUP BY kind, subject_id, args HAVING count(*) > 1") == []
