# SPDX-License-Identifier: Apache-2.0
"""Token, conventions, apps, directory and limits of the sandbox's Graph."""

from typing import Any

import httpx
import pytest

import sandbox
from tests.connectors.contract_check import ABSENT
from tests.sandbox.contract import Contract
from tests.sandbox.tenant import APPS, WIN32, Clock, Tenant, app_body

CLIENT_REQUEST_ID = "7c1e9c2e-54a5-4f62-8d4d-2a9a1a1f5f11"


def test_the_contract_is_at_hand_and_refuses_what_graph_does_not_have(
    tenant: Tenant, graph_contract: Contract | None
) -> None:
    if graph_contract is None:
        pytest.skip(ABSENT)

    with pytest.raises(AssertionError, match="no GET /nothing"):
        tenant.graph.get("/nothing")


def test_a_token_lasts_3599_seconds(tenant: Tenant, clock: Clock) -> None:
    answer = tenant.login()

    assert answer.status_code == 200
    assert (answer.json()["token_type"], answer.json()["expires_in"]) == ("Bearer", 3599)
    clock.advance(3598)
    assert tenant.graph.get("/organization").status_code == 200
    clock.advance(2)
    refused = tenant.graph.get("/organization", headers={"client-request-id": CLIENT_REQUEST_ID})
    assert refused.status_code == 401
    error = refused.json()["error"]
    assert error["code"] == "InvalidAuthenticationToken"
    assert error["innerError"]["client-request-id"] == CLIENT_REQUEST_ID
    assert {"date", "request-id"} <= error["innerError"].keys()


def test_control_ends_tokens_early(tenant: Tenant, clock: Clock) -> None:
    tenant.control("faults", {"items": [], "token_lifetime": 60})
    clock.advance(61)

    assert tenant.graph.get("/organization").status_code == 401
    assert tenant.login().json()["expires_in"] == 60


@pytest.mark.parametrize(
    ("changes", "status", "error", "number"),
    [
        ({"client_secret": "wrong"}, 401, "invalid_client", 7000215),
        ({"client_id": "stranger"}, 400, "unauthorized_client", 700016),
        ({"grant_type": "password"}, 400, "unsupported_grant_type", 70003),
        ({"scope": "openid"}, 400, "invalid_scope", 1002012),
    ],
)
def test_a_wrong_login_is_refused_with_microsofts_code(
    tenant: Tenant, changes: dict[str, str], status: int, error: str, number: int
) -> None:
    answer = tenant.login(**changes)

    assert answer.status_code == status
    assert answer.json()["error"] == error
    assert answer.json()["error_codes"] == [number]
    assert f"AADSTS{number}" in answer.json()["error_description"]


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer forged.abc", "Basic c2FuZGJveA=="])
def test_nothing_is_answered_without_a_good_token(tenant: Tenant, authorization: str) -> None:
    answer = tenant.graph.get("/organization", headers={"Authorization": authorization})

    assert answer.status_code == 401
    assert "www-authenticate" in answer.headers


def test_an_unknown_path_and_a_wrong_method_get_graphs_error_body(tenant: Tenant) -> None:
    tenant.contract = None  # which rightly has neither

    unknown, wrong = tenant.graph.get("/nothing"), tenant.graph.put(APPS, json={})

    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "BadRequest")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "MethodNotAllowed")


def test_every_answer_names_the_request(tenant: Tenant) -> None:
    answer = tenant.graph.get("/organization", headers={"client-request-id": CLIENT_REQUEST_ID})

    assert answer.headers["client-request-id"] == CLIENT_REQUEST_ID
    assert answer.headers["request-id"]


def test_a_created_app_is_not_published_and_can_be_read_changed_and_deleted(tenant: Tenant) -> None:
    created = tenant.graph.post(APPS, json=app_body("Thing", notes="marker"))

    app = created.json()
    assert created.status_code == 201
    assert (app["publishingState"], app["committedContentVersion"]) == ("notPublished", None)
    path = f"{APPS}/{app['id']}"
    assert tenant.graph.get(path).json()["notes"] == "marker"
    changed = tenant.graph.patch(path, json={"@odata.type": WIN32, "description": "better"})
    assert (changed.json()["description"], changed.json()["notes"]) == ("better", "marker")
    assert tenant.graph.delete(path).status_code == 204
    assert tenant.graph.get(path).status_code == 404
    assert tenant.graph.delete(path).status_code == 404


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"@odata.type": "#microsoft.graph.noSuchApp"}, "noSuchApp"),
        ({"@odata.type": "#microsoft.graph.webApp"}, "webApp"),
        ({"publisher": None}, "publisher"),
        ({"displayName": ""}, "displayName"),
        ({"setupFilePath": 7}, "setupFilePath"),
        ({"rules": []}, "rules"),
        ({"invented": True}, "invented"),
        ({"installExperience": {"runAsAccount": "root"}}, "runAsAccount"),
        ({"returnCodes": [{"returnCode": "0", "type": "success"}]}, "returnCode"),
    ],
)
def test_an_app_that_graph_would_not_take_is_refused(
    tenant: Tenant, change: dict[str, Any], complaint: str
) -> None:
    answer = tenant.graph.post(APPS, json=app_body("Thing") | change)

    assert answer.status_code == 400
    assert complaint in answer.json()["error"]["message"]
    assert tenant.graph.get(APPS).json()["value"] == []


