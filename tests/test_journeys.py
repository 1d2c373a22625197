# SPDX-License-Identifier: Apache-2.0
"""Whole stories, told by real processes: sandbox, API and two workers, with the sandbox as the witness."""

import asyncio
import json
import time
from fnmatch import fnmatch
from pathlib import Path

import httpx
import pytest

from app.client import Json
from tests.api.generated_client import generated_client
from tests.installation import FINAL, World
from tests.waiting import eventually
from tests.wire import PLAIN


@pytest.fixture(autouse=True)
async def healthy(world: World) -> None:
    """Each story begins with a healthy plane and fleet."""
    await world.faults()
    await world.fleet()


async def lanes_of(world: World, deployment: Json) -> dict[str, Json]:
    return {lane["ring"]: lane for lane in (await world.client.deployment(deployment["id"]))["lanes"]}


async def test_a_deployment_walks_its_rings_and_every_change_is_in_the_ledger(world: World) -> None:
    submitted = await world.submit(app_name="Walker", target_ring="PILOT")

    done = await world.ended(submitted)

    assert done["status"] == "COMPLETED"
    assert [(lane["status"], lane["success_count"]) for lane in done["lanes"]] == [
        ("PROMOTED", 10),
        ("PROMOTED", 60),
        ("PROMOTED", 40),
    ]
    ledger = {effect["key"]: effect for effect in await world.effects_of(done)}
    assert sorted(key.removeprefix(f"{done['id']}/intune/") for key in ledger) == [
        "CANARY/assign",
        "LAB/assign",
        "PILOT/assign",
        "publish",
        "upload",
    ]
    assert {effect["state"] for effect in ledger.values()} == {"CONFIRMED"}
    mutations = [
        change
        for change in (await world.requests())["mutations"]
        if change["correlation_id"] == done["correlation_id"]
    ]
    assert {change["effect_key"] for change in mutations} == set(ledger)
    objects = [item for item in await world.objects() if item["effect_key"] in ledger]
    assert [item["type"] for item in objects].count("mobileApp") == 1


async def test_the_event_stream_tells_the_story_and_ends_with_it(world: World) -> None:
    submitted = await world.submit(app_name="Streamer", target_ring="LAB")

    told = await read_stream(world, submitted["id"])
    resumed = await read_stream(world, submitted["id"], last_event_id=told[1]["sequence"])

    assert [event["sequence"] for event in told] == list(range(1, len(told) + 1))
    assert (told[0]["type"], told[-1]["type"]) == ("deployment.submitted", "deployment.completed")
    assert {event["correlation_id"] for event in told} == {submitted["correlation_id"]}
    assert resumed == told[2:]


async def read_stream(world: World, deployment_id: str, *, last_event_id: int | None = None) -> list[Json]:
    headers = {"Authorization": f"Bearer {world.installation.token}", "Accept": "text/event-stream"}
    if last_event_id is not None:
        headers["Last-Event-ID"] = str(last_event_id)
    url = f"{world.installation.url}/api/v1/deployments/{deployment_id}/events"
    async with (
        asyncio.timeout(40),
        httpx.AsyncClient(verify=PLAIN, trust_env=False, timeout=40) as http,
        http.stream("GET", url, headers=headers) as answer,
    ):
        assert answer.status_code == 200
        lines = [line async for line in answer.aiter_lines() if line.startswith("data:")]
    return [json.loads(line.removeprefix("data:")) for line in lines]


async def test_a_bad_version_is_taken_back_from_exactly_the_devices_it_touched(world: World) -> None:
    await world.fleet(apps={"Breaker": {"CANARY": {"fail": 0.3}}})
    submitted = await world.submit(app_name="Breaker", target_ring="GLOBAL")

    back = await world.ended(submitted)

    assert back["status"] == "ROLLED_BACK"
    assert {lane["ring"]: lane["status"] for lane in back["lanes"]} == {
        "LAB": "ROLLED_BACK",
        "CANARY": "ROLLED_BACK",
        "PILOT": "CANCELLED",
        "DEPARTMENT": "CANCELLED",
        "GLOBAL": "CANCELLED",
    }
    handled = await world.devices_of(back["lanes"][0]["external_id"])
    ledger = await world.client.every(f"/deployments/{back['id']}/devices")
    assert {device["device_id"] for device in handled} <= {device["device_id"] for device in ledger}
    assert {device["ring"] for device in handled} == {"LAB", "CANARY"}
    assert [device for device in handled if device["installed"]] == []


