# SPDX-License-Identifier: Apache-2.0
"""The measurements of one lane: read, stored, judged, acted on."""

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Assignment, Plane
from app.domain import (
    approvals,
    deployments,
    events,
    guards,
    planner,
    promotion,
    rollback,
    signatures,
    silence,
)
from app.domain.applications import made_on, plane_of
from app.domain.events import SYSTEM
from app.domain.facts import Code, Place
from app.domain.gates import Counts, Judgement, Verdict, judge
from app.domain.lanes import end_waiting, hold, is_measured, lock_lane
from app.models import Deployment, LaneStatus, RingDeployment, WayBack


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
    assignment = await made_on(session, deployment, lane)
    return Measurement(lane_id, Plane(lane.plane), assignment)


async def back_to_measuring(
    session: AsyncSession, deployment: Deployment, lane: RingDeployment, *, now: datetime
) -> None:
    """The plane answers again."""
    end_waiting(lane, now)
    lane.error = None
    await deployments.move_lane(session, deployment, lane, LaneStatus.MEASURING, now=now)


async def finish_measure(
    session: AsyncSession, lane_id: UUID, *, read_since: datetime, now: datetime
) -> timedelta | None:
    """Judge the lane by what was stored and act on the verdict; when to measure again, None if never.

    ``read_since``: when the first of its devices was asked for; who was silent by then has been silent that
    long, and no longer.
    """
    deployment, lane = await lock_lane(session, lane_id)
    if not is_measured(lane) or lane.pushed_at is None:
        return None
    if lane.status is LaneStatus.WAITING_PLANE:
        await back_to_measuring(session, deployment, lane, now=now)
    policy = deployments.policy_of(deployment)
    age = now - lane.pushed_at - lane.waited
    asked_for = max(read_since - lane.pushed_at - lane.waited, timedelta(0))
    await silence.expire(session, lane.id, policy, asked_for=asked_for, now=now)
    await session.refresh(lane)
    soak(lane, policy.interval(age), now)
    judgement = judge(
        counts_of(lane, now),
        policy.gates[lane.ring],
        soaked=lane.soak_elapsed,
        reversible=await _reversible(session, deployment, lane, now=now),
    )
    keep_report(lane, judgement, now)
    if judgement.reason == Code.GATE_NOT_MET:
        await _keep_signature(session, deployment, lane)
    await act(session, deployment, lane, judgement, now=now)
    return policy.interval(age) if lane.status is LaneStatus.MEASURING else None


async def _reversible(
    session: AsyncSession, deployment: Deployment, lane: RingDeployment, *, now: datetime
) -> bool | None:
    """Whether the lane's plane has a way back, or the board knows that it has none; None past LAB."""
    if lane.position > 0:
        return None
    if (await plane_of(session, lane)).way_back is not WayBack.NONE:
        return True
    facts = await approvals.facts_of(session, deployment, now=now)
    return guards.irreversible(Place(deployment, lane), facts) is None


def soak(lane: RingDeployment, interval: timedelta, now: datetime) -> None:
    """Run the soak clock since the last measurement, two intervals at most: older ones are not fresh."""
    since = lane.measured_at or now
    lane.soak_elapsed = planner.soaked(lane.soak_elapsed, since=since, now=now, interval=interval)
    lane.measured_at = now


def counts_of(lane: RingDeployment, now: datetime) -> Counts:
    """The lane's counters as a gate reads them."""
    retrying = lane.retry_until is not None and lane.retry_until > now
    return Counts(
        lane.targeted, lane.success_count, lane.failure_count, lane.unreachable_count, retrying=retrying
    )


async def _keep_signature(session: AsyncSession, deployment: Deployment, lane: RingDeployment) -> None:
    """Add to the report why most devices failed."""
    causes = await signatures.of_failures(session, deployment.id, lane_id=lane.id)
    if causes and lane.gate_report is not None:
        lane.gate_report = {**lane.gate_report, "signature": str(causes[0])}


def keep_report(lane: RingDeployment, judgement: Judgement, now: datetime) -> None:
    """Store the verdict with every criterion's threshold and measured value."""
    lane.verdict = judgement.verdict.value
    lane.gate_report = {
        "verdict": judgement.verdict.value,
        "reason": judgement.reason,
        "detail": judgement.detail,
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
    counts = counts_of(lane, now)
    told: dict[str, Any] = {
        "success": counts.succeeded,
        "failure": counts.failed,
        "targeted": counts.targeted,
    }
    match judgement.verdict:
        case Verdict.PROMOTE:
            lane.finished_at = now
            await deployments.move_lane(session, deployment, lane, LaneStatus.PROMOTED, now=now, **told)
            await promotion.advance(session, deployment, now=now)
        case Verdict.ROLL_BACK:
            reason = (
                f"{counts.failed} of {counts.targeted} devices failed in {lane.ring.value} on {lane.plane}"
            )
            events.record(
                session, deployment, "gate.failed", actor=SYSTEM, now=now, after={"reason": reason, **told}
            )
            await rollback.begin_locked(session, deployment, actor=SYSTEM, reason=reason, now=now)
        case Verdict.INCONCLUSIVE:
            await hold(session, deployment, lane, Code.INCONCLUSIVE, now=now)
            reason = f"inconclusive in {lane.ring.value} on {lane.plane}: {judgement.detail}"
            await deployments.set_paused(
                session, deployment, paused=True, actor=SYSTEM, now=now, reason=reason
            )
        case Verdict.HOLD if judgement.reason == Code.GATE_NOT_MET:
            await hold(session, deployment, lane, Code.GATE_NOT_MET, now=now)
        case Verdict.HOLD if judgement.reason == Code.IRREVERSIBLE:
            await promotion.ask_for_irreversible(session, deployment, lane, now=now)
