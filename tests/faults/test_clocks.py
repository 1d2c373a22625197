# SPDX-License-Identifier: Apache-2.0
"""Machines whose clocks are an hour off, on both sides, work on the same rollout."""

import asyncio

import asyncpg
import pytest

from app.connectors.contract import Plane
from app.models import DeploymentStatus
from app.settings import Settings
from tests.faults.conftest import Workers
from tests.faults.test_steps import OVER, made_once
from tests.sandbox.stage import Stage
from tests.waiting import eventually
from tests.workers.rollouts import opened

AGES = """
    SELECT max(abs(extract(epoch FROM clock_timestamp() - at))) FROM events
    UNION ALL
    SELECT max(abs(extract(epoch FROM clock_timestamp() - coalesce(pushed_at, now())))) FROM ring_deployments
"""


@pytest.mark.long
async def test_workers_an_hour_ahead_and_behind_fail_no_device_and_tell_one_time(
    own: Settings, stage: Stage, database: asyncpg.Connection
) -> None:
    async with opened(own, stage, plane=Plane.INTUNE) as rollout:
        through = own.model_copy(update={"sandbox_url": stage.url})
        crews = [
            Workers(through, own.data_dir / offset, command=("-m", "tests.faults.odd_clock", offset))
            for offset in ("+3600", "-3600")
        ]
        for crew in crews:
            crew.folder.mkdir()
        await asyncio.gather(*(crew.start(lease=4, heartbeat=1) for crew in crews))

        await rollout.submit(stage.url)
        status = await eventually(rollout.status, until=lambda status: status in OVER, within=40, every=0.1)

        assert status is DeploymentStatus.COMPLETED
        assert [lane.failure_count for lane in (await rollout.whole()).lanes] == [0]
        assert all("clock_is_off" in worker.said() for crew in crews for worker in crew.started)
        for row in await database.fetch(AGES):
            assert row[0] < 120
        await made_once(rollout)
        for crew in crews:
            await crew.stop()