async def test_a_deployment_that_is_taken_back_returns_to_the_version_before(world: World) -> None:
    first = await world.ended(await world.submit(app_name="Returner", version="1.0", target_ring="LAB"))
    second = await world.ended(
        await world.submit(app_name="Returner", version="2.0", target_ring="LAB", rollback_version="1.0")
    )

    await world.client.post(f"/deployments/{second['id']}/rollback", {"reason": "users complain"})
    back = await world.ended(second, into={"ROLLED_BACK", "FAILED"})

    assert back["status"] == "ROLLED_BACK"
    handled = await world.devices_of(second["lanes"][0]["external_id"])
    versions = {
        has["version"]
        for device in handled
        for has in device["installed"]
        if has["app_id"] == first["lanes"][0]["external_id"]
    }
    assert versions == {"1.0"}
    assert len(handled) == 10


async def test_what_needs_the_cab_stops_before_pilot_and_sends_nothing_there(world: World) -> None:
    submitted = await world.submit(app_name="Privileged", target_ring="PILOT", privileged=True)

    waiting = await world.ended(submitted, into={"AWAITING_CAB", "COMPLETED", "FAILED"})

    assert waiting["status"] == "AWAITING_CAB"
    assert [lane["status"] for lane in waiting["lanes"]] == ["PROMOTED", "PROMOTED", "PENDING"]
    assert "PILOT" not in {effect["ring"] for effect in await world.effects_of(waiting)}


async def test_manual_promotion_waits_for_the_word(world: World) -> None:
    submitted = await world.submit(app_name="Manual", target_ring="CANARY", promotion="manual")
    await eventually(
        lambda: lanes_of(world, submitted),
        within=20,
        until=lambda lanes: lanes["LAB"]["status"] == "PROMOTED",
    )

    promoted = await world.client.post(f"/deployments/{submitted['id']}/promote", {"reason": "looks good"})
    canary = {lane["ring"]: lane for lane in promoted["lanes"]}["CANARY"]
    assert canary["operation_id"] is not None
    await eventually(
        lambda: lanes_of(world, submitted),
        within=20,
        until=lambda lanes: lanes["CANARY"]["status"] == "PROMOTED",
    )

    assert (await world.ended(submitted))["status"] == "COMPLETED"


async def test_an_empty_ring_pauses_until_a_person_promotes_with_a_reason(world: World) -> None:
    rings = {"LAB": {"devices": 0}, "CANARY": {"devices": 60, "delay": [0.05, 0.4]}}
    await world.fleet(rings=rings)
    submitted = await world.submit(app_name="Lonely", target_ring="CANARY")
    await eventually(
        lambda: world.client.deployment(submitted["id"]), within=20, until=lambda now: bool(now["paused"])
    )
    assert (await lanes_of(world, submitted))["LAB"]["status"] == "EMPTY_TARGET"

    await world.client.post(f"/deployments/{submitted['id']}/promote", {"reason": "the lab was closed"})

    assert (await world.ended(submitted))["status"] == "COMPLETED"


async def test_a_package_with_another_hash_fails_the_deployment_and_says_why(world: World) -> None:
    submitted = await world.submit(app_name="Tampered", target_ring="LAB", package={"sha256": "00" * 32})

    failed = await world.ended(submitted)

    assert (failed["status"], failed["lanes"][0]["status"]) == ("FAILED", "FAILED")
    operation = await world.client.get(f"/operations/{submitted['operation_id']}")
    assert operation["status"] == "FAILED"
    assert operation["error"]["class"] == "permanent"
    assert "SHA-256" in operation["error"]["message"]
    rejected = {effect["action"]: effect["state"] for effect in await world.effects_of(failed)}
    assert rejected["upload"] == "REJECTED"


