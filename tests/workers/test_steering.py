# SPDX-License-Identifier: Apache-2.0
"""The jobs behind operators' commands, and the ways of a rollout, run one by one against a sandbox plane."""

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import httpx
import pytest

from app import examples
from app.connectors.catalogue import MANIFESTS
from app.connectors.contract import Plane, Target, TargetKind
from app.connectors.packages import PACKAGE
from app.domain import commands, deployments, effects, intents, operations, retries, rollback
from app.domain.intents import GateNumbers, KnownTarget, Surroundings
from app.domain.operations import OperationKind
from app.models import Deployment, DeploymentStatus, LaneStatus, Operation, OperationStatus, Ring, new_id
from app.runtime import Runtime, open_runtime
from app.sandbox_targets import sandbox_targets
from app.settings import Settings
from sandbox.main import create_app
from tests.factories import accept, make_intent
from tests.sandbox.stage import Stage
from tests.waiting import eventually
from tests.workers.conftest import product_runner, run_once

SCALE = 0.05
PLANE = Plane.ANSIBLE


@dataclass(slots=True)
class Rollout:
    """A deployment to LAB on the sandbox's AWX, whose operations the test runs itself."""

    runtime: Runtime
    http: httpx.AsyncClient
    id: UUID = field(default_factory=new_id)

    async def fleet(self, **odds: float) -> None:
        rings = {"LAB": {"devices": 10, "delay": [0.0, 1.0], **odds}}
        (await self.http.put(f"/{PLANE}/_sandbox/fleet", json={"rings": rings})).raise_for_status()

    async def submit(self, sandbox_url: str, **overrides: Any) -> None:
        targets = {
            (PLANE, row["ring"]): KnownTarget(
                Target(TargetKind(row["kind"]), row["ref"]), row["device_count"]
            )
            for row in await sandbox_targets(PLANE, sandbox_url)
        }
        body = json.loads((examples.folder() / "ansible-example-agent.json").read_text())
        intent = make_intent(
            packages={PLANE: PACKAGE.validate_python(body["package"])}, target_ring=Ring.LAB, **overrides
        )
        around = Surroundings(targets, self.runtime.policy, MANIFESTS, {})
        plan = intents.plan(intent, around, correlation_id=new_id())
        plan = replace(plan, requires_cab_approval=False)
        async with self.runtime.transaction() as session:
            self.id = await accept(session, plan, now=self.runtime.clock())

    async def whole(self) -> Deployment:
        async with self.runtime.transaction() as session:
            return await deployments.get(session, self.id)

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
        return {row.key.partition(f"/{PLANE}/")[2]: row.state.value for row in rows}


@pytest.fixture
async def rollout(settings: Settings, stage: Stage) -> AsyncIterator[Rollout]:
    app = create_app(scale=SCALE, clock=time.time)
    async with app.router.lifespan_context(app):
        stage.app = app
        own = settings.model_copy(update={"sandbox_url": stage.url})
        async with (
            open_runtime(own, process="test") as runtime,
            httpx.AsyncClient(base_url=stage.url, trust_env=False) as http,
        ):
            made = Rollout(runtime, http)
            await made.fleet()
            yield made
        stage.app = None


async def pushed(rollout: Rollout, stage: Stage, **overrides: Any) -> None:
    await rollout.submit(stage.url, **overrides)
    assert (await rollout.run(OperationKind.DEPLOY_TO_CONNECTOR)).status is OperationStatus.SUCCEEDED


async def held(rollout: Rollout, stage: Stage) -> int:
    """LAB has stopped at its gate; how many hosts failed."""
    await rollout.fleet(fail=0.4)
    await pushed(rollout, stage, gates={Ring.LAB: GateNumbers(max_failure_rate=0.9, min_success_rate=1.0)})
    assert (await rollout.run(OperationKind.MEASURE_RING)).status is OperationStatus.SUCCEEDED
    lane = (await rollout.whole()).lanes[0]
    assert lane.status is LaneStatus.HELD
    return lane.failure_count


