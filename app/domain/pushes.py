# SPDX-License-Identifier: Apache-2.0
"""The push of one lane: begun, permitted step by step, confirmed; and begun anew for another target."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action, App, Assignment, Plane, Target
from app.domain import (
    blockers,
    budgets,
    deployments,
    devices,
    effects,
    events,
    guards,
    promotion,
    rollback,
    rollout,
)
from app.domain.applications import application, plane_of, target_of
from app.domain.budgets import Limits
from app.domain.effects import Planned
from app.domain.events import SYSTEM
from app.domain.facts import Blocker, Code, Place
from app.domain.lanes import PUSHABLE, PUSHING, end_waiting, enqueue, hold, lock_lane
from app.domain.operations import Failure, OperationKind
from app.models import Deployment, DeploymentStatus, LaneStatus, Ring, RingDeployment, WayBack

PUSH_ACTIONS = (Action.PUBLISH, Action.UPLOAD, Action.ASSIGN)
ANY = Limits()
UNPUSHED = frozenset({LaneStatus.PENDING, LaneStatus.PUSHING, LaneStatus.WAITING_PLANE})
TOO_LATE = Failure("permanent", "deployment_failed", "the deployment failed before this was pushed")


@dataclass(frozen=True, slots=True)
class Push:
    """What a push needs to know, read in one transaction. ``app.key`` is each effect's own: ``app_for``."""

    lane_id: UUID
    deployment_id: UUID
    plane: Plane
    app: App
    target: Target
    steps: dict[Action, Planned]
    waits: bool
    way_back: WayBack | None = None
    rollback_version: str | None = None
    ledger_version: str | None = None

    def app_for(self, action: Action) -> App:
        """The application under the key of one effect."""
        return replace(self.app, key=self.steps[action].key)

    def assignment(self, external_id: str) -> Assignment:
        """The assignment of the published application to this lane's target."""
        step = self.steps[Action.ASSIGN]
        return Assignment(step.key, self.app, external_id, self.target, baseline=step.baseline)


LOOK_AGAIN = timedelta(seconds=60)
"""How often a push that only a person lets go looks again by itself: whoever does so has it look at once."""
BUDGET_AGAIN, LATEST = timedelta(seconds=5), timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Held:
    """Nothing of the lane may be pushed yet: the blocker's code, and when to look again."""

    code: str
    delay: timedelta


def held_by(blocker: Blocker, now: datetime) -> Held:
    """How long a push waits for this."""
    if blocker.code is Code.BUDGET:
        return Held(blocker.code.value, BUDGET_AGAIN)
    if blocker.code not in guards.TIMES or blocker.next_check_at is None:
        return Held(blocker.code.value, LOOK_AGAIN)
    return Held(blocker.code.value, min(max(blocker.next_check_at - now, timedelta(0)), LATEST))


async def begin_push(
    session: AsyncSession, lane_id: UUID, operation_id: UUID, *, now: datetime, limits: Limits = ANY
) -> Push | Held | None:
    """Plan the lane's effects and move it to PUSHING; None if there is nothing to push.

    Locks the deployment. May be repeated: what is confirmed stays confirmed. The lane of a deployment that
    failed meanwhile is HELD.
    """
    deployment, lane = await lock_lane(session, lane_id)
    if deployment.status is DeploymentStatus.FAILED:
        await _hold_too_late(session, deployment, lane, now=now)
    if lane.status not in PUSHABLE or deployment.status not in PUSHING | {DeploymentStatus.AWAITING_CAB}:
        return None
    held = await _hold_back(session, deployment, lane, now=now, limits=limits)
    if held is not None:
        return held
    plane = await plane_of(session, lane)
    steps = {action: await effects.plan(session, lane, action, operation_id) for action in PUSH_ACTIONS}
    if deployment.status in {DeploymentStatus.PENDING, DeploymentStatus.APPROVED}:
        await deployments.move(session, deployment, DeploymentStatus.DEPLOYING, now=now)
    waits = lane.status is LaneStatus.WAITING_PLANE
    if not waits:
        await to_pushing(session, deployment, lane, now=now)
    return Push(
        lane_id,
        deployment.id,
        Plane(lane.plane),
        application(deployment, plane),
        target_of(lane),
        steps,
        waits,
        plane.way_back,
        deployment.rollback_version,
        await rollback.ledger_version(session, deployment, lane.plane),
    )


async def _hold_too_late(
    session: AsyncSession, deployment: Deployment, lane: RingDeployment, *, now: datetime
) -> None:
    """Leave what is not pushed to whoever retries the deployment, or takes it back."""
    if lane.status not in UNPUSHED or lane.pushed_at is not None:
        return
    end_waiting(lane, now)
    lane.error = TOO_LATE.to_json()
    await hold(session, deployment, lane, Code.PUSH_FAILED, now=now, reason=TOO_LATE.message)


async def _hold_back(
    session: AsyncSession,
    deployment: Deployment,
    lane: RingDeployment,
    *,
    now: datetime,
    limits: Limits,
    reserve: bool = False,
) -> Held | None:
    """Why the lane's devices may not be touched now, if so. With ``reserve`` they take their budget."""
    if reserve and limits.unverified_devices is not None:
        await budgets.lock(session)
    facts = await blockers.facts_of(session, deployment, now=now, limits=limits, lane=lane)
    blocker = guards.before_touch(Place(deployment, lane), facts)
    if blocker is None and deployment.status is DeploymentStatus.AWAITING_CAB:
        return Held(Code.AWAITING_CAB.value, LOOK_AGAIN)
    if blocker is None:
        if reserve:
            await budgets.reserve(session, lane.id, facts.needed[lane.id])
        return None
    if blocker.code in guards.BOARD:
        await promotion.await_board(session, deployment, now=now)
    return held_by(blocker, now)


