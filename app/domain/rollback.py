# SPDX-License-Identifier: Apache-2.0
"""The way back: newest ring first, exactly the lanes the ledger calls touched, proved device by device."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action, App, Assignment, Member, Plane, Target
from app.domain import approvals, deployments, devices, effects, lanes, operations, rollout
from app.domain.applications import application, plane_of, target_of
from app.domain.effects import Planned
from app.domain.events import SYSTEM
from app.domain.operations import OperationKind
from app.domain.rollout import Command
from app.errors import IllegalTransition, NewerDeploymentExists
from app.models import (
    Connectivity,
    Deployment,
    DeploymentStatus,
    Effect,
    EffectState,
    LaneStatus,
    Operation,
    OperationStatus,
    RingDeployment,
)

UNTOUCHED = frozenset(
    {
        LaneStatus.PENDING,
        LaneStatus.PUSHING,
        LaneStatus.WAITING_PLANE,
        LaneStatus.HELD,
        LaneStatus.EMPTY_TARGET,
    }
)
"""Lanes in these states whose assignment never left are cancelled by a rollback."""
PAUSED_AGAIN = timedelta(seconds=60)
"""How often a rollback that is paused looks again by itself: whoever resumes it has it look at once."""


FORWARD = (
    OperationKind.DEPLOY_TO_CONNECTOR,
    OperationKind.RETRY_DEVICES,
    OperationKind.MEASURE_RING,
    OperationKind.WITHDRAW_LANE,
)
"""What is stopped when a lane is taken back."""
UNDER_WAY = frozenset({LaneStatus.ROLLING_BACK, LaneStatus.ROLLED_BACK})


async def begin(
    session: AsyncSession,
    deployment_id: UUID,
    *,
    actor: str,
    now: datetime,
    reason: str | None = None,
    version: int | None = None,
) -> tuple[Deployment, UUID | None]:
    """Take a deployment back; it, and the first operation if work was started. A repeat changes nothing.

    Raises:
        NotFound, VersionMismatch: as ``deployments.lock``.
        IllegalTransition: nothing was pushed yet.
        ActiveDeploymentExists: another deployment of the application is active meanwhile.
        NewerDeploymentExists: a newer version has replaced it.
    """
    deployment = await deployments.lock(session, deployment_id, version=version)
    started = any(lane.started_at for lane in deployment.lanes)
    if started and rollout.holds_already(Command.ROLLBACK, deployment.status):
        return deployment, current_operation(deployment)
    if not started:
        raise IllegalTransition(
            f"the deployment is {deployment.status.value} and nothing was pushed",
            status=deployment.status.value,
        )
    await check_newest(session, deployment)
    return deployment, await begin_locked(session, deployment, actor=actor, now=now, reason=reason)


async def check_newest(session: AsyncSession, deployment: Deployment) -> None:
    """Refuse to take back what a newer version has replaced: it would take that one along, or change nothing.

    Raises:
        NewerDeploymentExists: naming the deployment to take back first.
    """
    same = func.lower(Deployment.app_name) == func.lower(deployment.app_name)
    query = select(Deployment).where(same, Deployment.status == DeploymentStatus.COMPLETED)
    query = query.where(Deployment.planes.overlap(deployment.planes), Deployment.id > deployment.id)
    newer = (await session.scalars(query.order_by(Deployment.id.desc()).limit(1))).first()
    if newer is not None:
        detail = f"version {newer.app_version} was rolled out since by deployment {newer.id}"
        raise NewerDeploymentExists(f"{detail}: take that back first")


async def begin_locked(
    session: AsyncSession, deployment: Deployment, *, actor: str, now: datetime, reason: str | None
) -> UUID | None:
    """The same for a locked deployment; the first operation, None if nothing has to be taken back.

    A pause was one of the rollout: the rollback begins, and may be paused itself.
    """
    await deployments.set_paused(session, deployment, paused=False, actor=actor, now=now, reason=reason)
    await approvals.withdraw(session, deployment, now=now)
    await deployments.move(
        session, deployment, DeploymentStatus.ROLLING_BACK, actor=actor, now=now, reason=reason
    )
    touched = await effects.touched_lanes(session, deployment.id)
    for lane in deployment.lanes:
        if lane.status in UNDER_WAY:
            continue  # an earlier rollback that could not finish got this far
        if lane.id in touched:
            lane.finished_at = None
            await deployments.move_lane(
                session, deployment, lane, LaneStatus.ROLLING_BACK, actor=actor, now=now
            )
        elif lane.status in UNTOUCHED:
            await deployments.move_lane(session, deployment, lane, LaneStatus.CANCELLED, actor=actor, now=now)
    await stop_operations(session, deployment.id)
    return await next_ring(session, deployment, now=now)


async def stop_operations(session: AsyncSession, deployment_id: UUID) -> None:
    """Cancel what would push, measure or withdraw; what runs is told to stop, and others wait for that."""
    query = select(Operation.id).where(
        Operation.deployment_id == deployment_id,
        Operation.kind.in_([kind.value for kind in FORWARD]),
        Operation.status.not_in(operations.ENDED),
    )
    for operation_id in (await session.scalars(query.order_by(Operation.id))).all():
        await operations.cancel(session, operation_id, ended=_nothing_more)


async def _nothing_more(_: AsyncSession, __: Operation) -> None:
    """The lanes of a rollback are settled already when their forward operations are cancelled."""


async def next_ring(session: AsyncSession, deployment: Deployment, *, now: datetime) -> UUID | None:
    """Queue the newest ring still to take back; its first operation. Without one the rollback is complete."""
    waiting = [lane for lane in deployment.lanes if lane.status is LaneStatus.ROLLING_BACK]
    if not waiting:
        await deployments.move(session, deployment, DeploymentStatus.ROLLED_BACK, now=now)
        return None
    position = max(lane.position for lane in waiting)
    queued = [await _queue(session, deployment, lane) for lane in waiting if lane.position == position]
    await session.flush()
    return queued[0]


def current_operation(deployment: Deployment) -> UUID | None:
    """The first operation of the ring that is being taken back now."""
    waiting = [lane for lane in deployment.lanes if lane.status is LaneStatus.ROLLING_BACK]
    return max(waiting, key=lambda lane: lane.position).operation_id if waiting else None


async def _queue(session: AsyncSession, deployment: Deployment, lane: RingDeployment) -> UUID:
    if lane.operation_id is not None and await _still_takes_back(session, lane.operation_id):
        return lane.operation_id
    return await lanes.enqueue(session, deployment, lane, OperationKind.EXECUTE_ROLLBACK)


async def _still_takes_back(session: AsyncSession, operation_id: UUID) -> bool:
    operation = await operations.get(session, operation_id)
    is_rollback = operation.kind == OperationKind.EXECUTE_ROLLBACK.value
    return is_rollback and operation.status not in operations.ENDED


@dataclass(frozen=True, slots=True)
class Removal:
    """What to take back from where. Without ``previous_id`` look for ``rollback_version`` on the plane.

    ``made`` is the assignment to undo. ``devices``: the touched ones, where the plane can name so many; None:
    whoever the target holds.
    """

    lane_id: UUID
    deployment_id: UUID
    plane: Plane
    app: App
    rollback_version: str | None
    external_id: str
    previous_id: str | None
    target: Target
    made: Planned
    remove: Planned
    unassign: Planned
    devices: tuple[Member, ...] | None = None

    @property
    def installed(self) -> Assignment:
        """What is to be taken back, as it was made."""
        return self.assignment(self.made, None)

    def assignment(self, planned: Planned, previous_id: str | None) -> Assignment:
        """The lane's assignment under the key of one effect."""
        return Assignment(
            planned.key,
            self.app,
            self.external_id,
            self.target,
            previous_id,
            made_id=planned.external_id,
            made_at=planned.settled_at,
            baseline=planned.baseline,
            devices=self.devices,
        )


