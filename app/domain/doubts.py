# SPDX-License-Identifier: Apache-2.0
"""An effect whose answer was lost, and whose work has ended: what to ask of the plane."""

from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action, App, Assignment, Plane
from app.domain import deployments, effects, operations
from app.domain.applications import application, plane_of, target_of
from app.domain.effects import Planned
from app.models import Effect, Operation, RingDeployment


@dataclass(frozen=True, slots=True)
class Doubt:
    """What to ask of which plane; ``assignment`` is None for what is done once for all rings.

    ``sent_at``: when it was sent last; who sends it again has another doubt.
    """

    plane: Plane
    action: Action
    app: App
    assignment: Assignment | None
    step: Planned
    sent_at: datetime | None


async def begin(session: AsyncSession, effect_id: UUID) -> Doubt | None:
    """What to ask; None if it is not in doubt any more, or others work on it. Locks the deployment."""
    effect = await session.get_one(Effect, effect_id)
    deployment = await deployments.lock(session, effect.deployment_id)
    await session.refresh(effect)
    if effect.state not in effects.DOUBTFUL or await _is_worked_on(session, effect):
        return None
    of_plane = [lane for lane in deployment.lanes if lane.plane == effect.plane]
    lane = next(lane for lane in of_plane if effect.lane_id in {None, lane.id})
    app = application(deployment, await plane_of(session, lane))
    step = effects.as_planned(effect)
    assignment = None if effect.lane_id is None else await _assignment(session, lane, app, step)
    asked = replace(app, key=step.key)
    return Doubt(Plane(effect.plane), effect.action, asked, assignment, step, effect.sent_at)


async def is_open(session: AsyncSession, doubt: Doubt) -> bool:
    """Whether it is still in doubt, and nobody has taken it up since. Locks the deployment."""
    now = await begin(session, doubt.step.id)
    return now is not None and now.sent_at == doubt.sent_at


async def _is_worked_on(session: AsyncSession, effect: Effect) -> bool:
    status = await session.scalar(select(Operation.status).where(Operation.id == effect.operation_id))
    return status is not None and status not in operations.ENDED


async def _assignment(session: AsyncSession, lane: RingDeployment, app: App, step: Planned) -> Assignment:
    """The lane's assignment under the effect's key, as the job that sent it made it."""
    external_id = lane.external_id or await effects.published_id(session, lane)
    made = step if step.action is Action.ASSIGN else await effects.find_newest(session, lane, Action.ASSIGN)
    return Assignment(
        step.key,
        app,
        external_id,
        target_of(lane),
        previous_id=(step.checkpoint or {}).get("previous_id"),
        made_id=made.external_id,
        made_at=made.settled_at,
        baseline=step.baseline,
    )