async def permit_push(
    session: AsyncSession, lane_id: UUID, action: Action, *, now: datetime, limits: Limits = ANY
) -> Held | None:
    """Whether something of a push may leave now: None, or why not.

    Locks the deployment until the transaction ends, so that it cannot be taken back in between. An assignment
    takes its part of the budget.

    Raises:
        IllegalTransition: it is in a state in which no device may be touched.
    """
    deployment, lane = await lock_lane(session, lane_id)
    deployments.check_status(deployment, PUSHING | {DeploymentStatus.AWAITING_CAB})
    reserve = action is Action.ASSIGN
    return await _hold_back(session, deployment, lane, now=now, limits=limits, reserve=reserve)


async def keep_way_back(session: AsyncSession, push: Push, way_back: WayBack, *, now: datetime) -> None:
    """Store how the plane can take the deployment back, with its event where that is new."""
    deployment, lane = await lock_lane(session, push.lane_id)
    plane = await plane_of(session, lane)
    if plane.way_back is way_back:
        return
    before = plane.way_back.value if plane.way_back else None
    plane.way_back = way_back
    deployments.touch(deployment, now)
    events.record(
        session,
        deployment,
        "way_back.found",
        actor=SYSTEM,
        now=now,
        before={"plane": lane.plane, "way_back": before},
        after={"plane": lane.plane, "way_back": way_back.value},
    )
    await session.flush()


async def to_pushing(
    session: AsyncSession, deployment: Deployment, lane: RingDeployment, *, now: datetime
) -> None:
    """The plane is being called for this lane, for the first time or again."""
    end_waiting(lane, now)
    lane.started_at = lane.started_at or now
    lane.error, lane.finished_at = None, None
    if lane.status is not LaneStatus.PUSHING:
        await deployments.move_lane(session, deployment, lane, LaneStatus.PUSHING, now=now)


async def resume_push(session: AsyncSession, lane_id: UUID, *, now: datetime) -> None:
    """The plane answers again."""
    deployment, lane = await lock_lane(session, lane_id)
    if lane.status is LaneStatus.WAITING_PLANE and lane.pushed_at is None:
        await to_pushing(session, deployment, lane, now=now)


async def targeted(session: AsyncSession, lane_id: UUID, *, now: datetime) -> bool:
    """Whether the target that was just read holds any device; if not, the lane ends as EMPTY_TARGET."""
    deployment, lane = await lock_lane(session, lane_id)
    if await devices.count_members(session, lane_id):
        return True
    await deployments.move_lane(session, deployment, lane, LaneStatus.EMPTY_TARGET, now=now)
    await promotion.advance(session, deployment, now=now)
    return False


async def confirm_push(session: AsyncSession, lane_id: UUID, *, external_id: str, now: datetime) -> None:
    """The plane has it: count the targeted devices and start to measure. May be repeated."""
    deployment, lane = await lock_lane(session, lane_id)
    if lane.status is not LaneStatus.PUSHING:
        return
    lane.targeted = await devices.count_members(session, lane_id)
    lane.external_id, lane.pushed_at, lane.measured_at = external_id, now, now
    (await plane_of(session, lane)).external_id = external_id
    await deployments.move_lane(
        session, deployment, lane, LaneStatus.MEASURING, now=now, targeted=lane.targeted
    )
    delay = deployments.policy_of(deployment).measure_first
    await enqueue(session, deployment, lane, OperationKind.MEASURE_RING, delay=delay)


async def retarget(
    session: AsyncSession, plane: str, ring: Ring, target: Target, *, actor: str, now: datetime
) -> list[UUID]:
    """Push again what stopped because this target was empty, now to ``target``; the operations, if any.

    Locks each deployment that waits for it.
    """
    waiting = (
        select(Deployment.id)
        .join(RingDeployment, RingDeployment.deployment_id == Deployment.id)
        .where(Deployment.paused, Deployment.status.in_(PUSHING))
        .where(RingDeployment.plane == plane, RingDeployment.ring == ring)
        .where(RingDeployment.status == LaneStatus.EMPTY_TARGET)
    )
    started: list[UUID] = []
    for deployment_id in (await session.scalars(waiting.order_by(Deployment.id))).all():
        deployment = await deployments.lock(session, deployment_id)
        if (
            deployment.paused
            and deployments.current_ring(deployment) is ring
            and deployment.status in PUSHING
        ):
            started += await _push_to(session, deployment, plane, ring, target, actor=actor, now=now)
    return started


async def _push_to(
    session: AsyncSession,
    deployment: Deployment,
    plane: str,
    ring: Ring,
    target: Target,
    *,
    actor: str,
    now: datetime,
) -> list[UUID]:
    lanes = deployments.ring_lanes(deployment, ring)
    empty = all(lane.status is LaneStatus.EMPTY_TARGET for lane in lanes)
    if not empty or rollout.ring_is_left(lanes):
        return []
    lane = next(lane for lane in lanes if lane.plane == plane)
    lane.target_kind, lane.target_ref = target.kind.value, target.ref
    reason = f"a target was set for {ring.value} on {plane}"
    await deployments.set_paused(session, deployment, paused=False, actor=actor, now=now, reason=reason)
    return [await promotion.queue_push(session, deployment, lane)]
