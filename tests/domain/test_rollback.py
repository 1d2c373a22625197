# SPDX-License-Identifier: Apache-2.0
"""The way back: what is taken back, in which order, and what happens when something gets in between."""

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action, DeviceReport, InstallState, Plane
from app.domain import (
    deployments,
    devices,
    effects,
    leases,
    measurements,
    operations,
    outcomes,
    pushes,
    rollback,
)
from app.domain.operations import Failure
from app.domain.pushes import Push
from app.domain.rollback import Progress
from app.errors import ActiveDeploymentExists, IllegalTransition, NewerDeploymentExists
from app.models import (
    Deployment,
    DeploymentStatus,
    LaneStatus,
    Operation,
    OperationStatus,
    Ring,
    RingDeployment,
    new_id,
)
from app.runtime import Runtime
from tests.domain.operation_bench import waits_for_lock
from tests.domain.steps import S, carry_out, event_types, measure, operation_of, pass_ring, push, reload
from tests.factories import FACTORS, NOON, make_deployment

TAKEN_BACK = Progress(None, complete=True)
REFUSED = Failure("permanent", "permanent", "the plane refused it", "intune")


async def test_a_rollback_goes_from_the_newest_ring_to_the_oldest_and_ends(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    await pass_ring(session, deployment, Ring.LAB, NOON)
    await pass_ring(session, deployment, Ring.CANARY, NOON + 10 * S)
    lab, canary = (await reload(session, deployment)).lanes

    await rollback.begin(session, deployment.id, actor="bob", now=NOON, reason="bad feedback")
    assert await open_rollbacks(session) == [str(canary.id)]
    await rollback.finish_lane(session, canary.id, TAKEN_BACK, deployment_id=deployment.id, now=NOON)
    assert str(lab.id) in await open_rollbacks(session)
    await rollback.finish_lane(session, lab.id, TAKEN_BACK, deployment_id=deployment.id, now=NOON)

    assert (await reload(session, deployment)).status is DeploymentStatus.ROLLED_BACK


async def test_rolling_back_twice_is_once(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    await push(session, deployment.lanes[0], "a")

    first, operation = await rollback.begin(session, deployment.id, actor="bob", now=NOON)
    version = first.version
    second, again = await rollback.begin(session, deployment.id, actor="bob", now=NOON)

    assert (again, second.version) == (operation, version)


async def test_nothing_pushed_means_nothing_to_roll_back(session: AsyncSession) -> None:
    deployment = await make_deployment(session)

    with pytest.raises(IllegalTransition, match="PENDING"):
        await rollback.begin(session, deployment.id, actor="bob", now=NOON)


async def test_a_push_after_a_rollback_began_does_nothing(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    lane = deployment.lanes[0]
    await push(session, lane, "a")
    await rollback.begin(session, deployment.id, actor="bob", now=NOON)

    assert await pushes.begin_push(session, lane.id, new_id(), now=NOON) is None
    assert await measurements.begin_measure(session, lane.id) is None


async def test_a_lane_whose_assignment_never_left_is_cancelled_not_rolled_back(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    lane = deployment.lanes[0]
    begun = await pushes.begin_push(session, lane.id, await operation_of(session, lane), now=NOON)
    assert isinstance(begun, Push)

    await rollback.begin(session, deployment.id, actor="bob", now=NOON)

    after = await reload(session, deployment)
    assert after.lanes[0].status is LaneStatus.CANCELLED
    assert after.status is DeploymentStatus.ROLLED_BACK


async def test_an_assignment_whose_answer_was_lost_counts_as_touched(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    lane = deployment.lanes[0]
    operation_id = await operation_of(session, lane)
    begun = await pushes.begin_push(session, lane.id, operation_id, now=NOON)
    assert isinstance(begun, Push)
    published, assigned = begun.steps[Action.PUBLISH], begun.steps[Action.ASSIGN]
    await carry_out(session, published, operation_id, external_id="app-9")
    await effects.sent(session, assigned.id, operation_id=operation_id, now=NOON)

    _, rollback_id = await rollback.begin(session, deployment.id, actor="bob", now=NOON)
    assert rollback_id is not None
    removal = await rollback.begin_removal(session, lane.id, rollback_id, deployment_id=deployment.id)

    assert isinstance(removal, rollback.Removal)
    assert removal.external_id == "app-9"


async def test_a_crossed_failure_limit_goes_back_by_itself_and_touches_only_what_was_touched(
    session: AsyncSession,
) -> None:
    deployment = await make_deployment(session, target_ring=Ring.PILOT, risk_factors=FACTORS)
    await pass_ring(session, deployment, Ring.LAB, NOON)
    lab, canary, pilot = (await reload(session, deployment)).lanes
    await push(session, canary, "x", "y", now=NOON + 10 * S)

    await measure(session, canary, InstallState.FAILED, "x", now=NOON + 11 * S)

    back = await reload(session, deployment)
    assert back.status is DeploymentStatus.ROLLING_BACK
    assert [lane.status for lane in back.lanes] == [
        LaneStatus.ROLLING_BACK,
        LaneStatus.ROLLING_BACK,
        LaneStatus.CANCELLED,
    ]
    queued = await open_rollbacks(session)
    assert queued == [str(canary.id)]
    assert (lab.id, pilot.id) != (canary.id, canary.id)


async def open_rollbacks(session: AsyncSession) -> list[str]:
    query = select(Operation.subject_id).filter_by(kind="execute_rollback", status=OperationStatus.QUEUED)
    return list(await session.scalars(query))


async def fail(session: AsyncSession, operation_id: UUID | None) -> None:
    """Run the operation once, to its refusal."""
    assert operation_id is not None
    claimed = await leases.claim(session, operation_id, owner="test", lease=timedelta(seconds=15))
    assert claimed is not None
    await leases.fail(session, claimed, REFUSED, ended=outcomes.operation_ended)


async def walked(session: AsyncSession, *planes: Plane) -> Deployment:
    """A deployment that is completed in LAB and CANARY."""
    deployment = await make_deployment(session, planes=planes or (Plane.INTUNE,))
    await pass_ring(session, deployment, Ring.LAB, NOON)
    await pass_ring(session, deployment, Ring.CANARY, NOON + 10 * S)
    return await reload(session, deployment)


async def test_a_rollback_that_failed_may_be_begun_again_and_goes_on_where_it_was(
    session: AsyncSession,
) -> None:
    deployment = await walked(session)
    _, operation_id = await rollback.begin(session, deployment.id, actor="bob", now=NOON)
    await fail(session, operation_id)
    assert [lane.status for lane in deployment.lanes] == [LaneStatus.ROLLING_BACK, LaneStatus.FAILED]

    again, second = await rollback.begin(session, deployment.id, actor="bob", now=NOON)

    assert again.status is DeploymentStatus.ROLLING_BACK
    assert second not in {None, operation_id}
    for lane in reversed(again.lanes):
        await rollback.finish_lane(session, lane.id, TAKEN_BACK, deployment_id=again.id, now=NOON)
    assert (await reload(session, deployment)).status is DeploymentStatus.ROLLED_BACK


async def test_one_plane_that_gives_up_does_not_undo_what_another_took_back(session: AsyncSession) -> None:
    deployment = await walked(session, Plane.INTUNE, Plane.JAMF)
    await rollback.begin(session, deployment.id, actor="bob", now=NOON)
    intune, jamf = deployments.ring_lanes(deployment, Ring.CANARY)
    await fail(session, intune.operation_id)

    await rollback.finish_lane(session, jamf.id, TAKEN_BACK, deployment_id=deployment.id, now=NOON)

    assert (intune.status, jamf.status) == (LaneStatus.FAILED, LaneStatus.ROLLED_BACK)
    assert deployment.status is DeploymentStatus.FAILED


async def test_both_planes_of_a_failed_rollback_may_be_retried(session: AsyncSession) -> None:
    deployment = await walked(session, Plane.INTUNE, Plane.JAMF)
    await rollback.begin(session, deployment.id, actor="bob", now=NOON)
    failed = [lane.operation_id for lane in deployments.ring_lanes(deployment, Ring.CANARY)]
    for operation_id in failed:
        await fail(session, operation_id)

    for operation_id in failed:
        assert operation_id is not None
        await operations.revive(session, operation_id, revived=outcomes.operation_revived)

    assert {lane.status for lane in deployment.lanes} == {LaneStatus.ROLLING_BACK}
    assert deployment.status is DeploymentStatus.ROLLING_BACK


@pytest.mark.parametrize("rollback_fails", [False, True])
async def test_forward_work_of_what_is_taken_back_is_not_taken_up_again(
    session: AsyncSession, *, rollback_fails: bool
) -> None:
    deployment = await make_deployment(session)
    lane = deployment.lanes[0]
    await push(session, lane, "a")
    measure_id = await operation_of(session, lane)
    _, rollback_id = await rollback.begin(session, deployment.id, actor="bob", now=NOON)
    if rollback_fails:
        await fail(session, rollback_id)

    with pytest.raises(IllegalTransition):
        async with session.begin_nested():
            await operations.revive(session, measure_id, revived=outcomes.operation_revived)

    await session.refresh(lane)
    assert lane.operation_id == rollback_id


async def test_nothing_of_a_push_leaves_once_the_rollback_has_begun(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    lane = deployment.lanes[0]
    await pushes.begin_push(session, lane.id, await operation_of(session, lane), now=NOON)
    assert await pushes.permit_push(session, lane.id, Action.ASSIGN, now=NOON) is None

    await rollback.begin(session, deployment.id, actor="bob", now=NOON)

    with pytest.raises(IllegalTransition, match="ROLLED_BACK"):
        await pushes.permit_push(session, lane.id, Action.ASSIGN, now=NOON)


async def test_a_rollback_waits_for_a_change_that_is_about_to_leave_and_then_takes_it_back(
    runtime: Runtime,
) -> None:
    async with runtime.transaction() as session:
        deployment = await make_deployment(session)
        lane = deployment.lanes[0]
        operation_id = await operation_of(session, lane)
        begun = await pushes.begin_push(session, lane.id, operation_id, now=NOON)
    assert isinstance(begun, Push)

    async def take_back() -> Deployment:
        async with runtime.transaction() as session:
            return (await rollback.begin(session, deployment.id, actor="bob", now=NOON))[0]

    async with runtime.transaction() as session:
        await pushes.permit_push(session, lane.id, Action.ASSIGN, now=NOON)
        await effects.sent(session, begun.steps[Action.ASSIGN].id, operation_id=operation_id, now=NOON)
        rolling = asyncio.create_task(take_back())
        await waits_for_lock(runtime)
        assert not rolling.done()

    assert (await rolling).lanes[0].status is LaneStatus.ROLLING_BACK


async def test_what_a_newer_version_has_replaced_is_not_taken_back(session: AsyncSession) -> None:
    older = await walked(session)
    newer = await make_deployment(session, version="144.0", app_name=older.app_name.upper())
    await pass_ring(session, newer, Ring.LAB, NOON)
    await pass_ring(session, newer, Ring.CANARY, NOON + 10 * S)

    with pytest.raises(NewerDeploymentExists, match=str(newer.id)):
        await rollback.begin(session, older.id, actor="bob", now=NOON)

    await rollback.begin(session, newer.id, actor="bob", now=NOON)
    with pytest.raises(ActiveDeploymentExists):
        await rollback.begin(session, older.id, actor="bob", now=NOON)


async def test_a_rollback_that_too_many_devices_refuse_stops_and_says_so(session: AsyncSession) -> None:
    deployment = await make_deployment(session, target_ring=Ring.LAB)
    names = [f"LAB-{number}" for number in range(10)]
    lane = deployment.lanes[0]
    await push(session, lane, *names)
    await measure(session, lane, InstallState.INSTALLED, *names, now=NOON + S)
    await rollback.begin(session, deployment.id, actor="bob", now=NOON + 2 * S)
    one, two = (
        [DeviceReport(name, name, InstallState.REMOVE_FAILED) for name in names[:number]] for number in (1, 2)
    )

    await devices.store_removal(session, lane.id, one, now=NOON + 3 * S)
    within = await weigh(session, lane, deployment)
    await devices.store_removal(session, lane.id, two, now=NOON + 4 * S)
    beyond = await weigh(session, lane, deployment)

    assert within.delay is not None
    assert (beyond.delay, beyond.complete) == (None, False)
    await rollback.finish_lane(session, lane.id, beyond, deployment_id=deployment.id, now=NOON + 5 * S)
    after = await reload(session, deployment)
    assert (after.status, after.lanes[0].status) == (DeploymentStatus.FAILED, LaneStatus.FAILED)
    told = await event_types(session, deployment)
    assert told[-2:] == ["lane.failed", "deployment.failed"]


async def weigh(session: AsyncSession, lane: RingDeployment, deployment: Deployment) -> Progress:
    return await rollback.weigh(
        session, lane.id, deployment_id=deployment.id, removed_at=NOON + 2 * S, told=True, now=NOON + 4 * S
    )
