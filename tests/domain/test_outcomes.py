# SPDX-License-Identifier: Apache-2.0
"""What an operation's end means for its lane and deployment, and what taking it up again does."""

from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import InstallState, Plane
from app.domain import deployments, events, leases, operations, outcomes, pushes, rollback
from app.domain.operations import Failure, OperationKind, Subject
from app.models import Deployment, DeploymentStatus, LaneStatus, OperationStatus, Ring
from tests.domain.steps import measure, operation_of, push
from tests.factories import NOON, make_deployment

REFUSED = Failure("permanent", "permanent", "the plane refused it", "intune")
AWAY = Failure("transient", "plane_unavailable", "the deadline passed", "intune")


async def end(session: AsyncSession, operation_id: UUID | None, failure: Failure) -> None:
    """Run the operation once, to this failure."""
    assert operation_id is not None
    claimed = await leases.claim(session, operation_id, owner="test", lease=timedelta(seconds=15))
    assert claimed is not None
    await leases.fail(session, claimed, failure, ended=outcomes.operation_ended)


async def test_a_refused_push_fails_the_deployment_and_frees_the_application(session: AsyncSession) -> None:
    deployment = await make_deployment(session)

    await end(session, deployment.operation_id, REFUSED)

    after = await deployments.get(session, deployment.id)
    assert (after.status, after.lanes[0].status) == (DeploymentStatus.FAILED, LaneStatus.FAILED)
    assert after.lanes[0].error == REFUSED.to_json()
    assert isinstance(await make_deployment(session), Deployment)


async def test_a_plane_that_was_away_too_long_holds_the_lane_and_fails_nothing(session: AsyncSession) -> None:
    deployment = await make_deployment(session)

    await end(session, deployment.operation_id, AWAY)

    after = await deployments.get(session, deployment.id)
    assert (after.status, after.lanes[0].status) == (DeploymentStatus.PENDING, LaneStatus.HELD)


async def test_a_cancelled_push_holds_the_lane(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    assert deployment.operation_id is not None

    await operations.cancel(session, deployment.operation_id, ended=outcomes.operation_ended)

    assert (await deployments.get(session, deployment.id)).lanes[0].status is LaneStatus.HELD


async def test_a_failed_deployment_goes_on_when_its_operation_is_retried(session: AsyncSession) -> None:
    deployment = await make_deployment(session, planes=(Plane.INTUNE, Plane.JAMF))
    intune, jamf = deployments.ring_lanes(deployment, Ring.LAB)
    await end(session, intune.operation_id, REFUSED)
    assert jamf.operation_id is not None
    skipped = await leases.claim(session, jamf.operation_id, owner="test", lease=timedelta(seconds=15))
    assert skipped is not None
    await leases.succeed(session, skipped)  # the deployment had failed: there was nothing to push

    assert intune.operation_id is not None
    await operations.revive(session, intune.operation_id, revived=outcomes.operation_revived)

    after = await deployments.get(session, deployment.id)
    assert after.status is DeploymentStatus.DEPLOYING
    again = deployments.ring_lanes(after, Ring.LAB)[1].operation_id
    assert again != skipped.id
    assert again is not None
    assert (await operations.get(session, again)).status is OperationStatus.QUEUED


async def test_a_history_is_not_over_while_another_plane_is_still_at_work(session: AsyncSession) -> None:
    deployment = await make_deployment(session, planes=(Plane.INTUNE, Plane.JAMF))
    intune, jamf = deployments.ring_lanes(deployment, Ring.LAB)

    await end(session, intune.operation_id, REFUSED)
    before = (await events.newest(session, [deployment.id]))[deployment.id]
    await end(session, jamf.operation_id, AWAY)
    after = (await events.newest(session, [deployment.id]))[deployment.id]

    assert (await deployments.get(session, deployment.id)).status is DeploymentStatus.FAILED
    assert (before.final, after.final) == (False, True)


@pytest.mark.parametrize("failure", [REFUSED, AWAY])
async def test_a_lane_no_longer_measured_needs_a_person(session: AsyncSession, failure: Failure) -> None:
    deployment = await make_deployment(session)
    lane = deployment.lanes[0]
    await push(session, lane, "a")
    measure_id = await operations.enqueue(
        session,
        OperationKind.MEASURE_RING,
        subject=Subject("lane", str(lane.id)),
        deployment_id=deployment.id,
        correlation_id=deployment.correlation_id,
    )

    await end(session, measure_id, failure)
    stopped = lane.status
    await operations.revive(session, measure_id, revived=outcomes.operation_revived)

    assert (stopped, lane.status) == (LaneStatus.HELD, LaneStatus.MEASURING)


async def test_a_rollback_that_failed_fails_the_deployment_and_may_be_retried(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    await push(session, deployment.lanes[0], "a")
    _, rollback_id = await rollback.begin(session, deployment.id, actor="bob", now=NOON)
    assert rollback_id is not None

    await end(session, rollback_id, REFUSED)
    failed = await deployments.get(session, deployment.id)
    assert (failed.status, failed.lanes[0].status) == (DeploymentStatus.FAILED, LaneStatus.FAILED)

    await operations.revive(session, rollback_id, revived=outcomes.operation_revived)
    again = await deployments.get(session, deployment.id)
    assert (again.status, again.lanes[0].status) == (DeploymentStatus.ROLLING_BACK, LaneStatus.ROLLING_BACK)


async def test_work_of_a_lane_that_is_taken_back_changes_nothing_when_it_ends(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    lane = deployment.lanes[0]
    await push(session, lane, "a")
    measure_id = lane.operation_id
    await rollback.begin(session, deployment.id, actor="bob", now=NOON)

    assert measure_id is not None
    assert (await operations.get(session, measure_id)).status is OperationStatus.CANCELLED
    assert lane.status is LaneStatus.ROLLING_BACK


async def test_time_in_which_a_lane_was_held_counts_against_no_device(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    lane = deployment.lanes[0]
    now = await outcomes.database_now(session)
    await push(session, lane, "a", now=now)
    measure_id = await operation_of(session, lane)
    await operations.cancel(session, measure_id, ended=outcomes.operation_ended)
    assert lane.waiting_since is not None
    lane.waiting_since = lane.pushed_at = lane.waiting_since - timedelta(days=3)
    await session.flush()

    await operations.revive(session, measure_id, revived=outcomes.operation_revived)
    now = await outcomes.database_now(session)
    await measure(session, lane, InstallState.PENDING, "a", now=now)

    assert (lane.status, lane.failure_count, lane.unreachable_count) == (LaneStatus.MEASURING, 0, 0)


async def test_a_push_taken_up_again_still_waits_for_its_start(session: AsyncSession) -> None:
    start = await outcomes.database_now(session) + timedelta(days=40)
    deployment = await make_deployment(session, start_at=start)
    assert deployment.operation_id is not None
    await operations.cancel(session, deployment.operation_id, ended=outcomes.operation_ended)

    revived = await operations.revive(session, deployment.operation_id, revived=outcomes.operation_revived)

    assert (revived.run_after, revived.deadline) == (start, start + timedelta(hours=24))
    early = await pushes.begin_push(
        session, deployment.lanes[0].id, revived.id, now=start - timedelta(hours=1)
    )
    assert early == pushes.Held("not_before", timedelta(hours=1))
