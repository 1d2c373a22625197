# SPDX-License-Identifier: Apache-2.0
"""The repair of one drift: what was decided for a lane is assigned again, unless something holds it back."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action, Assignment, Plane
from app.domain import blockers, comparison, drift, effects, events, guards
from app.domain.applications import application, plane_of, target_of
from app.domain.effects import Planned
from app.domain.events import SYSTEM
from app.domain.facts import Code, Place
from app.domain.pushes import ANY, Held, held_by
from app.errors import IllegalTransition
from app.models import Deployment, Drift, DriftStatus, RingDeployment

HELD_BY = (Code.PAUSED, Code.FREEZE, Code.MAINTENANCE_WINDOW)
"""What keeps a repair waiting, as it keeps a push."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What to assign again on which plane, as another turn of the lane's assignment."""

    drift_id: UUID
    plane: Plane
    assignment: Assignment
    step: Planned


async def _lock(session: AsyncSession, drift_id: UUID) -> tuple[Drift, Deployment, RingDeployment]:
    found, deployment = await drift.lock(session, drift_id)
    return found, deployment, next(lane for lane in deployment.lanes if lane.id == found.lane_id)


async def _is_wanted(session: AsyncSession, found: Drift) -> bool:
    in_force = await session.scalar(comparison.HOLDS, {"lane": found.lane_id})
    return found.status is DriftStatus.OPEN and bool(in_force)


async def begin(session: AsyncSession, drift_id: UUID, operation_id: UUID) -> Repair | None:
    """What this repair assigns; None if it is not wanted any more. Locks the deployment."""
    found, deployment, lane = await _lock(session, drift_id)
    if not await _is_wanted(session, found):
        return None
    step = await effects.plan_turn(session, lane, Action.ASSIGN, operation_id)
    app = application(deployment, await plane_of(session, lane))
    external_id = lane.external_id or await effects.published_id(session, lane)
    assignment = Assignment(step.key, app, external_id, target_of(lane), baseline=step.baseline)
    return Repair(drift_id, Plane(lane.plane), assignment, step)


async def permit(session: AsyncSession, drift_id: UUID, *, now: datetime) -> Held | None:
    """Whether something of a repair may leave now: None, or why not. Locks the deployment.

    Raises:
        IllegalTransition: the difference is gone, or the lane is not in force any more.
    """
    found, deployment, lane = await _lock(session, drift_id)
    if not await _is_wanted(session, found):
        raise IllegalTransition(f"drift {drift_id} is not to be repaired any more", status=found.status.value)
    place = Place(deployment, lane)
    facts = await blockers.facts_of(session, deployment, now=now, limits=ANY)
    blocker = next(guards.holding(place, HELD_BY, facts), None)
    return None if blocker is None else held_by(blocker, now)


async def confirm(session: AsyncSession, repair: Repair, *, now: datetime) -> None:
    """The plane has it again; whether that lasts is for the next look to see."""
    found, deployment, lane = await _lock(session, repair.drift_id)
    told = {"ring": lane.ring.value, "plane": lane.plane, "type": found.type.value, "effect": repair.step.key}
    events.record(session, deployment, "drift.repaired", actor=SYSTEM, now=now, after=told)
    await session.flush()
