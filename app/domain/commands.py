# SPDX-License-Identifier: Apache-2.0
"""What operators order of a deployment as it is: pause, resume, cancel. Going on and back have modules."""

from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import approvals, deployments, operations, promotion, rollout, withdrawal
from app.domain.rollout import Command
from app.models import ApprovalStatus, Deployment, DeploymentStatus, LaneStatus


async def pause(
    session: AsyncSession,
    deployment_id: UUID,
    *,
    actor: str,
    now: datetime,
    reason: str | None = None,
    version: int | None = None,
) -> Deployment:
    """Touch no new device until it is resumed; what devices have begun, and measuring, go on.

    Stops a rollback just so. A repeat changes nothing.

    Raises:
        NotFound, VersionMismatch: as ``deployments.lock``.
        IllegalTransition: it is over.
    """
    deployment = await deployments.lock(session, deployment_id, version=version)
    rollout.holds_already(Command.PAUSE, deployment.status)
    await deployments.set_paused(session, deployment, paused=True, actor=actor, now=now, reason=reason)
    return deployment


async def resume(
    session: AsyncSession,
    deployment_id: UUID,
    *,
    actor: str,
    now: datetime,
    reason: str | None = None,
    version: int | None = None,
) -> tuple[Deployment, UUID | None]:
    """Go on; the deployment, and the first operation that this started. A repeat changes nothing.

    Asks the board again where a request ran out, and reads targets again that were empty.

    Raises:
        As ``pause``.
    """
    deployment = await deployments.lock(session, deployment_id, version=version)
    rollout.holds_already(Command.RESUME, deployment.status)
    if not deployment.paused:
        return deployment, None
    await deployments.set_paused(session, deployment, paused=False, actor=actor, now=now, reason=reason)
    await operations.hasten(session, deployment.id)
    if deployment.status is DeploymentStatus.AWAITING_CAB:
        await _ask_again(session, deployment, now=now)
        return deployment, None
    lanes = deployments.ring_lanes(deployment, deployments.current_ring(deployment))
    empty = all(lane.status is LaneStatus.EMPTY_TARGET for lane in lanes)
    if empty and not rollout.ring_is_left(lanes):
        queued = [await promotion.queue_push(session, deployment, lane) for lane in lanes]
        return deployment, queued[0]
    return deployment, await promotion.advance(session, deployment, now=now)


async def _ask_again(session: AsyncSession, deployment: Deployment, *, now: datetime) -> None:
    asked = await approvals.newest(session, deployment.id)
    if asked is None or asked.status is ApprovalStatus.EXPIRED:
        await approvals.request(session, deployment, now=now)


async def cancel(
    session: AsyncSession,
    deployment_id: UUID,
    *,
    actor: str,
    now: datetime,
    reason: str | None = None,
    version: int | None = None,
) -> tuple[Deployment, UUID | None]:
    """End it where it is: what is installed stays, what devices have not begun is withdrawn.

    The deployment, and the first operation that withdraws, if one has to. A repeat changes nothing.

    Raises:
        NotFound, VersionMismatch: as ``deployments.lock``.
        IllegalTransition: it is over otherwise, or being taken back.
    """
    deployment = await deployments.lock(session, deployment_id, version=version)
    if rollout.holds_already(Command.CANCEL, deployment.status):
        return deployment, None
    started = await withdrawal.stop(
        session, deployment, DeploymentStatus.CANCELLED, actor=actor, now=now, reason=reason
    )
    return deployment, started
