# SPDX-License-Identifier: Apache-2.0
"""What is asked of every plane of the catalogue, against its sandbox over a real socket."""

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from math import ceil
from typing import Any

import pytest

from app.connectors.catalogue import BY_PLANE, MANIFESTS
from app.connectors.contract import (
    Action,
    App,
    Call,
    Capability,
    DeviceReport,
    InstallState,
    Member,
    Observed,
    Plane,
    ReportPage,
)
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
from tests.connectors.conftest import PATIENT, Connect, MakeApp, Sandbox, assignment
from tests.connectors.connecting import done, quick_fleet, ready, reported, reports, states
from tests.connectors.samples import SAMPLES, Sample
from tests.waiting import eventually

QUICK = RetryProfile(attempts=2, shortest=0.01, longest=0.02, attempt_timeout=5.0, total=20.0)
HASTY = replace(QUICK, attempt_timeout=0.5)
SECRET, WRONG = "sandbox-secret", "sandbox-secret-of-yesterday"


@pytest.fixture(params=BY_PLANE, ids=str)
def plane(request: pytest.FixtureRequest) -> Plane:
    return Plane(request.param)


@pytest.fixture
def sample(plane: Plane) -> Sample:
    return SAMPLES[plane]


@pytest.fixture
def app(sample: Sample, make_app: MakeApp) -> App:
    return make_app(package=sample.package, **sample.app)


@pytest.fixture
def profile() -> RetryProfile:
    return QUICK


@pytest.mark.parametrize("devices", [1, 450])
async def test_no_call_takes_more_requests_than_the_manifest_says(
    connect: Connect, sandbox: Sandbox, app: App, plane: Plane, devices: int
) -> None:
    """The content of an upload apart: with it the last request of an upload is the first that counts."""
    quick_fleet(sandbox, devices=devices)
    connector = connect()
    await connector.check()
    taken: dict[Call, int] = {}

    @asynccontextmanager
    async def counting(call: Call) -> AsyncIterator[None]:
        before = len(sandbox.recorder.exchanges)
        yield
        taken[call] = len(sandbox.recorder.exchanges) - before

    async with counting(Call.PUBLISH):
        external_id = await connector.publish(app)
    async for _ in connector.upload(app, external_id, None):
        pass
    if Capability.UPLOAD not in connector.manifest.cannot:
        async with counting(Call.UPLOAD):
            async for _ in connector.upload(app, external_id, None):
                pass
    given = assignment(app, external_id, sandbox.group())
    async with counting(Call.FIND_VERSION):
        await connector.find_version(app, "0.1")
    async with counting(Call.MEMBERS):
        assert sum([len(page) async for page in connector.members(given.target)]) == devices
    async with counting(Call.ASSIGN):
        given = replace(given, baseline=await connector.baseline(given))
        given = replace(given, made_id=await connector.assign(given))
    sandbox.advance(120)
    async with counting(Call.STATUS):
        await reports(connector, given)

    allowed = {
        call: cost.requests + (ceil(devices / cost.page) if cost.page else 0)
        for call, cost in connector.manifest.costs.items()
    }
    assert {call: number for call, number in taken.items() if number > allowed[call]} == {}
    assert set(allowed) == set(Call)


def test_the_manifest_tells_what_the_plane_can_do_and_who_says_so(plane: Plane) -> None:
    manifest = MANIFESTS[plane]

    assert manifest.plane is plane
    assert manifest.package_kinds
    assert manifest.target_kinds
    assert manifest.sources
    assert manifest.max_concurrency > 0
    assert manifest.capabilities | manifest.cannot.keys() == set(Capability)
    assert all(manifest.cannot.values())


async def test_check_tells_bad_credentials_from_an_outage(
    connect: Connect, sample: Sample, sandbox: Sandbox
) -> None:
    assert (await connect().check()).detail
    with pytest.raises(AuthError):
        await connect(**{sample.credential: "wrong"}).check()
    sandbox.faults({"path": sample.login or sample.api, "status": 503})
    with pytest.raises(TransientError):
        await connect().check()


