# SPDX-License-Identifier: Apache-2.0
"""The end of a deployment that is not wanted any more: what is installed stays, the rest is withdrawn."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action, Assignment, Plane
from app.domain import approvals, deployments, effects, events, lanes, rollback
from app.domain.applications import made_on
from app.domain.effects import Planned
from app.domain.events import SYSTEM
from app.domain.operations import OperationKind
from app.models import Deployment, DeploymentStatus, LaneStatus

STOPPED = frozenset({DeploymentStatus.CANCELLED, DeploymentStatus.REJECTED})
OPEN = frozenset(
    {
        LaneStatus.PENDING,
        LaneStatus.PUSHING,
        LaneStatus.WAITING_PLANE,
        LaneStatus.MEASURING,
        LaneStatus.HELD,
        LaneStatus.EMPTY_TARGET,
    }
)
"""States of a lane that ends with its deployment."""


async def stop(
    session: AsyncSession,
    deployment: Deployment,
    status: DeploymentStatus,
    *,
    actor: str,
    now: datetime,
    reason: str | None,
) -> UUID | None:
    """CANCELLED or REJECTED: nothing more begins; the first operation that withdraws, if one has to.

    The deployment is locked. Lanes that passed their gate keep that state, but are withdrawn too: devices
    among theirs may not have begun.

    Raises:
        IllegalTransition: the table does not have the move.
    """
    await deployments.set_paused(session, deployment, paused=False, actor=actor, now=now, reason=reason)
    await deployments.move(session, deployment, status, actor=actor, now=now, reason=reason)
    for lane in deployment.lanes:
        if lane.status in OPEN:
            lane.finished_at = now
            await deployments.move_lane(session, deployment, lane, LaneStatus.CANCELLED, actor=actor, now=now)
    await rollback.stop_operations(session, deployment.id)
    await approvals.withdraw(session, deployment, now=now)
    touched = await effects.touched_lanes(session, deployment.id)
    kind = OperationKind.WITHDRAW_LANE
    queued = [
        await lanes.enqueue(session, deployment, lane, kind)
        for lane in deployment.lanes
        if lane.id in touched
    ]
    return queued[-1] if queued else None


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """What to withdraw from where."""

    plane: Plane
    assignment: Assignment
    step: Planned


async def begin(
    session: AsyncSession, lane_id: UUID, operation_id: UUID, *, deployment_id: UUID
) -> Withdrawal | timedelta | None:
    """What this lane's withdrawal has to do; a delay while a push still runs; None if it is not wanted."""
    deployment = await deployments.lock(session, deployment_id)
    lane = next(lane for lane in deployment.lanes if lane.id == lane_id)
    if deployment.status not in STOPPED:
        return None
    if await rollback.push_runs(session, lane, but=operation_id):
        return timedelta(seconds=1)
    step = await effects.plan(session, lane, Action.UNASSIGN, operation_id)
    assignment = await made_on(session, deployment, lane, key=step.key)
    return Withdrawal(Plane(lane.plane), assignment, step)


async def permit(session: AsyncSession, deployment_id: UUID) -> None:
    """Let something of a withdrawal leave. Locks the deployment until the transaction ends.

    Raises:
        IllegalTransition: the deployment is being taken back meanwhile, which does more.
    """
    deployments.check_status(await deployments.lock(session, deployment_id), STOPPED)


async def finish(session: AsyncSession, lane_id: UUID, *, deployment_id: UUID, now: datetime) -> None:
    """Tell that nothing more begins on the lane's devices."""
    deployment = await deployments.lock(session, deployment_id)
    lane = next(lane for lane in deployment.lanes if lane.id == lane_id)
    told = {"ring": lane.ring.value, "plane": lane.plane}
    events.record(session, deployment, "lane.withdrawn", actor=SYSTEM, now=now, after=told)
    await session.flush()
