# SPDX-License-Identifier: Apache-2.0
"""One ring on one plane: locked, waiting for its plane, held. Pushes and measurements build on this."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import deployments, operations
from app.domain.facts import Code
from app.domain.operations import OperationKind, Subject
from app.errors import NotFound
from app.models import Deployment, DeploymentStatus, LaneStatus, RingDeployment

PUSHABLE = frozenset(
    {
        LaneStatus.PENDING,
        LaneStatus.PUSHING,
        LaneStatus.WAITING_PLANE,
        LaneStatus.HELD,
        LaneStatus.FAILED,
        LaneStatus.EMPTY_TARGET,
    }
)
PUSHING = frozenset({DeploymentStatus.PENDING, DeploymentStatus.APPROVED, DeploymentStatus.DEPLOYING})
"""States of a deployment in which devices may be touched."""


async def lock_lane(session: AsyncSession, lane_id: UUID) -> tuple[Deployment, RingDeployment]:
    """The lane and its deployment, whose row is locked.

    Raises:
        NotFound: no such lane.
    """
    deployment_id = await session.scalar(
        select(RingDeployment.deployment_id).where(RingDeployment.id == lane_id)
    )
    if deployment_id is None:
        raise NotFound(f"there is no lane {lane_id}")
    deployment = await deployments.lock(session, deployment_id)
    return deployment, next(lane for lane in deployment.lanes if lane.id == lane_id)


async def enqueue(
    session: AsyncSession,
    deployment: Deployment,
    lane: RingDeployment,
    kind: OperationKind,
    *,
    delay: timedelta = timedelta(0),
) -> UUID:
    """Have something done with a lane; the operation, which is the lane's own from now on."""
    lane.operation_id = await operations.enqueue(
        session,
        kind,
        subject=Subject("lane", str(lane.id)),
        deployment_id=deployment.id,
        correlation_id=deployment.correlation_id,
        delay=delay,
    )
    await session.flush()
    return lane.operation_id


async def wait_for_plane(
    session: AsyncSession, lane_id: UUID, *, error: dict[str, Any], now: datetime
) -> None:
    """The plane is away or asks for patience: the lane's clocks stand still until it answers again."""
    deployment, lane = await lock_lane(session, lane_id)
    if lane.status not in {LaneStatus.PENDING, LaneStatus.PUSHING, LaneStatus.MEASURING}:
        return
    lane.error, lane.waiting_since = error, now
    await deployments.move_lane(session, deployment, lane, LaneStatus.WAITING_PLANE, now=now, error=error)


def end_waiting(lane: RingDeployment, now: datetime) -> None:
    """Add the time the plane was away since the push; it counts for no soak and no device's deadline."""
    if lane.waiting_since is not None and lane.pushed_at is not None:
        lane.waited += now - lane.waiting_since
        lane.measured_at = now
    lane.waiting_since = None


def begin_anew(lane: RingDeployment, now: datetime) -> None:
    """Its soak and its devices' deadlines begin now, as after a push."""
    lane.pushed_at, lane.measured_at, lane.waiting_since = now, now, None
    lane.soak_elapsed, lane.waited = timedelta(0), timedelta(0)
    lane.finished_at, lane.verdict = None, None


def is_measured(lane: RingDeployment) -> bool:
    """Whether the lane was pushed and is waiting for its verdict, or for its plane on the way there."""
    return lane.status is LaneStatus.MEASURING or (
        lane.status is LaneStatus.WAITING_PLANE and lane.pushed_at is not None
    )


async def hold(
    session: AsyncSession,
    deployment: Deployment,
    lane: RingDeployment,
    code: Code,
    *,
    now: datetime,
    reason: str | None = None,
) -> None:
    """Leave the lane to a person; ``code`` is the blocker's."""
    lane.held_for = code.value
    told = {"reason": reason or code.value}
    await deployments.move_lane(session, deployment, lane, LaneStatus.HELD, now=now, **told)
