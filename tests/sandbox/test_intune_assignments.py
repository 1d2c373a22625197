# SPDX-License-Identifier: Apache-2.0
"""Assignments as Intune keeps them, and what the fleet makes of them."""

from collections import Counter
from typing import Any

import pytest

from tests.sandbox.tenant import APPS, SETTLED, Clock, Tenant, assign_all, assignment, devices, plan


def assigned(tenant: Tenant, app_id: str) -> list[dict[str, Any]]:
    value: list[dict[str, Any]] = tenant.graph.get(f"{APPS}/{app_id}/assignments").json()["value"]
    return value


def test_assign_replaces_the_whole_set(tenant: Tenant) -> None:
    app_id = tenant.publish()
    lab, canary = assignment(tenant.group("LAB")), assignment(tenant.group("CANARY"))
    assert assign_all(tenant, app_id, lab, canary) == 204
    before = {item["target"]["groupId"]: item["id"] for item in assigned(tenant, app_id)}

    assert assign_all(tenant, app_id, canary) == 204

    after = {item["target"]["groupId"]: item["id"] for item in assigned(tenant, app_id)}
    assert after == {tenant.group("CANARY"): before[tenant.group("CANARY")]}
    assert assign_all(tenant, app_id) == 204
    assert assigned(tenant, app_id) == []


def test_single_assignments_are_added_and_removed_beside_others(tenant: Tenant) -> None:
    app_id = tenant.publish()
    assert tenant.assign(app_id, "LAB").status_code == 201
    made = tenant.assign(app_id, "CANARY")
    path = f"{APPS}/{app_id}/assignments/{made.json()['id']}"

    assert tenant.graph.get(path).json() == made.json()
    assert made.json()["intent"] == "required"
    assert tenant.graph.delete(path).status_code == 204

    assert [item["target"]["groupId"] for item in assigned(tenant, app_id)] == [tenant.group("LAB")]
    assert tenant.graph.delete(path).status_code == 404


def test_of_two_assignments_for_one_target_the_later_is_ignored_or_refused(tenant: Tenant) -> None:
    app_id, lab = tenant.publish(), tenant.group("LAB")

    assert assign_all(tenant, app_id, assignment(lab), assignment(lab, "uninstall")) == 204

    assert [item["intent"] for item in assigned(tenant, app_id)] == ["required"]
    assert tenant.assign(app_id, "LAB", "uninstall").status_code == 409


@pytest.mark.parametrize(
    "wrong",
    [
        {"intent": "sometimes"},
        {"target": {"@odata.type": "#microsoft.graph.groupAssignmentTarget", "groupId": "none"}},
        {"target": {"@odata.type": "#microsoft.graph.groupAssignmentTarget"}},
        {"target": {"@odata.type": "#microsoft.graph.noTarget"}},
        {"settings": {"@odata.type": "#microsoft.graph.iosLobAppAssignmentSettings"}},
    ],
)
def test_an_assignment_that_graph_would_not_take_changes_nothing(
    tenant: Tenant, wrong: dict[str, Any]
) -> None:
    app_id = tenant.publish()
    tenant.assign(app_id, "CANARY")
    bad = assignment(tenant.group("LAB")) | wrong

    answers = [
        tenant.graph.post(f"{APPS}/{app_id}/assignments", json=bad).status_code,
        assign_all(tenant, app_id, bad),
    ]

    assert answers == [400, 400]
    assert [item["target"]["groupId"] for item in assigned(tenant, app_id)] == [tenant.group("CANARY")]


def test_assignments_read_can_be_sent_back_merged(tenant: Tenant) -> None:
    app_id = tenant.publish()
    settings = {"@odata.type": "#microsoft.graph.win32LobAppAssignmentSettings", "notifications": "hideAll"}
    assign_all(tenant, app_id, assignment(tenant.group("LAB")) | {"settings": settings})
    before = assigned(tenant, app_id)

    assert assign_all(tenant, app_id, *before, assignment(tenant.group("CANARY"))) == 204

    assert assigned(tenant, app_id)[0] == before[0]
    assert len(assigned(tenant, app_id)) == 2


