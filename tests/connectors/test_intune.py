# SPDX-License-Identifier: Apache-2.0
"""Intune against the sandbox, over a real socket."""

import asyncio
import gc
import hashlib
import json
import logging
from contextlib import aclosing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from app.connectors.contract import Action, App, DeviceReport, InstallState, Member
from app.connectors.intune import MANIFEST, Intune
from app.connectors.sources import FileRules
from app.resilience import RetryProfile
from app.resilience.errors import (
    AmbiguousError,
    AuthError,
    CallError,
    PermanentError,
    PolicyError,
    Throttled,
    TransientError,
)
from tests.connectors import contract_check
from tests.connectors.conftest import BLOCK, Make, MakeApp, Sandbox, assignment, published, upload
from tests.waiting import eventually

APPS = "/deviceAppManagement/mobileApps"


def test_the_contract_was_there_to_hold_the_exchanges_against() -> None:
    if not contract_check.GRAPH.exists():
        pytest.skip("the vendors' contracts are not beside this checkout (../shared/contracts)")
    assert len(contract_check.contract()["paths"]) > 20


async def test_check_says_who_answered(intune: Intune, sandbox: Sandbox) -> None:
    health = await intune.check()

    assert "127.0.0.1" in health.detail
    assert health.facts["base_url"] == f"{sandbox.url}/intune/v1.0"


async def test_bad_credentials_are_told_from_an_outage(make: Make, sandbox: Sandbox) -> None:
    with pytest.raises(AuthError, match="7000215"):
        await make(client_secret="wrong").check()
    sandbox.faults({"path": "/oauth2/*", "status": 503})
    with pytest.raises(TransientError):
        await make().check()


