# SPDX-License-Identifier: Apache-2.0
"""What only Landscape does: activities without markers, approval, archives that move on, cancelling."""

from dataclasses import replace
from typing import Any

import pytest

from app.connectors.contract import Action, App, InstallState, Observed, Plane, Target, TargetKind
from app.connectors.landscape import wire
from app.resilience.errors import AuthError, NotThere, PolicyError
from tests.connectors.conftest import Connect, MakeApp, Sandbox
from tests.connectors.connecting import another_turn, done, quick_fleet, ready, reports, states
from tests.connectors.samples import at_landscape

PACKAGE = {"kind": "deb", "name": "example-editor"}
SAID = {"version": "2011-08-01", "query": "tag:canary", "packages.1": "example-editor"}


@pytest.fixture
def plane() -> Plane:
    return Plane.LANDSCAPE


@pytest.fixture
def app(make_app: MakeApp) -> App:
    return make_app("example-editor", "4.2.1-1", package=PACKAGE)


def archive(sandbox: Sandbox, version: str, *, approval: bool = False) -> None:
    sandbox.control("PUT", "archive", {"packages": {"example-editor": version}, "approval": approval})


def activities(sandbox: Sandbox) -> list[dict[str, Any]]:
    return list(at_landscape(sandbox, "/v2/activities/parents")["results"])


async def test_what_waits_for_approval_and_what_for_the_computer_are_told_apart(
    connect: Connect, sandbox: Sandbox, app: App
) -> None:
    sandbox.control("PUT", "fleet", {"rings": {"CANARY": {"devices": 40, "delay": [60.0, 60.0]}}})
    archive(sandbox, "4.2.1-1", approval=True)
    connector = connect()
    made = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    waiting = await reports(connector, made)
    said = {"version": "2011-08-01", "query": f"id:{made.made_id}"}
    at_landscape(sandbox, "/", action="ApproveActivities", **said)

    undelivered = await reports(connector, made)
    sandbox.advance(120)

    assert {report.state for report in waiting.values()} == {InstallState.UNAPPROVED}
    assert {report.detail for report in waiting.values()} == {"waits for approval in Landscape"}
    assert {report.state for report in undelivered.values()} == {InstallState.UNDELIVERED}
    assert await states(connector, made) == {InstallState.INSTALLED: 40}


async def test_what_was_not_delivered_can_be_cancelled_and_never_comes(
    connect: Connect, sandbox: Sandbox, app: App
) -> None:
    sandbox.control("PUT", "fleet", {"rings": {"CANARY": {"devices": 40, "delay": [60.0, 60.0]}}})
    connector = connect()
    made = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)

    await connector.cancel(made)
    await connector.cancel(made)
    sandbox.advance(600)

    assert await states(connector, made) == {InstallState.PENDING: 40}
    assert sandbox.devices(app) == []
    assert (await connector.verify(Action.UNASSIGN, app, made)).holds


async def test_a_ring_whose_archives_have_another_version_is_refused(
    connect: Connect, sandbox: Sandbox, app: App
) -> None:
    connector = connect()
    given = await ready(connector, app, sandbox)
    archive(sandbox, "4.3.0-1")

    with pytest.raises(
        PolicyError, match=r"80 computers would not get 4\.2\.1-1: computer \d+ would get 4\.3"
    ):
        await connector.assign(given)

    assert activities(sandbox) == []


async def test_an_older_version_is_upgraded_and_one_that_is_there_is_left_alone(
    connect: Connect, sandbox: Sandbox, make_app: MakeApp, app: App
) -> None:
    quick_fleet(sandbox)
    archive(sandbox, "4.2.0-1")
    connector = connect()
    old = make_app("example-editor", "4.2.0-1", package=PACKAGE)
    await done(connector, await ready(connector, old, sandbox), Action.ASSIGN)
    sandbox.advance(10)
    archive(sandbox, "4.2.1-1")

    made = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    sandbox.advance(10)
    once_more = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)

    assert await states(connector, made) == {InstallState.INSTALLED: 40}
    assert once_more.made_id == "none"
    assert await states(connector, once_more) == {InstallState.INSTALLED: 40}
    assert [found["summary"] for found in activities(sandbox)] == [
        "Upgrade packages example-editor",
        "Install packages example-editor",
    ]


async def test_an_older_activity_of_ours_is_not_taken_for_the_lost_one(
    connect: Connect, sandbox: Sandbox, app: App
) -> None:
    quick_fleet(sandbox)
    connector = connect()
    first = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    sandbox.advance(10)
    await done(connector, first, Action.REMOVE)
    sandbox.advance(10)

    given = await ready(connector, app, sandbox)

    assert not (await connector.verify(Action.ASSIGN, app, given)).holds
    again = await done(connector, given, Action.ASSIGN)
    assert again.made_id != first.made_id


def change(sandbox: Sandbox, action: str, version: str, **said: str) -> None:
    """Somebody else changes what the computers have."""
    archive(sandbox, version)
    at_landscape(sandbox, "/", action=action, **{**SAID, **said})
    sandbox.advance(10)
    archive(sandbox, "4.2.1-1")


