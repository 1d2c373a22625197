# SPDX-License-Identifier: Apache-2.0
"""Faults as a client meets them on the wire."""

import socket
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from sandbox.faults import FaultDocument, Faults
from sandbox.journal import Journal
from tests.sandbox.tenant import APPS, Tenant, app_body

LOST = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)  # which one is a matter of timing


@pytest.fixture(autouse=True)
def own_errors(tenant: Tenant) -> None:
    """Answers that faults make need not be in the contract."""
    tenant.contract = None


def names(tenant: Tenant) -> list[str]:
    return [app["displayName"] for app in tenant.graph.get(APPS).json()["value"]]


def test_a_status_comes_with_the_vendors_error_body_and_the_faults_headers(tenant: Tenant) -> None:
    tenant.fault(status=503, headers={"Retry-After": "3"})

    answer = tenant.graph.post(APPS, json=app_body("Thing"))

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
    assert answer.json()["error"]["code"] == "ServiceUnavailable"
    tenant.heal()
    assert names(tenant) == []


def test_a_body_and_its_type_can_be_anything(tenant: Tenant) -> None:
    tenant.fault(status=200, headers={"Content-Type": "text/html"}, body="<h1>Sign in</h1>")

    answer = tenant.graph.get("/organization")

    assert (answer.headers["content-type"], answer.text) == ("text/html", "<h1>Sign in</h1>")


@pytest.mark.parametrize(
    ("method", "path", "hits"),
    [
        ("*", "*", True),
        ("GET", "/v1.0/organization", True),
        ("GET", "/organization", True),
        ("G?T", "/org*", True),
        ("POST", "*", False),
        ("GET", "/deviceAppManagement/*", False),
        ("GET", "/beta/*", False),
    ],
)
def test_method_and_path_are_shell_patterns_with_or_without_the_version(
    tenant: Tenant, method: str, path: str, *, hits: bool
) -> None:
    tenant.fault(method=method, path=path, status=500)

    assert (tenant.graph.get("/organization").status_code == 500) is hits


def test_the_first_that_matches_decides(tenant: Tenant) -> None:
    items = [{"path": "/groups", "status": 500}, {"path": "*", "status": 503}]
    tenant.control("faults", {"items": items})

    assert tenant.graph.get("/groups").status_code == 500
    assert tenant.graph.get("/organization").status_code == 503


def test_dice_fall_as_often_as_said_and_the_same_way_each_time() -> None:
    faults = Faults(Journal(None).table("faults"))

    def throw() -> list[bool]:
        faults.replace(FaultDocument.model_validate({"items": [{"probability": 0.3, "status": 503}]}))
        return [faults.choose("GET", ("/x",)) is not None for _ in range(1000)]

    first = throw()
    assert throw() == first
    assert 250 < sum(first) < 350


def test_a_fault_without_status_only_delays(tenant: Tenant) -> None:
    tenant.fault(latency=0.15)

    started = time.perf_counter()
    answer = tenant.graph.get("/organization")

    assert answer.status_code == 200
    assert time.perf_counter() - started >= 0.15


def test_after_a_reset_nothing_was_done(tenant: Tenant) -> None:
    tenant.fault(method="POST", reset=True)

    with pytest.raises(LOST):
        tenant.graph.post(APPS, json=app_body("Thing"))

    tenant.heal()
    assert names(tenant) == []


def test_a_reset_is_a_tcp_reset_even_while_the_body_still_comes(tenant: Tenant) -> None:
    tenant.fault(path="/_blob/*", reset=True)
    address = urlsplit(tenant.url)
    head = b"PUT /intune/_blob/x?comp=block HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"

    with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=5) as connection:
        connection.sendall(head + b"x" * 1000)
        with pytest.raises(ConnectionResetError):
            connection.recv(100)


def test_a_reset_after_the_deed_loses_only_the_answer(tenant: Tenant) -> None:
    tenant.fault(method="POST", path=APPS, reset=True, after=True)

    with pytest.raises(LOST):
        tenant.graph.post(APPS, json=app_body("Thing"))

    tenant.heal()
    assert names(tenant) == ["Thing"]


def test_a_status_after_the_deed_replaces_the_answer(tenant: Tenant) -> None:
    tenant.fault(method="POST", path=APPS, status=504, after=True)

    assert tenant.graph.post(APPS, json=app_body("Thing")).status_code == 504
    assert names(tenant) == ["Thing"]


def test_a_status_that_allows_no_body_has_none(tenant: Tenant) -> None:
    tenant.fault(status=204)

    answers = [tenant.graph.get("/organization") for _ in range(2)]

    assert [(answer.status_code, answer.content) for answer in answers] == [(204, b"")] * 2


@pytest.mark.parametrize("status", [None, 500])
def test_half_a_body_ends_in_the_middle(tenant: Tenant, status: int | None) -> None:
    tenant.fault(path="/organization", half_body=True, status=status)

    with (
        pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body") as caught,
        tenant.graph.stream("GET", "/organization") as answer,
    ):
        answer.read()

    assert "received" in str(caught.value)


def test_half_of_an_answer_without_body_is_a_reset_after_the_deed(tenant: Tenant) -> None:
    app_id = tenant.create()
    tenant.fault(method="DELETE", half_body=True)

    with pytest.raises(LOST):
        tenant.graph.delete(f"{APPS}/{app_id}")

    tenant.heal()
    assert names(tenant) == []


def test_the_token_endpoint_has_faults_too_but_control_has_none(tenant: Tenant) -> None:
    tenant.fault(status=503)

    assert tenant.login().status_code == 503
    assert tenant.control("faults")["items"][0]["status"] == 503


def test_an_empty_list_heals_and_resets_the_switches(tenant: Tenant) -> None:
    tenant.control("faults", {"items": [{"status": 500}], "throttle": False, "token_lifetime": 5})

    document = tenant.control("faults", {"items": []})

    assert document == {"items": [], "throttle": True, "token_lifetime": 3599.0, "sas_lifetime": 3600.0}
    assert tenant.graph.get("/organization").status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"items": [{"status": 99}]},
        {"items": [{"probability": 2}]},
        {"items": [{"latency": -1}]},
        {"items": [{"headers": {"A": 1}}]},
        {"items": [{"invented": True}]},
        {"items": {}},
        {"items": [], "invented": 1},
    ],
)
def test_a_document_that_makes_no_sense_is_refused_with_the_reason(tenant: Tenant, wrong: Any) -> None:
    tenant.fault(path="/nowhere", status=500)
    before = tenant.control("faults")

    answer = tenant.http.put("/_sandbox/faults", json=wrong)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["msg"]
    assert tenant.control("faults") == before