async def test_two_runs_of_one_effect_make_one_object(
    connect: Connect, sample: Sample, sandbox: Sandbox, app: App
) -> None:
    given = await ready(connect(), app, sandbox)

    assert await connect().publish(app) == await connect().publish(app) == given.external_id
    if MANIFESTS[sandbox.plane].can(Capability.MARKER):
        assert await connect().assign(given) == await connect().assign(given)

    for step, key in (("publish", app.key), ("assign", given.key)):
        if step in sample.makes and MANIFESTS[sandbox.plane].can(Capability.MARKER):
            made = [item["effect_key"] for item in sandbox.objects(sample.makes[step][2])]
            assert made.count(key) == 1


async def test_a_lost_answer_makes_no_second_object(
    connect: Connect, sample: Sample, sandbox: Sandbox, app: App
) -> None:
    connector = connect()

    async def lose(step: str, send: Callable[[], Any]) -> None:
        method, path, _ = sample.makes[step]
        sandbox.faults({"method": method, "path": path, "after": True, "reset": True})
        with pytest.raises(AmbiguousError):
            await send()
        sandbox.faults()

    if "publish" in sample.makes:
        await lose("publish", lambda: connector.publish(app))
        there = await connector.verify(Action.PUBLISH, app, None)
        assert there.holds
        assert await connector.publish(app) == there.external_id
        assert len(sandbox.objects(sample.makes["publish"][2])) == 1
    given = await ready(connector, app, sandbox)
    assert not (await connector.verify(Action.ASSIGN, app, given)).holds
    await lose("assign", lambda: connector.assign(given))
    there = await connector.verify(Action.ASSIGN, app, given)

    assert there.holds
    assert there.external_id
    assert len([item for item in sandbox.objects(sample.makes["assign"][2]) if item["effect_key"]]) == 1


async def test_what_was_put_on_a_target_is_taken_back_and_nothing_else(
    connect: Connect, sample: Sample, sandbox: Sandbox, app: App
) -> None:
    sandbox.control("PUT", "fleet", {"rings": {"CANARY": {"delay": [0.0, 1.0]}}})
    connector, look = connect(), sample.stranger(sandbox)
    theirs = [item for item in sandbox.control("GET", "objects") if not item["effect_key"]]
    before, given = look(), await ready(connector, app, sandbox)

    installed = await done(connector, given, Action.ASSIGN)
    assert (await connector.verify(Action.ASSIGN, app, installed)).holds
    sandbox.advance(10)
    assert (await states(connector, installed)).keys() == {InstallState.INSTALLED}
    touched = sandbox.devices(app)
    removed = await done(connector, given, Action.REMOVE)
    assert (await connector.verify(Action.REMOVE, app, removed)).holds
    sandbox.advance(10)
    assert (await states(connector, removed, Action.REMOVE)).keys() == {InstallState.NOT_INSTALLED}
    taken_back = await done(connector, given, Action.UNASSIGN)
    assert (await connector.verify(Action.UNASSIGN, app, taken_back)).holds

    left = sandbox.control("GET", "objects")
    assert {device["ring"] for device in touched} == {"CANARY"}
    assert not [device for device in sandbox.devices(app) if device["installed"]]
    assert not [item for item in left if item["type"] in sample.stands and item["effect_key"]]
    assert [item for item in left if not item["effect_key"]] == theirs
    assert look() == before


async def test_what_was_assigned_is_seen_long_afterwards_as_it_was_decided(
    connect: Connect, sandbox: Sandbox, app: App
) -> None:
    connector = connect()
    made = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    changes = sandbox.mutations()

    if not connector.manifest.can(Capability.OBSERVE):
        with pytest.raises(PermanentError, match=connector.manifest.cannot[Capability.OBSERVE]):
            await connector.observe(made)
    else:
        assert await connect().observe(made) == Observed(assigned=True, version=app.version)
    assert sandbox.mutations() == changes


