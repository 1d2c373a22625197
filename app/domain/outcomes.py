# SPDX-License-Identifier: Apache-2.0
"""What becomes of a deployment when an operation of its ends without success, or is taken up again."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Protocol
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import (
    ai_tasks,
    conversations,
    deployments,
    effects,
    lanes,
    operations,
    promotion,
    rollback,
    rollout,
    withdrawal,
)
from app.domain.facts import Code
from app.domain.operations import Failure, OperationKind
from app.errors import IllegalTransition
from app.models import Deployment, DeploymentStatus, LaneStatus, Operation, OperationStatus, RingDeployment

PUSHED_OR_PUSHING = frozenset(
    {LaneStatus.PENDING, LaneStatus.PUSHING, LaneStatus.WAITING_PLANE, LaneStatus.MEASURING}
)
FINAL_CLASSES = frozenset({"permanent", "auth", "policy_violation"})
"""Error classes that repeating cannot help: the push has failed for good."""
LATE = Failure("transient", "no_verdict", "no verdict came in time")
"""Why a measurement ends that had all its time. Taken up again, it gets as much once more."""


async def _effect_ended(session: AsyncSession, operation: Operation, *, now: datetime) -> None:
    await effects.never_known(session, UUID(operation.subject_id), now=now)


class Follow(Protocol):
    """What follows for the subject of an operation of some kind."""

    async def __call__(self, session: AsyncSession, operation: Operation, *, now: datetime) -> None:
        """In the same transaction; the operation is locked."""
        ...


ENDED: Mapping[OperationKind, Follow] = MappingProxyType(
    {
        OperationKind.SETTLE_EFFECT: _effect_ended,
        OperationKind.PROCESS_AI_CONVERSATION: conversations.work_ended,
        OperationKind.EXECUTE_AI_TASK: ai_tasks.work_ended,
    }
)
REVIVED: Mapping[OperationKind, Follow] = MappingProxyType(
    {
        OperationKind.PROCESS_AI_CONVERSATION: conversations.work_revived,
        OperationKind.EXECUTE_AI_TASK: ai_tasks.work_revived,
    }
)


async def operation_ended(session: AsyncSession, operation: Operation) -> None:
    """Settle the lane of a FAILED or CANCELLED operation, in the same transaction. Locks the deployment."""
    kind = OperationKind(operation.kind)
    if (follow := ENDED.get(kind)) is not None:
        await follow(session, operation, now=await database_now(session))
    if operation.subject_type != "lane":
        return
    deployment, lane = await lanes.lock_lane(session, UUID(operation.subject_id))
    if kind is OperationKind.EXECUTE_ROLLBACK:
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
    lanes.end_waiting(lane, now)
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
        lane.waiting_since = now  # nobody looks at its devices meanwhile, so their clocks stand still
        await lanes.hold(session, deployment, lane, Code.PUSH_FAILED, now=now, reason=_reason(operation))


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
    now, kind = await database_now(session), OperationKind(operation.kind)
    if (follow := REVIVED.get(kind)) is not None:
        await follow(session, operation, now=now)
    if operation.subject_type != "lane":
        return
    deployment, lane = await lanes.lock_lane(session, UUID(operation.subject_id))
    if kind is OperationKind.EXECUTE_ROLLBACK:
        await _rollback_revived(session, deployment, lane, now=now)
    elif kind is OperationKind.WITHDRAW_LANE:
        deployments.check_status(deployment, withdrawal.STOPPED)
    elif kind is OperationKind.RETRY_DEVICES:
        _check_may_try_again(deployment, lane)
    else:
        await _work_revived(session, deployment, lane, operation, now=now)
    lane.operation_id = operation.id
    await session.flush()


def _check_may_try_again(deployment: Deployment, lane: RingDeployment) -> None:
    deployments.check_status(deployment, lanes.PUSHING)
    if lane.status is not LaneStatus.HELD:
        raise IllegalTransition(f"the lane is {lane.status.value}", status=lane.status.value)


async def _rollback_revived(
    session: AsyncSession, deployment: Deployment, lane: RingDeployment, *, now: datetime
) -> None:
    if deployment.status is DeploymentStatus.FAILED:
        await deployments.move(session, deployment, DeploymentStatus.ROLLING_BACK, now=now)
    deployments.check_status(deployment, {DeploymentStatus.ROLLING_BACK})
    await deployments.move_lane(session, deployment, lane, LaneStatus.ROLLING_BACK, now=now)


async def _work_revived(
    session: AsyncSession,
    deployment: Deployment,
    lane: RingDeployment,
    operation: Operation,
    *,
    now: datetime,
) -> None:
    measures = operation.kind == OperationKind.MEASURE_RING.value
    check_may_go_on(deployment, lane, measures=measures)
    if deployment.status is DeploymentStatus.FAILED:
        await deployments.move(session, deployment, DeploymentStatus.DEPLOYING, now=now)
        await push_the_others(session, deployment, lane)
    lanes.end_waiting(lane, now)
    if measures:
        if (lane.error or {}).get("code") == LATE.code:
            lanes.begin_anew(lane, now)
        lane.error = None
        await deployments.move_lane(session, deployment, lane, LaneStatus.MEASURING, now=now)
    elif deployment.start_at is not None and deployment.start_at > now:
        lifetime = operations.KINDS[OperationKind(operation.kind)].deadline or timedelta(0)
        operation.run_after, operation.deadline = deployment.start_at, deployment.start_at + lifetime


def check_may_go_on(deployment: Deployment, lane: RingDeployment, *, measures: bool) -> None:
    """Whether a push or a measurement of this lane may be taken up again.

    Raises:
        IllegalTransition: the deployment was taken back or is over, or the lane is past that step.
    """
    taken_back = any(other.status in rollback.UNDER_WAY for other in deployment.lanes)
    deployments.check_status(
        deployment, frozenset() if taken_back else lanes.PUSHING | {DeploymentStatus.FAILED}
    )
    pushed = lane.pushed_at is not None
    fits = (
        lane.status is LaneStatus.HELD and pushed
        if measures
        else lane.status in lanes.PUSHABLE and not pushed
    )
    if not fits:
        raise IllegalTransition(f"the lane is {lane.status.value}", status=lane.status.value)


async def push_the_others(session: AsyncSession, deployment: Deployment, revived: RingDeployment) -> None:
    """Pushes of the same ring that gave up because the deployment had failed start again with it."""
    stopped = {LaneStatus.PENDING, LaneStatus.PUSHING, LaneStatus.WAITING_PLANE, LaneStatus.HELD}
    for lane in deployments.ring_lanes(deployment, revived.ring):
        waits = lane.status in stopped and lane.pushed_at is None
        if lane.id == revived.id or not waits or lane.operation_id is None:
            continue
        if (await operations.get(session, lane.operation_id)).status in operations.ENDED:
            await promotion.queue_push(session, deployment, lane)


async def database_now(session: AsyncSession) -> datetime:
    """The database's clock: outcomes are written by whoever notices them, API and sweeper alike."""
    now: datetime = (await session.execute(select(func.clock_timestamp()))).scalar_one()
    return now
