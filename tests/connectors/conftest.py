# SPDX-License-Identifier: Apache-2.0
"""A sandbox of the test's own, watched and held against the contract, and connectors to it."""

import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.connectors import catalogue
from app.connectors.contract import App, Assignment, Plane, Target, TargetKind
from app.connectors.intune import Intune, IntuneSettings
from app.connectors.packages import PACKAGE
from app.connectors.services import Services
from app.connectors.sources import FileRules
from app.resilience import RetryProfile
from sandbox.main import create_app
from tests.connectors.contract_check import CONTRACTS_OF, Recorder
from tests.sandbox.stage import Stage
from tests.wire import PLAIN

SCALE = 0.05
BLOCK = 4096
PATIENT = RetryProfile(attempts=3, shortest=0.01, longest=0.02, attempt_timeout=5.0, total=20.0)
QUICK = RetryProfile(attempts=3, shortest=0.01, longest=0.03, attempt_timeout=5.0, total=20.0)


@dataclass
class Sandbox:
    """One plane of a sandbox process: its address, its clock, its control."""

    url: str
    recorder: Recorder
    ahead: list[float]
    plane: Plane = Plane.INTUNE
    http: httpx.Client = field(default_factory=lambda: httpx.Client(verify=PLAIN, timeout=10))

    def advance(self, seconds: float) -> None:
        """Let time pass at the sandbox."""
        self.ahead[0] += seconds

    def control(self, method: str, what: str, body: object = None) -> Any:
        answer = self.http.request(method, f"{self.url}/{self.plane}/_sandbox/{what}", json=body)
        answer.raise_for_status()
        return answer.json()

    def faults(self, *items: dict[str, Any], **switches: Any) -> None:
        self.recorder.staged = bool(items)
        self.control("PUT", "faults", {"items": list(items), **switches})

    def group(self, ring: str = "CANARY") -> Target:
        """The ring's devices, as the plane calls them."""
        told = self.control("GET", "fleet")["rings"][ring]
        return Target(TargetKind(told["kind"]), told["ref"])

    def counts(self) -> dict[str, int]:
        counted: dict[str, int] = self.control("GET", "requests")["counts"]
        return counted

    def mutations(self) -> list[dict[str, Any]]:
        return list(self.control("GET", "requests")["mutations"])

    def objects(self, kind: str) -> list[dict[str, Any]]:
        return [item for item in self.control("GET", "objects") if item["type"] == kind]

    def devices(self, app: App) -> list[dict[str, Any]]:
        """The devices on which something happened with the application, and whether they have it now."""
        asked = {"product": app.name, "version": app.version}
        answer = self.http.get(f"{self.url}/{self.plane}/_sandbox/devices", params=asked)
        items: list[dict[str, Any]] = answer.raise_for_status().json()["items"]
        return [
            item | {"installed": [has for has in item["installed"] if has["version"] == app.version]}
            for item in items
        ]

    def as_neighbour(self, method: str, path: str, body: object = None) -> Any:
        """What somebody else in the same tenant does."""
        form = {
            "grant_type": "client_credentials",
            "client_id": "neighbour",
            "client_secret": "neighbour-secret",
            "scope": "https://graph.microsoft.com/.default",
        }
        token = self.http.post(f"{self.url}/intune/oauth2/v2.0/token", data=form).json()["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        answer = self.http.request(method, f"{self.url}/intune/v1.0{path}", json=body, headers=headers)
        answer.raise_for_status()
        return answer.json() if answer.content else None


@pytest.fixture
def plane() -> Plane:
    """Whose sandbox it is; a module about another plane says so."""
    return Plane.INTUNE


@pytest.fixture
async def sandbox(plane: Plane, stage: Stage) -> AsyncIterator[Sandbox]:
    """Served over a real socket; at the end every exchange must have been one the contract allows."""
    ahead = [0.0]
    app = create_app(scale=SCALE, clock=lambda: time.time() + ahead[0])
    recorder = Recorder(app)
    async with stage.showing(app, through=recorder):
        running = Sandbox(stage.url, recorder, ahead, plane)
        yield running
        running.http.close()
    known = [contract for contract in CONTRACTS_OF.get(plane, ()) if contract.is_at_hand]
    pairs = product(known, recorder.exchanges)
    assert [problem for contract, exchange in pairs for problem in contract.problems(exchange)] == []


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The folder that packages may come from."""
    folder = tmp_path / "packages"
    folder.mkdir()
    return folder


Make = Callable[..., Intune]


@pytest.fixture
async def make(sandbox: Sandbox, tmp_path: Path, files: Path) -> AsyncIterator[Make]:
    """Connectors to the sandbox, each with a spool of its own: another worker, elsewhere."""
    made: list[Intune] = []

    def build(*, services: dict[str, Any] | None = None, **settings: str) -> Intune:
        folder = tmp_path / f"spool-{len(made)}"
        options: dict[str, Any] = {"files": FileRules(allowed_roots=(files,)), "profile": QUICK} | (
            services or {}
        )
        plain = {**catalogue.sandbox_settings(Plane.INTUNE, sandbox.url), "poll_interval": "0.02"}
        checked = IntuneSettings.model_validate(plain | {"block_bytes": str(BLOCK)} | settings)
        connector = Intune(checked, Services(spool=folder, **options))
        made.append(connector)
        return connector

    yield build
    for connector in made:
        await connector.aclose()


@pytest.fixture
def intune(make: Make) -> Intune:
    return make()


MakeApp = Callable[..., App]


@pytest.fixture
def make_app(files: Path) -> MakeApp:
    """Applications with a package file of their own."""

    def build(
        name: str = "Firefox", version: str = "130.0", content: bytes = b"MZ" * 10_000, package: Any = None
    ) -> App:
        deployment = uuid4()
        path = files / f"{deployment}.exe"
        path.write_bytes(content)
        described = {
            "kind": "win32",
            "uri": path.as_uri(),
            "sha256": hashlib.sha256(content).hexdigest(),
            "install_command": "setup.exe /S",
            "uninstall_command": "setup.exe /x",
            "detection": {
                "type": "file",
                "path": r"C:\Program Files\Firefox",
                "name": "firefox.exe",
                "version": "1",
            },
        }
        return App(
            key=f"{deployment}/intune/publish",
            marker=f"{deployment}/intune",
            name=name,
            version=version,
            package=PACKAGE.validate_python(with_file(package, described) if package else described),
            correlation_id=uuid4(),
        )

    return build


def with_file(package: Any, described: Any) -> Any:
    """A package that is to have content, with the same file."""
    has_content = package.get("kind") in {"win32", "msi", "pkg"}
    return {"uri": described["uri"], "sha256": described["sha256"], **package} if has_content else package


async def upload(
    connector: Intune, app: App, app_id: str, checkpoint: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The whole upload, or what is left of it; its checkpoints as they would be stored."""
    steps = connector.upload(app, app_id, checkpoint)
    return [json.loads(json.dumps(progress.checkpoint)) async for progress in steps]


async def published(connector: Intune, app: App) -> str:
    """An application with its content in place."""
    app_id = await connector.publish(app)
    await upload(connector, app, app_id)
    return app_id


def assignment(
    app: App, app_id: str, target: Target, *, action: str = "assign", previous_id: str | None = None
) -> Assignment:
    """An assignment of the application under a key of its deployment."""
    return Assignment(f"{app.marker}/CANARY/{action}", app, app_id, target, previous_id)


Connect = Callable[..., Any]


@pytest.fixture
def profile() -> RetryProfile:
    """The patience of connectors that a test connects; a module may say otherwise."""
    return PATIENT


@pytest.fixture
async def connect(
    sandbox: Sandbox, tmp_path: Path, files: Path, profile: RetryProfile
) -> AsyncIterator[Connect]:
    """Connectors of the sandbox's plane, closed at the end; a setting given as "" is left out."""
    made: list[catalogue.OpenConnector] = []
    rules, usual = FileRules(allowed_roots=(files,)), profile

    def connecting(*, profile: RetryProfile = usual, **settings: str) -> catalogue.OpenConnector:
        services = Services(spool=tmp_path / f"spool-of-{len(made)}", files=rules, profile=profile)
        told = {**catalogue.sandbox_settings(sandbox.plane, sandbox.url), **settings}
        quick = {name: "0.02" if name == "poll_interval" else value for name, value in told.items() if value}
        made.append(catalogue.build(sandbox.plane, quick, services))
        return made[-1]

    yield connecting
    for connector in made:
        await connector.aclose()