async def test_failing_and_absent_devices_are_told_apart(
    connect: Connect, sandbox: Sandbox, app: App
) -> None:
    quick_fleet(sandbox, devices=100, fail=0.2, offline=0.1)
    connector = connect()
    installed = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    sandbox.advance(10)

    last = (await reports(connector, installed)).values()
    told = [report.state for report in last]

    assert (told.count(InstallState.INSTALLED), told.count(InstallState.FAILED)) == (70, 20)
    assert all(report.detail for report in last if report.state is InstallState.FAILED)
    members = [member.device_id async for page in connector.members(sandbox.group()) for member in page]
    assert {report.device_id for report in last} <= set(members)
    assert len(members) == 100


async def test_ten_thousand_devices_come_in_pages(
    connect: Connect, sample: Sample, sandbox: Sandbox, app: App
) -> None:
    quick_fleet(sandbox, devices=10_000)
    connector = connect(profile=PATIENT)
    installed = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    sandbox.advance(10)

    asked: list[tuple[AsyncIterator[Sequence[Member | DeviceReport]], type]] = [
        (connector.members(sandbox.group()), Member),
        (reported(connector.status(Action.ASSIGN, installed)), DeviceReport),
    ]
    for pages, kind in asked:
        seen, most, looked_at = set[str](), 0, 0
        async for page in pages:
            seen |= {item.device_id for item in page}
            if len(seen) // 2500 > looked_at // 2500:  # each look goes through all that lives
                most, looked_at = max(most, living(kind)), len(seen)
        assert len(seen) == 10_000
        assert most <= 2 * sample.page


async def test_a_reading_goes_on_behind_a_mark(connect: Connect, sandbox: Sandbox, app: App) -> None:
    quick_fleet(sandbox, devices=2_500)
    connector = connect(profile=PATIENT)
    installed = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    sandbox.advance(10)

    pages = [page async for page in connector.status(Action.ASSIGN, installed)]
    marked = next(number for number, page in enumerate(pages) if page.mark is not None)
    behind = [page async for page in connector.status(Action.ASSIGN, installed, after=pages[marked].mark)]
    at_the_end = [page async for page in connector.status(Action.ASSIGN, installed, after=pages[-1].mark)]

    def devices(of: Sequence[ReportPage]) -> set[str]:
        return {report.device_id for page in of for report in page.reports}

    assert devices(pages[: marked + 1]) | devices(behind) == devices(pages)
    assert len(devices(pages)) == 2_500
    assert len(at_the_end) <= len(behind) < len(pages)


def living(kind: type) -> int:
    return sum(type(item) is kind for item in gc.get_objects())


FAULTS: list[tuple[dict[str, Any], type[CallError]]] = [
    ({"status": 401}, AuthError),
    ({"status": 403}, PolicyError),
    ({"status": 404}, NotThere),
    ({"status": 409}, ConflictError),
    ({"status": 422}, PermanentError),
    ({"status": 423}, PermanentError),
    ({"status": 500}, TransientError),
    ({"status": 502}, TransientError),
    ({"status": 504}, TransientError),
    ({"status": 429, "headers": {"Retry-After": "600"}}, Throttled),
    ({"status": 503, "headers": {"Retry-After": "600"}}, Throttled),
    ({"latency": 0.8}, AttemptTimeout),
    ({"reset": True}, TransientError),
    ({"half_body": True}, TransientError),
    ({"status": 200, "body": '{"results": [{"id": 1'}, PermanentError),
    ({"status": 200, "body": "<html>hello</html>"}, PermanentError),
    ({"status": 200, "body": "<html>hello</html>", "headers": {"Content-Type": "text/html"}}, PermanentError),
    ({"status": 200, "body": "[]"}, PermanentError),
    ({"status": 200, "body": ""}, PermanentError),
]


@pytest.mark.parametrize(("fault", "kind"), FAULTS, ids=str)
async def test_every_odd_answer_has_its_class(
    connect: Connect, sample: Sample, sandbox: Sandbox, fault: dict[str, Any], kind: type[CallError]
) -> None:
    connector = connect(profile=HASTY if "latency" in fault else QUICK)
    sandbox.faults({"path": sample.api, **fault})

    with pytest.raises(CallError) as raised:
        await connector.check()

    expected = TransientError if fault.get("status") in sample.transient else kind
    assert isinstance(raised.value, expected)


