# SPDX-License-Identifier: Apache-2.0
"""Intune against the sandbox, over a real socket."""

import gc
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

import pytest

from app.connectors.contract import Action, App, Assignment, DeviceReport, InstallState, Member
from app.connectors.intune import MANIFEST, Intune
from app.connectors.intune.wire import app_body, report_rows
from app.resilience.errors import (
    PermanentError,
)
from tests.connectors.conftest import Make, MakeApp, Sandbox, assignment, published, upload
from tests.connectors.connecting import reported

APPS = "/deviceAppManagement/mobileApps"


async def test_check_says_who_answered(intune: Intune, sandbox: Sandbox) -> None:
    health = await intune.check()

    assert "127.0.0.1" in health.detail
    assert health.facts["base_url"] == f"{sandbox.url}/intune/v1.0"


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
    return app_body(app) | {"notes": "not ours"}


async def test_every_request_of_an_effect_carries_its_key_and_correlation(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    app_id = await published(intune, app)
    given = assignment(app, app_id, sandbox.group())
    await intune.assign(given)

    seen = {(mutation["effect_key"], mutation["correlation_id"]) for mutation in sandbox.mutations()}

    assert seen == {(app.key, str(app.correlation_id)), (given.key, str(given.correlation_id))}


async def test_foreign_assignments_stay_whatever_is_done(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    app_id = await published(intune, app)
    foreign = {
        "intent": "available",
        "target": {
            "@odata.type": "#microsoft.graph.groupAssignmentTarget",
            "groupId": sandbox.group("PILOT").ref,
        },
    }
    theirs = sandbox.as_neighbour("POST", f"{APPS}/{app_id}/assignments", foreign)["id"]
    ours = assignment(app, app_id, sandbox.group())

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
    await intune.assign(assignment(new, new_id, sandbox.group()))
    back = assignment(new, new_id, sandbox.group(), action="remove", previous_id=old_id)
    before = await intune.verify(Action.REMOVE, new, back)

    first, again = await intune.remove(back), await intune.remove(back)

    assert not before.holds
    assert first == again
    assert list(assignments(sandbox, new_id).values()) == ["uninstall"]
    assert list(assignments(sandbox, old_id).values()) == ["required"]
    assert (await intune.verify(Action.REMOVE, new, back)).holds


def relationships(sandbox: Sandbox) -> list[dict[str, Any]]:
    return sandbox.objects("mobileAppRelationship")


async def test_a_newer_version_supersedes_ours_before_it_until_it_is_taken_back(
    make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    intune, old, new = make(), make_app(version="129.0"), make_app()
    old_id, new_id = await published(intune, old), await published(intune, new)
    await intune.assign(assignment(old, old_id, sandbox.group()))
    assert relationships(sandbox) == []
    given = assignment(new, new_id, sandbox.group())

    await intune.assign(given)
    await make().assign(given)

    assert [item["effect_key"] for item in relationships(sandbox)] == [given.key]
    await intune.remove(assignment(new, new_id, sandbox.group(), action="remove", previous_id=old_id))
    assert relationships(sandbox) == []


async def test_nobody_else_s_application_is_superseded_and_nothing_is_where_that_is_switched_off(
    make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    intune, old, new = make(), make_app(version="129.0"), make_app()
    old_id, new_id = await published(intune, old), await published(intune, new)
    await make(supersede="false").assign(assignment(new, new_id, sandbox.group()))
    theirs = {"@odata.type": "#microsoft.graph.win32LobApp", "notes": "theirs"}
    sandbox.as_neighbour("PATCH", f"{APPS}/{old_id}", theirs)

    await intune.assign(assignment(new, new_id, sandbox.group("LAB")))

    assert relationships(sandbox) == []


@pytest.mark.parametrize("intent", ["available", "availableWithoutEnrollment", "required"])
async def test_a_return_leaves_what_somebody_else_offers_of_the_previous_version(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox, intent: str
) -> None:
    app = make_app()
    old_id, new_id = await published(intune, make_app(version="129.0")), await published(intune, app)
    theirs = on_group(sandbox, old_id, intent)
    back = assignment(app, new_id, sandbox.group(), action="remove", previous_id=old_id)

    await intune.remove(back)

    assert assignments(sandbox, old_id) == {theirs: intent}
    assert list(assignments(sandbox, new_id).values()) == ["uninstall"]
    assert (await intune.verify(Action.REMOVE, app, back)).holds


async def test_a_return_ends_what_would_uninstall_the_previous_version(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    old_id, new_id = await published(intune, make_app(version="129.0")), await published(intune, app)
    on_group(sandbox, old_id, "uninstall")
    back = assignment(app, new_id, sandbox.group(), action="remove", previous_id=old_id)
    on_group(sandbox, new_id, "uninstall")
    before = await intune.verify(Action.REMOVE, app, back)

    await intune.remove(back)

    assert not before.holds
    assert list(assignments(sandbox, old_id).values()) == ["required"]
    assert (await intune.verify(Action.REMOVE, app, back)).holds


async def test_another_intent_for_our_application_gives_way(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    app_id = await published(intune, app)
    on_group(sandbox, app_id, "available")
    given = assignment(app, app_id, sandbox.group())

    await intune.assign(given)

    assert list(assignments(sandbox, app_id).values()) == ["required"]
    assert (await intune.verify(Action.ASSIGN, app, given)).holds


def on_group(sandbox: Sandbox, app_id: str, intent: str) -> str:
    """The assignment somebody else made to our ring's group."""
    target = {"@odata.type": "#microsoft.graph.groupAssignmentTarget", "groupId": sandbox.group().ref}
    body = {"intent": intent, "target": target}
    return str(sandbox.as_neighbour("POST", f"{APPS}/{app_id}/assignments", body)["id"])


async def test_a_removal_is_not_done_before_the_previous_version_is_back(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    old_id, app = await published(intune, make_app(version="129.0")), make_app()
    app_id = await published(intune, app)
    await intune.remove(assignment(app, app_id, sandbox.group()))

    verified = await intune.verify(
        Action.REMOVE, app, assignment(app, app_id, sandbox.group(), previous_id=old_id)
    )

    assert not verified.holds


async def test_verify_of_an_application_that_is_gone(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    lost = assignment(app, str(uuid4()), sandbox.group())

    held = {action: (await intune.verify(action, app, lost)).holds for action in Action}

    assert held == {action: action is Action.UNASSIGN for action in Action}


async def test_an_application_without_content_cannot_be_assigned(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    app_id = await intune.publish(app)

    with pytest.raises(PermanentError, match="no published content"):
        await intune.assign(assignment(app, app_id, sandbox.group()))


async def test_devices_are_members_by_the_id_they_report_with(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    app_id = await published(intune, app)
    await intune.assign(assignment(app, app_id, sandbox.group()))

    members = [member async for page in intune.members(sandbox.group()) for member in page]
    sandbox.advance(60)
    reports = [
        report
        async for page in intune.status(Action.ASSIGN, assignment(app, app_id, sandbox.group()))
        for report in page.reports
    ]

    assert len(members) == 80
    assert {member.device_id for member in members} == {report.device_id for report in reports}
    assert {report.state for report in reports} == {InstallState.INSTALLED}
    assert all(member.name and member.last_seen is not None and member.last_seen.tzinfo for member in members)
    assert {report.version for report in reports} == {"130.0"}


async def test_each_state_of_a_device_is_told(intune: Intune, make_app: MakeApp, sandbox: Sandbox) -> None:
    plan = {"devices": 200, "fail": 0.3, "offline": 0.3, "remove_fail": 0.2, "delay": [0.0, 1.0]}
    sandbox.control("PUT", "fleet", {"seed": 7, "rings": {"CANARY": plan}})
    app = make_app()
    app_id = await published(intune, app)
    given = assignment(app, app_id, sandbox.group())
    await intune.assign(given)
    sandbox.advance(60)

    installing = await states(intune, given)
    await intune.remove(given)
    sandbox.advance(60)
    removing = await states(intune, given)

    assert set(installing) == {InstallState.INSTALLED, InstallState.FAILED, InstallState.PENDING}
    assert {InstallState.NOT_INSTALLED, InstallState.REMOVE_FAILED} <= set(removing)
    failed = [*installing[InstallState.FAILED], *removing[InstallState.REMOVE_FAILED]]
    assert all(re.fullmatch("0x[0-9A-F]{8}", report.error_code or "") for report in failed)
    assert {report.detail for report in failed} == {
        "The application was not detected after installation completed successfully",
        "The application was still detected after uninstallation",
    }
    assert not any(report.error_code for report in installing[InstallState.INSTALLED])


@pytest.mark.parametrize(
    ("told", "detail", "error_code"),
    [
        (
            {"AppInstallStateDetails": 7, "AppInstallStateDetails_loc": "Not detected"},
            "Not detected",
            "0x87D1041C",
        ),
        (
            {"AppInstallStateDetails": "7", "AppInstallStateDetails_loc": "Not detected"},
            "Not detected",
            "0x87D1041C",
        ),
        ({"AppInstallStateDetails": "Not detected"}, "Not detected", "0x87D1041C"),
        ({"AppInstallStateDetails": 0, "AppInstallStateDetails_loc": ""}, "Failed", "0x87D1041C"),
        ({"AppInstallStateDetails": 0, "HexErrorCode": ""}, "Failed", "0x87D1041C"),
        ({"AppInstallStateDetails": 0, "HexErrorCode": "0x0", "ErrorCode": 1603}, "Failed", "0x00000643"),
        ({"AppInstallStateDetails": 0, "HexErrorCode": None, "ErrorCode": 0}, "Failed", None),
    ],
    ids=[
        "beside a number",
        "beside a number as text",
        "in the place of the number",
        "only the state",
        "only the signed code",
        "no hexadecimal code",
        "no code",
    ],
)
def test_a_failure_is_told_in_words_and_with_its_code_in_whatever_columns_they_come(
    told: dict[str, object], detail: str, error_code: str | None
) -> None:
    row: dict[str, object] = {
        "DeviceId": "1",
        "AppInstallState": "2",
        "AppInstallState_loc": "Failed",
        "HexErrorCode": "0x87D1041C",
        "ErrorCode": 0x87D1041C - 2**32,
    } | told
    page = {"Schema": [{"Column": name} for name in row], "Values": [list(row.values())]}

    [report] = report_rows(page)

    assert (report.state, report.detail, report.error_code) == (InstallState.FAILED, detail, error_code)


def test_a_device_without_trouble_has_no_detail_and_no_code() -> None:
    row = {"DeviceId": "1", "AppInstallState_loc": "Installed", "AppInstallStateDetails": 0, "ErrorCode": 0}
    page = {"Schema": [{"Column": name} for name in row], "Values": [list(row.values())]}

    [report] = report_rows(page)

    assert (report.state, report.detail, report.error_code) == (InstallState.INSTALLED, None, None)


async def states(intune: Intune, given: Assignment) -> dict[InstallState, list[DeviceReport]]:
    found: dict[InstallState, list[DeviceReport]] = {}
    async for page in intune.status(Action.ASSIGN, given):
        for report in page.reports:
            found.setdefault(report.state, []).append(report)
    return found


async def test_three_thousand_devices_are_read_a_page_at_a_time(
    make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    sandbox.control("PUT", "fleet", {"seed": 7, "rings": {"CANARY": {"devices": 3000}}})
    intune = make(page_rows="500")
    app = make_app()
    app_id = await published(intune, app)
    await intune.assign(assignment(app, app_id, sandbox.group()))

    asked: list[tuple[AsyncIterator[Sequence[Member | DeviceReport]], type]] = [
        (intune.members(sandbox.group()), Member),
        (reported(intune.status(Action.ASSIGN, assignment(app, app_id, sandbox.group()))), DeviceReport),
    ]
    for pages, kind in asked:
        seen: set[str] = set()
        most = 0
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
    assert await intune.find_version(make_app("7-Zip"), "24.08") is None
    await upload(intune, app, app_id)

    assert await intune.find_version(make_app("7-Zip"), "24.08") == app_id
    assert await intune.find_version(make_app("7-Zip"), "24.09") is None
    assert await intune.find_version(make_app("7-zip's cousin"), "24.08") is None
    sandbox.as_neighbour(
        "PATCH",
        f"{APPS}/{app_id}",
        {
            "@odata.type": "#microsoft.graph.win32LobApp",
            "notes": "theirs",
            "msiInformation": {"productCode": "{1}", "productVersion": "24.08"},
        },
    )
    assert await intune.find_version(make_app("7-Zip"), "24.08") == app_id


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
