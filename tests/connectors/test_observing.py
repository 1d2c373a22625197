# SPDX-License-Identifier: Apache-2.0
"""What planes have long after something was assigned, and what another turn of the assignment mends."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from app.connectors.catalogue import OpenConnector
from app.connectors.contract import Action, App, Assignment, InstallState, Observed, Plane, Target, TargetKind
from app.resilience.errors import PolicyError
from tests.connectors.conftest import Connect, MakeApp, Sandbox, assignment
from tests.connectors.connecting import another_turn, done, quick_fleet, ready, states
from tests.connectors.samples import SAMPLES, at_jamf, at_sccm

APPS = "/deviceAppManagement/mobileApps"
POLICIES = "/JSSResource/policies/id"
DEPLOYMENTS = "/SMS_ApplicationAssignment"
LASTING = (Plane.INTUNE, Plane.JAMF, Plane.SCCM)
"""Planes on which an assignment stays until it is taken back."""
GONE = Observed(assigned=False)


@pytest.fixture(params=LASTING, ids=str)
def plane(request: pytest.FixtureRequest) -> Plane:
    return Plane(request.param)


def only(plane: Plane) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("plane", [plane], ids=str)


@pytest.fixture
def app(plane: Plane, make_app: MakeApp) -> App:
    return make_app(package=SAMPLES[plane].package, **SAMPLES[plane].app)


@pytest.fixture
def connector(connect: Connect) -> OpenConnector:
    made: OpenConnector = connect()
    return made


@pytest.fixture
async def made(connector: OpenConnector, app: App, sandbox: Sandbox) -> Assignment:
    """What a confirmed assignment made."""
    quick_fleet(sandbox)
    return await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)


def lose(sandbox: Sandbox, made: Assignment) -> None:
    """Somebody else deletes what was made."""
    if sandbox.plane is Plane.INTUNE:
        sandbox.as_neighbour("DELETE", f"{APPS}/{made.external_id}/assignments/{made.made_id}")
    elif sandbox.plane is Plane.JAMF:
        at_jamf(sandbox, "DELETE", f"{POLICIES}/{made.made_id}")
    else:
        at_sccm(sandbox, "DELETE", f"{DEPLOYMENTS}({made.made_id})")


def stop(sandbox: Sandbox, made: Assignment) -> None:
    """Somebody else leaves it there, and sees to it that it asks for nothing any more."""
    if sandbox.plane is Plane.INTUNE:
        lose(sandbox, made)
        at_intune(sandbox, made, "uninstall", made.target.ref)
    elif sandbox.plane is Plane.JAMF:
        rewrite(sandbox, made, "<general><enabled>false</enabled></general>")
    else:
        sandbox.control("PUT", f"deployments/{made.made_id}", {"enabled": False})


def at_intune(
    sandbox: Sandbox, made: Assignment, intent: str, group: str | None, kind: str = "group"
) -> None:
    """Somebody else assigns our application."""
    target = {"@odata.type": f"#microsoft.graph.{kind}AssignmentTarget"} | (
        {"groupId": group} if group else {}
    )
    body = {"intent": intent, "target": target}
    sandbox.as_neighbour("POST", f"{APPS}/{made.external_id}/assignments", body)


def rewrite(sandbox: Sandbox, made: Assignment, parts: str) -> None:
    """Somebody else changes parts of our policy."""
    at_jamf(sandbox, "PUT", f"{POLICIES}/{made.made_id}", f"<policy>{parts}</policy>")


def ours(sandbox: Sandbox) -> list[dict[str, Any]]:
    """What stands at the plane and was made by us."""
    kinds = SAMPLES[sandbox.plane].stands
    return [
        item for item in sandbox.control("GET", "objects") if item["type"] in kinds and item["effect_key"]
    ]


@pytest.mark.parametrize("lost", [lose, stop], ids=["deleted", "stopped"])
async def test_another_turn_brings_back_what_somebody_took_away(
    connector: OpenConnector, sandbox: Sandbox, made: Assignment, lost: Callable[[Sandbox, Assignment], None]
) -> None:
    lost(sandbox, made)
    before = await connector.observe(made)
    asked = replace(made, key=f"{made.first_key}/2", made_id=None)
    assert not (await connector.verify(Action.ASSIGN, made.app, asked)).holds

    again = await another_turn(connector, made)

    assert not before.assigned
    assert await connector.observe(again) == Observed(assigned=True, version=made.app.version)
    assert (await connector.verify(Action.ASSIGN, made.app, again)).external_id == again.made_id
    assert (await another_turn(connector, again)).made_id == again.made_id
    assert len(ours(sandbox)) == 1


async def test_another_turn_of_what_is_there_changes_nothing(
    connector: OpenConnector, sandbox: Sandbox, made: Assignment
) -> None:
    changes = sandbox.mutations()

    again = await another_turn(connector, made)

    assert again.made_id == made.made_id
    assert sandbox.mutations() == changes


Way = Callable[[OpenConnector, Assignment], Awaitable[object]]
WAYS: dict[str, Way] = {
    "removed": lambda connector, made: done(connector, made, Action.REMOVE),
    "taken back": lambda connector, made: done(connector, made, Action.UNASSIGN),
    "cancelled": lambda connector, made: connector.cancel(replace(made, key=made.key_of(Action.UNASSIGN))),
}


@pytest.mark.parametrize("way", WAYS)
async def test_what_a_later_turn_made_is_withdrawn_like_the_first(
    connector: OpenConnector, sandbox: Sandbox, made: Assignment, way: str
) -> None:
    lose(sandbox, made)
    again = await another_turn(connector, made)
    sandbox.advance(10)

    await WAYS[way](connector, again)

    assert not (await connector.observe(again)).assigned
    if way == "removed":
        sandbox.advance(10)
        assert not [device for device in sandbox.devices(made.app) if device["installed"]]
        assert (await connector.verify(Action.REMOVE, made.app, again)).holds
    if way == "taken back":
        assert ours(sandbox) == []
        assert (await connector.verify(Action.UNASSIGN, made.app, again)).holds


def delete_the_application(sandbox: Sandbox, made: Assignment) -> None:
    if sandbox.plane is Plane.INTUNE:
        sandbox.as_neighbour("DELETE", f"{APPS}/{made.external_id}")
    elif sandbox.plane is Plane.JAMF:
        at_jamf(sandbox, "DELETE", f"/api/v1/packages/{made.external_id}")
    else:
        sandbox.control("PUT", "applications", {"items": []})


async def test_an_application_that_is_gone_is_not_assigned_any_more(
    connector: OpenConnector, sandbox: Sandbox, made: Assignment
) -> None:
    delete_the_application(sandbox, made)

    assert await connector.observe(made) == GONE


@pytest.mark.parametrize("plane", [*LASTING, Plane.LANDSCAPE], ids=str)
async def test_a_refusal_is_no_absence(connector: OpenConnector, sandbox: Sandbox, made: Assignment) -> None:
    sandbox.faults({"path": "/*", "status": 403})

    with pytest.raises(PolicyError):
        await connector.observe(made)


@pytest.mark.parametrize("intent", ["available", "uninstall", "availableWithoutEnrollment"])
@only(Plane.INTUNE)
async def test_another_intent_at_intune_is_no_assignment(
    connector: OpenConnector, sandbox: Sandbox, made: Assignment, intent: str
) -> None:
    lose(sandbox, made)
    at_intune(sandbox, made, intent, made.target.ref)

    assert await connector.observe(made) == Observed(assigned=False, version="130.0")


@only(Plane.INTUNE)
async def test_who_else_must_have_it_at_intune_is_named(
    connector: OpenConnector, sandbox: Sandbox, made: Assignment
) -> None:
    pilot, everybody, lab = (sandbox.group(ring).ref for ring in ("PILOT", "GLOBAL", "LAB"))
    at_intune(sandbox, made, "required", pilot)
    at_intune(sandbox, made, "available", everybody)
    at_intune(sandbox, made, "required", lab, "exclusionGroup")
    at_intune(sandbox, made, "required", None, "allDevices")
    at_intune(sandbox, made, "required", None, "allLicensedUsers")

    seen = await connector.observe(made)

    assert seen.assigned
    assert seen.others == tuple(sorted(["allDevices", "allLicensedUsers", pilot]))


@pytest.mark.parametrize(
    ("changed", "version"),
    [
        ({"notes": "eucora:x\neucora-version:131.0"}, "131.0"),
        ({"msiInformation": {"productVersion": "132.0"}}, "132.0"),
        ({"notes": "somebody's own words"}, None),
    ],
    ids=str,
)
@only(Plane.INTUNE)
async def test_what_an_application_at_intune_tells_of_its_version(
    *,
    connector: OpenConnector,
    sandbox: Sandbox,
    made: Assignment,
    changed: dict[str, Any],
    version: str | None,
) -> None:
    body = {"@odata.type": "#microsoft.graph.win32LobApp", **changed}
    sandbox.as_neighbour("PATCH", f"{APPS}/{made.external_id}", body)

    assert await connector.observe(made) == Observed(assigned=True, version=version)


@only(Plane.JAMF)
async def test_another_package_in_our_policy_is_named_and_put_right(
    connector: OpenConnector, sandbox: Sandbox, make_app: MakeApp, made: Assignment
) -> None:
    other = make_app(version="131.0", package=SAMPLES[Plane.JAMF].package, content=b"other")
    other_id = (await ready(connector, other, sandbox)).external_id
    put = "<id>{}</id><action>{}</action>".format
    rewrite(sandbox, made, package(put(other_id, "Install")))
    swapped = await connector.observe(made)
    rewrite(sandbox, made, package(put(made.external_id, "Install"), put(other_id, "Install")))
    added = await connector.observe(made)
    rewrite(sandbox, made, package(put(made.external_id, "Cache")))
    cached = await connector.observe(made)
    rewrite(sandbox, made, package(put(other_id, "Install")))

    again = await another_turn(connector, made)
    sandbox.advance(10)

    assert swapped.assigned
    assert swapped.version == added.version
    assert str(swapped.version).startswith("Firefox 131.0 ")
    assert not cached.assigned
    assert again.made_id == made.made_id
    assert await connector.observe(again) == Observed(assigned=True, version="130.0")
    assert await states(connector, again) == {InstallState.INSTALLED: 40}


def package(*parts: str) -> str:
    inside = "".join(f"<package>{part}</package>" for part in parts)
    return f"<package_configuration><packages>{inside}</packages></package_configuration>"


def group(*refs: str) -> str:
    inside = "".join(f"<computer_group><id>{ref}</id></computer_group>" for ref in refs)
    return f"<computer_groups>{inside}</computer_groups>"


@only(Plane.JAMF)
async def test_the_scope_of_a_policy_is_compared_and_written_again(
    connector: OpenConnector, sandbox: Sandbox, made: Assignment
) -> None:
    ref, pilot, lab = made.target.ref, sandbox.group("PILOT").ref, sandbox.group("LAB").ref
    rewrite(sandbox, made, f"<scope>{group(ref, pilot)}</scope>")
    wider = await connector.observe(made)
    rewrite(sandbox, made, f"<scope><all_computers>true</all_computers>{group()}</scope>")
    widest = await connector.observe(made)
    rewrite(sandbox, made, f"<scope><all_computers>false</all_computers>{group(pilot)}</scope>")
    elsewhere = await connector.observe(made)
    rewrite(sandbox, made, f"<scope>{group(ref)}<exclusions>{group(ref, lab)}</exclusions></scope>")
    kept_out = await connector.observe(made)

    again = await another_turn(connector, made)

    assert wider == Observed(assigned=True, version="130.0", others=(pilot,))
    assert widest == Observed(assigned=True, version="130.0", others=("all_computers",))
    assert elsewhere == Observed(assigned=False, version="130.0", others=(pilot,))
    assert kept_out == Observed(assigned=False, version="130.0")
    assert await connector.observe(again) == Observed(assigned=True, version="130.0")
    written = at_jamf(sandbox, "GET", f"{POLICIES}/{made.made_id}")
    assert f"<exclusions><computer_groups><id>{lab}</id></computer_groups></exclusions>" in written


@only(Plane.JAMF)
async def test_a_policy_that_does_not_run_at_check_in_asks_for_nothing(
    connector: OpenConnector, sandbox: Sandbox, made: Assignment
) -> None:
    rewrite(sandbox, made, "<general><trigger_checkin>false</trigger_checkin></general>")

    assert await connector.observe(made) == Observed(assigned=False, version="130.0")


@only(Plane.SCCM)
async def test_the_latest_revision_of_an_application_tells_its_version(
    connector: OpenConnector, sandbox: Sandbox, made: Assignment
) -> None:
    revised = {
        "name": "Example Editor 4.2.1",
        "product": "Example Editor",
        "version": "4.2.2",
        "revises": "4.2.1",
    }
    sandbox.control("PUT", "applications", {"items": [revised]})

    assert await connector.observe(made) == Observed(assigned=True, version="4.2.2")


@only(Plane.SCCM)
async def test_only_what_carries_our_name_is_ours_at_configuration_manager(
    connector: OpenConnector, sandbox: Sandbox, made: Assignment
) -> None:
    pilot, lab = sandbox.group("PILOT"), sandbox.group("LAB")
    await connector.assign(replace(made, key=f"{made.app.marker}/PILOT/assign", target=pilot))
    deploy(sandbox, "theirs", sandbox.group("GLOBAL").ref)
    deploy(sandbox, f"eucora:{made.app.marker}/GLOBAL/remove/return", sandbox.group("GLOBAL").ref)
    deploy(sandbox, f"eucora:{made.first_key}", lab.ref)

    seen = await connector.observe(made)
    lose(sandbox, made)
    lost = await connector.observe(made)
    again = await another_turn(connector, made)

    assert seen == Observed(assigned=True, version="4.2.1", others=tuple(sorted([pilot.ref, lab.ref])))
    assert lost == replace(seen, assigned=False)
    assert await connector.observe(again) == seen


def deploy(sandbox: Sandbox, name: str, collection: str) -> None:
    """Somebody else deploys the application under a name of his choice."""
    told = at_sccm(sandbox, "GET", f"/SMS_Collection?$filter=CollectionID eq '{collection}'")["value"][0]
    body = {
        "ApplicationName": "Example Editor 4.2.1",
        "AssignmentName": name,
        "AssignmentAction": 2,
        "AssignmentType": 2,
        "AssignedCIs": [16780332],
        "CollectionName": told["Name"],
        "TargetCollectionID": collection,
        "DesiredConfigType": 1,
        "OfferTypeID": 2,
        "StartTime": "2026-11-23T12:00:00Z",
        "SourceSite": "XYZ",
    }
    at_sccm(sandbox, "POST", DEPLOYMENTS, body)


@only(Plane.INTUNE)
def test_every_turn_s_objects_are_called_by_the_first_key(app: App) -> None:
    first = assignment(app, "7", Target(TargetKind.GROUP, "x"))
    later = replace(first, key=f"{first.key}/12")

    assert (first.is_first_turn, later.is_first_turn) == (True, False)
    assert later.first_key == first.key == later.key_of(Action.ASSIGN)
