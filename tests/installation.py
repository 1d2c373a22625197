# SPDX-License-Identifier: Apache-2.0
"""A whole installation of real processes, for tests that tell stories: sandbox, API and workers."""

import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx

from app import examples, supervisor
from app.client import Client, Json
from app.domain.policies import DEMO
from app.settings import BreakerSettings, Settings, WorkerSettings
from tests.waiting import eventually
from tests.wire import PLAIN

FINAL = {"COMPLETED", "ROLLED_BACK", "FAILED"}

FLEET: Json = {
    "seed": 7,
    "rings": {
        ring: {"devices": devices, "fail": 0.0, "offline": 0.0, "delay": [0.05, 0.4]}
        for ring, devices in {"LAB": 10, "CANARY": 60, "PILOT": 40, "DEPARTMENT": 30, "GLOBAL": 20}.items()
    },
    "apps": {},
}


MADE_ONCE = {
    "intune": {"mobileApp", "mobileAppAssignment"},
    "jamf": {"package", "policy"},
    "sccm": {"deployment"},
    "landscape": {"activity"},
    "ansible": {"job"},
}
"""What an effect makes at most one of, and a rollout at least one."""


def quick_policy(folder: Path, *, silence: float) -> str:
    """A gate policy file with the demo's rates and clocks of fractions of a second.

    ``silence``: seconds after which a device that says nothing has failed.
    """
    document = DEMO.to_json() | {"name": "quick", "measure_first": 0.2, "measure_later": 0.2}
    document["connectivity"] = dict.fromkeys(document["connectivity"], silence)
    for gate in document["gates"].values():
        gate["soak"] = min(gate["soak"], 0.4)
    path = folder / "quick-policy.json"
    path.write_text(json.dumps(document))
    return str(path)


