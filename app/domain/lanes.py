# SPDX-License-Identifier: Apache-2.0
"""One ring on one plane: begin and confirm its push, measure it, judge it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action, App, Assignment, DeviceReport, Plane, Target
from app.domain import deployments, devices, effects, events, operations, rollback
from app.domain.applications import application, plane_of, target_of
from app.domain.effects import Planned
from app.domain.events import SYSTEM
from app.domain.gates import Counts, Judgement, Verdict, judge
from app.domain.operations import OperationKind, Subject
from app.errors import NotFound
from app.models import (
    Deployment,
    DeploymentStatus,
    LaneStatus,
    Ring,
    RingDeployment,
)

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

PUSH_ACTIONS = (Action.PUBLISH, Action.UPLOAD, Action.ASSIGN)


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

    def app_for(self, action: Action) -> App:
        """The application under the key of one effect."""
        return App(**{**_fields(self.app), "key": self.steps[action].key})

    def assignment(self, external_id: str) -> Assignment:
        """The assignment of the published application to this lane's target."""
        step = self.steps[Action.ASSIGN]
        return Assignment(step.key, self.app, external_id, self.target, baseline=step.baseline)


def _fields(app: App) -> dict[str, Any]:
    return {name: getattr(app, name) for name in App.__slots__}


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


LOOK_AGAIN = timedelta(seconds=5)
"""How often a push that a pause keeps back looks whether it may go on."""


async def begin_push(
    session: AsyncSession, lane_id: UUID, operation_id: UUID, *, now: datetime
) -> Push | timedelta | None:
    """Plan the lane's effects and move it to PUSHING.

    A delay says to look again then (it is paused, or not to start yet); None that there is nothing to push.
    Locks the deployment. May be repeated: what is confirmed stays confirmed.
    """
    deployment, lane = await lock_lane(session, lane_id)
    if lane.status not in PUSHABLE or deployment.status not in PUSHING:
        return None
    if deployment.paused:
        return LOOK_AGAIN
    if deployment.start_at is not None and deployment.start_at > now:
        return deployment.start_at - now
    plane = await plane_of(session, lane)
    steps = {action: await effects.plan(session, lane, action, operation_id) for action in PUSH_ACTIONS}
    if deployment.status in {DeploymentStatus.PENDING, DeploymentStatus.APPROVED}:
        await deployments.move(session, deployment, DeploymentStatus.DEPLOYING, now=now)
    waits = lane.status is LaneStatus.WAITING_PLANE
    if not waits:
        await to_pushing(session, deployment, lane, now=now)
    app = application(deployment, plane)
    return Push(lane_id, deployment.id, Plane(lane.plane), app, target_of(lane), steps, waits)


async def permit_push(session: AsyncSession, deployment_id: UUID) -> timedelta | None:
    """Whether something of a push may leave now: None, or a delay while the deployment is paused.

    Locks the deployment until the transaction ends, so that it cannot be taken back in between.

    Raises:
        IllegalTransition: it is in a state in which no device may be touched.
    """
    deployment = await deployments.lock(session, deployment_id)
    deployments.check_status(deployment, PUSHING)
    return LOOK_AGAIN if deployment.paused else None


async def to_pushing(
    session: AsyncSession, deployment: Deployment, lane: RingDeployment, *, now: datetime
) -> None:
    """The plane is being called for this lane, for the first time or again."""
    end_waiting(lane, now)
    lane.started_at = lane.started_at or now
    lane.error = None
    if lane.status is not LaneStatus.PUSHING:
        await deployments.move_lane(session, deployment, lane, LaneStatus.PUSHING, now=now)


async def resume_push(session: AsyncSession, lane_id: UUID, *, now: datetime) -> None:
    """The plane answers again."""
    deployment, lane = await lock_lane(session, lane_id)
    if lane.status is LaneStatus.WAITING_PLANE and lane.pushed_at is None:
        await to_pushing(session, deployment, lane, now=now)


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


async def targeted(session: AsyncSession, lane_id: UUID, *, now: datetime) -> bool:
    """Whether the target that was just read holds any device; if not, the lane ends as EMPTY_TARGET."""
    deployment, lane = await lock_lane(session, lane_id)
    if await devices.count_members(session, lane_id):
        return True
    await deployments.move_lane(session, deployment, lane, LaneStatus.EMPTY_TARGET, now=now)
    await deployments.advance(session, deployment, now=now)
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
    lane.operation_id = await operations.enqueue(
        session,
        OperationKind.MEASURE_RING,
        subject=Subject("lane", str(lane.id)),
        deployment_id=deployment.id,
        correlation_id=deployment.correlation_id,
        delay=deployments.policy_of(deployment).measure_first,
    )
    await session.flush()


