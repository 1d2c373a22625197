# SPDX-License-Identifier: Apache-2.0
"""One lane pushed and taken back, step by step, while its plane fails at one of them."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select, text

from app.connectors.contract import Plane
from app.domain import rollback
from app.domain.operations import ENDED, OperationKind
from app.models import DeploymentStatus, LaneStatus, Operation, OperationStatus
from app.models.deployment import DeploymentPlane, WayBack
from app.settings import BreakerSettings, Settings
from tests.sandbox.stage import Stage
from tests.waiting import eventually
from tests.workers.rollouts import NO_BREAKER, Rollout, opened, pushed

PUSH, TAKE_BACK = OperationKind.DEPLOY_TO_CONNECTOR, OperationKind.EXECUTE_ROLLBACK
PACKAGE, POLICY = "/v1/packages", "/policies/id/*"


@pytest.fixture
async def rollout(settings: Settings, stage: Stage) -> AsyncIterator[Rollout]:
    async with opened(settings, stage, plane=Plane.JAMF, breakers=NO_BREAKER) as made:
        yield made


async def ended(rollout: Rollout, kind: OperationKind) -> Operation:
    """The newest operation of a kind, run until it ends without waiting for its next turn."""

    async def once() -> Operation:
        async with rollout.runtime.transaction() as session:
            await session.execute(text("UPDATE operations SET run_after = now() WHERE status = 'WAITING'"))
        return await rollout.run(kind)

    return await eventually(once, until=lambda done: done.status in ENDED, within=20, every=0.1)


async def lane_status(rollout: Rollout) -> LaneStatus:
    return (await rollout.whole()).lanes[0].status


async def test_a_plane_that_was_away_is_asked_first_and_goes_on(settings: Settings, stage: Stage) -> None:
    quick = {"jamf": BreakerSettings(fail_max=1, reset_timeout=0.2)}
    async with opened(settings, stage, plane=Plane.JAMF, breakers=quick) as rollout:
        await rollout.submit(stage.url)
        await rollout.faults({"status": 503})
        waiting = await rollout.run(PUSH)
        assert (waiting.status, waiting.attempt) == (OperationStatus.WAITING, 0)
        assert await lane_status(rollout) is LaneStatus.WAITING_PLANE

        await rollout.faults()

        assert (await ended(rollout, PUSH)).status is OperationStatus.SUCCEEDED
        assert await lane_status(rollout) is LaneStatus.MEASURING


@pytest.mark.parametrize(
    ("path", "step"), [(PACKAGE, "publish"), (POLICY, "LAB/assign")], ids=["made", "assigned"]
)
async def test_what_was_carried_out_unheard_is_found_and_not_done_again(
    rollout: Rollout, stage: Stage, path: str, step: str
) -> None:
    await rollout.submit(stage.url)
    await rollout.faults({"method": "POST", "path": f"*{path}", "reset": True, "after": True})
    await rollout.run(PUSH)
    assert (await rollout.ledger())[step] == "UNKNOWN"
    before = await rollout.asked(f"POST *{path}")
    assert before

    await rollout.faults()

    assert (await ended(rollout, PUSH)).status is OperationStatus.SUCCEEDED
    assert (await rollout.ledger())[step] == "CONFIRMED"
    assert await rollout.asked(f"POST *{path}") == before


async def test_a_refusal_is_in_the_ledger_and_ends_the_push(rollout: Rollout, stage: Stage) -> None:
    await rollout.submit(stage.url)
    await rollout.faults({"method": "POST", "path": f"*{PACKAGE}", "status": 400})

    assert (await rollout.run(PUSH)).status is OperationStatus.FAILED
    assert (await rollout.ledger())["publish"] == "REJECTED"
    assert await lane_status(rollout) is LaneStatus.FAILED


async def test_a_removal_that_was_carried_out_unheard_is_found_and_not_done_again(
    rollout: Rollout, stage: Stage
) -> None:
    await pushed(rollout, stage)
    await rollout.order(rollback.begin)
    await rollout.faults({"method": "POST", "path": f"*{POLICY}", "reset": True, "after": True})
    await rollout.run(TAKE_BACK)
    assert (await rollout.ledger())["LAB/remove"] == "UNKNOWN"
    before = await rollout.asked(f"POST *{POLICY}")

    await rollout.faults()

    assert (await ended(rollout, TAKE_BACK)).status is OperationStatus.SUCCEEDED
    assert (await rollout.ledger())["LAB/remove"] == "CONFIRMED"
    assert await rollout.asked(f"POST *{POLICY}") == before


@pytest.mark.parametrize(("before", "way_back"), [("1.0", WayBack.RETURN), ("0.9", WayBack.REMOVE)])
async def test_what_is_taken_back_returns_to_the_version_before_where_the_plane_has_it(
    rollout: Rollout, stage: Stage, before: str, way_back: WayBack
) -> None:
    way_back_of = select(DeploymentPlane.way_back).where(DeploymentPlane.plane == "jamf")
    await pushed(rollout, stage, version="1.0")
    await ended(rollout, OperationKind.MEASURE_RING)
    assert await rollout.status() is DeploymentStatus.COMPLETED

    await pushed(rollout, stage, version="2.0", rollback_version=before)
    await rollout.order(rollback.begin)
    done = await ended(rollout, TAKE_BACK)

    assert (done.status, done.result) == (OperationStatus.SUCCEEDED, {"outcome": "rolled_back"})
    assert await rollout.status() is DeploymentStatus.ROLLED_BACK
    async with rollout.runtime.transaction() as session:
        assert (
            await session.scalar(way_back_of.where(DeploymentPlane.deployment_id == rollout.id)) is way_back
        )