def test_an_app_needs_a_detection_rule(tenant: Tenant) -> None:
    body = app_body("Thing")
    body["rules"][0]["ruleType"] = "requirement"

    assert tenant.graph.post(APPS, json=body).status_code == 400


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null"])
def test_a_body_that_is_no_object_is_refused(tenant: Tenant, content: bytes) -> None:
    assert tenant.graph.post(APPS, content=content).status_code == 400


def test_apps_are_found_by_name_with_quotes_doubled(tenant: Tenant) -> None:
    wanted = tenant.create("Rock'n'Roll")
    tenant.create("Rock")

    found = tenant.graph.get(
        APPS, params={"$filter": "displayName eq 'Rock''n''Roll'", "$select": "id,notes"}
    )

    assert found.json()["value"] == [{"@odata.type": WIN32, "id": wanted, "notes": "version:1.0"}]


@pytest.mark.parametrize(
    "params",
    [
        {"$filter": "displayName eq 'Rock'n'Roll'"},
        {"$filter": "startswith(displayName,'R')"},
        {"$filter": "notes eq 'x'"},
        {"$select": "nothing"},
        {"$top": "0"},
        {"$top": "many"},
        {"$orderby": "displayName"},
    ],
)
def test_a_query_that_the_sandbox_cannot_answer_is_refused_not_ignored(
    tenant: Tenant, params: dict[str, str]
) -> None:
    tenant.create()

    assert tenant.graph.get(APPS, params=params).status_code == 400


def test_pages_are_followed_by_their_link(tenant: Tenant) -> None:
    names = {f"Thing {number}" for number in range(5)}
    for name in sorted(names):
        tenant.create(name)

    pages = all_pages(tenant, APPS, {"$top": "2", "$select": "displayName", "$count": "true"})

    assert [len(page["value"]) for page in pages] == [2, 2, 1]
    assert {app["displayName"] for page in pages for app in page["value"]} == names
    assert pages[0]["@odata.count"] == 5


def all_pages(tenant: Tenant, path: str, params: dict[str, str]) -> list[dict[str, Any]]:
    pages = [tenant.graph.get(path, params=params).raise_for_status().json()]
    while (link := pages[-1].get("@odata.nextLink")) is not None:
        pages.append(tenant.graph.get(link).raise_for_status().json())
    return pages


def test_a_group_has_its_rings_devices_over_pages(tenant: Tenant) -> None:
    path = f"/groups/{tenant.group('DEPARTMENT')}"

    pages = all_pages(tenant, f"{path}/transitiveMembers", {"$top": "200", "$select": "id,deviceId"})

    members = [member for page in pages for member in page["value"]]
    assert [len(page["value"]) for page in pages] == [200, 150]
    assert len({member["deviceId"] for member in members}) == 350
    assert {member["@odata.type"] for member in members} == {"#microsoft.graph.device"}
    assert tenant.graph.get(path).json()["displayName"] == "Ring DEPARTMENT"
    assert tenant.graph.get("/groups", params={"$filter": "displayName eq 'Ring LAB'"}).json()["value"]


def test_each_device_is_in_exactly_one_ring_and_managed_once(tenant: Tenant) -> None:
    rings = tenant.control("fleet")["rings"]
    members = [
        member["deviceId"]
        for ring in rings.values()
        for page in all_pages(tenant, f"/groups/{ring['ref']}/transitiveMembers", {"$top": "999"})
        for member in page["value"]
    ]

    managed = [
        device
        for page in all_pages(tenant, "/deviceManagement/managedDevices", {"$top": "500"})
        for device in page["value"]
    ]

    assert len(members) == len(set(members)) == 1200
    assert {device["azureADDeviceId"] for device in managed} == set(members)
    assert len({device["id"] for device in managed}) == 1200


