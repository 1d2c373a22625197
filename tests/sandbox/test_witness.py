# SPDX-License-Identifier: Apache-2.0
"""What the sandbox tells somebody outside about requests and objects."""

import contextlib
from typing import Any

import httpx

from tests.sandbox.tenant import APPS, Tenant, app_body

EFFECT = {"X-Effect-Key": "d1/intune/publish", "client-request-id": "c1"}


def mutations(tenant: Tenant) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tenant.control("requests")["mutations"]
    return found


def test_requests_are_counted_below_the_version_and_mutations_kept_with_their_keys(tenant: Tenant) -> None:
    tenant.graph.get(APPS)
    tenant.graph.get(APPS, params={"$top": "1"})
    tenant.graph.post(APPS, json=app_body("Thing"), headers=EFFECT)
    tenant.graph.post(APPS, json={}, headers={"X-Correlation-ID": "c2"})

    counts = tenant.control("requests")["counts"]

    assert counts == {"POST /oauth2/v2.0/token": 1, f"GET {APPS}": 2, f"POST {APPS}": 2}
    first, second = mutations(tenant)
    assert first.pop("at") == "2027-01-15T08:00:00.000Z"
    assert first == {
        "method": "POST",
        "path": APPS,
        "effect_key": "d1/intune/publish",
        "correlation_id": "c1",
        "status": 201,
        "applied": True,
    }
    assert (second["effect_key"], second["correlation_id"]) == (None, "c2")
    assert (second["status"], second["applied"]) == (400, False)


def test_posts_that_only_read_are_no_mutations(tenant: Tenant) -> None:
    tenant.report("none")
    tenant.graph.post("/$batch", json={"requests": [{"id": "1", "method": "GET", "url": "/organization"}]})
    tenant.control("faults", {"items": []})

    assert mutations(tenant) == []
    assert not any("_sandbox" in key for key in tenant.control("requests")["counts"])


def test_what_faults_did_is_told_honestly(tenant: Tenant) -> None:
    tenant.contract = None
    faults: list[dict[str, object]] = [
        {"status": 503},
        {"status": 503, "after": True},
        {"reset": True},
        {"reset": True, "after": True},
        {"half_body": True},
        {"latency": 0.01},
    ]
    for fault in faults:
        tenant.fault(method="POST", **fault)
        with contextlib.suppress(httpx.TransportError):
            tenant.graph.post(APPS, json=app_body("Thing"))

    assert [(entry["status"], entry["applied"]) for entry in mutations(tenant)] == [
        (503, False),
        (503, True),
        (None, False),
        (None, True),
        (201, True),
        (201, True),
    ]
    assert len([item for item in tenant.control("objects") if item["type"] == "mobileApp"]) == 4


def test_objects_name_the_effect_that_made_them(tenant: Tenant) -> None:
    app_id = tenant.create(**EFFECT)
    published = tenant.publish("Other")
    tenant.assign(published, "LAB")

    objects = tenant.control("objects")

    assert {"type": "mobileApp", "id": app_id, "effect_key": "d1/intune/publish"} in objects
    assert sorted(item["type"] for item in objects) == [
        "mobileApp",
        "mobileApp",
        "mobileAppAssignment",
        "mobileAppContent",
        "mobileAppContentFile",
    ]
    assert {item["effect_key"] for item in objects} == {"d1/intune/publish", None}


def test_devices_tell_what_happened_to_them(tenant: Tenant) -> None:
    first, second = tenant.publish("One"), tenant.publish("Two")
    tenant.assign(first, "LAB")
    tenant.assign(second, "LAB")
    tenant.clock.advance(4)

    of_first = tenant.control("devices", app=first)["items"]
    of_all = tenant.control("devices")["items"]

    assert len(of_first) == len(of_all) == 10
    assert {step["app_id"] for device in of_first for step in device["history"]} == {first}
    assert {item["app_id"] for item in of_all[0]["installed"]} == {first, second}
    assert of_first[0].keys() == {
        "device_id",
        "entra_device_id",
        "entra_object_id",
        "name",
        "ring",
        "installed",
        "history",
    }
    assert tenant.control("devices", app="none") == {"items": []}