def test_devices_check_in_one_after_the_other_and_install(tenant: Tenant, clock: Clock) -> None:
    app_id = tenant.publish()
    tenant.assign(app_id, "CANARY")

    clock.advance(0.4)
    assert tenant.states(app_id) == {"Pending install": 80}
    clock.advance(1.35)
    halfway = tenant.states(app_id)
    assert 20 <= halfway["Installed"] <= 60
    clock.advance(SETTLED)
    assert tenant.states(app_id) == {"Installed": 80}


def test_a_plan_fails_and_keeps_away_exactly_its_share_and_always_the_same(
    tenant: Tenant, clock: Clock
) -> None:
    plan(tenant, fail=0.1, offline=0.05)
    first, second = tenant.publish("One"), tenant.publish("Two")
    tenant.assign(first, "CANARY")
    tenant.assign(second, "CANARY")
    clock.advance(SETTLED)

    assert tenant.states(first) == {"Installed": 68, "Failed": 8, "Pending install": 4}
    assert tenant.report(first)["Values"] == tenant.report(second)["Values"]


def test_an_app_of_its_own_plan_fails_beside_one_that_succeeds(tenant: Tenant, clock: Clock) -> None:
    tenant.control("fleet", {"apps": {"Bad": {"CANARY": {"fail": 0.3, "offline": 0.0}}}})
    good, bad = tenant.publish("Good"), tenant.publish("Bad")
    for app_id in (good, bad):
        tenant.assign(app_id, "LAB")
        tenant.assign(app_id, "CANARY")
    clock.advance(SETTLED)

    assert tenant.states(good) == {"Installed": 90}
    assert tenant.states(bad) == {"Installed": 66, "Failed": 24}


def test_a_failed_device_tells_its_error(tenant: Tenant, clock: Clock) -> None:
    plan(tenant, fail=1.0)
    app_id = tenant.publish()
    tenant.assign(app_id, "CANARY")
    clock.advance(SETTLED)

    report = tenant.report(
        app_id, "AppInstallState", "AppInstallStateDetails", "HexErrorCode", "ErrorCode", top=1
    )

    columns = [item["Column"] for item in report["Schema"]]
    row = dict(zip(columns, report["Values"][0], strict=True))
    assert (row["AppInstallState"], row["AppInstallState_loc"]) == (2, "Failed")
    assert (row["HexErrorCode"], row["ErrorCode"]) == ("0x87D1041C", 0x87D1041C - 2**32)
    assert "not detected" in row["AppInstallStateDetails_loc"]


def test_a_new_plan_lets_devices_try_again(tenant: Tenant, clock: Clock) -> None:
    plan(tenant, fail=0.5, offline=0.5)
    app_id = tenant.publish()
    tenant.assign(app_id, "CANARY")
    clock.advance(SETTLED)
    assert tenant.states(app_id) == {"Failed": 40, "Pending install": 40}

    plan(tenant, fail=0.0)
    clock.advance(SETTLED)

    assert tenant.states(app_id) == {"Installed": 80}


def test_an_assignment_taken_back_in_time_never_happened(tenant: Tenant, clock: Clock) -> None:
    app_id = tenant.publish()
    made = tenant.assign(app_id, "CANARY").json()
    clock.advance(0.4)

    tenant.graph.delete(f"{APPS}/{app_id}/assignments/{made['id']}")
    clock.advance(SETTLED)

    assert tenant.report(app_id)["TotalRowCount"] == 0
    assert devices(tenant, app_id) == []


def test_a_late_withdrawal_stops_only_those_that_did_not_start(tenant: Tenant, clock: Clock) -> None:
    app_id = tenant.publish()
    made = tenant.assign(app_id, "CANARY").json()
    clock.advance(1.75)
    started = tenant.states(app_id)["Installed"]

    tenant.graph.delete(f"{APPS}/{app_id}/assignments/{made['id']}")
    clock.advance(SETTLED)

    touched = devices(tenant, app_id)
    assert len(touched) == started
    assert all(device["installed"] == [{"app_id": app_id, "version": "1.0"}] for device in touched)


