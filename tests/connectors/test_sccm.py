# SPDX-License-Identifier: Apache-2.0
"""What only Configuration Manager does: connections that authenticate, content that others distribute."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from app.connectors.contract import Action, App, InstallState, Plane
from app.resilience.errors import AuthError, NotReady, NotThere, PolicyError
from tests.connectors.conftest import Connect, MakeApp, Sandbox
from tests.connectors.connecting import done, quick_fleet, ready, states

NAME = "Example Editor 4.2.1"


@pytest.fixture
def plane() -> Plane:
    return Plane.SCCM


@pytest.fixture
def app(make_app: MakeApp) -> App:
    return make_app("Example Editor", "4.2.1", package={"kind": "application", "name": NAME})


def packaged(sandbox: Sandbox, *items: dict[str, Any]) -> None:
    known = {"name": NAME, "product": "Example Editor", "version": "4.2.1"}
    sandbox.control("PUT", "applications", {"items": [known | item for item in items]})


def refusals(sandbox: Sandbox) -> int:
    return sum(exchange.status == 401 for exchange in sandbox.recorder.exchanges)


@pytest.mark.parametrize("protocol", ["ntlm", "negotiate"])
async def test_a_connection_authenticates_once_and_serves_one_call_at_a_time(
    connect: Connect, sandbox: Sandbox, protocol: str
) -> None:
    connector = connect(auth=protocol)

    for _ in range(3):
        await asyncio.gather(*(connector.check() for _ in range(8)))

    connections = connector.manifest.max_concurrency
    assert refusals(sandbox) == 2 * connections  # the first request of each, and the challenge
    assert sum(exchange.status == 200 for exchange in sandbox.recorder.exchanges) == 24


async def test_a_wrong_password_is_no_outage_and_stands_nowhere(connect: Connect) -> None:
    for protocol in ("ntlm", "negotiate", "basic"):
        connector = connect(auth=protocol, password="wrong-and-secret")
        with pytest.raises(AuthError) as raised:
            await connector.check()
        assert "wrong-and-secret" not in f"{raised.value!r} {connector._settings!r} {vars(connector)}"


async def test_basic_will_do_where_it_is_offered(connect: Connect) -> None:
    assert (await connect(auth="basic", username="sandbox").check()).facts["site"] == "XYZ"


async def test_a_lost_connection_in_the_middle_of_a_handshake_is_a_passing_trouble(
    connect: Connect, sandbox: Sandbox
) -> None:
    connector = connect()
    sandbox.faults({"path": "/*", "probability": 0.3, "reset": True})

    ended = await asyncio.gather(*(connector.check() for _ in range(12)), return_exceptions=True)
    sandbox.faults()

    assert not [error for error in ended if isinstance(error, AuthError)]
    assert (await connect().check()).detail


@pytest.mark.parametrize(
    ("item", "kind", "why"),
    [
        ({"points": 1}, NotReady, "on 1 of 2 distribution points"),
        ({"points": 1, "failed": 1}, PolicyError, "failed on 1"),
        ({"points": 0, "targeted": 0}, PolicyError, "on no distribution point"),
        ({"version": "4.2.2"}, PolicyError, "there are: 4.2.2"),
        ({"expired": True}, PolicyError, "but 0"),
        ({"name": "Another"}, NotThere, f"no application named {NAME}"),
    ],
    ids=str,
)
async def test_an_application_that_clients_could_not_get_is_not_deployed(
    *, connect: Connect, sandbox: Sandbox, app: App, item: dict[str, Any], kind: type[Exception], why: str
) -> None:
    packaged(sandbox, item)

    with pytest.raises(kind, match=why):
        await connect().publish(app)

    assert sandbox.objects("deployment") == []


async def test_the_version_before_comes_back(connect: Connect, sandbox: Sandbox, app: App) -> None:
    quick_fleet(sandbox, devices=30)
    connector = connect()
    made = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    sandbox.advance(10)
    previous = await connector.find_version(app, "4.2.0")
    assert await connector.find_version(app, "4.1.0") is None

    removed = await done(connector, replace(made, previous_id=previous), Action.REMOVE)
    sandbox.advance(10)

    assert await states(connector, removed, Action.REMOVE) == {InstallState.NOT_INSTALLED: 30}
    back = [report.state async for page in connector.returned(removed) for report in page.reports]
    assert back == [InstallState.INSTALLED] * 30
    assert (await connector.verify(Action.REMOVE, app, removed)).holds


async def test_what_is_only_offered_has_no_deadline(connect: Connect, sandbox: Sandbox, app: App) -> None:
    connector = connect(purpose="available")
    await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)

    posted = next(exchange for exchange in sandbox.recorder.exchanges if exchange.status == 201)

    assert b'"OfferTypeID":2' in posted.request.replace(b": ", b":")
    assert b"EnforcementDeadline" not in posted.request


async def test_a_machine_that_failed_before_is_no_failure_of_the_next_deployment(
    connect: Connect, sandbox: Sandbox, make_app: MakeApp, app: App
) -> None:
    quick_fleet(sandbox, devices=20, fail=0.5)
    connector = connect()
    first = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    sandbox.advance(10)
    await done(connector, first, Action.UNASSIGN)
    sandbox.advance(10)
    sandbox.control("PUT", "fleet", {"rings": {"CANARY": {"devices": 20, "delay": [60.0, 60.0]}}})
    next_one = make_app("Example Editor", "4.2.1", package={"kind": "application", "name": NAME})

    made = await done(connector, await ready(connector, next_one, sandbox), Action.ASSIGN)

    assert await states(connector, made) == {InstallState.INSTALLED: 10, InstallState.PENDING: 10}


async def test_a_failed_machine_tells_its_code(connect: Connect, sandbox: Sandbox, app: App) -> None:
    quick_fleet(sandbox, devices=20, fail=0.5)
    connector = connect(page_rows="7")
    made = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    sandbox.advance(10)

    told = [report async for page in connector.status(Action.ASSIGN, made) for report in page.reports]

    assert len(told) == 20
    assert {report.error_code for report in told if report.state is InstallState.FAILED} == {"0x87D00324"}