async def store_reports(
    session: AsyncSession, lane_id: UUID, reports: Sequence[DeviceReport], *, now: datetime
) -> None:
    """Store one page of what devices say, with the lane's counters. May be repeated."""
    lane = await session.get_one(RingDeployment, lane_id)
    await devices.store_reports(session, lane, reports, now=now)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What to ask of which plane."""

    lane_id: UUID
    plane: Plane
    assignment: Assignment


async def begin_measure(session: AsyncSession, lane_id: UUID) -> Measurement | None:
    """What to measure; None if the lane is no longer measured."""
    lane = await session.get_one(RingDeployment, lane_id)
    if not is_measured(lane) or lane.external_id is None:
        return None
    deployment = await session.get_one(Deployment, lane.deployment_id)
    app = application(deployment, await plane_of(session, lane))
    made = await effects.find(
        session, effects.effect_key(deployment.id, lane.plane, lane.ring, Action.ASSIGN)
    )
    assignment = Assignment(
        made.key,
        app,
        lane.external_id,
        target_of(lane),
        made_id=made.external_id,
        made_at=made.settled_at,
        baseline=made.baseline,
    )
    return Measurement(lane_id, Plane(lane.plane), assignment)


def is_measured(lane: RingDeployment) -> bool:
    """Whether the lane was pushed and is waiting for its verdict, or for its plane on the way there."""
    return lane.status is LaneStatus.MEASURING or (
        lane.status is LaneStatus.WAITING_PLANE and lane.pushed_at is not None
    )


async def back_to_measuring(
    session: AsyncSession, deployment: Deployment, lane: RingDeployment, *, now: datetime
) -> None:
    """The plane answers again."""
    end_waiting(lane, now)
    lane.error = None
    await deployments.move_lane(session, deployment, lane, LaneStatus.MEASURING, now=now)


async def finish_measure(session: AsyncSession, lane_id: UUID, *, now: datetime) -> timedelta | None:
    """Judge the lane by what was stored and act on the verdict; when to measure again, None if never."""
    deployment, lane = await lock_lane(session, lane_id)
    if not is_measured(lane) or lane.pushed_at is None:
        return None
    if lane.status is LaneStatus.WAITING_PLANE:
        await back_to_measuring(session, deployment, lane, now=now)
    policy = deployments.policy_of(deployment)
    age = now - lane.pushed_at - lane.waited
    await devices.expire(session, lane.id, policy, asked_for=age, now=now)
    await session.refresh(lane)
    soak(lane, policy.interval(age), now)
    judgement = judge(counts_of(lane), policy.gates[lane.ring], soaked=lane.soak_elapsed)
    keep_report(lane, judgement, now)
    await act(session, deployment, lane, judgement, now=now)
    return policy.interval(age) if lane.status is LaneStatus.MEASURING else None


def soak(lane: RingDeployment, interval: timedelta, now: datetime) -> None:
    """Run the soak clock since the last measurement, two intervals at most: older ones are not fresh."""
    since = lane.measured_at or now
    lane.soak_elapsed += max(timedelta(0), min(now - since, 2 * interval))
    lane.measured_at = now


def counts_of(lane: RingDeployment) -> Counts:
    """The lane's counters as a gate reads them."""
    return Counts(lane.targeted, lane.success_count, lane.failure_count, lane.unreachable_count)


def keep_report(lane: RingDeployment, judgement: Judgement, now: datetime) -> None:
    """Store the verdict with every criterion's threshold and measured value."""
    lane.verdict = judgement.verdict.value
    lane.gate_report = {
        "verdict": judgement.verdict.value,
        "reason": judgement.reason,
        "measured_at": now.isoformat(),
        "criteria": [asdict(criterion) for criterion in judgement.criteria],
    }


async def act(
    session: AsyncSession,
    deployment: Deployment,
    lane: RingDeployment,
    judgement: Judgement,
    *,
    now: datetime,
) -> None:
    """Do what the verdict says; a lane that merely waits for time or devices goes on being measured."""
    counts = counts_of(lane)
    told: dict[str, Any] = {
        "success": counts.succeeded,
        "failure": counts.failed,
        "targeted": counts.targeted,
    }
    match judgement.verdict:
        case Verdict.PROMOTE:
            lane.finished_at = now
            await deployments.move_lane(session, deployment, lane, LaneStatus.PROMOTED, now=now, **told)
            await deployments.advance(session, deployment, now=now)
        case Verdict.ROLL_BACK:
            reason = (
                f"{counts.failed} of {counts.targeted} devices failed in {lane.ring.value} on {lane.plane}"
            )
            events.record(
                session, deployment, "gate.failed", actor=SYSTEM, now=now, after={"reason": reason, **told}
            )
            await rollback.begin_locked(session, deployment, actor=SYSTEM, reason=reason, now=now)
        case Verdict.INCONCLUSIVE:
            await hold(session, deployment, lane, "inconclusive", now=now)
            reason = f"too few devices reported in {lane.ring.value} on {lane.plane}"
            await deployments.set_paused(
                session, deployment, paused=True, actor=SYSTEM, now=now, reason=reason
            )
        case Verdict.HOLD if judgement.reason == "gate_not_met":
            await hold(session, deployment, lane, "gate_not_met", now=now)


async def hold(
    session: AsyncSession, deployment: Deployment, lane: RingDeployment, code: str, *, now: datetime
) -> None:
    """Leave the lane to a person."""
    await deployments.move_lane(session, deployment, lane, LaneStatus.HELD, now=now, reason=code)


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
    if any(lane.status is not LaneStatus.EMPTY_TARGET for lane in lanes):
        return []
    lane = next(lane for lane in lanes if lane.plane == plane)
    lane.target_kind, lane.target_ref = target.kind.value, target.ref
    reason = f"a target was set for {ring.value} on {plane}"
    await deployments.set_paused(session, deployment, paused=False, actor=actor, now=now, reason=reason)
    return [await deployments.queue_push(session, deployment, lane)]
