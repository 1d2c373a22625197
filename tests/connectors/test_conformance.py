# SPDX-License-Identifier: Apache-2.0
"""What is asked of every plane of the catalogue, against its sandbox. A new plane adds one ``Sample``."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from app.connectors.catalogue import BY_PLANE, MANIFESTS, OpenConnector, build, sandbox_settings
from app.connectors.contract import Action, App, Plane, Target
from app.connectors.services import Services
from app.connectors.sources import FileRules
from app.resilience import RetryProfile
from app.resilience.errors import (
    AmbiguousError,
    AttemptTimeout,
    AuthError,
    CallError,
    ConflictError,
    NotThere,
    PermanentError,
    PolicyError,
    Throttled,
    TransientError,
)
from tests.connectors.conftest import MakeApp, Sandbox, assignment
from tests.waiting import eventually

QUICK = RetryProfile(attempts=2, shortest=0.01, longest=0.02, attempt_timeout=0.5, total=5.0)


@dataclass(frozen=True)
class Sample:
    """What the suite must know of a plane: a credential to spoil, its login, its API, what a create makes."""

    credential: str
    login: str
    api: str
    create: tuple[str, str]
    kind: str
    target: Callable[[Sandbox], Target]


SAMPLES = {
    Plane.INTUNE: Sample(
        credential="client_secret",
        login="/oauth2/*",
        api="/device*",
        create=("POST", "/deviceAppManagement/mobileApps"),
        kind="mobileApp",
        target=lambda sandbox: sandbox.group(),
    ),
}


@pytest.fixture(params=BY_PLANE, ids=str)
def plane(request: pytest.FixtureRequest) -> Plane:
    return Plane(request.param)


@pytest.fixture
def sample(plane: Plane) -> Sample:
    return SAMPLES[plane]


Connect = Callable[..., OpenConnector]


@pytest.fixture
async def connect(plane: Plane, sandbox: Sandbox, tmp_path: Path, files: Path) -> AsyncIterator[Connect]:
    made: list[OpenConnector] = []

    def connecting(**settings: str) -> OpenConnector:
        services = Services(spool=tmp_path / "spool", files=FileRules(allowed_roots=(files,)), profile=QUICK)
        made.append(build(plane, {**sandbox_settings(plane, sandbox.url), **settings}, services))
        return made[-1]

    yield connecting
    for connector in made:
        await connector.aclose()


async def publish_whole(connector: OpenConnector, app: App) -> str:
    external_id = await connector.publish(app)
    async for progress in connector.upload(app, external_id, None):
        done = progress.done
    assert done
    return external_id


def test_the_manifest_tells_what_the_plane_can_do_and_who_says_so(plane: Plane) -> None:
    manifest = MANIFESTS[plane]

    assert manifest.plane is plane
    assert manifest.package_kinds
    assert manifest.target_kinds
    assert manifest.sources
    assert manifest.max_concurrency > 0


async def test_check_tells_bad_credentials_from_an_outage(
    connect: Connect, sample: Sample, sandbox: Sandbox
) -> None:
    assert (await connect().check()).detail
    with pytest.raises(AuthError):
        await connect(**{sample.credential: "wrong"}).check()
    sandbox.faults({"path": sample.login, "status": 503})
    with pytest.raises(TransientError):
        await connect().check()


async def test_two_runs_of_one_effect_make_one_object(
    connect: Connect, sample: Sample, sandbox: Sandbox, make_app: MakeApp
) -> None:
    app = make_app()

    assert await connect().publish(app) == await connect().publish(app)

    assert [item["effect_key"] for item in sandbox.objects(sample.kind)] == [app.key]


async def test_a_lost_answer_makes_no_second_object(
    connect: Connect, sample: Sample, sandbox: Sandbox, make_app: MakeApp
) -> None:
    app, connector = make_app(), connect()
    method, path = sample.create
    sandbox.faults({"method": method, "path": path, "after": True, "reset": True})
    with pytest.raises(AmbiguousError):
        await connector.publish(app)
    sandbox.faults()

    verified = await connector.verify(Action.PUBLISH, app, None)

    assert verified.holds
    assert await connector.publish(app) == verified.external_id
    assert len(sandbox.objects(sample.kind)) == 1


async def test_what_was_put_on_a_target_is_taken_back(
    connect: Connect, sample: Sample, sandbox: Sandbox, make_app: MakeApp
) -> None:
    app, connector = make_app(), connect()
    given = assignment(app, await publish_whole(connector, app), sample.target(sandbox))

    held = []
    for change in (connector.assign, connector.remove, connector.unassign):
        await change(given)
        asked = [
            await connector.verify(action, app, given)
            for action in (Action.ASSIGN, Action.REMOVE, Action.UNASSIGN)
        ]
        held.append([verified.holds for verified in asked])

    assert held == [[True, False, False], [False, True, False], [False, False, True]]


async def test_devices_and_their_states_come_in_pages(
    connect: Connect, sample: Sample, sandbox: Sandbox, make_app: MakeApp
) -> None:
    sandbox.control("PUT", "fleet", {"seed": 7, "rings": {"CANARY": {"devices": 2500}}})
    connector = connect()
    app = make_app()
    given = assignment(app, await publish_whole(connector, app), sample.target(sandbox))
    given = replace(given, made_id=await connector.assign(given))

    members = [len(page) async for page in connector.members(sample.target(sandbox))]
    reports = [len(page) async for page in connector.status(Action.ASSIGN, given)]

    assert (sum(members), sum(reports)) == (2500, 2500)
    assert max(members + reports) <= 1000


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"status": 401}, AuthError),
        ({"status": 403}, PolicyError),
        ({"status": 404}, NotThere),
        ({"status": 409}, ConflictError),
        ({"status": 422}, PermanentError),
        ({"status": 500}, TransientError),
        ({"status": 502}, TransientError),
        ({"status": 429, "headers": {"Retry-After": "600"}}, Throttled),
        ({"status": 503, "headers": {"Retry-After": "600"}}, Throttled),
        ({"latency": 0.8}, AttemptTimeout),
        ({"reset": True}, TransientError),
        ({"half_body": True}, TransientError),
        ({"status": 200, "body": "<html>hello</html>"}, PermanentError),
        ({"status": 200, "body": ""}, PermanentError),
    ],
    ids=str,
)
async def test_every_odd_answer_has_its_class(
    connect: Connect, sample: Sample, sandbox: Sandbox, fault: dict[str, Any], kind: type[CallError]
) -> None:
    connector = connect()
    sandbox.faults({"path": sample.api, **fault})

    with pytest.raises(CallError) as raised:
        await connector.check()

    assert isinstance(raised.value, kind)


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_a_short_throttle_is_waited_for(
    connect: Connect, sample: Sample, sandbox: Sandbox, form: str
) -> None:
    connector = connect()
    await connector.check()
    started = time.monotonic()
    until = {"seconds": "1", "date": formatdate(time.time() + 2, usegmt=True)}
    sandbox.faults({"path": sample.api, "status": 429, "headers": {"Retry-After": until[form]}})
    checking = asyncio.create_task(connector.check())
    await eventually(lambda: any(seen.status == 429 for seen in sandbox.recorder.exchanges), within=5)
    sandbox.faults()

    await checking

    assert time.monotonic() - started >= 0.9
