# SPDX-License-Identifier: Apache-2.0
"""A client of the sandbox's Intune plane, over a real socket, and the clock that the sandbox goes by."""

import base64
import hashlib
import hmac
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.padding import PKCS7

import sandbox
from tests.sandbox.contract import Contract
from tests.wire import PLAIN

APPS = "/deviceAppManagement/mobileApps"
REPORT = "/deviceManagement/reports/retrieveDeviceAppInstallationStatusReport"
SCOPE = "https://graph.microsoft.com/.default"
WIN32 = "#microsoft.graph.win32LobApp"
T = TypeVar("T")
STORAGE = httpx.Client(timeout=30, verify=PLAIN)


@dataclass
class Clock:
    """Time that passes only when a test says so."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def until(ask: Callable[[], T], *, holds: Callable[[T], bool], within: float = 10.0) -> T:
    """Ask until the answer will do."""
    deadline = time.monotonic() + within
    while not holds(answer := ask()):
        assert time.monotonic() < deadline, f"still {answer!r}"
        time.sleep(0.01)
    return answer


@dataclass(frozen=True)
class Sealed:
    """Content as Intune wants it: mac, initialization vector, ciphertext; and the sheet that goes with it."""

    plain: bytes
    blob: bytes
    info: Mapping[str, str]


def seal(plain: bytes) -> Sealed:
    """Encrypt content with fresh keys."""
    key, mac_key, iv = os.urandom(32), os.urandom(32), os.urandom(16)
    padder, encryptor = PKCS7(128).padder(), Cipher(AES256(key), CBC(iv)).encryptor()
    body = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    mac = hmac.digest(mac_key, iv + body, "sha256")
    binary = {
        "encryptionKey": key,
        "macKey": mac_key,
        "initializationVector": iv,
        "mac": mac,
        "fileDigest": hashlib.sha256(plain).digest(),
    }
    info = {name: base64.b64encode(value).decode() for name, value in binary.items()}
    info |= {"profileIdentifier": "ProfileVersion1", "fileDigestAlgorithm": "SHA256"}
    return Sealed(plain, mac + iv + body, info)


def app_body(name: str, version: str = "1.0", **changes: object) -> dict[str, Any]:
    """A win32LobApp to create."""
    rule = {
        "@odata.type": "#microsoft.graph.win32LobAppFileSystemRule",
        "ruleType": "detection",
        "path": "C:\\Program Files\\Thing",
        "fileOrFolderName": "thing.exe",
        "operationType": "exists",
    }
    body = {
        "@odata.type": WIN32,
        "displayName": name,
        "publisher": "Tests",
        "notes": f"version:{version}",
        "fileName": "thing.intunewin",
        "setupFilePath": "thing.exe",
        "installCommandLine": "thing.exe /S",
        "uninstallCommandLine": "thing.exe /U",
        "installExperience": {"runAsAccount": "system", "deviceRestartBehavior": "basedOnReturnCode"},
        "rules": [rule],
        "returnCodes": [{"returnCode": 0, "type": "success"}],
    }
    return body | changes


def assignment(group_id: str, intent: str = "required", *, exclude: bool = False) -> dict[str, Any]:
    """One assignment of a group."""
    kind = "exclusionGroupAssignmentTarget" if exclude else "groupAssignmentTarget"
    return {
        "@odata.type": "#microsoft.graph.mobileAppAssignment",
        "intent": intent,
        "target": {"@odata.type": f"#microsoft.graph.{kind}", "groupId": group_id},
    }


@dataclass
class Tenant:
    """The plane as an administrator sees it; every answer is held against the contract if there is one."""

    url: str
    clock: Clock
    contract: Contract | None = None
    http: httpx.Client = field(init=False)
    graph: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=f"{self.url}/intune", timeout=10, verify=PLAIN)
        hooks = {"response": [self._check]}
        headers = {"Authorization": f"Bearer {self.token()}"}
        base = f"{self.url}/intune/v1.0"
        self.graph = httpx.Client(base_url=base, headers=headers, event_hooks=hooks, timeout=10, verify=PLAIN)

    def close(self) -> None:
        self.http.close()
        self.graph.close()

    def _check(self, response: httpx.Response) -> None:
        response.read()
        if self.contract is not None:
            self.contract.check(response)

    def login(self, **changes: str) -> httpx.Response:
        form = {
            "grant_type": "client_credentials",
            "client_id": sandbox.CLIENT_ID,
            "client_secret": sandbox.CLIENT_SECRET,
            "scope": SCOPE,
        }
        return self.http.post("/oauth2/v2.0/token", data=form | changes)

    def token(self, **changes: str) -> str:
        answer: str = self.login(**changes).raise_for_status().json()["access_token"]
        return answer

    def control(self, name: str, body: object = None, **params: str) -> Any:
        if body is not None:
            return self.http.put(f"/_sandbox/{name}", json=body).raise_for_status().json()
        return self.http.get(f"/_sandbox/{name}", params=params).raise_for_status().json()

    def fault(self, **fault: object) -> None:
        self.control("faults", {"items": [fault]})

    def heal(self) -> None:
        self.control("faults", {"items": []})

    def group(self, ring: str) -> str:
        group_id: str = self.control("fleet")["rings"][ring]["ref"]
        return group_id

    def create(self, name: str = "Thing", version: str = "1.0", **headers: str) -> str:
        answer = self.graph.post(APPS, json=app_body(name, version), headers=headers)
        app_id: str = answer.raise_for_status().json()["id"]
        return app_id

    def content_path(self, app_id: str) -> str:
        return f"{APPS}/{app_id}/microsoft.graph.win32LobApp/contentVersions"

    def open_file(self, app_id: str, sealed: Sealed, **changes: object) -> str:
        """A content version with a file that is ready to be uploaded; its path."""
        versions = self.content_path(app_id)
        version = self.graph.post(versions, json={}).raise_for_status().json()["id"]
        sizes = {"size": len(sealed.plain), "sizeEncrypted": len(sealed.blob)}
        body = {"name": "IntunePackage.intunewin", "isDependency": False, **sizes, **changes}
        file = self.graph.post(f"{versions}/{version}/files", json=body).raise_for_status().json()
        self.clock.advance(1)
        return f"{versions}/{version}/files/{file['id']}"

    def put_blocks(self, path: str, sealed: Sealed, *, size: int = 40_000) -> None:
        """Send the content in blocks, and the list of them."""
        uri = self.graph.get(path).json()["azureStorageUri"]
        ids = [block_id(number) for number in range(-(-len(sealed.blob) // size))]
        for number, name in enumerate(ids):
            piece = sealed.blob[number * size : (number + 1) * size]
            put_block(uri, name, piece).raise_for_status()
        put_list(uri, ids).raise_for_status()

    def commit(self, path: str, info: Mapping[str, str]) -> str:
        """Commit a file; the state it ends in."""
        self.graph.post(f"{path}/commit", json={"fileEncryptionInfo": dict(info)}).raise_for_status()
        self.clock.advance(1)
        return until(
            lambda: str(self.graph.get(path).json()["uploadState"]),
            holds=lambda at: at != "commitFilePending",
        )

    def publish(self, name: str = "Thing", version: str = "1.0") -> str:
        """An app with committed content, ready to be assigned."""
        app_id, sealed = self.create(name, version), seal(b"content of " + name.encode())
        path = self.open_file(app_id, sealed)
        self.put_blocks(path, sealed)
        assert self.commit(path, sealed.info) == "commitFileSuccess"
        self.use_content(app_id, "1")
        self.clock.advance(1)
        return app_id

    def use_content(self, app_id: str, version: str) -> httpx.Response:
        body = {"@odata.type": WIN32, "committedContentVersion": version}
        return self.graph.patch(f"{APPS}/{app_id}", json=body)

    def assign(self, app_id: str, ring: str, intent: str = "required") -> httpx.Response:
        return self.graph.post(f"{APPS}/{app_id}/assignments", json=assignment(self.group(ring), intent))

    def report(self, app_id: str, *columns: str, **query: object) -> dict[str, Any]:
        chosen = list(columns or ("DeviceId", "DeviceName", "AppInstallState"))
        body = {"filter": f"(ApplicationId eq '{app_id}')", "select": chosen, "top": 1000, **query}
        answer: dict[str, Any] = self.graph.post(REPORT, json=body).raise_for_status().json()
        return answer

    def states(self, app_id: str) -> Counter[str]:
        """How many devices are in which state, by the report's text."""
        report = self.report(app_id)
        column = [item["Column"] for item in report["Schema"]].index("AppInstallState_loc")
        return Counter(row[column] for row in report["Values"])


def block_id(number: int) -> str:
    return base64.b64encode(f"{number:08d}".encode()).decode()


def put_block(uri: str, name: str, content: bytes) -> httpx.Response:
    query = httpx.QueryParams(comp="block", blockid=name)
    return STORAGE.put(f"{uri}&{query}", content=content)


def put_list(uri: str, names: list[str]) -> httpx.Response:
    listed = "".join(f"<Latest>{name}</Latest>" for name in names)
    body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{listed}</BlockList>'
    return STORAGE.put(f"{uri}&comp=blocklist", content=body)


SETTLED = 4.0  # seconds; the slowest device checks in after 3


def assign_all(tenant: Tenant, app_id: str, *wanted: dict[str, Any]) -> int:
    return tenant.graph.post(
        f"{APPS}/{app_id}/assign", json={"mobileAppAssignments": list(wanted)}
    ).status_code


def devices(tenant: Tenant, app_id: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = tenant.control("devices", app=app_id)["items"]
    return items


def plan(tenant: Tenant, **ring: object) -> None:
    tenant.control("fleet", {"rings": {"CANARY": ring}})