async def permit_removal(session: AsyncSession, deployment_id: UUID) -> timedelta | None:
    """Whether something of a removal may leave now: None, or a delay while the rollback is paused.

    Locks the deployment until the transaction ends.

    Raises:
        IllegalTransition: it is not being taken back any more.
    """
    deployment = await deployments.lock(session, deployment_id)
    deployments.check_status(deployment, {DeploymentStatus.ROLLING_BACK, DeploymentStatus.FAILED})
    return PAUSED_AGAIN if deployment.paused else None


async def begin_removal(
    session: AsyncSession, lane_id: UUID, operation_id: UUID, *, deployment_id: UUID
) -> Removal | timedelta | None:
    """What this lane's rollback has to do; a delay while a push still runs; None if nothing is left."""
    deployment = await deployments.lock(session, deployment_id)
    lane = next(lane for lane in deployment.lanes if lane.id == lane_id)
    if lane.status is not LaneStatus.ROLLING_BACK:
        return None
    if await push_runs(session, lane, but=operation_id):
        return timedelta(seconds=1)
    external_id = lane.external_id or await effects.published_id(session, lane)
    remove = await effects.plan(session, lane, Action.REMOVE, operation_id)
    if remove.settled_at is None:
        await effects.renew(session, lane, Action.UNASSIGN)  # what a withdrawal took away was another thing
    unassign = await effects.plan(session, lane, Action.UNASSIGN, operation_id)
    previous_id = await ledger_version(session, deployment, lane.plane)
    return Removal(
        lane_id=lane_id,
        deployment_id=deployment_id,
        plane=Plane(lane.plane),
        app=application(deployment, await plane_of(session, lane)),
        rollback_version=deployment.rollback_version,
        external_id=external_id,
        previous_id=(remove.checkpoint or {}).get("previous_id", previous_id),
        target=target_of(lane),
        made=await effects.find_newest(session, lane, Action.ASSIGN),
        remove=remove,
        unassign=unassign,
    )


