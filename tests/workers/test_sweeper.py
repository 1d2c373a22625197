# SPDX-License-Identifier: Apache-2.0
"""What is past its limit is moved on by any worker, and what is in doubt is asked about."""

import asyncio
from datetime import timedelta

from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from app import telemetry
from app.domain import audit, deployments, operations
from app.domain.operations import OperationKind
from app.models import DeploymentStatus, OperationStatus
from app.runtime import Runtime
from app.settings import HousekeepingSettings, Settings
from tests.factories import accept, make_plan
from tests.sandbox.stage import Stage
from tests.workers.rollouts import Rollout, opened, pushed
from workers import sweeper


def ratios() -> dict[tuple[str, str], float]:
    """The metric, by machine and state."""
    families = text_string_to_metric_families(telemetry.metrics().decode())
    (family,) = [each for each in families if each.name == "eucora_oldest_state_age_ratio"]
    return {(each.labels["machine"], each.labels["state"]): each.value for each in family.samples}


async def sweep(runtime: Runtime) -> int:
    return await sweeper.sweep(runtime, sweeper.times_of(runtime))


async def alter(runtime: Runtime, statement: str, **values: object) -> None:
    async with runtime.transaction() as session:
        await session.execute(text(statement), values)


async def test_the_metric_tells_how_old_the_oldest_of_each_state_is(runtime: Runtime) -> None:
    month = timedelta(seconds=runtime.settings.housekeeping.abandoned_after)
    async with runtime.transaction() as session:
        await accept(session, make_plan(), now=runtime.clock() - month / 2)

    assert await sweep(runtime) == 0

    found = ratios()
    assert 0.49 < found["deployment", "PENDING"] < 0.51
    assert found["lane", "MEASURING"] == 0.0
    assert not {("lane", "HELD"), ("device", "PENDING")} & found.keys()
    assert max(found.values()) < 1


async def test_what_nobody_moves_is_ended_by_one_of_many_sweepers(settings: Settings, stage: Stage) -> None:
    quick = HousekeepingSettings(abandoned_after=0.001)
    async with opened(settings, stage, housekeeping=quick) as rollout:
        await rollout.submit(stage.url)

        moved = await asyncio.gather(*[sweep(rollout.runtime) for _ in range(3)])

        assert sum(moved) == 1
        assert (await rollout.whole()).status is DeploymentStatus.CANCELLED
        async with rollout.runtime.transaction() as session:
            assert (await audit.verify(session)).broken == []


class TestDoubt:
    """An effect whose answer was lost, and whose work has ended."""

    async def lose_the_answer(self, rollout: Rollout, stage: Stage) -> None:
        """The plane carried it out; what is stored is that it was sent. A person has stopped the rest."""
        await pushed(rollout, stage)
        await alter(
            rollout.runtime,
            "UPDATE effects SET state = 'UNKNOWN', settled_at = NULL, external_id = NULL"
            " WHERE action = 'assign'",
        )
        await alter(rollout.runtime, "UPDATE operations SET finished_at = now() - interval '2 hours'")

    async def test_what_the_plane_has_is_confirmed(self, rollout: Rollout, stage: Stage) -> None:
        await self.lose_the_answer(rollout, stage)

        assert await sweep(rollout.runtime) == 1
        done = await rollout.run(OperationKind.SETTLE_EFFECT)

        assert (done.status, done.result) == (OperationStatus.SUCCEEDED, {"outcome": "there"})
        assert (await rollout.ledger())["LAB/assign"] == "CONFIRMED"
        assert await sweep(rollout.runtime) == 0

    async def test_many_sweepers_have_it_asked_once(self, rollout: Rollout, stage: Stage) -> None:
        await self.lose_the_answer(rollout, stage)

        moved = await asyncio.gather(*[sweep(rollout.runtime) for _ in range(3)])

        async with rollout.runtime.transaction() as session:
            asking = await operations.find(session, limit=9, kind=OperationKind.SETTLE_EFFECT)
        assert (sum(moved), len(asking)) == (1, 1)

    async def test_what_it_does_not_have_is_rejected_after_a_second_look(
        self, rollout: Rollout, stage: Stage
    ) -> None:
        await self.lose_the_answer(rollout, stage)
        await alter(
            rollout.runtime, "UPDATE effects SET key = replace(key, 'LAB', 'PILOT') WHERE action = 'assign'"
        )

        await sweep(rollout.runtime)
        first = await rollout.run(OperationKind.SETTLE_EFFECT)
        assert first.status is OperationStatus.WAITING
        await alter(rollout.runtime, "UPDATE effects SET absent_at = absent_at - interval '5 s'")
        await alter(rollout.runtime, "UPDATE operations SET run_after = now() WHERE status = 'WAITING'")
        done = await rollout.run(OperationKind.SETTLE_EFFECT)

        assert (done.status, done.result) == (OperationStatus.SUCCEEDED, {"outcome": "absent"})
        assert (await rollout.ledger())["PILOT/assign"] == "REJECTED"

    async def test_what_others_work_on_is_left_to_them(self, rollout: Rollout, stage: Stage) -> None:
        await self.lose_the_answer(rollout, stage)
        await sweep(rollout.runtime)
        await alter(
            rollout.runtime,
            "UPDATE operations SET status = 'WAITING', finished_at = NULL WHERE kind = 'deploy_to_connector'",
        )

        done = await rollout.run(OperationKind.SETTLE_EFFECT)

        assert done.result == {"outcome": "not_in_doubt"}
        async with rollout.runtime.transaction() as session:
            assert (await deployments.get(session, rollout.id)).status is DeploymentStatus.DEPLOYING
