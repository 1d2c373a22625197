# SPDX-License-Identifier: Apache-2.0
"""From ring to ring: by itself after a passed gate, by hand, or once the board has decided."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import approvals, deployments, events, lanes, operations, planner, rollout
from app.domain.deployments import current_ring, following, ring_lanes
from app.domain.events import SYSTEM
from app.domain.facts import Code
from app.domain.operations import OperationKind
from app.domain.planner import Next
from app.domain.rollout import Command
from app.errors import IllegalTransition, Invalid
from app.models import Deployment, DeploymentStatus, LaneStatus, Ring, RingDeployment

GOING_ON = frozenset({DeploymentStatus.DEPLOYING, DeploymentStatus.APPROVED})
"""States in which a ring may be left, or the next one begun."""
OVERRULED = frozenset({LaneStatus.HELD, LaneStatus.MEASURING, LaneStatus.WAITING_PLANE})
"""States of a pushed lane that an override passes over."""


async def queue_push(session: AsyncSession, deployment: Deployment, lane: RingDeployment) -> UUID:
    """Have one lane pushed; the operation."""
    return await lanes.enqueue(session, deployment, lane, OperationKind.DEPLOY_TO_CONNECTOR)


async def start_ring(
    session: AsyncSession, deployment: Deployment, ring: Ring, *, now: datetime
) -> list[UUID]:
    """Queue the push of every lane of a ring; the ids of the operations, in order of planes."""
    started = [await queue_push(session, deployment, lane) for lane in ring_lanes(deployment, ring)]
    deployments.touch(deployment, now)
    events.record(session, deployment, "ring.started", actor=SYSTEM, now=now, after={"ring": ring.value})
    await session.flush()
    return started


async def advance(session: AsyncSession, deployment: Deployment, *, now: datetime) -> UUID | None:
    """Go on from the current ring if it may be left; the first operation that was started, if one was.

    To the next ring, to the decision it needs, or to the end. To be called after any lane of the ring
    changed, with the deployment locked.
    """
    ring = current_ring(deployment)
    of_ring = ring_lanes(deployment, ring)
    if deployment.status not in GOING_ON or deployment.paused:
        return None
    if deployment.status is DeploymentStatus.APPROVED:
        return await begin_ring(session, deployment, ring_to_begin(deployment), now=now)
    if rollout.ring_is_left(of_ring):
        return await leave_ring(session, deployment, ring, now=now)
    if all(lane.status is LaneStatus.EMPTY_TARGET for lane in of_ring):
        reason = f"every target of {ring.value} is empty"
        await deployments.set_paused(session, deployment, paused=True, actor=SYSTEM, now=now, reason=reason)
    return None


async def leave_ring(
    session: AsyncSession, deployment: Deployment, ring: Ring, *, now: datetime, by_hand: bool = False
) -> UUID | None:
    """Go on after a ring that passed its gates, unless a person or the board has to say so first."""
    match planner.after_ring(deployment, ring, by_hand=by_hand):
        case Next.COMPLETE:
            await deployments.move(session, deployment, DeploymentStatus.COMPLETED, now=now)
            await approvals.withdraw(session, deployment, now=now)
        case Next.BEGIN:
            return await begin_ring(session, deployment, following(ring), now=now)
    return None


async def begin_ring(
    session: AsyncSession, deployment: Deployment, ring: Ring, *, now: datetime
) -> UUID | None:
    """Start a ring, or wait for the decision without which it may not begin; its first operation."""
    facts = await approvals.facts_of(session, deployment, now=now)
    if planner.needs_board(deployment, ring, facts) is not None:
        await await_board(session, deployment, now=now)
        return None
    of_ring = ring_lanes(deployment, ring)
    if begun := [lane.operation_id for lane in of_ring if lane.operation_id is not None]:
        await operations.hasten(session, deployment.id)
        return begun[0]
    return (await start_ring(session, deployment, ring, now=now))[0]


async def await_board(session: AsyncSession, deployment: Deployment, *, now: datetime) -> None:
    """Ask the board, if nobody has, and wait for it."""
    if not deployment.requires_cab_approval:
        deployment.requires_cab_approval = True
        deployments.touch(deployment, now)
    await approvals.request(session, deployment, now=now)
    if deployment.status is not DeploymentStatus.AWAITING_CAB:
        await deployments.move(session, deployment, DeploymentStatus.AWAITING_CAB, now=now)


async def ask_for_irreversible(
    session: AsyncSession, deployment: Deployment, lane: RingDeployment, *, now: datetime
) -> None:
    """Wait for the board once nothing else keeps the ring of a lane from being left.

    The lane has passed its gate but for the way back that its plane does not have.
    """
    others = [other for other in ring_lanes(deployment, lane.ring) if other.id != lane.id]
    done = all(other.status in rollout.LEFT or _lacks_a_way_back(other) for other in others)
    if done and deployment.status is DeploymentStatus.DEPLOYING:
        await await_board(session, deployment, now=now)


def _lacks_a_way_back(lane: RingDeployment) -> bool:
    report = lane.gate_report or {}
    return lane.status is LaneStatus.MEASURING and report.get("reason") == Code.IRREVERSIBLE


def ring_to_begin(deployment: Deployment) -> Ring:
    """The first ring that is not left: what a decision starts."""
    return rollout.open_ring(deployment.lanes)[0].ring


@dataclass(frozen=True, slots=True)
class Override:
    """Why a gate that was not passed is passed over, and until when that holds."""

    reason: str
    expires_at: datetime


async def promote(
    session: AsyncSession,
    deployment_id: UUID,
    *,
    actor: str,
    now: datetime,
    reason: str | None = None,
    override: Override | None = None,
    version: int | None = None,
) -> tuple[Deployment, UUID | None]:
    """Move on from the current ring by hand; the deployment, and the first operation it started if it did.

    Lanes that have not passed their gate need an ``override``, a ring whose targets are all empty a
    ``reason``. A repeat changes nothing while the next ring is waiting for its first push.

    Raises:
        NotFound, VersionMismatch: as ``deployments.lock``.
        IllegalTransition: it is in no state to be promoted, or a lane still works.
        Invalid: the reason or the override is missing, or the override has expired.
    """
    deployment = await deployments.lock(session, deployment_id, version=version)
    rollout.holds_already(Command.PROMOTE, deployment.status)
    if override is not None and override.expires_at <= now:
        raise Invalid("the override has expired")
    ring = current_ring(deployment)
    if override is None and (waiting := _pushes_of_next_ring(deployment, ring)):
        return deployment, waiting[0]
    passed = await _close_ring(
        session,
        deployment,
        ring_lanes(deployment, ring),
        actor=actor,
        now=now,
        reason=reason,
        override=override,
    )
    if not passed and (waiting := _pushes_of_next_ring(deployment, ring)):
        return deployment, waiting[0]
    await deployments.set_paused(session, deployment, paused=False, actor=actor, now=now, reason=reason)
    told = {"ring": ring.value, "reason": reason}
    events.record(session, deployment, "ring.promoted", actor=actor, now=now, after=told)
    return deployment, await leave_ring(session, deployment, ring, now=now, by_hand=True)


def _pushes_of_next_ring(deployment: Deployment, ring: Ring) -> list[UUID]:
    if ring is deployment.target_ring:
        return []
    next_lanes = ring_lanes(deployment, following(ring))
    return [lane.operation_id for lane in next_lanes if lane.operation_id is not None]


async def _close_ring(
    session: AsyncSession,
    deployment: Deployment,
    ring: Sequence[RingDeployment],
    *,
    actor: str,
    now: datetime,
    reason: str | None,
    override: Override | None,
) -> bool:
    """Let pass what the command may let pass; False if an override found nothing left to pass over."""
    check_closable(ring, override)
    if all(lane.status is LaneStatus.EMPTY_TARGET for lane in ring) and not reason:
        raise Invalid("every target of this ring is empty: promoting it needs a reason")
    for lane in ring:
        lane.finished_at = lane.finished_at or now
    if override is None:
        return True
    given = {"actor": actor, "reason": override.reason, "expires_at": override.expires_at.isoformat()}
    changed = False
    for lane in ring:
        changed |= await _overrule(session, deployment, lane, given, actor=actor, now=now)
    return changed


def check_closable(ring: Sequence[RingDeployment], override: Override | None) -> None:
    """Refuse to leave a ring in which something still works, or stopped before it was pushed.

    Raises:
        IllegalTransition: naming the lane and its state.
        Invalid: lanes have not passed their gate, and there is no override.
    """
    for lane in ring:
        where = f"lane {lane.ring.value} on {lane.plane}"
        unpushed = lane.status is LaneStatus.HELD and lane.pushed_at is None
        if unpushed:
            detail = f"{where} was never pushed: retry the deployment"
            raise IllegalTransition(detail, status=lane.status.value)
        overruled = override is not None and lane.status in OVERRULED and lane.pushed_at is not None
        if lane.status not in rollout.LEFT | {LaneStatus.HELD} and not overruled:
            raise IllegalTransition(f"{where} is {lane.status.value}", status=lane.status.value)
    held = next((lane for lane in ring if lane.status is LaneStatus.HELD), None)
    if held is not None and override is None:
        raise Invalid(f"lane {held.ring.value} on {held.plane} is HELD: promoting it needs an override")


async def _overrule(
    session: AsyncSession,
    deployment: Deployment,
    lane: RingDeployment,
    given: dict[str, Any],
    *,
    actor: str,
    now: datetime,
) -> bool:
    """Let one lane pass; one whose earlier override ran out gets the new one."""
    if lane.status in OVERRULED:
        lane.override, lane.finished_at = given, now
        told = {"override": given["reason"], "expires_at": given["expires_at"]}
        await deployments.move_lane(
            session, deployment, lane, LaneStatus.PROMOTED, actor=actor, now=now, **told
        )
        return True
    ran_out = lane.override is not None and datetime.fromisoformat(lane.override["expires_at"]) <= now
    if lane.status is LaneStatus.PROMOTED and ran_out:
        lane.override = given
        deployments.touch(deployment, now)
        return True
    return False
