# SPDX-License-Identifier: Apache-2.0
"""Stories of deciding and steering, told by real processes, with the sandboxes as witnesses."""

import asyncio
import json
from collections import Counter
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from app import admin, examples
from app.client import Client, Json, Refused
from app.database import database_url
from tests.databases import connected
from tests.factories import RISK_62
from tests.installation import World
from tests.waiting import eventually

COMMANDS = ("promote", "pause", "resume", "cancel")
BUSY = 503


@pytest.fixture(autouse=True)
async def healthy(world: World) -> None:
    """Each story begins with healthy planes and fleets."""
    for plane in ("intune", "jamf", "landscape", "ansible"):
        await world.faults(plane=plane)
        await world.fleet(plane=plane)


async def as_approver(world: World, name: str) -> Client:
    """Another person, who may decide."""
    settings = world.installation.settings
    token = await admin.create_token(settings, role="approver", name=name, expires_days=1)
    return Client(world.installation.url, token)


async def request_of(world: World, deployment: Json) -> Json:
    items: list[Json] = await world.client.every("/approvals", deployment_id=deployment["id"])
    return items[0]


async def blockers_of(world: World, deployment: Json) -> list[str]:
    found = await world.client.every(f"/deployments/{deployment['id']}/blockers")
    return [blocker["code"] for blocker in found]


async def story_of(world: World, deployment: Json) -> list[Json]:
    return await world.client.every(f"/deployments/{deployment['id']}/events")


async def rings_sent(world: World, deployment: Json) -> set[str]:
    """The rings for which any change reached the plane."""
    changes = (await world.requests())["mutations"]
    ours = [change["effect_key"] for change in changes if change["effect_key"].startswith(deployment["id"])]
    return {key.split("/")[2] for key in ours}


async def execute(world: World, statement: str, *values: object) -> None:
    """What somebody with access to the database could do."""
    async with connected(database_url(world.installation.settings)) as connection:
        await connection.execute(statement, *values)


async def at_the_board(world: World, name: str) -> Json:
    """A deployment of risk 62 that has passed LAB and CANARY."""
    submitted = await world.submit(app_name=name, target_ring="PILOT", risk_factors=RISK_62)
    assert (submitted["risk_score"], submitted["requires_cab_approval"]) == (62, True)
    return await world.ended(submitted, into={"AWAITING_CAB", "COMPLETED", "FAILED"})


async def test_a_deployment_of_risk_62_waits_for_another_person_and_then_goes_on(world: World) -> None:
    waiting = await at_the_board(world, "Risky")

    assert waiting["status"] == "AWAITING_CAB"
    assert [lane["status"] for lane in waiting["lanes"]] == ["PROMOTED", "PROMOTED", "PENDING"]
    assert "PILOT" not in await rings_sent(world, waiting)
    assert await blockers_of(world, waiting) == ["awaiting_cab"]
    request = await request_of(world, waiting)
    path, body = f"/approvals/{request['id']}/approve", {"reason": "LAB and CANARY went well"}
    with pytest.raises(Refused) as refused:
        await world.client.post(path, body)
    assert (refused.value.status, refused.value.problem_code) == (403, "own_submission")

    async with await as_approver(world, "carol") as carol:
        assert (await carol.post(path, body))["decided_by"] == "carol"

    done = await world.ended(waiting)
    assert done["status"] == "COMPLETED"
    assert "PILOT" in await rings_sent(world, done)
    told = [event["type"] for event in await story_of(world, done)]
    order = ["deployment.awaiting_cab", "approval.approved", "deployment.approved", "deployment.completed"]
    assert [kind for kind in told if kind in order] == order


