# SPDX-License-Identifier: Apache-2.0
"""A worker is killed at every point between write, send, answer and commit of every change of a plane."""

import signal
from collections import Counter
from typing import Any

import asyncpg
import pytest

import sandbox
from app.connectors.contract import Plane
from app.domain import dispatch, operations, rollback
from app.domain.operations import OperationKind
from app.models import DeploymentStatus
from app.settings import Settings
from tests.faults.dying import Point, place_to_die
from tests.installation import MADE_ONCE
from tests.sandbox.stage import Stage
from tests.waiting import eventually
from tests.workers.conftest import Workers, product_runner, run_once
from tests.workers.rollouts import Rollout, opened

PRODUCT = ("-m", "app.cli", "worker")
OVER = {DeploymentStatus.COMPLETED, DeploymentStatus.ROLLED_BACK, DeploymentStatus.FAILED}
SHORT = {
    ("assign", Point.BEFORE_REQUEST),
    ("assign", Point.BEFORE_CONFIRMED),
    ("remove", Point.BEFORE_ANSWER),
}
"""What is broken in every run of the tests; the rest with ``--faults`` only."""
CASES = [
    pytest.param(action, point, marks=[] if (action, point) in SHORT else [pytest.mark.long])
    for action in ("publish", "upload", "assign", "remove")
    for point in Point
]


async def carried_on(rollout: Rollout) -> DeploymentStatus:
    """Another worker's turn: take back what the dead one held, run what is due."""
    runtime = rollout.runtime
    async with runtime.transaction() as session:
        await dispatch.reclaim(session)
        work = await operations.find(session, limit=50, deployment_id=rollout.id)
    for operation in work:
        if operation.status in operations.OPEN:
            await run_once(product_runner(runtime), operation.id)
    return (await rollout.whole()).status


async def finished(rollout: Rollout) -> DeploymentStatus:
    return await eventually(
        lambda: carried_on(rollout), until=lambda status: status in OVER, within=40, every=0.1
    )


LEFT = """
    SELECT (SELECT count(*) FROM operations WHERE status = 'RUNNING' OR lease_owner IS NOT NULL) AS leases,
        (SELECT count(*) FROM effects WHERE state IN ('SENT', 'UNKNOWN')) AS doubts,
        (SELECT count(DISTINCT correlation_id) - 1 FROM events) AS strangers
"""


async def nothing_left(database: asyncpg.Connection) -> None:
    """No lease is held and no effect in doubt; every event is told under the id of the request."""
    assert dict(await database.fetchrow(LEFT)) == {"leases": 0, "doubts": 0, "strangers": 0}


async def made_once(rollout: Rollout) -> None:
    """What the plane's own counters say: no change without a key of the ledger, and none made twice."""

    async def control(what: str) -> Any:
        return (await rollout.http.get(f"/{rollout.plane}/_sandbox/{what}")).raise_for_status().json()

    keys = {f"{rollout.id}/{rollout.plane}/{key}" for key in await rollout.ledger()}
    mutations, objects = (await control("requests"))["mutations"], await control("objects")
    assert {each["effect_key"] for each in mutations} <= keys
    assert {each["correlation_id"] for each in mutations} == {str((await rollout.whole()).correlation_id)}
    once = Counter(
        (each["method"], each["path"], each["effect_key"])
        for each in mutations
        if each["applied"] and not each["effect_key"].endswith("/upload")
    )
    assert set(once.values()) == {1}, once
    things = Counter(
        (each["type"], each["effect_key"]) for each in objects if each["type"] in MADE_ONCE[rollout.plane]
    )
    assert set(things.values()) == {1}, things


@pytest.mark.parametrize(("action", "point"), CASES)
async def test_a_worker_killed_there_leaves_one_effect(
    own: Settings, stage: Stage, database: asyncpg.Connection, action: str, point: Point
) -> None:
    async with opened(own, stage, plane=Plane.INTUNE) as rollout:
        await rollout.submit(stage.url)
        if action == "remove":
            await rollout.run(OperationKind.DEPLOY_TO_CONNECTOR)
            await rollout.order(rollback.begin)
        await killed_at(rollout, point, action, database=database, plane_url=stage.url)

        expected = DeploymentStatus.ROLLED_BACK if action == "remove" else DeploymentStatus.COMPLETED
        assert await finished(rollout) is expected
        await made_once(rollout)
        await nothing_left(database)


@pytest.mark.long
@pytest.mark.parametrize("point", Point)
@pytest.mark.parametrize("plane", [Plane.JAMF, Plane.ANSIBLE])
async def test_a_worker_killed_there_starts_nothing_twice_on_other_planes(
    own: Settings, stage: Stage, database: asyncpg.Connection, plane: Plane, point: Point
) -> None:
    async with opened(own, stage, plane=plane) as rollout:
        await rollout.submit(stage.url)
        await killed_at(rollout, point, "assign", database=database, plane_url=stage.url)

        assert await finished(rollout) is DeploymentStatus.COMPLETED
        await made_once(rollout)
        await nothing_left(database)


async def killed_at(
    rollout: Rollout, point: Point, action: str, *, database: asyncpg.Connection, plane_url: str
) -> None:
    """A worker of the product is started, comes to the point, and is killed there."""
    async with place_to_die(point, action, database=database, plane_url=plane_url) as (url, place):
        through = rollout.runtime.settings.model_copy(update={"sandbox_url": url})
        workers = Workers(through, through.data_dir, command=PRODUCT)
        worker = await workers.start(lease=1.5, heartbeat=0.4)
        await place.reached()
        worker.send(signal.SIGKILL)
        await worker.exited(within=5)
        await place.leave()
        assert sandbox.CLIENT_SECRET not in worker.said()