@dataclass(frozen=True, slots=True)
class World:
    """What a story plays in: the API's client, the sandboxes' control, and the processes."""

    client: Client
    sandbox: httpx.AsyncClient
    installation: supervisor.Installation
    folder: Path

    def intent(self, **overrides: Any) -> Json:
        """The Firefox example with overrides; ``package`` is merged."""
        intent: Json = json.loads(examples.make("firefox", self.folder / "packages").read_text())
        package = overrides.pop("package", {})
        return intent | {"package": intent["package"] | package} | overrides

    async def submit(self, **overrides: Any) -> Json:
        """Submit the Firefox example with overrides."""
        return await self.client.post("/deployments", self.intent(**overrides))

    async def ended(self, deployment: Json, *, within: float = 40, into: set[str] = FINAL) -> Json:
        """The deployment once it is in one of these states."""
        return await eventually(
            lambda: self.client.deployment(deployment["id"]),
            within=within,
            until=lambda now: now["status"] in into,
            every=0.1,
        )

    async def begun(self, deployment: Json, *, ring: int = 0, within: float = 60) -> None:
        """Wait until something of the deployment's ring, by its number, has been done."""
        await eventually(
            lambda: self.client.deployment(deployment["id"]),
            within=within,
            until=lambda now: now["lanes"][ring]["status"] != "PENDING",
            every=0.1,
        )

    async def all_complete(self, submitted: Sequence[Json]) -> None:
        """Every one, with no device failed, each change made once, and its whole story told."""
        done = [await self.ended(deployment, within=90) for deployment in submitted]
        assert {deployment["status"] for deployment in done} == {"COMPLETED"}
        assert {lane["failure_count"] for deployment in done for lane in deployment["lanes"]} == {0}
        for deployment in done:
            await self.one_object_each(deployment)
            told = await self.client.every(f"/deployments/{deployment['id']}/events")
            assert [event["sequence"] for event in told] == list(range(1, len(told) + 1))

    async def control(self, plane: str, what: str, body: object = None) -> Any:
        """Ask a plane's control, or tell it something."""
        place = f"/{plane}/_sandbox/{what}"
        answer = await (self.sandbox.get(place) if body is None else self.sandbox.put(place, json=body))
        return answer.raise_for_status().json()

    async def fleet(self, *, plane: str = "intune", **document: Any) -> None:
        """Change a fleet's plan."""
        await self.control(plane, "fleet", FLEET | document)

    async def faults(self, *items: Mapping[str, Any], plane: str = "intune") -> None:
        """Have these faults happen; none heals."""
        await self.control(plane, "faults", {"items": list(items)})

    async def requests(self) -> Json:
        """What reached Intune."""
        body: Json = await self.control("intune", "requests")
        return body

    async def objects(self, plane: str = "intune") -> list[Json]:
        """What a plane holds."""
        items: list[Json] = await self.control(plane, "objects")
        return items

    async def devices(self, plane: str, **asked: str) -> list[Json]:
        """The devices on which something happened, narrowed by ``app``, ``product`` and ``version``."""
        items: list[Json] = (await self.control(plane, f"devices?{urlencode(asked)}"))["items"]
        return items

    async def devices_of(self, app_id: str) -> list[Json]:
        """The devices that ever handled an application of Intune's."""
        return [device for device in await self.devices("intune", app=app_id) if device["history"]]

    async def effects_of(self, deployment: Json) -> list[Json]:
        return await self.client.every(f"/deployments/{deployment['id']}/effects")

    async def one_object_each(self, deployment: Json) -> None:
        """Every object the planes hold for the deployment belongs to one effect, and no effect made two."""
        keys = {effect["key"] for effect in await self.effects_of(deployment)}
        for plane in deployment["planes"]:
            made = [
                (item["type"], item["effect_key"])
                for item in await self.objects(plane)
                if item["effect_key"] in keys
            ]
            once = [made_by for made_by in made if made_by[0] in MADE_ONCE[plane]]
            assert len(once) == len(set(once)), made
            assert {kind for kind, _ in made} >= MADE_ONCE[plane], made

    def kill_workers(self) -> list[int]:
        """SIGKILL every worker; the supervisor starts new ones. The pids."""
        pids = [pid for pid, title in processes_below(os.getpid()) if title.startswith("eucora worker")]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return pids


def processes_below(parent: int) -> list[tuple[int, str]]:
    """Descendants of a process with their titles; those that end meanwhile are left out."""
    found: list[tuple[int, str]] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{parent}/task").iterdir():
            for pid in map(int, (task / "children").read_text().split()):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                    found.append((pid, title.decode(errors="replace").strip()))
                found += processes_below(pid)
    return found


@asynccontextmanager
async def open_world(
    settings: Settings,
    folder: Path,
    *,
    workers: int = 2,
    breakers: Mapping[str, BreakerSettings] | None = None,
    backoff: float = 1.0,
    silence: float = 20.0,
) -> AsyncIterator[World]:
    """Start everything, with a small quick fleet and quick gates; stop it at the end.

    ``backoff`` as in the settings of workers: what waits for a plane looks again after 64 of them at most.
    ``silence`` as in ``quick_policy``.
    """
    quick = {
        "gate_policy": quick_policy(folder, silence=silence),
        "worker": WorkerSettings(lease=4, heartbeat=1, completion_wait=3, backoff=backoff),
        "breakers": dict(breakers or {"intune": BreakerSettings(reset_timeout=5)}),
    }
    own = settings.model_copy(update={"data_dir": folder / "data", **quick})
    plan = supervisor.Plan(settings=own, port=supervisor.free_port(), workers=workers)
    async with supervisor.running(plan, report=print) as installation:
        sandboxes = str(installation.settings.sandbox_url)
        async with (
            Client(installation.url, installation.token) as client,
            httpx.AsyncClient(verify=PLAIN, base_url=sandboxes, trust_env=False, timeout=60) as sandbox,
        ):
            world = World(client, sandbox, installation, folder)
            await world.fleet()
            yield world
