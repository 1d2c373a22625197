# SPDX-License-Identifier: Apache-2.0
"""The jobs of a rollout where they stop short: nothing to do, put off, out of time, nobody there."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import text

from app.domain import deployments, operations
from app.domain.operations import KINDS, OperationKind
from app.models import Deployment, LaneStatus, Operation, OperationStatus
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from tests.factories import make_deployment
from tests.workers.conftest import product_runner, run_once
from workers.context import Job, Outcome
from workers.main import JOBS

PUSH = OperationKind.DEPLOY_TO_CONNECTOR


@pytest.fixture
async def runtime(settings: Settings, unused_tcp_port: int) -> AsyncIterator[Runtime]:
    """With Intune where nobody is."""
    own = settings.model_copy(update={"sandbox_url": f"http://127.0.0.1:{unused_tcp_port}"})
    async with open_runtime(own, process="test") as runtime:
        yield runtime


@pytest.fixture
async def deployment(runtime: Runtime) -> Deployment:
    async with runtime.transaction() as session:
        return await make_deployment(session)


async def push_of(runtime: Runtime, deployment: Deployment) -> UUID:
    async with runtime.transaction() as session:
        found = await operations.find(session, limit=10, deployment_id=deployment.id, kind=PUSH)
    return found[0].id


async def run(runtime: Runtime, operation_id: UUID) -> Operation:
    """One run of an operation by the product's own job."""
    kinds = {kind: replace(rules, soft_limit=timedelta(0)) for kind, rules in KINDS.items()}
    return await run_once(product_runner(runtime, kinds=kinds), operation_id)


async def change(runtime: Runtime, statement: str, **values: object) -> None:
    async with runtime.transaction() as session:
        await session.execute(text(statement), values)


async def lane_status(runtime: Runtime, deployment: Deployment) -> LaneStatus:
    async with runtime.transaction() as session:
        return (await deployments.get(session, deployment.id)).lanes[0].status


async def test_a_paused_deployment_is_looked_at_again_and_nothing_is_sent(
    runtime: Runtime, deployment: Deployment
) -> None:
    await change(runtime, "UPDATE deployments SET paused = true WHERE id = :id", id=deployment.id)

    waiting = await run(runtime, await push_of(runtime, deployment))

    assert (waiting.status, waiting.attempt, waiting.error) == (OperationStatus.WAITING, 0, None)
    async with runtime.transaction() as session:
        assert await session.scalar(text("SELECT count(*) FROM effects WHERE state <> 'PLANNED'")) == 0


async def test_a_push_that_nobody_needs_any_more_is_done(runtime: Runtime, deployment: Deployment) -> None:
    await change(runtime, "UPDATE deployments SET status = 'CANCELLED' WHERE id = :id", id=deployment.id)

    done = await run(runtime, await push_of(runtime, deployment))

    assert done.status is OperationStatus.SUCCEEDED


async def test_a_plane_that_is_isolated_is_waited_for_and_the_lane_says_so(
    runtime: Runtime, deployment: Deployment
) -> None:
    await runtime.breakers.isolate("intune", actor="alice", reason="maintenance")

    waiting = await run(runtime, await push_of(runtime, deployment))

    assert (waiting.status, waiting.attempt, waiting.deferrals) == (OperationStatus.WAITING, 0, 1)
    assert await lane_status(runtime, deployment) is LaneStatus.WAITING_PLANE
    await runtime.breakers.enable("intune", actor="alice")


async def test_a_database_that_is_kept_away_from_is_not_taken_for_the_plane(
    runtime: Runtime, deployment: Deployment
) -> None:
    operation_id = await push_of(runtime, deployment)
    breaker = runtime.breakers.get("database")

    async def kept_away(job: Job) -> Outcome:
        breaker.open()
        return await JOBS[PUSH](job)

    await product_runner(runtime, jobs={PUSH: kept_away}).deliver({}, str(operation_id))
    breaker.close()

    async with runtime.transaction() as session:
        waiting = await operations.get(session, operation_id)
    assert waiting.error is not None
    assert (waiting.status, waiting.error["service"]) == (OperationStatus.WAITING, "database")
    assert await lane_status(runtime, deployment) is LaneStatus.PENDING
