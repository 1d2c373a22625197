# SPDX-License-Identifier: Apache-2.0
"""What only Jamf Pro does: two APIs, a cluster, sessions that are kept alive, policies that run once."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.connectors.contract import Action, App, InstallState, Plane
from app.resilience.errors import AuthError, NotThere, PermanentError, PolicyError, TransientError
from tests.connectors.conftest import Connect, MakeApp, Sandbox
from tests.connectors.connecting import done, quick_fleet, ready, reports, states

SCRIPT = "rm -rf /Applications/Firefox.app; pkgutil --forget com.example.firefox"
PACKAGE = {"kind": "pkg", "bundle_id": "com.example.firefox", "uninstall_script": SCRIPT}


@pytest.fixture
def plane() -> Plane:
    return Plane.JAMF


@pytest.fixture
def app(make_app: MakeApp) -> App:
    return make_app(package=PACKAGE)


def requests(sandbox: Sandbox, method: str, ending: str) -> int:
    exchanges = sandbox.recorder.exchanges
    return sum(each.method == method and each.path.endswith(ending) for each in exchanges)


@pytest.mark.parametrize("ring", ["CANARY", "PILOT"], ids=["static", "smart"])
async def test_a_ring_may_be_a_static_or_a_smart_group(
    connect: Connect, sandbox: Sandbox, app: App, ring: str
) -> None:
    quick_fleet(sandbox, ring)
    connector = connect()
    made = await done(connector, await ready(connector, app, sandbox, ring), Action.ASSIGN)
    sandbox.advance(10)

    members = [member async for page in connector.members(sandbox.group(ring)) for member in page]

    assert len(members) == 40
    assert all(member.last_seen is not None and member.last_seen.tzinfo for member in members)
    assert await states(connector, made) == {InstallState.INSTALLED: 40}


async def test_a_group_that_is_not_there_is_named(connect: Connect, sandbox: Sandbox) -> None:
    with pytest.raises(NotThere, match="no computer group 99"):
        async for _ in connect().members(replace(sandbox.group(), ref="99")):
            pass


async def test_who_failed_is_told_by_the_policy_log_and_who_did_not_call_is_not_asked_about(
    connect: Connect, sandbox: Sandbox, app: App
) -> None:
    quick_fleet(sandbox, fail=0.25, offline=0.25)
    connector = connect()
    given = await ready(connector, app, sandbox)
    made = await done(connector, given, Action.ASSIGN)
    made = replace(made, made_at=connector_clock(sandbox))
    sandbox.advance(10)

    told = await reports(connector, made)

    assert await states(connector, made) == {
        InstallState.INSTALLED: 20,
        InstallState.FAILED: 10,
        InstallState.PENDING: 10,
    }
    failed = [report for report in told.values() if report.state is InstallState.FAILED]
    assert {report.detail for report in failed} == {"the policy's log says Failed"}
    assert requests(sandbox, "GET", "/subset/PolicyLogs") == 20  # twice the ten that called and have it not


async def test_a_ring_in_which_everybody_failed_is_read_too(
    connect: Connect, sandbox: Sandbox, app: App
) -> None:
    quick_fleet(sandbox, devices=250, fail=1.0)
    connector = connect()
    made = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    sandbox.advance(10)

    assert await states(connector, made) == {InstallState.FAILED: 250}


def connector_clock(sandbox: Sandbox) -> datetime:
    """A moment ago, by the sandbox's clock."""
    return datetime.now(UTC) + timedelta(seconds=sandbox.ahead[0] - 1)


async def test_the_version_before_is_installed_over_it(
    connect: Connect, sandbox: Sandbox, make_app: MakeApp, app: App
) -> None:
    quick_fleet(sandbox)
    connector, old = connect(), make_app(version="129.0", package=PACKAGE, content=b"old" * 99)
    await ready(connector, old, sandbox)
    made = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    sandbox.advance(10)
    previous = await connector.find_version(app, "129.0")
    assert await connector.find_version(app, "128.0") is None

    removed = await done(connector, replace(made, previous_id=previous), Action.REMOVE)
    sandbox.advance(10)

    assert await states(connector, removed, Action.REMOVE) == {InstallState.NOT_INSTALLED: 40}
    back = [report.state async for page in connector.returned(removed) for report in page.reports]
    assert back == [InstallState.INSTALLED] * 40