async def push_runs(session: AsyncSession, lane: RingDeployment, *, but: UUID) -> bool:
    """Whether a job still works on the lane that must have ended before it is taken back or withdrawn."""
    query = select(Operation.id).where(
        Operation.subject_type == "lane",
        Operation.subject_id == str(lane.id),
        Operation.id != but,
        Operation.kind != OperationKind.EXECUTE_ROLLBACK.value,
        Operation.status == OperationStatus.RUNNING,
    )
    return (await session.scalars(query.limit(1))).first() is not None


async def ledger_version(session: AsyncSession, deployment: Deployment, plane: str) -> str | None:
    """The vendor's id of the version to return to, if we published it ourselves and still know it."""
    if deployment.rollback_version is None:
        return None
    query = (
        select(Effect.external_id)
        .join(Deployment, Deployment.id == Effect.deployment_id)
        .where(Effect.plane == plane, Effect.action == Action.PUBLISH, Effect.state == EffectState.CONFIRMED)
        .where(
            Deployment.app_name == deployment.app_name, Deployment.app_version == deployment.rollback_version
        )
        .where(Deployment.status == DeploymentStatus.COMPLETED)
        .order_by(Effect.settled_at.desc())
    )
    return (await session.scalars(query.limit(1))).first()


@dataclass(frozen=True, slots=True)
class Progress:
    """What to do next with a lane that is being taken back: ask again after ``delay``, or finish it.

    ``reason`` is why it is not complete, if it is not.
    """

    delay: timedelta | None
    complete: bool = False
    all_answered: bool = False
    reason: str = "devices kept the version past their deadline"


async def weigh(
    session: AsyncSession,
    lane_id: UUID,
    *,
    deployment_id: UUID,
    removed_at: datetime,
    told: bool,
    now: datetime,
) -> Progress:
    """Whether every device that may have the version has lost it, from what was stored last.

    ``told``: the plane has said what it can by now; before, silence means nothing. Devices that never
    answered have nothing to take back: the uninstallation stays assigned for them.
    """
    deployment = await deployments.get(session, deployment_id)
    policy = deployments.policy_of(deployment)
    counts = await devices.rollback_counts(session, lane_id)
    if told and counts.open == 0 and counts.failed == 0:
        return Progress(None, complete=True, all_answered=counts.silent == 0)
    if counts.failed > counts.total * policy.max_rollback_failure_rate:
        reason = f"{counts.failed} of {counts.total} devices refused to be taken back"
        return Progress(None, reason=reason)
    if now - removed_at >= max(policy.connectivity[kind] for kind in Connectivity):
        return Progress(None)
    return Progress(policy.interval(now - removed_at))


async def finish_lane(
    session: AsyncSession, lane_id: UUID, progress: Progress, *, deployment_id: UUID, now: datetime
) -> None:
    """Close a lane's rollback and go on to the next ring; an incomplete one fails the deployment."""
    deployment = await deployments.lock(session, deployment_id)
    lane = next(lane for lane in deployment.lanes if lane.id == lane_id)
    if lane.status is not LaneStatus.ROLLING_BACK:
        return
    lane.finished_at = now
    if not progress.complete:
        await give_up(session, deployment, lane, reason=progress.reason, now=now)
        return
    await deployments.move_lane(session, deployment, lane, LaneStatus.ROLLED_BACK, now=now)
    rolling_back = deployment.status is DeploymentStatus.ROLLING_BACK
    if rolling_back and not _ring_is_open(deployment.lanes, lane.position):
        await next_ring(session, deployment, now=now)


def _ring_is_open(lanes: Sequence[RingDeployment], position: int) -> bool:
    return any(lane.status is LaneStatus.ROLLING_BACK and lane.position == position for lane in lanes)


async def give_up(
    session: AsyncSession, deployment: Deployment, lane: RingDeployment, *, reason: str, now: datetime
) -> None:
    """The lane could not be taken back: it and the deployment are FAILED, older rings stay as they are."""
    lane.finished_at = now
    await deployments.move_lane(
        session, deployment, lane, LaneStatus.FAILED, actor=SYSTEM, now=now, reason=reason
    )
    if deployment.status is DeploymentStatus.ROLLING_BACK:
        await deployments.move(session, deployment, DeploymentStatus.FAILED, now=now, reason=reason)