async def test_a_computer_that_got_another_version_is_seen_and_upgraded(
    connect: Connect, sandbox: Sandbox, app: App
) -> None:
    quick_fleet(sandbox)
    connector = connect()
    made = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    sandbox.advance(10)
    fine = await connector.observe(made)
    last = [member.device_id async for page in connector.members(made.target) for member in page][-1]
    change(sandbox, "RemovePackages", "4.2.0-1", query=f"id:{last}")
    missing = await connector.observe(made)
    change(sandbox, "InstallPackages", "4.2.0-1", query=f"id:{last}")
    older = await connector.observe(made)

    again = await another_turn(connector, made)
    waiting = await connector.observe(again)
    sandbox.advance(10)

    assert fine == missing == waiting == Observed(assigned=True, version="4.2.1-1")
    assert older == Observed(assigned=True, version="4.2.0-1")
    assert again.made_id not in {made.made_id, "none"}
    assert (await connector.verify(Action.ASSIGN, made.app, again)).holds
    assert await connector.observe(again) == fine
    assert await states(connector, again) == {InstallState.INSTALLED: 40}


async def test_a_computer_that_was_not_served_yet_or_failed_changed_nothing(
    connect: Connect, sandbox: Sandbox, make_app: MakeApp, app: App
) -> None:
    quick_fleet(sandbox)
    connector = connect()
    old = make_app("example-editor", "4.2.0-1", package=PACKAGE)
    archive(sandbox, "4.2.0-1")
    await done(connector, await ready(connector, old, sandbox), Action.ASSIGN)
    sandbox.advance(10)
    archive(sandbox, "4.2.1-1")
    quick_fleet(sandbox, fail=0.25, offline=0.25)

    made = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    before = await connector.observe(made)
    sandbox.advance(10)

    assert before == await connector.observe(made) == Observed(assigned=True, version="4.2.1-1")
    assert (await states(connector, made))[InstallState.UNDELIVERED] == 10


async def test_all_that_was_not_delivered_is_cancelled_whichever_turn_asked_for_it(
    connect: Connect, sandbox: Sandbox, app: App
) -> None:
    sandbox.control("PUT", "fleet", {"rings": {"CANARY": {"devices": 40, "delay": [60.0, 60.0]}}})
    connector = connect()
    made = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    again = await another_turn(connector, made)
    assert again.made_id != made.made_id
    given = replace(again, key=again.key_of(Action.UNASSIGN))
    assert not (await connector.verify(Action.UNASSIGN, app, given)).holds

    await connector.cancel(given)
    sandbox.advance(600)

    assert (await connector.verify(Action.UNASSIGN, app, given)).holds
    assert sandbox.devices(app) == []


async def test_computers_that_had_nothing_to_remove_count_as_done(
    connect: Connect, sandbox: Sandbox, app: App
) -> None:
    quick_fleet(sandbox, fail=0.25)
    connector = connect()
    made = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    sandbox.advance(10)
    assert (await states(connector, made))[InstallState.FAILED] == 10

    removed = await done(connector, made, Action.REMOVE)
    sandbox.advance(10)

    assert await states(connector, removed, Action.REMOVE) == {InstallState.NOT_INSTALLED: 40}


async def test_a_package_that_nobody_knows_is_named(connect: Connect, make_app: MakeApp) -> None:
    with pytest.raises(NotThere, match="knows no package nothing"):
        await connect().publish(make_app(package={"kind": "deb", "name": "nothing"}))


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (Target(TargetKind.TAG, "lab"), 10),
        (Target(TargetKind.GROUP, "lab"), 10),
        (Target(TargetKind.TAG, "tag:lab OR tag:canary"), 90),
        (Target(TargetKind.TAG, "tag:fleet"), 0),
    ],
    ids=str,
)
async def test_computers_are_found_by_tag_access_group_or_query(
    connect: Connect, target: Target, found: int
) -> None:
    assert sum([len(page) async for page in connect().members(target)]) == found


@pytest.mark.parametrize("ref", ["a b", "ring1 OR ring2", "", "(x)"])
def test_a_name_that_would_be_read_as_a_query_is_refused(ref: str) -> None:
    with pytest.raises(PolicyError, match="is no name of a tag"):
        wire.query(Target(TargetKind.TAG, ref))


async def test_an_account_can_log_in_by_its_email(connect: Connect) -> None:
    account = {"access_key": "", "secret_key": "", "email": "sandbox@sandbox.example"}

    assert (await connect(password="sandbox-secret", **account).check()).detail
    with pytest.raises(AuthError):
        await connect(password="wrong", **account).check()


def test_text_for_null_is_null(app: App) -> None:
    child = {
        "computer_id": 7,
        "activity_status": "failed",
        "result_text": "None",
        "result_code": "None",
        "changes": "None",
    }

    told = wire.report(child, app, Action.ASSIGN)

    assert (told.state, told.detail, told.error_code) == (InstallState.FAILED, "failed", None)


def test_another_version_than_ours_is_no_success(app: App) -> None:
    change = {"package": "example-editor", "type": "install", "version": "4.3.0-1"}
    child = {"computer_id": 7, "activity_status": "succeeded", "changes": [change]}

    told = wire.report(child, app, Action.ASSIGN)

    assert (told.state, told.detail) == (InstallState.FAILED, "got version 4.3.0-1")
    assert replace(told, state=InstallState.FAILED) == told