async def test_a_package_that_is_not_the_one_that_was_asked_about_is_not_approved(world: World) -> None:
    waiting = await at_the_board(world, "Swapped")
    change = "UPDATE deployment_planes SET package = jsonb_set(package, '{sha256}', $1::jsonb)"
    await execute(world, f"{change} WHERE deployment_id = $2", json.dumps("cd" * 32), waiting["id"])
    request = await request_of(world, waiting)

    async with await as_approver(world, "dave") as dave:
        with pytest.raises(Refused) as refused:
            await dave.post(f"/approvals/{request['id']}/approve", {"reason": "fine"})

    assert (refused.value.status, refused.value.problem_code) == (409, "scope_change_required")
    assert (await world.client.deployment(waiting["id"]))["status"] == "AWAITING_CAB"
    assert "PILOT" not in await rings_sent(world, waiting)


async def test_a_rollout_without_variance_does_what_the_forecast_said(world: World) -> None:
    rings = {ring: {"devices": 20, "delay": [0.0, 0.0]} for ring in ("LAB", "CANARY", "PILOT")}
    await world.fleet(rings=rings)
    for ring in rings:
        await recount(world, ring)
    intent = world.intent(app_name="Foretold", target_ring="PILOT", rollback_version=None)
    told = await world.client.post("/deployments/forecast", intent)
    assert told == await world.client.post("/deployments/forecast", intent)

    before = await calls(world)

    done = await world.ended(await world.client.post("/deployments", intent))

    assert done["status"] == "COMPLETED"
    ledger = await world.effects_of(done)
    for ring, lane in zip(told["rings"], done["lanes"], strict=True):
        assert (ring["ring"], ring["devices_at_risk"]) == (lane["ring"], lane["targeted"] or 20)
        assert lane["success_count"] == lane["targeted"] == 20
        of_ring = [effect for effect in ledger if effect["ring"] == lane["ring"]]
        once = [effect for effect in ledger if effect["ring"] is None] if lane["ring"] == "LAB" else []
        assert len(of_ring + once) == ring["lanes"][0]["effects"]
    took = instant(done["finished_at"]) - instant(done["created_at"])
    assert told["earliest_end"] <= took <= told["earliest_end"] + 60
    assert told["plane_calls"] / 2 < await calls(world) - before <= told["plane_calls"]
    assert [lane["measurements"] for ring in told["rings"] for lane in ring["lanes"]] == [2, 2, 2]


def instant(text: str) -> float:

    return datetime.fromisoformat(text).timestamp()


async def recount(world: World, ring: str) -> None:
    """Have the ring's target counted again, as after its membership changed."""
    path = f"/targets/intune/{ring}"
    target = await world.client.get(path)
    await world.client.put(path, {"ref": target["ref"], "kind": target["kind"]})
    await eventually(
        lambda: world.client.get(path), within=20, until=lambda now: now["counted_at"] != target["counted_at"]
    )


async def calls(world: World) -> int:
    """The requests that the sandbox counted, but for tokens, its control, and the package's content."""
    counted = (await world.requests())["counts"]
    apart = ("/_sandbox", "/oauth2", "/_blob")
    return sum(number for path, number in counted.items() if not any(part in path for part in apart))


async def test_a_cancelled_deployment_leaves_what_is_installed_and_withdraws_the_rest(world: World) -> None:
    rings = {"LAB": {"devices": 10, "delay": [0.05, 0.1]}, "CANARY": {"devices": 60, "delay": [0.1, 60.0]}}
    await world.fleet(rings=rings)
    submitted = await world.submit(app_name="Unwanted", target_ring="CANARY")
    await eventually(
        lambda: world.client.deployment(submitted["id"]),
        within=30,
        until=lambda now: now["lanes"][1]["success_count"] > 0,
    )

    cancelled = await world.client.post(f"/deployments/{submitted['id']}/cancel", {"reason": "not wanted"})
    withdrawn = await eventually(
        lambda: world.client.get(f"/operations/{cancelled['operation_id']}"),
        within=20,
        until=lambda operation: operation["status"] == "SUCCEEDED",
    )

    assert withdrawn["kind"] == "withdraw_lane"
    assert [lane["status"] for lane in cancelled["lanes"]] == ["PROMOTED", "CANCELLED"]
    await eventually(
        lambda: story_of(world, cancelled),
        within=20,
        until=lambda told: [event["type"] for event in told].count("lane.withdrawn") == 2,
    )
    objects = [
        item for item in await world.objects() if (item["effect_key"] or "").startswith(submitted["id"])
    ]
    assert "mobileAppAssignment" not in {item["type"] for item in objects}
    have = [
        device
        for device in await world.devices_of(cancelled["lanes"][1]["external_id"])
        if device["installed"]
    ]
    assert 10 < len(have) < 70


