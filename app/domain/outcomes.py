# SPDX-License-Identifier: Apache-2.0
"""What becomes of a deployment when an operation of its ends without success, or is taken up again."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import deployments, lanes, operations, rollback, rollout
from app.domain.operations import OperationKind
from app.models import Deployment, DeploymentStatus, LaneStatus, Operation, OperationStatus, RingDeployment

PUSHED_OR_PUSHING = frozenset(
    {LaneStatus.PENDING, LaneStatus.PUSHING, LaneStatus.WAITING_PLANE, LaneStatus.MEASURING}
)
FINAL_CLASSES = frozenset({"permanent", "auth", "policy_violation"})
"""Error classes that repeating cannot help: the push has failed for good."""


async def operation_ended(session: AsyncSession, operation: Operation) -> None:
    """Settle the lane of a FAILED or CANCELLED operation, in the same transaction. Locks the deployment."""
    if operation.subject_type != "lane":
        return
    deployment, lane = await lanes.lock_lane(session, UUID(operation.subject_id))
    if operation.kind == OperationKind.EXECUTE_ROLLBACK.value:
        await _rollback_ended(session, deployment, lane, operation)
    elif lane.status in PUSHED_OR_PUSHING and deployment.status is not DeploymentStatus.ROLLING_BACK:
        await _work_ended(session, deployment, lane, operation)


async def _rollback_ended(
    session: AsyncSession, deployment: Deployment, lane: RingDeployment, operation: Operation
) -> None:
    if lane.status is LaneStatus.ROLLING_BACK:
        lane.error = operation.error
        now = await database_now(session)
        await rollback.give_up(session, deployment, lane, reason=_reason(operation), now=now)


async def _work_ended(
    session: AsyncSession, deployment: Deployment, lane: RingDeployment, operation: Operation
) -> None:
    """A push that was refused fails the deployment; everything else leaves the lane to a person."""
    now = await database_now(session)
    lane.error = operation.error
    lane.waiting_since = None
    refused = (
        operation.status is OperationStatus.FAILED and (operation.error or {}).get("class") in FINAL_CLASSES
    )
    if refused and operation.kind == OperationKind.DEPLOY_TO_CONNECTOR.value:
        lane.finished_at = now
        told = {"reason": _reason(operation)}
        await deployments.move_lane(session, deployment, lane, LaneStatus.FAILED, now=now, **told)
        if DeploymentStatus.FAILED in rollout.DEPLOYMENT_MOVES[deployment.status]:
            await deployments.move(
                session, deployment, DeploymentStatus.FAILED, now=now, reason=_reason(operation)
            )
    else:
        await deployments.move_lane(
            session, deployment, lane, LaneStatus.HELD, now=now, reason=_reason(operation)
        )


def _reason(operation: Operation) -> str:
    if operation.status is OperationStatus.CANCELLED:
        return f"{operation.kind} was cancelled"
    error = operation.error or {}
    return f"{operation.kind} failed: {error.get('message', error.get('code', 'unknown'))}"


async def operation_revived(session: AsyncSession, operation: Operation) -> None:
    """Put the lane back to where the operation goes on. Locks the deployment.

    Raises:
        IllegalTransition: the deployment is in a state from which it does not go on.
        ActiveDeploymentExists: another deployment of the application is active meanwhile.
    """
    if operation.subject_type != "lane":
        return
    deployment, lane = await lanes.lock_lane(session, UUID(operation.subject_id))
    now = await database_now(session)
    lane.operation_id = operation.id
    if operation.kind == OperationKind.EXECUTE_ROLLBACK.value:
        await deployments.move(session, deployment, DeploymentStatus.ROLLING_BACK, now=now)
        await deployments.move_lane(session, deployment, lane, LaneStatus.ROLLING_BACK, now=now)
        return
    if deployment.status is DeploymentStatus.FAILED:
        await deployments.move(session, deployment, DeploymentStatus.DEPLOYING, now=now)
        await push_the_others(session, deployment, lane)
    if operation.kind == OperationKind.MEASURE_RING.value and lane.status is LaneStatus.HELD:
        lane.measured_at = now
        await deployments.move_lane(session, deployment, lane, LaneStatus.MEASURING, now=now)


async def push_the_others(session: AsyncSession, deployment: Deployment, revived: RingDeployment) -> None:
    """Pushes of the same ring that gave up because the deployment had failed start again with it."""
    stopped = {LaneStatus.PENDING, LaneStatus.PUSHING, LaneStatus.WAITING_PLANE}
    for lane in deployments.ring_lanes(deployment, revived.ring):
        if lane.id == revived.id or lane.status not in stopped or lane.operation_id is None:
            continue
        if (await operations.get(session, lane.operation_id)).status in operations.ENDED:
            await deployments.queue_push(session, deployment, lane)


async def database_now(session: AsyncSession) -> datetime:
    """The database's clock: outcomes are written by whoever notices them, API and sweeper alike."""
    now: datetime = (await session.execute(select(func.clock_timestamp()))).scalar_one()
    return now