def test_a_device_is_found_by_each_of_its_ids(tenant: Tenant) -> None:
    managed = tenant.graph.get("/deviceManagement/managedDevices", params={"$top": "1"}).json()["value"][0]
    params = {"$filter": f"deviceId eq '{managed['azureADDeviceId']}'"}

    entra = tenant.graph.get("/devices", params=params).json()["value"]

    assert [device["displayName"] for device in entra] == [managed["deviceName"]]
    assert tenant.graph.get(f"/devices/{entra[0]['id']}").json() == entra[0]
    assert tenant.graph.get(f"/deviceManagement/managedDevices/{managed['id']}").json() == managed
    sync = f"/deviceManagement/managedDevices/{managed['id']}/syncDevice"
    assert tenant.graph.post(sync).status_code == 204


@pytest.mark.parametrize(
    "path",
    [
        f"{APPS}/none",
        "/groups/none",
        "/groups/none/transitiveMembers",
        "/devices/none",
        "/deviceManagement/managedDevices/none",
        "/deviceManagement/detectedApps/none",
    ],
)
def test_what_is_not_there_is_404(tenant: Tenant, path: str) -> None:
    answer = tenant.graph.get(path)

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "ResourceNotFound"


def test_a_directory_page_has_at_most_999_members(tenant: Tenant) -> None:
    path = f"/groups/{tenant.group('GLOBAL')}/transitiveMembers"

    assert tenant.graph.get(path, params={"$top": "1000"}).status_code == 400


def test_writes_are_limited_per_client_and_per_tenant_until_the_window_has_passed(
    tenant: Tenant, clock: Clock
) -> None:
    neighbour = {
        "Authorization": "Bearer "
        + tenant.token(client_id=sandbox.NEIGHBOUR_ID, client_secret=sandbox.NEIGHBOUR_SECRET)
    }
    own = [tenant.graph.post(APPS, json={}).status_code for _ in range(100)]
    clock.advance(5)

    refused = tenant.graph.post(APPS, json={})
    others = [tenant.graph.post(APPS, json={}, headers=neighbour).status_code for _ in range(101)]

    assert set(own) == {400}
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "15")
    assert refused.json()["error"]["code"] == "TooManyRequests"
    assert (set(others[:100]), others[100]) == ({400}, 429)
    assert tenant.graph.get(APPS).status_code == 200  # reads have their own purse
    clock.advance(15.1)
    assert tenant.graph.post(APPS, json={}).status_code == 400


def test_limits_can_be_switched_off(tenant: Tenant) -> None:
    tenant.control("faults", {"items": [], "throttle": False})

    assert {tenant.graph.post(APPS, json={}).status_code for _ in range(101)} == {400}


def test_a_batch_answers_each_request_by_itself(tenant: Tenant) -> None:
    requests = [
        {"id": "1", "method": "POST", "url": APPS, "body": app_body("Thing")},
        {"id": "2", "method": "GET", "url": f"{APPS}?$select=displayName"},
        {"id": "3", "method": "GET", "url": "/groups/none"},
        {"id": "4", "method": "GET", "url": "/organization", "dependsOn": ["3"]},
    ]

    answer = tenant.graph.post("/$batch", json={"requests": requests}, headers={"X-Effect-Key": "d/p"})

    responses = {item["id"]: item for item in answer.json()["responses"]}
    assert {key: item["status"] for key, item in responses.items()} == {
        "1": 201,
        "2": 200,
        "3": 404,
        "4": 424,
    }
    assert responses["2"]["body"]["value"][0]["displayName"] == "Thing"
    assert [item["effect_key"] for item in tenant.control("objects")] == ["d/p"]
    assert tenant.control("requests")["counts"][f"POST {APPS}"] == 1


def test_a_throttled_request_of_a_batch_gets_its_own_429(tenant: Tenant) -> None:
    tenant.fault(method="GET", path="/groups", status=429, headers={"Retry-After": "7"})
    requests = [
        {"id": "1", "method": "GET", "url": "/groups"},
        {"id": "2", "method": "GET", "url": "/organization"},
    ]

    responses = tenant.graph.post("/$batch", json={"requests": requests}).json()["responses"]

    assert [item["status"] for item in responses] == [429, 200]
    assert responses[0]["headers"]["retry-after"] == "7"


def test_a_batch_has_at_most_twenty_requests_with_different_ids(tenant: Tenant) -> None:
    def batch(ids: list[int]) -> int:
        requests = [{"id": str(key), "method": "GET", "url": "/organization"} for key in ids]
        answer: httpx.Response = tenant.graph.post("/$batch", json={"requests": requests})
        return answer.status_code

    assert batch(list(range(20))) == 200
    assert batch([1, 1]) == 400
    assert batch(list(range(21))) == 400
