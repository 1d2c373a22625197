# SPDX-License-Identifier: Apache-2.0
"""What the conformance suite must know of each plane. A new plane adds one ``Sample``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from app.connectors.contract import Plane
from tests.connectors.conftest import Sandbox
from tests.sandbox.tenant import app_body

NEIGHBOUR = ("neighbour", "neighbour-secret")


@dataclass(frozen=True)
class Sample:
    """One plane: its package, the credential to spoil, its login, its API, and what our requests make there.

    ``makes``: by step (``publish``, ``assign``) the request that makes an object, and the object's type.
    ``stands``: types of objects that last until they are taken back. ``stranger`` has somebody else make
    something on the ring, and returns how to look at it.
    """

    package: Mapping[str, Any] | None
    credential: str
    login: str | None
    api: str
    makes: Mapping[str, tuple[str, str, str]]
    stands: frozenset[str]
    stranger: Callable[[Sandbox], Callable[[], Any]]
    app: Mapping[str, str] = field(default_factory=dict)
    page: int = 1000
    transient: frozenset[int] = field(default_factory=frozenset)


def stranger_at_intune(sandbox: Sandbox) -> Callable[[], Any]:
    """An application of the neighbour's that is offered to all devices."""
    apps = "/deviceAppManagement/mobileApps"
    made = sandbox.as_neighbour("POST", apps, app_body("Firefox"))["id"]
    return lambda: sandbox.as_neighbour("GET", f"{apps}/{made}")


def at_awx(sandbox: Sandbox, method: str, path: str, body: object = None) -> Any:
    url = f"{sandbox.url}/ansible/api/v2{path}"
    answer = httpx.request(method, url, json=body, auth=NEIGHBOUR, timeout=10)
    answer.raise_for_status()
    return answer.json() if answer.content else None


def stranger_at_awx(sandbox: Sandbox) -> Callable[[], Any]:
    """A job of the neighbour's from the same template on the same hosts, for another application."""
    sandbox.control("PUT", "fleet", {"rings": {"CANARY": {"delay": [60.0, 600.0]}}})
    said = {"limit": "CANARY", "extra_vars": {"eucora_app_name": "Theirs", "eucora_app_version": "1"}}
    job = at_awx(sandbox, "POST", "/job_templates/1/launch/", said)["id"]
    sandbox.control("PUT", "fleet", {"rings": {"CANARY": {"delay": [0.0, 1.0]}}})
    return lambda: at_awx(sandbox, "GET", f"/jobs/{job}/")["canceled_on"]


def at_landscape(sandbox: Sandbox, path: str, **params: str) -> Any:
    base, (client, secret) = f"{sandbox.url}/landscape/api", NEIGHBOUR
    body = {"access_key": client, "secret_key": secret}
    token = httpx.post(f"{base}/v2/login/access-key", json=body, timeout=10).json()["token"]
    answer = httpx.get(
        f"{base}{path}", params=params, headers={"Authorization": f"Bearer {token}"}, timeout=10
    )
    return answer.raise_for_status().json()


def stranger_at_landscape(sandbox: Sandbox) -> Callable[[], Any]:
    """An activity of the neighbour's on the same computers, for another package, that nobody has begun."""
    sandbox.control("PUT", "fleet", {"rings": {"CANARY": {"delay": [60.0, 600.0]}}})
    said = {"action": "InstallPackages", "version": "2011-08-01", "query": "tag:canary"}
    number = at_landscape(sandbox, "/", **said, **{"packages.1": "firefox"})["id"]
    sandbox.control("PUT", "fleet", {"rings": {"CANARY": {"delay": [0.0, 1.0]}}})
    said |= {"action": "GetActivities", "query": f"parent-id:{number} status:canceled"}
    return lambda: at_landscape(sandbox, "/", **said)


def at_jamf(sandbox: Sandbox, method: str, path: str, xml: str = "") -> str:
    """What somebody else does there; he has been there for a while, so he knows all news."""
    base, (client, secret) = f"{sandbox.url}/jamf", NEIGHBOUR
    form = {"grant_type": "client_credentials", "client_id": client, "client_secret": secret}
    token = httpx.post(f"{base}/api/v1/oauth/token", data=form, timeout=10).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/xml"}
    cookies = {"APBALANCEID": "node-1"}
    answer = httpx.request(method, f"{base}{path}", content=xml, headers=headers, cookies=cookies, timeout=10)
    return answer.raise_for_status().text


