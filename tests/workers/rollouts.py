# SPDX-License-Identifier: Apache-2.0
"""A deployment whose operations the test runs itself, one by one, against a sandbox plane."""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Any
from uuid import UUID

import httpx

from app import examples
from app.connectors.catalogue import MANIFESTS
from app.connectors.contract import Plane, Target, TargetKind
from app.connectors.packages import PACKAGE
from app.domain import deployments, effects, intents, operations
from app.domain.intents import KnownTarget, Surroundings
from app.domain.operations import OperationKind
from app.models import Deployment, DeploymentStatus, Operation, OperationStatus, Ring, new_id
from app.runtime import Runtime, open_runtime
from app.sandbox_targets import sandbox_targets
from app.settings import BreakerSettings, Settings
from sandbox.main import create_app
from tests.factories import accept, make_intent
from tests.sandbox.stage import Stage
from tests.waiting import eventually
from tests.wire import PLAIN
from tests.workers.conftest import product_runner, run_once

SCALE = 0.05
NO_BREAKER = {"jamf": BreakerSettings(fail_max=1000, minimum_calls=1000)}
EXAMPLES = {Plane.ANSIBLE: "ansible-example-agent", Plane.INTUNE: "firefox", Plane.JAMF: "jamf-firefox"}


@dataclass(slots=True)
class Rollout:
    """A deployment to LAB on one of the sandbox's planes, AWX by default; the test runs its operations."""

    runtime: Runtime
    http: httpx.AsyncClient
    id: UUID = field(default_factory=new_id)
    plane: Plane = Plane.ANSIBLE

    async def fleet(self, **odds: Any) -> None:
        rings = {"LAB": {"devices": 10, "delay": [0.0, 1.0], **odds}}
        (await self.http.put(f"/{self.plane}/_sandbox/fleet", json={"rings": rings})).raise_for_status()

    async def faults(self, *items: dict[str, Any]) -> None:
        """What goes wrong at the plane from now on; nothing, without items."""
        answer = await self.http.put(f"/{self.plane}/_sandbox/faults", json={"items": list(items)})
        answer.raise_for_status()

    async def asked(self, pattern: str) -> int:
        """How many requests the plane had like this one: a method and a path, as a shell pattern."""
        told = (await self.http.get(f"/{self.plane}/_sandbox/requests")).raise_for_status().json()
        return sum(number for call, number in told["counts"].items() if fnmatch(call, pattern))

    async def submit(self, sandbox_url: str, **overrides: Any) -> None:
        targets = {
            (self.plane, row["ring"]): KnownTarget(
                Target(TargetKind(row["kind"]), row["ref"]), row["device_count"]
            )
            for row in await sandbox_targets(self.plane, sandbox_url)
        }
        packages = self.runtime.settings.data_dir / "packages"
        body = json.loads(examples.make(EXAMPLES[self.plane], packages).read_text())
        intent = make_intent(
            packages={self.plane: PACKAGE.validate_python(body["package"])}, target_ring=Ring.LAB, **overrides
        )
        around = Surroundings(targets, self.runtime.policy, MANIFESTS, {})
        plan = intents.plan(intent, around, correlation_id=new_id())
        plan = replace(plan, requires_cab_approval=False)
        async with self.runtime.transaction() as session:
            self.id = await accept(session, plan, now=self.runtime.clock())

    async def whole(self) -> Deployment:
        async with self.runtime.transaction() as session:
            return await deployments.get(session, self.id)

    async def status(self) -> DeploymentStatus:
        return (await self.whole()).status

    async def run(self, kind: OperationKind) -> Operation:
        """The newest operation of a kind, run until it ends or waits for nothing but somebody else."""

        async def once() -> Operation:
            async with self.runtime.transaction() as session:
                found = await operations.find(session, limit=1, deployment_id=self.id, kind=kind)
                await operations.hasten(session, self.id)
            return await run_once(product_runner(self.runtime), found[0].id)

        return await eventually(
            once,
            within=20,
            until=lambda done: done.status in operations.ENDED or done.error is not None,
            every=0.1,
        )

    async def order(self, command: Callable[..., Any], **given: Any) -> Any:
        async with self.runtime.transaction() as session:
            return await command(session, self.id, actor="bob", now=self.runtime.clock(), **given)

    async def ledger(self) -> dict[str, str]:
        async with self.runtime.transaction() as session:
            rows, _ = await effects.page(session, self.id, after=None, limit=50)
        return {row.key.partition(f"/{self.plane}/")[2]: row.state.value for row in rows}


@asynccontextmanager
async def opened(
    settings: Settings, stage: Stage, *, plane: Plane = Plane.ANSIBLE, **given: Any
) -> AsyncIterator[Rollout]:
    """A rollout that is yet to be submitted, with a small fleet; ``given``: other settings."""
    own = settings.model_copy(update={"sandbox_url": stage.url, **given})
    async with (
        stage.showing(create_app(scale=SCALE, clock=time.time)),
        open_runtime(own, process="test") as runtime,
        httpx.AsyncClient(verify=PLAIN, base_url=stage.url, trust_env=False) as http,
    ):
        made = Rollout(runtime, http, plane=plane)
        await made.fleet()
        yield made


async def pushed(rollout: Rollout, stage: Stage, **overrides: Any) -> None:
    await rollout.submit(stage.url, **overrides)
    assert (await rollout.run(OperationKind.DEPLOY_TO_CONNECTOR)).status is OperationStatus.SUCCEEDED


async def pages_read(rollout: Rollout) -> int:
    """How many pages of Jamf's inventory were asked for."""
    return await rollout.asked("* */v4/computers-inventory")