async def test_publishing_twice_makes_one_application(
    intune: Intune, make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app(name="O'Reilly & Söhne")

    first, again = await intune.publish(app), await make().publish(app)

    assert first == again
    made = sandbox.objects("mobileApp")
    assert [(item["id"], item["effect_key"]) for item in made] == [(first, app.key)]


async def test_two_deployments_of_one_name_are_two_applications(intune: Intune, make_app: MakeApp) -> None:
    assert await intune.publish(make_app()) != await intune.publish(make_app())


async def test_the_marker_is_found_beyond_the_first_page(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    body = wire_body(make_app())
    sandbox.faults(throttle=False)
    for _ in range(120):
        sandbox.as_neighbour("POST", APPS, body)
    app = make_app()

    made = await intune.publish(app)

    assert await intune.publish(app) == made
    assert len(sandbox.objects("mobileApp")) == 121


def wire_body(app: App) -> dict[str, Any]:
    """What a neighbour would post for an application of the same name."""
    from app.connectors.intune.wire import app_body  # noqa: PLC0415

    return app_body(app) | {"notes": "not ours"}


async def test_every_request_of_an_effect_carries_its_key_and_correlation(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    app_id = await published(intune, app)
    given = assignment(app_id, sandbox.group())
    await intune.assign(given)

    seen = {(mutation["effect_key"], mutation["correlation_id"]) for mutation in sandbox.mutations()}

    assert seen == {(app.key, str(app.correlation_id)), (given.key, str(given.correlation_id))}


async def test_a_lost_answer_to_the_creation_is_ambiguous_and_verify_finds_the_application(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    before = await intune.verify(Action.PUBLISH, app, None)
    sandbox.faults({"method": "POST", "path": APPS, "after": True, "reset": True})
    with pytest.raises(AmbiguousError):
        await intune.publish(app)
    sandbox.faults()

    found = await intune.verify(Action.PUBLISH, app, None)

    assert not before.holds
    assert found.holds
    assert await intune.publish(app) == found.external_id
    assert len(sandbox.objects("mobileApp")) == 1


async def test_an_unreadable_answer_to_the_creation_is_ambiguous_too(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    sandbox.faults({"method": "POST", "path": APPS, "after": True, "status": 201, "body": "<html>"})

    with pytest.raises(AmbiguousError):
        await intune.publish(make_app())


async def test_a_lost_answer_to_an_assignment_is_verified(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    given = assignment(await published(intune, app), sandbox.group())
    sandbox.faults({"method": "POST", "path": f"{APPS}/*/assignments", "after": True, "reset": True})
    with pytest.raises(AmbiguousError):
        await intune.assign(given)
    sandbox.faults()

    verified = await intune.verify(Action.ASSIGN, app, given)

    assert verified.holds
    assert await intune.assign(given) == verified.external_id
    assert len(sandbox.objects("mobileAppAssignment")) == 1


async def test_the_content_arrives_and_a_repeat_sends_nothing(
    intune: Intune, make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    app_id = await published(intune, app)
    sent = len(sandbox.mutations())

    again = await upload(make(), app, app_id)

    assert len(again) >= 1
    assert len(sandbox.mutations()) == sent
    verified = await intune.verify(Action.UPLOAD, app, None)
    assert verified.holds
    assert verified.external_id == app_id


async def test_progress_grows_to_the_whole_and_only_the_last_is_done(
    intune: Intune, make_app: MakeApp
) -> None:
    app = make_app()
    app_id = await intune.publish(app)

    steps = [step async for step in intune.upload(app, app_id, None)]

    assert [step.done for step in steps] == [False] * (len(steps) - 1) + [True]
    sent = [step.sent_bytes for step in steps]
    assert sent == sorted(sent)
    assert steps[-1].sent_bytes == steps[-1].total_bytes > 20_000
    assert not list(intune._sources.spool.iterdir())


async def test_an_upload_goes_on_elsewhere_after_any_checkpoint(
    make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    sandbox.faults(throttle=False)
    whole = make_app()
    steps = len(await upload(make(), whole, await make().publish(whole)))
    for stop in range(1, steps + 1):
        app, elsewhere = make_app(), make()
        app_id = await elsewhere.publish(app)
        checkpoint = await stopped_after(make(), app, app_id, stop)

        last = None
        async for progress in elsewhere.upload(app, app_id, checkpoint):
            last = progress

        assert last is not None
        assert last.done
        assert (await elsewhere.verify(Action.UPLOAD, app, None)).holds
    assert len(sandbox.objects("mobileAppContentFile")) == steps + 1
    assert blob_requests(sandbox) == [5 + 1] * (steps + 1)


async def stopped_after(connector: Intune, app: App, app_id: str, values: int) -> dict[str, Any]:
    """The checkpoint of a worker that was stopped after so many values, as it was stored."""
    taken = 0
    async with aclosing(connector.upload(app, app_id, None)) as steps:
        async for progress in steps:
            taken += 1
            if taken >= values:
                break
    return dict(json.loads(json.dumps(progress.checkpoint)))


def blob_requests(sandbox: Sandbox) -> list[int]:
    """How often each file's storage was written to."""
    return [count for request, count in sandbox.counts().items() if request.startswith("PUT /_blob/")]


async def test_a_checkpoint_of_other_content_starts_afresh(
    make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    first = make()
    app_id = await first.publish(app)
    checkpoint = await stopped_after(first, app, app_id, 6) | {"seal": "of a rotated secret"}

    steps = [step async for step in make().upload(app, app_id, checkpoint)]

    assert steps[-1].done


@pytest.mark.parametrize("stored", [{}, {"phase": "unheard of"}, {"nonsense": 1}])
async def test_a_checkpoint_that_cannot_be_read_starts_afresh(
    intune: Intune, make_app: MakeApp, stored: dict[str, Any]
) -> None:
    app = make_app()

    steps = [step async for step in intune.upload(app, await intune.publish(app), stored)]

    assert steps[-1].done


async def test_a_storage_address_that_ends_is_renewed(
    make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    connector = make()
    app_id = await connector.publish(app)
    async with aclosing(connector.upload(app, app_id, None)) as steps:
        async for step in steps:
            if step.sent_bytes == BLOCK:
                sandbox.advance(2 * 3600)  # the token has ended as well
    assert step.done
    renewals = [item for item in sandbox.mutations() if item["path"].endswith("/renewUpload")]
    assert [item["status"] for item in renewals] == [401, 204]


async def test_an_address_about_to_end_is_renewed_before_it_is_used(
    make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    sandbox.faults(sas_lifetime=30.0)
    app = make_app()

    steps = await upload(make(), app, await make().publish(app))

    assert steps
    assert any(item["path"].endswith("/renewUpload") for item in sandbox.mutations())


async def test_storage_that_refuses_for_good_ends_the_upload(
    make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    sandbox.faults({"method": "PUT", "path": "/_blob/*", "status": 403})

    with pytest.raises(PolicyError):
        await upload(make(), app, await make().publish(app))

    assert sum(blob_requests(sandbox)) == 3


async def test_a_wrong_hash_sends_nothing(intune: Intune, make_app: MakeApp, sandbox: Sandbox) -> None:
    app = make_app()
    forged = App(**{**fields(app), "package": app.package.model_copy(update={"sha256": "0" * 64})})
    app_id = await intune.publish(forged)

    with pytest.raises(PermanentError, match="SHA-256"):
        await upload(intune, forged, app_id)

    assert sandbox.objects("mobileAppContent") == []


def fields(app: App) -> dict[str, Any]:
    return {name: getattr(app, name) for name in App.__slots__}


@pytest.mark.parametrize(
    "form", ["outside", "dotted", "symbolic link", "linked folder", "encoded", "missing"]
)
async def test_a_file_outside_of_the_roots_never_leaves(
    intune: Intune, make_app: MakeApp, tmp_path: Path, files: Path, sandbox: Sandbox, form: str
) -> None:
    secret = tmp_path / "private"
    secret.mkdir()
    (secret / "passwd").write_bytes(b"root")
    (files / "link.exe").symlink_to(secret / "passwd")
    (files / "folder").symlink_to(secret)
    uri = {
        "outside": f"file://{secret}/passwd",
        "dotted": f"file://{files}/../private/passwd",
        "symbolic link": f"file://{files}/link.exe",
        "linked folder": f"file://{files}/folder/passwd",
        "encoded": f"file://{files}/%2e%2e/private/passwd",
        "missing": f"file://{secret}/nothing",
    }[form]
    app = make_app()
    digest = hashlib.sha256(b"root").hexdigest()
    stealing = App(
        **{**fields(app), "package": app.package.model_copy(update={"uri": uri, "sha256": digest})}
    )
    app_id = await intune.publish(stealing)

    with pytest.raises(PolicyError, match="EUCORA_PACKAGE_ROOTS"):
        await upload(intune, stealing, app_id)

    assert sandbox.objects("mobileAppContent") == []


@pytest.mark.parametrize(
    ("rules", "kind"),
    [
        (FileRules(), PolicyError),
        (FileRules(allowed_roots=()), PolicyError),
        (FileRules(allowed_roots=(), allow_any_file=True), PolicyError),
        (FileRules(allow_any_file=True), None),
    ],
    ids=["none by default", "no roots", "roots win", "any while all are sandboxes"],
)
async def test_without_roots_only_sandboxes_get_files(
    make: Make, make_app: MakeApp, rules: FileRules, kind: type[Exception] | None
) -> None:
    connector, app = make(services={"files": rules}), make_app()
    app_id = await connector.publish(app)

    if kind is None:
        assert await upload(connector, app, app_id)
    else:
        with pytest.raises(kind):
            await upload(connector, app, app_id)


async def test_a_file_that_is_missing_or_no_file_is_told(
    intune: Intune, make_app: MakeApp, files: Path
) -> None:
    app = make_app()
    app_id = await intune.publish(app)
    for uri in [f"file://{files}", "file://elsewhere/x.exe"]:
        wrong = App(**{**fields(app), "package": app.package.model_copy(update={"uri": uri})})
        with pytest.raises(PermanentError):
            await upload(intune, wrong, app_id)


async def test_foreign_assignments_stay_whatever_is_done(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app_id = await published(intune, make_app())
    foreign = {
        "intent": "available",
        "target": {
            "@odata.type": "#microsoft.graph.groupAssignmentTarget",
            "groupId": sandbox.group("PILOT").ref,
        },
    }
    theirs = sandbox.as_neighbour("POST", f"{APPS}/{app_id}/assignments", foreign)["id"]
    ours = assignment(app_id, sandbox.group())

    for change in (
        intune.assign,
        intune.assign,
        intune.remove,
        intune.remove,
        intune.assign,
        intune.unassign,
    ):
        await change(ours)
        assert theirs in assignments(sandbox, app_id)

    assert list(assignments(sandbox, app_id)) == [theirs]
    assert not any(mutation["path"].endswith("/assign") for mutation in sandbox.mutations())


def assignments(sandbox: Sandbox, app_id: str) -> dict[str, str]:
    """Intent by assignment."""
    items = sandbox.as_neighbour("GET", f"{APPS}/{app_id}/assignments")["value"]
    return {item["id"]: item["intent"] for item in items}


async def test_removal_uninstalls_and_puts_the_previous_version_back(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    old, new = make_app(version="129.0"), make_app()
    old_id, new_id = await published(intune, old), await published(intune, new)
    await intune.assign(assignment(new_id, sandbox.group()))
    back = assignment(new_id, sandbox.group(), action="remove", previous_id=old_id)
    before = await intune.verify(Action.REMOVE, new, back)

    first, again = await intune.remove(back), await intune.remove(back)

    assert not before.holds
    assert first == again
    assert list(assignments(sandbox, new_id).values()) == ["uninstall"]
    assert list(assignments(sandbox, old_id).values()) == ["required"]
    assert (await intune.verify(Action.REMOVE, new, back)).holds


async def test_a_removal_is_not_done_before_the_previous_version_is_back(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    old_id, app = await published(intune, make_app(version="129.0")), make_app()
    app_id = await published(intune, app)
    await intune.remove(assignment(app_id, sandbox.group()))

    verified = await intune.verify(
        Action.REMOVE, app, assignment(app_id, sandbox.group(), previous_id=old_id)
    )

    assert not verified.holds


async def test_verify_of_an_application_that_is_gone(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app, lost = make_app(), assignment(str(uuid4()), sandbox.group())

    held = {action: (await intune.verify(action, app, lost)).holds for action in Action}

    assert held == {action: action is Action.UNASSIGN for action in Action}


async def test_an_application_without_content_cannot_be_assigned(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app_id = await intune.publish(make_app())

    with pytest.raises(PermanentError, match="no published content"):
        await intune.assign(assignment(app_id, sandbox.group()))


async def test_devices_are_members_by_the_id_they_report_with(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app_id = await published(intune, make_app())
    await intune.assign(assignment(app_id, sandbox.group()))

    members = [member async for page in intune.members(sandbox.group()) for member in page]
    sandbox.advance(60)
    reports = [report async for page in intune.status(app_id) for report in page]

    assert len(members) == 80
    assert {member.device_id for member in members} == {report.device_id for report in reports}
    assert {report.state for report in reports} == {InstallState.INSTALLED}
    assert all(member.name and member.last_seen is not None and member.last_seen.tzinfo for member in members)
    assert {report.version for report in reports} == {"130.0"}


async def test_each_state_of_a_device_is_told(intune: Intune, make_app: MakeApp, sandbox: Sandbox) -> None:
    plan = {"devices": 200, "fail": 0.3, "offline": 0.3, "remove_fail": 0.2, "delay": [0.0, 1.0]}
    sandbox.control("PUT", "fleet", {"seed": 7, "rings": {"CANARY": plan}})
    app_id = await published(intune, make_app())
    given = assignment(app_id, sandbox.group())
    await intune.assign(given)
    sandbox.advance(60)

    installing = await states(intune, app_id)
    await intune.remove(given)
    sandbox.advance(60)
    removing = await states(intune, app_id)

    assert set(installing) == {InstallState.INSTALLED, InstallState.FAILED, InstallState.PENDING}
    assert {InstallState.NOT_INSTALLED, InstallState.REMOVE_FAILED} <= set(removing)
    assert all(report.error_code for report in installing[InstallState.FAILED])
    assert all(report.detail for report in installing[InstallState.FAILED])
    assert not any(report.error_code for report in installing[InstallState.INSTALLED])


async def states(intune: Intune, app_id: str) -> dict[InstallState, list[DeviceReport]]:
    found: dict[InstallState, list[DeviceReport]] = {}
    async for page in intune.status(app_id):
        for report in page:
            found.setdefault(report.state, []).append(report)
    return found


async def test_three_thousand_devices_are_read_a_page_at_a_time(
    make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    sandbox.control("PUT", "fleet", {"seed": 7, "rings": {"CANARY": {"devices": 3000}}})
    intune = make(page_rows="500")
    app_id = await published(intune, make_app())
    await intune.assign(assignment(app_id, sandbox.group()))

    for pages, kind in [(intune.members(sandbox.group()), Member), (intune.status(app_id), DeviceReport)]:
        seen, most = set(), 0
        async for page in pages:
            seen |= {item.device_id for item in page}
            most = max(most, living(kind))
        assert len(seen) == 3000
        assert most <= 2 * 500
    assert sandbox.counts()["POST /deviceManagement/reports/retrieveDeviceAppInstallationStatusReport"] == 6


def living(kind: type) -> int:
    return sum(type(item) is kind for item in gc.get_objects())


async def test_a_version_is_found_whoever_made_it_once_it_is_usable(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app(name="7-Zip", version="24.08")
    app_id = await intune.publish(app)
    assert await intune.find_version("7-Zip", "24.08") is None
    await upload(intune, app, app_id)

    assert await intune.find_version("7-Zip", "24.08") == app_id
    assert await intune.find_version("7-Zip", "24.09") is None
    assert await intune.find_version("7-zip's cousin", "24.08") is None
    sandbox.as_neighbour(
        "PATCH",
        f"{APPS}/{app_id}",
        {
            "@odata.type": "#microsoft.graph.win32LobApp",
            "notes": "theirs",
            "msiInformation": {"productCode": "{1}", "productVersion": "24.08"},
        },
    )
    assert await intune.find_version("7-Zip", "24.08") == app_id


async def test_an_msi_is_published_with_its_product_code(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    code = "{23170F69-40C1-2702-2408-000001000000}"
    app = make_app(
        name="7-Zip",
        package={
            "kind": "msi",
            "uri": "https://example.org/7z.msi",
            "sha256": "0" * 64,
            "product_code": code,
        },
    )

    app_id = await intune.publish(app)

    made = sandbox.as_neighbour("GET", f"{APPS}/{app_id}")
    assert made["installCommandLine"] == 'msiexec /i "7z.msi" /qn /norestart'
    assert made["uninstallCommandLine"] == f'msiexec /x "{code}" /qn /norestart'
    assert made["msiInformation"]["productCode"] == code
    assert made["rules"][0]["productCode"] == code


async def test_kinds_that_are_not_in_the_manifest_are_refused(intune: Intune, make_app: MakeApp) -> None:
    app = make_app(package={"kind": "deb", "name": "firefox"})

    assert app.package.kind not in MANIFEST.package_kinds
    with pytest.raises(PermanentError, match="deb"):
        await intune.publish(app)


@pytest.mark.parametrize(
    "detection",
    [
        {"type": "registry", "key": r"HKEY_LOCAL_MACHINE\SOFTWARE\X"},
        {"type": "registry", "key": r"HKEY_LOCAL_MACHINE\SOFTWARE\X", "value_name": "Version", "value": "1"},
        {"type": "product_code", "product_code": "{1}", "version": "2.0"},
        {"type": "file", "path": "C:\\", "name": "x.exe"},
    ],
    ids=["key", "value", "product", "file"],
)
async def test_every_detection_is_accepted(
    intune: Intune, make_app: MakeApp, detection: dict[str, str]
) -> None:
    app = make_app()
    described = app.package.model_dump(mode="json") | {"detection": detection}

    assert await intune.publish(make_app(package=described))


async def test_the_token_may_end_in_the_middle(intune: Intune, make_app: MakeApp, sandbox: Sandbox) -> None:
    app = make_app()
    app_id = await intune.publish(app)
    async with aclosing(intune.upload(app, app_id, None)) as steps:
        async for step in steps:
            sandbox.advance(3700)
    given = assignment(app_id, sandbox.group())

    await intune.assign(given)

    assert step.done
    assert sandbox.counts()["POST /oauth2/v2.0/token"] > 5


async def test_a_long_throttle_is_a_deferral_and_a_short_one_is_waited_for(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    sandbox.faults({"path": f"{APPS}*", "status": 429, "headers": {"Retry-After": "120"}})
    with pytest.raises(Throttled) as raised:
        await intune.publish(app)
    assert raised.value.retry_after == 120.0
    sandbox.faults({"path": f"{APPS}*", "status": 429, "headers": {"Retry-After": "0"}, "probability": 0.4})

    assert await intune.publish(app)


async def test_a_rollout_through_a_storm_makes_each_object_once(
    make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    storm = [
        {"path": "/deviceAppManagement/*", "status": 503, "probability": 0.08},
        {
            "path": "/deviceAppManagement/*",
            "status": 429,
            "headers": {"Retry-After": "0"},
            "probability": 0.05,
        },
        {"path": "/deviceAppManagement/*", "after": True, "reset": True, "probability": 0.05},
        {"path": "/deviceAppManagement/*", "half_body": True, "probability": 0.05},
        {"path": "/_blob/*", "status": 500, "probability": 0.1},
    ]
    sandbox.faults(*storm)
    app, patient = make_app(), RetryProfile(attempts=6, shortest=0.01, longest=0.03, total=20.0)
    intune = make(services={"profile": patient})

    app_id = await insisted(lambda: intune.publish(app))
    checkpoints: list[dict[str, Any]] = [{}]

    async def one_run() -> None:
        async for step in intune.upload(app, app_id, checkpoints[-1]):
            checkpoints.append(dict(step.checkpoint))

    await insisted(one_run)
    given = assignment(app_id, sandbox.group())
    await insisted(lambda: intune.assign(given))
    sandbox.faults()

    assert len(sandbox.objects("mobileApp")) == 1
    assert len(sandbox.objects("mobileAppAssignment")) == 1
    assert (await intune.verify(Action.UPLOAD, app, None)).holds


async def insisted(step: Any) -> Any:
    """What a worker does: try again whatever may pass; each step finds what an earlier try did."""
    for _ in range(30):
        try:
            return await step()
        except (TransientError, AmbiguousError):
            continue
    raise AssertionError("thirty tries were not enough")


async def test_an_outage_opens_the_breaker_for_all_calls_of_the_plane(
    intune: Intune, sandbox: Sandbox
) -> None:
    sandbox.faults({"path": "/deviceAppManagement/*", "status": 503})
    codes = []
    for _ in range(4):
        with pytest.raises(CallError) as raised:
            await intune.check()
        codes.append(raised.value.code)

    assert codes[0] == "transient"
    assert codes[-1] == "circuit_open"
    assert sandbox.counts()[f"GET {APPS}"] == 5


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"status": 401}, AuthError),
        ({"status": 403}, PolicyError),
        ({"status": 404}, PermanentError),
        ({"status": 422}, PermanentError),
        ({"status": 500}, TransientError),
        ({"status": 504}, TransientError),
        ({"reset": True}, TransientError),
        ({"half_body": True}, TransientError),
        ({"status": 200, "body": "<html>not Graph</html>"}, PermanentError),
        ({"status": 200, "body": ""}, PermanentError),
        ({"status": 200, "body": "[1]"}, PermanentError),
        ({"status": 200, "body": '{"value": 3}'}, PermanentError),
        ({"status": 200, "body": '{"value": ['}, PermanentError),
    ],
    ids=lambda value: None if isinstance(value, type) else str(value),
)
async def test_odd_answers_have_a_class(
    intune: Intune, sandbox: Sandbox, fault: dict[str, Any], kind: type[CallError]
) -> None:
    sandbox.faults({"path": "/deviceAppManagement/*", **fault})

    with pytest.raises(kind):
        await intune.check()


async def test_a_page_that_leads_to_another_host_is_refused(intune: Intune, sandbox: Sandbox) -> None:
    page = {"value": [], "@odata.nextLink": "https://evil.example/v1.0/deviceManagement/managedDevices"}
    sandbox.faults({"path": "/deviceManagement/*", "status": 200, "body": json.dumps(page)})

    with pytest.raises(PermanentError, match="another host"):
        _ = [page async for page in intune.members(sandbox.group())]


async def test_cancelling_an_upload_leaves_something_to_go_on_from(
    make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app, connector = make_app(), make()
    app_id = await connector.publish(app)
    sandbox.faults({"method": "PUT", "path": "/_blob/*", "latency": 3.0})
    task = asyncio.create_task(upload(connector, app, app_id))
    await eventually(lambda: blob_started(sandbox), within=10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    sandbox.faults()

    assert await upload(connector, app, app_id)
    assert len(sandbox.objects("mobileAppContentFile")) == 1


def blob_started(sandbox: Sandbox) -> bool:
    return any(exchange.path.startswith("/intune/_blob/") for exchange in sandbox.recorder.exchanges)


async def test_no_secret_stands_in_a_log_a_checkpoint_or_a_repr(
    make: Make,
    make_app: MakeApp,
    sandbox: Sandbox,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.INFO)
    connector, app = make(), make_app()
    app_id = await connector.publish(app)
    sandbox.faults({"method": "PUT", "path": "/_blob/*", "status": 400}, token_lifetime=3599)
    with pytest.raises(PermanentError) as raised:
        await upload(connector, app, app_id)
    sandbox.faults()
    checkpoints = await upload(connector, app, app_id)

    told = capfd.readouterr()
    texts = [caplog.text, told.out, told.err, repr(connector), repr(connector._settings), str(raised.value)]
    texts += [repr(raised.value), json.dumps(checkpoints), repr(connector._graph), repr(connector._http)]
    texts += [line for record in caplog.records for line in map(str, record.__dict__.values())]
    for secret in secrets_of(connector, sandbox):
        assert not [text for text in texts if secret in text], secret


def secrets_of(connector: Intune, sandbox: Sandbox) -> list[str]:
    """The client secret, the token, every signature of a storage address, and every key of content."""
    held = connector._http._token_source
    assert held is not None
    found = [connector._settings.client_secret.get_secret_value(), *held.secrets()]
    for exchange in sandbox.recorder.exchanges:
        found += [part[4:] for part in exchange.query.split("&") if part.startswith("sig=")]
        if exchange.path.endswith("/commit"):
            sheet = json.loads(exchange.request)["fileEncryptionInfo"]
            found += [sheet["encryptionKey"], sheet["macKey"]]
    assert len(found) >= 6
    return found


def test_settings_hide_the_secret() -> None:
    from app.connectors.intune import IntuneSettings  # noqa: PLC0415

    settings = IntuneSettings(token_url="https://x/token", client_id="me", client_secret=SecretStr("hidden"))

    assert "hidden" not in repr(settings) + str(settings.model_dump())