async def test_without_script_and_earlier_version_nothing_is_pretended(
    connect: Connect, sandbox: Sandbox, make_app: MakeApp
) -> None:
    app = make_app(package={"kind": "pkg", "bundle_id": "com.example.firefox"})
    connector = connect()
    given = await ready(connector, app, sandbox)

    with pytest.raises(PolicyError, match="no uninstall_script, and there is no version to return to"):
        await done(connector, given, Action.REMOVE)


async def test_a_cancelled_policy_begins_on_no_further_computer(
    connect: Connect, sandbox: Sandbox, app: App
) -> None:
    sandbox.control("PUT", "fleet", {"rings": {"CANARY": {"delay": [60.0, 90.0]}}})
    connector = connect()
    made = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)

    await connector.cancel(made)
    sandbox.advance(600)

    assert sandbox.devices(app) == []
    assert (await connector.verify(Action.ASSIGN, app, made)).holds


async def test_the_content_is_sent_from_disk_once_and_looked_for(
    connect: Connect, sandbox: Sandbox, make_app: MakeApp
) -> None:
    content = b"pkg" * 2_000_000
    app = make_app(package=PACKAGE, content=content)
    connector = connect()
    external_id = await connector.publish(app)

    progress = [each async for each in connector.upload(app, external_id, None)]
    again = [each async for each in connect().upload(app, external_id, None)]

    sent = [each for each in sandbox.recorder.exchanges if each.path.endswith("/upload")]
    assert progress[-1].done
    assert [each.done for each in again] == [True]
    assert len(sent) == 1
    assert content in sent[0].request
    assert (await connector.verify(Action.UPLOAD, app, None)).holds


async def test_other_content_under_our_name_is_not_deployed(
    connect: Connect, make_app: MakeApp, app: App
) -> None:
    connector = connect()
    external_id = await connector.publish(app)
    other = make_app(package=PACKAGE, content=b"other")
    other = replace(app, package=other.package)
    async for _ in connector.upload(other, external_id, None):
        pass

    with pytest.raises(PermanentError, match="other content"):
        async for _ in connector.upload(app, external_id, None):
            pass


async def test_the_cluster_is_asked_where_the_news_is(connect: Connect, sandbox: Sandbox, app: App) -> None:
    connector = connect()
    await connector.check()  # from here on the cluster's cookie is held
    external_id = await connector.publish(app)
    sandbox.advance(-60)  # the news stays news, however slow this machine is

    assert (await connector._api.get(f"/v1/packages/{external_id}"))["packageName"].startswith(
        "Firefox 130.0"
    )
    with pytest.raises(NotThere):
        await connect()._api.get(f"/v1/packages/{external_id}")


async def test_a_person_s_session_is_kept_alive_and_begun_anew_once_it_has_ended(
    connect: Connect, sandbox: Sandbox
) -> None:
    account = {"client_id": "", "client_secret": "", "username": "sandbox"}
    connector = connect(password="sandbox-secret", **account)
    sandbox.faults(token_lifetime=1.2)
    await connector.check()
    await asyncio.wait_for(renewed(connector, sandbox, "/auth/keep-alive"), timeout=10)
    sandbox.advance(3600)

    await connector.check()

    assert requests(sandbox, "POST", "/auth/token") >= 2
    with pytest.raises(AuthError):
        await connect(password="wrong", **account).check()


async def renewed(connector: Any, sandbox: Sandbox, ending: str) -> None:
    """Ask until the session has been renewed."""
    while not requests(sandbox, "POST", ending):
        await connector.check()


async def test_never_more_than_five_requests_are_under_way(connect: Connect, sandbox: Sandbox) -> None:
    connector = connect()
    await connector.check()
    sandbox.faults({"path": "/v1/*", "latency": 0.05})
    before = len(sandbox.recorder.exchanges)
    asking = [asyncio.create_task(connector.check()) for _ in range(20)]

    most = 0
    while not all(task.done() for task in asking):
        open_now = [each for each in sandbox.recorder.exchanges[before:] if each.status == 0]
        most = max(most, len(open_now))
        await asyncio.sleep(0.002)

    assert most == 5
    assert all(task.result().detail for task in asking)


async def test_a_locked_object_is_a_passing_trouble(connect: Connect, sandbox: Sandbox) -> None:
    connector = connect()
    sandbox.faults({"path": "/v1/packages", "status": 423})

    with pytest.raises(TransientError):
        await connector.check()
