# SPDX-License-Identifier: Apache-2.0
"""What only AWX does: prompts that are dropped, jobs that run once, hosts that cannot be reached."""

import json
from dataclasses import replace
from typing import Any

import pytest

from app.connectors.contract import Action, App, InstallState, Plane, Target, TargetKind
from app.resilience.errors import AuthError, NotThere, PermanentError, PolicyError
from tests.connectors.conftest import Connect, MakeApp, Sandbox
from tests.connectors.connecting import done, quick_fleet, ready, reports, states
from tests.connectors.samples import at_awx

PACKAGE = {
    "kind": "playbook",
    "job_template": "Install application",
    "rollback_job_template": "Roll back application",
}


@pytest.fixture
def plane() -> Plane:
    return Plane.ANSIBLE


@pytest.fixture
def app(make_app: MakeApp) -> App:
    return make_app(package=PACKAGE)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ask_limit_on_launch": False}, "whole inventory"),
        ({"ask_variables_on_launch": False}, "version would be lost"),
        ({"passwords_needed_to_start": ["ssh"]}, "asks for passwords"),
        ({"variables_needed_to_start": ["channel"]}, "needs the variables channel"),
        ({"job_slice_count": 3}, "slices"),
    ],
    ids=str,
)
@pytest.mark.parametrize("template", [1, 2], ids=["install", "rollback"])
async def test_a_template_that_would_not_do_as_told_is_refused_before_anything_runs(
    *, connect: Connect, sandbox: Sandbox, app: App, template: int, change: dict[str, Any], why: str
) -> None:
    at_awx(sandbox, "PATCH", f"/job_templates/{template}/", change)

    with pytest.raises(PolicyError, match=why):
        await connect().publish(app)

    assert sandbox.objects("job") == []


async def test_a_template_that_is_not_there_is_named(connect: Connect, make_app: MakeApp) -> None:
    with pytest.raises(NotThere, match="no job template named Nothing"):
        await connect().publish(make_app(package=PACKAGE | {"job_template": "Nothing"}))


async def test_a_job_that_lost_its_limit_is_cancelled_at_once(
    connect: Connect, sandbox: Sandbox, app: App
) -> None:
    sandbox.control("PUT", "fleet", {"rings": {"CANARY": {"delay": [60.0, 120.0]}}})  # what at once means
    connector = connect()
    given = await ready(connector, app, sandbox)
    asked = at_awx(sandbox, "GET", "/job_templates/1/launch/")
    at_awx(sandbox, "PATCH", "/job_templates/1/", {"ask_limit_on_launch": False})
    path = "/job_templates/*/launch/"
    sandbox.faults({"method": "GET", "path": path, "status": 200, "body": json.dumps(asked)})

    with pytest.raises(PolicyError, match="ignored our limit; job 1 was cancelled"):
        await connector.assign(given)

    assert at_awx(sandbox, "GET", "/jobs/1/")["status"] == "canceled"
    sandbox.faults()
    sandbox.advance(600)
    assert sandbox.devices(app) == []
    assert not (await connector.verify(Action.ASSIGN, app, given)).holds


async def test_a_group_whose_name_means_more_in_a_limit_is_refused(
    connect: Connect, sandbox: Sandbox, app: App
) -> None:
    connector = connect()
    given = await ready(connector, app, sandbox)
    group = {"id": 12, "name": "web:!db", "inventory": 1}
    sandbox.faults({"path": "/groups/*", "status": 200, "body": json.dumps(group)})

    with pytest.raises(PolicyError, match="means something else in a limit"):
        await connector.assign(given)

    assert sandbox.objects("job") == []


async def test_a_whole_inventory_can_be_a_target(connect: Connect, sandbox: Sandbox, app: App) -> None:
    quick_fleet(sandbox, devices=50)
    connector, target = connect(), Target(TargetKind.INVENTORY, "1")
    given = replace(await ready(connector, app, sandbox), target=target)

    members = sum([len(page) async for page in connector.members(target)])
    made = await done(connector, given, Action.ASSIGN)
    sandbox.advance(60)

    assert await states(connector, made) == {InstallState.INSTALLED: members}


async def test_who_failed_and_who_was_not_reached_are_told_apart_with_the_task(
    connect: Connect, sandbox: Sandbox, app: App
) -> None:
    quick_fleet(sandbox, devices=50, fail=0.2, offline=0.1)
    connector = connect()
    made = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    assert await reports(connector, made) == {}  # it runs: nothing is final
    sandbox.advance(10)

    told = await reports(connector, made)

    details = {report.state: report.detail for report in told.values()}
    assert await states(connector, made) == {
        InstallState.INSTALLED: 35,
        InstallState.FAILED: 10,
        InstallState.UNREACHABLE: 5,
    }
    assert details[InstallState.FAILED] == "Install the package: non-zero return code"
    assert "Connection timed out" in str(details[InstallState.UNREACHABLE])
    assert details[InstallState.INSTALLED] is None


async def test_a_retry_runs_on_the_hosts_in_trouble_only_and_twice_is_once(
    connect: Connect, sandbox: Sandbox, app: App
) -> None:
    quick_fleet(sandbox, devices=50, fail=0.2)
    connector = connect()
    made = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    sandbox.advance(10)
    quick_fleet(sandbox, devices=50)
    assert (await states(connector, made))[InstallState.FAILED] == 10

    again = await connector.retry(made)
    assert await connector.retry(made) == again
    sandbox.advance(10)

    assert await states(connector, replace(made, made_id=again)) == {InstallState.INSTALLED: 10}
    assert len(sandbox.objects("job")) == 2


async def test_a_cancelled_job_touches_no_further_host(connect: Connect, sandbox: Sandbox, app: App) -> None:
    sandbox.control("PUT", "fleet", {"rings": {"CANARY": {"delay": [60.0, 90.0]}}})
    connector = connect()
    made = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    assert not (await connector.verify(Action.UNASSIGN, app, made)).holds

    await connector.cancel(made)
    await connector.cancel(made)
    sandbox.advance(600)

    assert (await connector.verify(Action.UNASSIGN, app, made)).holds
    assert sandbox.devices(app) == []
    with pytest.raises(PermanentError, match="ended as canceled"):
        await reports(connector, made)


async def test_without_a_rollback_template_nothing_is_pretended(
    connect: Connect, sandbox: Sandbox, make_app: MakeApp
) -> None:
    quick_fleet(sandbox, devices=50)
    app = make_app(package={"kind": "playbook", "job_template": "Install application"})
    connector = connect()
    made = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)

    with pytest.raises(PolicyError, match="no rollback_job_template"):
        await done(connector, made, Action.REMOVE)


async def test_a_password_will_do_and_so_will_the_path_behind_the_gateway(
    connect: Connect, sandbox: Sandbox
) -> None:
    base = f"{sandbox.url}/ansible/api/controller/v2"
    account = {"token": "", "username": "sandbox"}

    health = await connect(base_url=base, password="sandbox-secret", **account).check()
    with pytest.raises(AuthError):
        await connect(password="wrong", **account).check()

    assert health.facts == {"base_url": base, "user": "sandbox"}