def test_uninstall_removes_from_the_devices_of_its_ring_only(tenant: Tenant, clock: Clock) -> None:
    app_id = tenant.publish()
    lab, canary = tenant.group("LAB"), tenant.group("CANARY")
    assign_all(tenant, app_id, assignment(lab), assignment(canary))
    clock.advance(SETTLED)

    assign_all(tenant, app_id, assignment(lab), assignment(canary, "uninstall"))
    assert tenant.states(app_id) == {"Installed": 90}  # nobody has checked in yet
    clock.advance(SETTLED)

    assert tenant.states(app_id) == {"Installed": 10, "Not installed": 80}
    canaries = [device for device in devices(tenant, app_id) if device["ring"] == "CANARY"]
    assert [step["action"] for step in canaries[0]["history"]] == ["install", "uninstall"]
    assert all(device["installed"] == [] for device in canaries)


def test_an_uninstall_may_fail_where_the_plan_says_so(tenant: Tenant, clock: Clock) -> None:
    plan(tenant, remove_fail=0.25)
    app_id = tenant.publish()
    assign_all(tenant, app_id, assignment(tenant.group("CANARY")))
    clock.advance(SETTLED)

    assign_all(tenant, app_id, assignment(tenant.group("CANARY"), "uninstall"))
    clock.advance(SETTLED)

    assert tenant.states(app_id) == {"Not installed": 60, "Uninstall failed": 20}


def test_an_upgrade_replaces_the_version_and_a_rollback_brings_it_back(tenant: Tenant, clock: Clock) -> None:
    old, new = tenant.publish("Thing", "1.0"), tenant.publish("Thing", "2.0")
    group = tenant.group("CANARY")
    assign_all(tenant, old, assignment(group))
    clock.advance(SETTLED)
    assign_all(tenant, new, assignment(group))
    clock.advance(SETTLED)
    assert tenant.states(new) == {"Installed": 80}
    assert versions(tenant, new) == {("2.0",): 80}

    assign_all(tenant, new, assignment(group, "uninstall"))
    clock.advance(SETTLED)

    assert tenant.states(new) == {"Not installed": 80}
    assert tenant.states(old) == {"Installed": 80}
    assert versions(tenant, new) == {("1.0",): 80}


def versions(tenant: Tenant, app_id: str) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(item["version"] for item in device["installed"]) for device in devices(tenant, app_id)
    )


def test_a_device_that_failed_an_upgrade_keeps_what_it_had(tenant: Tenant, clock: Clock) -> None:
    old, new = tenant.publish("Thing", "1.0"), tenant.publish("Thing", "2.0")
    tenant.assign(old, "CANARY")
    clock.advance(SETTLED)
    plan(tenant, fail=0.25)

    tenant.assign(new, "CANARY")
    clock.advance(SETTLED)

    assert tenant.states(new) == {"Installed": 60, "Failed": 20}
    assert versions(tenant, new) == {("1.0",): 20, ("2.0",): 60}


def test_excluded_groups_and_all_devices(tenant: Tenant, clock: Clock) -> None:
    app_id = tenant.publish()
    everybody = {"@odata.type": "#microsoft.graph.allDevicesAssignmentTarget"}
    required = assignment("unused") | {"target": everybody}

    assign_all(tenant, app_id, required, assignment(tenant.group("GLOBAL"), exclude=True))
    clock.advance(SETTLED)

    assert tenant.states(app_id) == {"Installed": 600}


def test_a_deleted_app_stays_on_the_devices_but_reaches_no_more(tenant: Tenant, clock: Clock) -> None:
    app_id = tenant.publish()
    tenant.assign(app_id, "LAB")
    clock.advance(SETTLED)
    tenant.assign(app_id, "CANARY")

    assert tenant.graph.delete(f"{APPS}/{app_id}").status_code == 204
    clock.advance(SETTLED)

    assert {device["ring"] for device in devices(tenant, app_id)} == {"LAB"}
    assert tenant.graph.get(f"{APPS}/{app_id}/assignments").status_code == 404
    assert {item["type"] for item in tenant.control("objects")}.isdisjoint(
        {"mobileApp", "mobileAppAssignment"}
    )