async def test_the_failed_hosts_are_tried_again_and_the_ring_passes(rollout: Rollout, stage: Stage) -> None:
    failed = await held(rollout, stage)
    await rollout.fleet()
    await rollout.order(retries.retry, manifests=MANIFESTS, limits=rollout.runtime.limits)

    await rollout.order(commands.pause)
    waiting = await once(rollout)
    assert waiting.status is OperationStatus.WAITING
    assert "LAB/assign/2" not in {key for key, state in (await rollout.ledger()).items() if state == "SENT"}
    await rollout.order(commands.resume)
    assert (await rollout.run(OperationKind.RETRY_DEVICES)).status is OperationStatus.SUCCEEDED

    assert (await rollout.whole()).retries_used == failed
    assert (await rollout.run(OperationKind.MEASURE_RING)).status is OperationStatus.SUCCEEDED
    assert (await rollout.whole()).status is DeploymentStatus.COMPLETED
    assert (await rollout.ledger())["LAB/assign/2"] == "CONFIRMED"


async def once(rollout: Rollout) -> Operation:
    """One run of the retry."""
    async with rollout.runtime.transaction() as session:
        found = await operations.find(
            session, limit=1, deployment_id=rollout.id, kind=OperationKind.RETRY_DEVICES
        )
    return await run_once(product_runner(rollout.runtime), found[0].id)


async def test_a_retry_that_nobody_needs_any_more_is_done(rollout: Rollout, stage: Stage) -> None:
    await held(rollout, stage)
    await rollout.order(retries.retry, manifests=MANIFESTS, limits=rollout.runtime.limits)
    async with rollout.runtime.transaction() as session:
        deployment = await deployments.lock(session, rollout.id)
        now = rollout.runtime.clock()
        await deployments.move_lane(session, deployment, deployment.lanes[0], LaneStatus.PROMOTED, now=now)

    assert (await once(rollout)).status is OperationStatus.SUCCEEDED
    assert "LAB/assign/2" not in await rollout.ledger()


async def test_what_a_cancelled_deployment_has_begun_is_withdrawn_once(
    rollout: Rollout, stage: Stage
) -> None:
    await pushed(rollout, stage)
    await rollout.order(commands.cancel, reason="not wanted")

    done = await rollout.run(OperationKind.WITHDRAW_LANE)

    assert (done.status, done.result) == (OperationStatus.SUCCEEDED, {"outcome": "withdrawn"})
    assert (await rollout.ledger())["LAB/unassign"] == "CONFIRMED"


async def test_a_withdrawal_gives_way_to_a_rollback(rollout: Rollout, stage: Stage) -> None:
    await pushed(rollout, stage)
    await rollout.order(commands.cancel)
    async with rollout.runtime.transaction() as session:
        kind = OperationKind.WITHDRAW_LANE
        [withdrawal] = await operations.find(session, limit=9, deployment_id=rollout.id, kind=kind)
    await rollout.order(rollback.begin)

    async with rollout.runtime.transaction() as session:
        assert (await operations.get(session, withdrawal.id)).status is OperationStatus.CANCELLED
    assert (await rollout.run(OperationKind.EXECUTE_ROLLBACK)).status is OperationStatus.SUCCEEDED
    after = await rollout.whole()
    assert (after.status, after.lanes[0].status) == (DeploymentStatus.ROLLED_BACK, LaneStatus.ROLLED_BACK)
    ledger = await rollout.ledger()
    assert (ledger["LAB/remove"], ledger["LAB/unassign"]) == ("CONFIRMED", "CONFIRMED")


async def test_a_rollback_that_is_paused_removes_nothing_until_it_is_resumed(
    rollout: Rollout, stage: Stage
) -> None:
    await pushed(rollout, stage)
    await rollout.order(rollback.begin)
    await rollout.order(commands.pause)
    async with rollout.runtime.transaction() as session:
        kind = OperationKind.EXECUTE_ROLLBACK
        [removal] = await operations.find(session, limit=9, deployment_id=rollout.id, kind=kind)

    waiting = await run_once(product_runner(rollout.runtime), removal.id)

    assert (waiting.status, (await rollout.ledger())["LAB/remove"]) == (OperationStatus.WAITING, "PLANNED")
    await rollout.order(commands.resume)
    assert (await rollout.run(OperationKind.EXECUTE_ROLLBACK)).status is OperationStatus.SUCCEEDED