async def test_a_pause_touches_no_new_device_and_resuming_repeats_nothing(world: World) -> None:
    submitted = await world.submit(app_name="Halting", target_ring="PILOT")
    paused = await world.client.post(f"/deployments/{submitted['id']}/pause", {"reason": "look first"})
    assert paused["paused"]
    before = await rings_sent(world, submitted)

    await eventually(
        lambda: world.client.every("/operations", deployment_id=submitted["id"]),
        within=20,
        until=lambda work: all(each["status"] != "RUNNING" for each in work),
    )

    quiet = await rings_sent(world, submitted)
    other = await world.submit(app_name="Going on meanwhile", target_ring="PILOT")
    assert (await world.ended(other))["status"] == "COMPLETED"  # there was time enough
    assert await rings_sent(world, submitted) == quiet
    begun = await world.client.deployment(submitted["id"])
    assert "CANARY" not in await rings_sent(world, submitted)
    assert begun["lanes"][1]["status"] == "PENDING"
    assert before <= await rings_sent(world, submitted)
    assert "paused" in await blockers_of(world, submitted)
    await world.client.post(f"/deployments/{submitted['id']}/resume")
    done = await world.ended(submitted)
    assert done["status"] == "COMPLETED"
    await world.one_object_each(done)


async def test_failed_hosts_are_tried_again_and_only_they(world: World) -> None:
    name = json.loads((examples.folder() / "ansible-example-agent.json").read_text())["app_name"]
    await world.fleet(plane="ansible", apps={name: {"LAB": {"fail": 0.4}}})
    body = json.loads(examples.make("ansible-example-agent", world.folder / "packages").read_text())
    gates = {"LAB": {"max_failure_rate": 0.9, "min_success_rate": 1.0}}
    submitted = await world.client.post("/deployments", body | {"target_ring": "LAB", "gates": gates})
    request = await request_of(world, submitted)
    async with await as_approver(world, "erin") as erin:
        await erin.post(f"/approvals/{request['id']}/approve", {"reason": "we watch it"})
    held = await eventually(
        lambda: world.client.deployment(submitted["id"]),
        within=40,
        until=lambda now: now["lanes"][0]["status"] == "HELD",
    )
    failed = held["lanes"][0]["failure_count"]
    assert 0 < failed < 10
    assert await blockers_of(world, held) == ["gate_not_met"]
    [cause] = await world.client.every(f"/deployments/{held['id']}/failures")
    assert (cause["devices"], cause["lanes"]) == (failed, ["LAB/ansible"])
    await world.fleet(plane="ansible")

    await world.client.post(f"/deployments/{held['id']}/retry", {"reason": "the proxy works again"})

    done = await world.ended(held)
    assert (done["status"], done["lanes"][0]["failure_count"]) == ("COMPLETED", 0)
    ledger = [
        effect["key"].rpartition("LAB/")[2] for effect in await world.effects_of(done) if effect["ring"]
    ]
    assert ledger == ["assign", "assign/2"]


