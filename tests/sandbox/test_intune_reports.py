# SPDX-License-Identifier: Apache-2.0
"""What reports, detected apps and managed devices say of the virtual fleet."""

import json
from datetime import datetime
from typing import Any

import pytest

from tests.connectors.contract_check import ABSENT, CONTRACTS
from tests.sandbox.tenant import REPORT, SETTLED, Clock, Tenant, assign_all, assignment, devices, plan


def test_report_pages_join_with_managed_devices(tenant: Tenant, clock: Clock) -> None:
    app_id = tenant.publish()
    for ring in ("LAB", "CANARY", "PILOT"):
        tenant.assign(app_id, ring)
    clock.advance(SETTLED)

    pages = [
        tenant.report(app_id, "DeviceId", skip=skip, top=100, orderBy=["DeviceId"])
        for skip in (0, 100, 200, 300)
    ]

    ids = [row[0] for page in pages for row in page["Values"]]
    managed = tenant.graph.get("/deviceManagement/managedDevices", params={"$top": "250"}).json()["value"]
    assert [page["TotalRowCount"] for page in pages] == [250] * 4
    assert [len(page["Values"]) for page in pages] == [100, 100, 50, 0]
    assert ids == sorted(ids)
    assert ids == [device["id"] for device in managed]
    assert ids == [device["device_id"] for device in devices(tenant, app_id)]


def test_a_report_is_a_byte_stream_of_at_most_1000_rows(tenant: Tenant, clock: Clock) -> None:
    app_id = tenant.publish()
    everybody = {"@odata.type": "#microsoft.graph.allDevicesAssignmentTarget"}
    assign_all(tenant, app_id, assignment("unused") | {"target": everybody})

    answer = tenant.graph.post(REPORT, json={"filter": f"(ApplicationId eq '{app_id}')", "top": 5000})

    assert answer.headers["content-type"] == "application/octet-stream"
    assert (answer.json()["TotalRowCount"], len(answer.json()["Values"])) == (1200, 1000)
    assert answer.json()["SessionId"] == ""


def test_a_report_has_the_form_of_the_vendors_example(tenant: Tenant) -> None:
    path = CONTRACTS / "intune-reports.examples.json"
    if not path.exists():
        pytest.skip(ABSENT)
    example = json.loads(path.read_text())["retrieveDeviceAppInstallationStatusReport"]
    expected = example["response"]["body"]

    answer = tenant.graph.post(REPORT, json=example["request"]["body"])

    assert answer.headers["content-type"] == example["response"]["headers"]["Content-Type"]
    assert answer.json().keys() == expected.keys()
    assert [column for column in answer.json()["Schema"] if column in expected["Schema"]] == expected[
        "Schema"
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"filter": "(Name eq 'x')"},
        {"select": ["Nothing"]},
        {"select": ["AppInstallState_loc"]},
        {"orderBy": ["DeviceName"]},
        {"skip": -1},
        {"invented": 1},
    ],
)
def test_a_report_that_graph_would_not_give_is_refused(tenant: Tenant, wrong: dict[str, Any]) -> None:
    body = {"filter": "(ApplicationId eq 'x')", "select": ["DeviceId"]} | wrong

    assert tenant.graph.post(REPORT, json=body).status_code == 400


def test_the_older_reports_of_beta_say_the_same(tenant: Tenant, clock: Clock) -> None:
    plan(tenant, fail=0.1)
    app_id = tenant.publish()
    tenant.assign(app_id, "CANARY")
    clock.advance(SETTLED)
    body = {
        "filter": f"(ApplicationId eq '{app_id}')",
        "select": ["DeviceId", "DeviceName", "AppInstallState"],
    }
    headers = tenant.graph.headers

    beta = f"{tenant.url}/intune/beta/deviceManagement/reports"
    older = tenant.http.post(
        f"{beta}/getDeviceInstallStatusReport", json=body | {"top": 1000}, headers=headers
    )
    overview = tenant.http.post(f"{beta}/getAppStatusOverviewReport", json=body, headers=headers).json()

    assert older.json() == tenant.report(app_id)
    columns = [item["Column"] for item in overview["Schema"]]
    counts = dict(zip(columns, overview["Values"][0], strict=True))
    assert (counts["InstalledDeviceCount"], counts["FailedDeviceCount"]) == (72, 8)


def test_what_is_installed_is_detected(tenant: Tenant, clock: Clock) -> None:
    app_id = tenant.publish("Thing", "1.0")
    tenant.assign(app_id, "LAB")
    clock.advance(SETTLED)

    found = tenant.graph.get("/deviceManagement/detectedApps").json()["value"]

    assert [(app["displayName"], app["version"], app["deviceCount"]) for app in found] == [
        ("Thing", "1.0", 10)
    ]
    path = f"/deviceManagement/detectedApps/{found[0]['id']}"
    assert tenant.graph.get(path).json() == found[0]
    assert len(tenant.graph.get(f"{path}/managedDevices").json()["value"]) == 10


def test_a_device_that_stays_away_was_last_seen_before_the_plan_said_so(tenant: Tenant, clock: Clock) -> None:
    plan(tenant, offline=0.5)
    said = clock.now
    clock.advance(3000)

    found = tenant.graph.get("/deviceManagement/managedDevices", params={"$top": "90"}).json()["value"]

    seen = [datetime.fromisoformat(device["lastSyncDateTime"]).timestamp() for device in found[10:]]
    assert sum(at < said for at in seen) == 40
    assert all(at > clock.now - 1000 for at in seen if at >= said)