async def test_a_short_throttle_is_waited_for(connect: Connect, sample: Sample, sandbox: Sandbox) -> None:
    connector = connect()
    await connector.check()
    started = time.monotonic()
    sandbox.faults({"path": sample.api, "status": 429, "headers": {"Retry-After": "1"}})
    checking = asyncio.create_task(connector.check())
    await eventually(lambda: any(seen.status == 429 for seen in sandbox.recorder.exchanges), within=5)
    sandbox.faults()

    await checking

    assert time.monotonic() - started >= 0.9


async def test_who_is_cancelled_in_the_middle_leaves_the_connector_well(
    connect: Connect, sample: Sample, sandbox: Sandbox
) -> None:
    connector = connect(profile=PATIENT)
    await connector.check()
    sandbox.faults({"path": sample.api, "latency": 3.0})
    waiting = [asyncio.create_task(connector.check()) for _ in range(2 * connector.manifest.max_concurrency)]
    await eventually(lambda: sandbox.recorder.exchanges[-1].status == 0, within=5)
    for task in waiting:
        task.cancel()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    sandbox.faults()

    assert all(isinstance(end, asyncio.CancelledError) for end in ended)
    assert (await asyncio.wait_for(connector.check(), timeout=30)).detail


async def test_a_token_that_ends_in_the_middle_is_renewed(
    connect: Connect, sample: Sample, sandbox: Sandbox
) -> None:
    if sample.login is None:
        pytest.skip("this plane's credential does not end")
    sandbox.control("PUT", "fleet", {"rings": {"CANARY": {"devices": 3000}}})
    connector, seen = connect(profile=PATIENT), 0

    async for page in connector.members(sandbox.group()):
        seen += len(page)
        sandbox.advance(100_000)

    assert seen == 3000


async def test_no_secret_stands_in_a_log_an_error_or_a_repr(
    connect: Connect, sample: Sample, sandbox: Sandbox, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    connector = connect()
    errors = []
    await connector.check()
    for fault in ({"status": 400, "body": f"you said {SECRET}"}, {"status": 403}, {"reset": True}):
        sandbox.faults({"path": sample.api, **fault})
        with pytest.raises(CallError) as raised:
            await connector.publish(app)
        errors += [str(raised.value), repr(raised.value)]
        sandbox.faults()
    with pytest.raises(AuthError) as refused:
        await connect(**{sample.credential: WRONG}).check()

    told = [caplog.text, str(refused.value), *errors, repr(connector), repr(vars(connector))]
    told += [line for record in caplog.records for line in map(str, record.__dict__.values())]
    assert not [text for text in told if SECRET in text or WRONG in text]


async def test_a_removal_reaches_just_the_devices_it_names_where_the_plane_can_name_them(
    connect: Connect, sandbox: Sandbox, app: App
) -> None:
    quick_fleet(sandbox, devices=12)
    connector = connect()
    if not connector.manifest.names_devices:
        pytest.skip("this plane takes back from whoever its group holds; the manifest says so")
    made = await done(connector, await ready(connector, app, sandbox), Action.ASSIGN)
    sandbox.advance(60)
    assert set(await states(connector, made)) == {InstallState.INSTALLED}
    named = [member async for page in connector.members(made.target) for member in page][:5]
    given = replace(made, key=made.key_of(Action.REMOVE), made_id=None, devices=tuple(named))
    given = replace(given, baseline=await connector.baseline(given))

    removed = replace(given, made_id=await connector.remove(given))
    assert await connector.remove(given) == removed.made_id
    sandbox.advance(60)

    have = {device["device_id"] for device in sandbox.devices(app) if device["installed"]}
    assert len(have) == 7
    assert have.isdisjoint(member.device_id for member in named)
    told = await reports(connector, removed, Action.REMOVE)
    assert {told[member.device_id].state for member in named} == {InstallState.NOT_INSTALLED}
    assert (await connector.verify(Action.REMOVE, app, removed)).holds