def stranger_at_jamf(sandbox: Sandbox) -> Callable[[], Any]:
    """A policy of the neighbour's on the same group, that installs nothing."""
    policy = f"""<policy><general><name>theirs</name><enabled>true</enabled></general><scope><computer_groups>
        <computer_group><id>{sandbox.group().ref}</id></computer_group></computer_groups></scope></policy>"""
    at_jamf(sandbox, "POST", "/JSSResource/policies/id/0", policy)
    return lambda: at_jamf(sandbox, "GET", "/JSSResource/policies/name/theirs")


def at_sccm(sandbox: Sandbox, method: str, path: str, body: object = None) -> Any:
    url = f"{sandbox.url}/sccm/AdminService/wmi{path}"
    answer = httpx.request(method, url, json=body, auth=NEIGHBOUR, timeout=10)
    answer.raise_for_status()
    return answer.json() if answer.content else None


def stranger_at_sccm(sandbox: Sandbox) -> Callable[[], Any]:
    """A deployment of the neighbour's that only offers the same application to the same collection."""
    body = {
        "ApplicationName": "Example Editor 4.2.1",
        "AssignmentName": "theirs",
        "AssignmentAction": 2,
        "AssignmentType": 2,
        "AssignedCIs": [16780332],
        "CollectionName": "Ring CANARY",
        "TargetCollectionID": sandbox.group().ref,
        "DesiredConfigType": 1,
        "OfferTypeID": 2,
        "StartTime": "2026-11-23T12:00:00Z",
        "SourceSite": "XYZ",
    }
    made = at_sccm(sandbox, "POST", "/SMS_ApplicationAssignment", body)["AssignmentID"]
    found = f"/SMS_ApplicationAssignment?$filter=AssignmentID eq {made}"
    return lambda: at_sccm(sandbox, "GET", found)


SAMPLES = {
    Plane.INTUNE: Sample(
        package=None,
        credential="client_secret",
        login="/oauth2/*",
        api="/device*",
        makes={
            "publish": ("POST", "/deviceAppManagement/mobileApps", "mobileApp"),
            "assign": ("POST", "/deviceAppManagement/mobileApps/*/assignments", "mobileAppAssignment"),
        },
        stands=frozenset({"mobileAppAssignment"}),
        stranger=stranger_at_intune,
    ),
    Plane.JAMF: Sample(
        package={
            "kind": "pkg",
            "bundle_id": "com.example.firefox",
            "uninstall_script": "rm -rf /Applications/Firefox.app; pkgutil --forget com.example.firefox",
        },
        credential="client_secret",
        login="/v1/oauth/*",
        api="/v[14]/[!o]*",
        makes={
            "publish": ("POST", "/v1/packages", "package"),
            "assign": ("POST", "/policies/id/0", "policy"),
        },
        stands=frozenset({"policy"}),
        stranger=stranger_at_jamf,
        page=100,
        transient=frozenset({423}),
    ),
    Plane.SCCM: Sample(
        app={"name": "Example Editor", "version": "4.2.1"},
        package={"kind": "application", "name": "Example Editor 4.2.1"},
        credential="password",
        login=None,
        api="/*",
        makes={"assign": ("POST", "/SMS_ApplicationAssignment", "deployment")},
        stands=frozenset({"deployment"}),
        stranger=stranger_at_sccm,
    ),
    Plane.LANDSCAPE: Sample(
        app={"name": "example-editor", "version": "4.2.1-1"},
        package={"kind": "deb", "name": "example-editor"},
        credential="secret_key",
        login="/login*",
        api="*/v2/[!l]*",
        makes={"assign": ("GET", "/InstallPackages", "activity")},
        stands=frozenset(),
        stranger=stranger_at_landscape,
    ),
    Plane.ANSIBLE: Sample(
        package={
            "kind": "playbook",
            "job_template": "Install application",
            "rollback_job_template": "Roll back application",
        },
        credential="token",
        login=None,
        api="/*",
        makes={"assign": ("POST", "/job_templates/*/launch/", "job")},
        stands=frozenset(),
        stranger=stranger_at_awx,
        page=200,
    ),
}