async def test_a_rollback_reaches_who_was_touched_and_nobody_else(world: World) -> None:
    body = json.loads(examples.make("jamf-firefox", world.folder / "packages").read_text())
    submitted = await world.client.post("/deployments", body | {"target_ring": "LAB"})
    done = await world.ended(submitted)
    assert done["status"] == "COMPLETED"
    asked = {"product": body["app_name"], "version": body["version"]}
    rings = {"LAB": {"devices": 12, "delay": [0.05, 0.4]}}
    await world.fleet(plane="jamf", rings=rings)
    await eventually(
        lambda: world.devices("jamf", **asked), within=20, until=lambda found: installed(found) == 12
    )

    await world.client.post(f"/deployments/{done['id']}/rollback", {"reason": "users complain"})
    back = await world.ended(done, into={"ROLLED_BACK", "FAILED"}, within=60)

    assert back["status"] == "ROLLED_BACK"
    assert installed(await world.devices("jamf", **asked)) == 0
    known = await world.client.every(f"/deployments/{back['id']}/devices")
    assert sorted(device["late"] for device in known) == [False] * 10 + [True] * 2


def installed(found: list[Json]) -> int:
    return sum(bool(device["installed"]) for device in found)


async def test_one_plane_of_three_that_fails_takes_the_ring_back_everywhere(world: World) -> None:
    body = json.loads(examples.make("three-planes", world.folder / "packages").read_text())
    planes: list[str] = body["planes"]
    await world.fleet(plane="landscape", apps={"example-agent 2.6.0": {"CANARY": {"fail": 0.3}}})

    submitted = await world.client.post("/deployments", body | {"target_ring": "GLOBAL"})
    back = await world.ended(submitted, within=90)

    assert back["status"] == "ROLLED_BACK"
    assert {(lane["ring"], lane["status"]) for lane in back["lanes"]} == {
        ("LAB", "ROLLED_BACK"),
        ("CANARY", "ROLLED_BACK"),
        *((ring, "CANCELLED") for ring in ("PILOT", "DEPARTMENT", "GLOBAL")),
    }
    known = await world.client.every(f"/deployments/{back['id']}/devices")
    for plane in planes:
        product = "example-agent" if plane == "landscape" else body["app_name"]
        found = await world.devices(plane, product=product, version=body["version"])
        touched = {device["device_id"] for device in found}
        assert touched
        assert touched <= {device["device_id"] for device in known if device["plane"] == plane}
    rings = {effect["ring"] for effect in await world.effects_of(back)} - {None}
    assert rings == {"LAB", "CANARY"}


async def test_two_hundred_orders_at_once_tell_one_story(world: World) -> None:
    submitted = await world.submit(app_name="Contested", target_ring="GLOBAL", promotion="manual")
    path = f"/deployments/{submitted['id']}"
    orders = [COMMANDS[number % 3] for number in range(190)] + ["cancel"] * 10

    answers = await asyncio.gather(*(insist(world, f"{path}/{order}") for order in orders))

    counted = Counter(answers)
    assert set(counted) <= {202, 409}, counted
    told = await story_of(world, submitted)
    assert [event["sequence"] for event in told] == list(range(1, len(told) + 1))
    assert [event["type"] for event in told].count("deployment.cancelled") == 1
    flags = [event["type"] for event in told if event["type"] in {"deployment.paused", "deployment.resumed"}]
    assert all(one != other for one, other in pairwise(flags))
    assert flags[:1] in ([], ["deployment.paused"])
    after = await world.client.deployment(submitted["id"])
    assert (after["status"], after["paused"]) == ("CANCELLED", False)
    assert folded(told) == after["status"]


async def insist(world: World, path: str) -> int:
    """One operator's order, given again as long as the service has too much to do."""
    return await eventually(
        lambda: give(world, path), within=30, until=lambda status: status != BUSY, every=0.5
    )


async def give(world: World, path: str) -> int:
    """One operator's order; the status of the answer."""
    try:
        await world.client.post(path, {"reason": "now"})
    except Refused as refused:
        return refused.status
    return 202


def folded(told: list[Json]) -> Any:
    """The status that the events end with, each beginning where the one before ended."""
    status = "PENDING"
    for event in told:
        before, after = event["before"] or {}, event["after"] or {}
        if event["type"].startswith("deployment.") and "status" in before:
            assert before["status"] == status, event
            status = after["status"]
    return status