async def test_a_plane_that_is_away_holds_the_rollout_and_fails_no_device(world: World) -> None:
    await world.faults({"status": 503})
    submitted = await world.submit(app_name="Patient", target_ring="LAB")
    await eventually(
        lambda: lanes_of(world, submitted),
        within=30,
        until=lambda lanes: lanes["LAB"]["status"] == "WAITING_PLANE",
        every=0.1,
    )

    await world.faults()
    done = await world.ended(submitted, within=110)

    assert done["status"] == "COMPLETED"
    assert done["lanes"][0]["failure_count"] == 0


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/deviceAppManagement/mobileApps", "POST"),
        ("/deviceAppManagement/mobileApps/*/assignments", "POST"),
        ("/deviceAppManagement/mobileApps/*/files/*/commit", "POST"),
    ],
    ids=[
        "after the application was created",
        "after the assignment was made",
        "after the content was committed",
    ],
)
async def test_an_answer_that_is_lost_after_the_plane_acted_makes_no_second_object(
    world: World, path: str, method: str
) -> None:
    name = f"Lost {path[-6:]}"
    await world.faults({"method": method, "path": path, "reset": True, "after": True, "probability": 0.7})
    submitted = await world.submit(app_name=name, target_ring="LAB")
    await eventually(
        lambda: world.client.deployment(submitted["id"]),
        within=30,
        until=lambda now: now["lanes"][0]["status"] != "PENDING",
    )

    done = await world.ended(submitted, within=60)

    asked = (await world.requests())["counts"]
    assert any(fnmatch(call, f"{method} *{path}") for call in asked), "nothing was lost"
    assert done["status"] == "COMPLETED"
    await world.one_object_each(done)


async def test_devices_that_stay_silent_are_counted_apart_and_do_not_keep_a_good_ring_back(
    world: World,
) -> None:
    rings = FLEET_WITH_ONE_OFFLINE
    await world.fleet(rings=rings)
    submitted = await world.submit(app_name="Silent", target_ring="CANARY")

    done = await world.ended(submitted)

    assert done["status"] == "COMPLETED"
    canary = done["lanes"][1]
    assert (canary["success_count"], canary["failure_count"]) == (59, 0)
    silent = await world.client.every(f"/deployments/{done['id']}/devices", ring="CANARY", state="PENDING")
    unreachable = await world.client.every(
        f"/deployments/{done['id']}/devices", ring="CANARY", state="UNREACHABLE"
    )
    assert len(silent) + len(unreachable) == 1


FLEET_WITH_ONE_OFFLINE = {
    "LAB": {"devices": 10, "delay": [0.05, 0.4]},
    "CANARY": {"devices": 60, "offline": 1 / 60, "delay": [0.05, 0.4]},
}


async def test_a_generated_client_submits_a_deployment_and_follows_it_to_the_end(
    world: World, tmp_path: Path
) -> None:
    def submit_and_follow() -> list[str]:
        with generated_client(
            tmp_path, base_url=world.installation.url, token=world.installation.token
        ) as client:
            deployment = client.submit(intent, idempotency_key="generated")
            seen = [deployment.status.value]
            deadline = time.monotonic() + 40
            while seen[-1] not in FINAL and time.monotonic() < deadline:
                seen.append(client.read(deployment.id).status.value)
            return seen

    intent = world.intent(app_name="Generated", target_ring="CANARY")

    seen = await asyncio.to_thread(submit_and_follow)

    assert (seen[0], seen[-1]) == ("PENDING", "COMPLETED")


async def test_a_rollback_in_the_middle_of_a_push_leaves_nothing_behind(world: World) -> None:
    await world.faults({"method": "POST", "path": "*/commit", "latency": 1.5})
    submitted = await world.submit(app_name="Interrupted", target_ring="LAB")
    await eventually(
        lambda: world.effects_of(submitted),
        within=20,
        until=lambda ledger: "SENT" in [effect["state"] for effect in ledger if effect["action"] == "upload"],
    )

    await world.client.post(f"/deployments/{submitted['id']}/rollback", {"reason": "a mistake"})
    push = await eventually(
        lambda: world.client.get(f"/operations/{submitted['operation_id']}"),
        within=20,
        until=lambda operation: operation["status"] not in {"QUEUED", "RUNNING", "WAITING"},
    )

    assert push["status"] == "CANCELLED"
    assert (await world.ended(submitted))["status"] == "ROLLED_BACK"
    keys = {effect["key"] for effect in await world.effects_of(submitted)}
    made = [item["type"] for item in await world.objects() if item["effect_key"] in keys]
    assert "mobileAppAssignment" not in made
