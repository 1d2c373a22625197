# SPDX-License-Identifier: Apache-2.0
"""Workers that freeze in the middle of a change, and a whole fleet that is gone at once."""

import asyncio
import signal

import asyncpg
import pytest

from app.connectors.contract import Plane
from app.models import DeploymentStatus
from app.settings import Settings
from tests.faults.conftest import Bench, Workers
from tests.faults.dying import Point, place_to_die
from tests.faults.test_steps import PRODUCT, finished, made_once
from tests.sandbox.stage import Stage
from tests.waiting import eventually
from tests.workers.rollouts import opened


async def test_a_worker_that_wakes_up_when_its_work_is_done_writes_and_sends_nothing(
    own: Settings, stage: Stage, database: asyncpg.Connection
) -> None:
    async with opened(own, stage, plane=Plane.INTUNE) as rollout:
        await rollout.submit(stage.url)
        place_of = place_to_die(Point.BEFORE_ANSWER, "assign", database=database, plane_url=stage.url)
        async with place_of as (url, place):
            through = own.model_copy(update={"sandbox_url": url})
            workers = Workers(through, own.data_dir, command=PRODUCT)
            frozen = await workers.start(lease=1.5, heartbeat=0.4)
            await place.reached()
            frozen.send(signal.SIGSTOP)

            assert await finished(rollout) is DeploymentStatus.COMPLETED
            before = (await rollout.whole()).version
            frozen.send(signal.SIGCONT)
            await place.leave()  # the answer is lost, and a keyed request would be sent again
            await eventually(frozen.has_lost, within=20)

            assert (await rollout.whole()).version == before
            await workers.stop()
        await made_once(rollout)


@pytest.mark.long
async def test_the_whole_fleet_killed_with_500_operations_running_loses_nothing(
    bench: Bench, workers: Workers
) -> None:
    gate = bench.gate()
    fleet = [await workers.start(max_jobs=250) for _ in range(2)]
    for _ in range(500):
        await bench.enqueue("gated", gate=str(gate))
    await eventually(lambda: bench.count("runs"), until=lambda started: started == 500, within=60)

    for worker in fleet:
        worker.send(signal.SIGKILL)
    await asyncio.gather(*(worker.exited(within=5) for worker in fleet))
    gate.touch()
    for _ in range(2):
        await workers.start(max_jobs=250)

    async def done() -> int:
        return await bench.count("operations WHERE status = 'SUCCEEDED'")

    await eventually(done, until=lambda number: number == 500, within=90)
    assert await bench.count("effects_of_jobs") == 500
    assert await bench.count("(SELECT DISTINCT operation_id FROM effects_of_jobs) AS each") == 500
