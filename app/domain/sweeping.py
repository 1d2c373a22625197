# SPDX-License-Identifier: Apache-2.0
"""Who is past the limits of ``deadlines``, and what becomes of them. Any number of sweepers may run at once.

Operations whose deadline or lease is over, and requests to the board, are the relay's: here they are only
measured.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Self
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import (
    ai_tasks,
    conversations,
    deployments,
    drift,
    effects,
    lanes,
    operations,
    outcomes,
    rollback,
    withdrawal,
)
from app.domain.deadlines import AWAY, BREAK, ENFORCED_WITHIN, ORPHANED, SPARE, UNSETTLED
from app.domain.events import SYSTEM
from app.domain.facts import Code
from app.domain.operations import Failure, OperationKind, Subject
from app.models import (
    AiTaskStatus,
    ApprovalStatus,
    Deployment,
    DeploymentStatus,
    DriftStatus,
    Effect,
    EffectState,
    LaneStatus,
    Operation,
    OperationStatus,
    RingDeployment,
)

BATCH = 20
STUCK = Failure("transient", "deadline", "nobody works on it any more")
TOO_LONG_AWAY = Failure("transient", "plane_unavailable", "the plane was away for too long")

ABANDONED = """
    SELECT deployment.id, deployment.status::text AS state, CAST(:abandoned AS interval) AS after,
        CAST(:now AS timestamptz) - greatest(deployment.updated_at, deployment.start_at, frozen.until) AS age
    FROM deployments AS deployment LEFT JOIN LATERAL (
        SELECT max(ends_at) AS until FROM freezes
        WHERE starts_at <= :now AND (planes = '{}' OR planes && deployment.planes)) AS frozen ON true
    WHERE deployment.status IN ('PENDING', 'DEPLOYING', 'AWAITING_CAB', 'APPROVED') AND NOT EXISTS (
        SELECT FROM ring_deployments AS lane
        WHERE lane.deployment_id = deployment.id AND lane.status IN ('MEASURING', 'WAITING_PLANE'))
"""
BACKWARDS = """
    SELECT id, status::text AS state, CAST(:abandoned AS interval) AS after,
        CAST(:now AS timestamptz) - updated_at AS age
    FROM deployments WHERE status = 'ROLLING_BACK'
"""
WAITING = """
    SELECT id, status::text AS state, CAST(:away AS interval) AS after,
        CAST(:now AS timestamptz) - coalesce(waiting_since, status_since) AS age
    FROM ring_deployments WHERE status = 'WAITING_PLANE'
"""
MEASURED = """
    SELECT lane.id, lane.status::text AS state,
        CASE WHEN CAST(:now AS timestamptz) < CAST(:since AS timestamptz) + CAST(:break AS interval)
            THEN lane.measured_at ELSE CAST(:now AS timestamptz) END - lane.pushed_at - lane.waited AS age,
        CAST(:spare AS interval) + greatest(time.longest + time.soak, CASE WHEN lane.soak_elapsed < time.soak
            THEN lane.measured_at - lane.pushed_at - lane.waited + time.soak - lane.soak_elapsed END) AS after
    FROM ring_deployments AS lane JOIN deployments AS deployment ON deployment.id = lane.deployment_id
    CROSS JOIN LATERAL (SELECT
        make_interval(secs => (deployment.gates->'gates'->lane.ring::text->>'soak')::float8) AS soak,
        make_interval(secs => max(value::float8)) AS longest
        FROM jsonb_each_text(deployment.gates->'connectivity')) AS time
    WHERE lane.status = 'MEASURING'
"""
"""Soak runs only while the lane is measured: what was left of it then is still to come."""
ORPHANS = """
    SELECT lane.id, lane.status::text AS state, CAST(:orphaned AS interval) AS after,
        clock_timestamp() - coalesce(work.finished_at, lane.status_since) AS age
    FROM ring_deployments AS lane JOIN deployments AS deployment ON deployment.id = lane.deployment_id
    LEFT JOIN operations AS work ON work.id = lane.operation_id
    WHERE (work.id IS NULL OR work.status IN ('SUCCEEDED', 'FAILED', 'CANCELLED')) AND (
        (lane.status IN ('PUSHING', 'WAITING_PLANE', 'MEASURING')
            AND deployment.status IN ('PENDING', 'DEPLOYING', 'AWAITING_CAB', 'APPROVED', 'FAILED'))
        OR (lane.status = 'ROLLING_BACK' AND deployment.status = 'ROLLING_BACK' AND NOT EXISTS (
            SELECT FROM ring_deployments AS newer WHERE newer.deployment_id = lane.deployment_id
                AND newer.status = 'ROLLING_BACK' AND newer.position > lane.position)))
"""
NEVER_SENT = """
    SELECT effect.id, effect.state::text AS state, CAST(:unsettled AS interval) AS after,
        CAST(:now AS timestamptz) - deployment.finished_at AS age
    FROM effects AS effect JOIN deployments AS deployment ON deployment.id = effect.deployment_id
    LEFT JOIN operations AS work ON work.id = effect.operation_id
    WHERE effect.state = 'PLANNED' AND deployment.finished_at IS NOT NULL
        AND (work.id IS NULL OR work.status IN ('SUCCEEDED', 'FAILED', 'CANCELLED'))
"""
IN_DOUBT = """
    SELECT effect.id, effect.state::text AS state, CAST(:unsettled AS interval) AS after,
        clock_timestamp() - coalesce(work.finished_at, effect.sent_at) AS age
    FROM effects AS effect LEFT JOIN operations AS work ON work.id = effect.operation_id
    WHERE effect.state IN ('SENT', 'UNKNOWN') AND effect.settled_at IS NULL
        AND (work.id IS NULL OR work.status IN ('SUCCEEDED', 'FAILED', 'CANCELLED'))
        AND NOT EXISTS (
            SELECT FROM operations AS asking WHERE asking.subject_type = 'effect'
                AND asking.subject_id = effect.id::text
                AND asking.status NOT IN ('SUCCEEDED', 'FAILED', 'CANCELLED'))
"""
DRIFTS = """
    SELECT id, status::text AS state,
        CASE status WHEN 'ESCALATED' THEN CAST(:abandoned AS interval)
            ELSE CAST(:away AS interval) END AS after,
        CAST(:now AS timestamptz)
            - CASE status WHEN 'SUSPECTED' THEN last_seen_at ELSE status_since END AS age
    FROM drifts WHERE status <> 'RESOLVED'
"""
SILENT = """
    SELECT message.id, message.status::text AS state, CAST(:orphaned AS interval) AS after,
        clock_timestamp() - coalesce(work.finished_at, message.status_since) AS age
    FROM messages AS message LEFT JOIN operations AS work ON work.id = message.operation_id
    WHERE message.status IN ('PENDING', 'ANSWERING')
        AND (work.id IS NULL OR work.status IN ('SUCCEEDED', 'FAILED', 'CANCELLED'))
"""
FORSAKEN = """
    SELECT task.id, task.status::text AS state, CAST(:orphaned AS interval) AS after,
        clock_timestamp() - coalesce(work.finished_at, task.status_since) AS age
    FROM ai_tasks AS task LEFT JOIN operations AS work ON work.id = task.operation_id
    WHERE task.status IN ('PENDING', 'RUNNING', 'REVISION_REQUESTED', 'APPROVED', 'EXECUTING')
        AND (work.id IS NULL OR work.status IN ('SUCCEEDED', 'FAILED', 'CANCELLED'))
"""
PROPOSALS = """
    SELECT id, status::text AS state, expires_at - proposed_at AS after,
        CAST(:now AS timestamptz) - proposed_at AS age
    FROM ai_tasks WHERE status = 'AWAITING_APPROVAL'
"""
REQUESTS = """
    SELECT id, status::text AS state, expires_at - created_at AS after,
        CAST(:now AS timestamptz) - created_at AS age
    FROM approvals WHERE status = 'PENDING'
"""
OPEN_WORK = """
    SELECT id, status::text AS state, deadline - created_at AS after, clock_timestamp() - created_at AS age
    FROM operations WHERE status IN ('QUEUED', 'WAITING') AND deadline IS NOT NULL
"""
LEASES = """
    SELECT id, status::text AS state, CAST(:lease AS interval) AS after,
        clock_timestamp() - lease_until + CAST(:lease AS interval) AS age
    FROM operations WHERE status = 'RUNNING'
"""
NEAREST = """
    SELECT id, state, age, after FROM (
        SELECT *, row_number() OVER (PARTITION BY state ORDER BY
            extract(epoch FROM age) / extract(epoch FROM after + CAST(:within AS interval)) DESC) AS place
        FROM ({query}) AS waiting) AS ranked
    WHERE place <= :limit ORDER BY place
"""
"""Ordered by ``Aged.ratio``, so that what may last long does not keep up what may not."""
AGAIN = "SELECT id, state, age, after FROM ({query}) AS waiting WHERE id = :id"


@dataclass(frozen=True, slots=True)
class Aged:
    """Something in a state that waits: for how long, and after how long it may not be in it any more."""

    machine: str
    state: str
    id: UUID
    age: timedelta
    after: timedelta

    @property
    def overdue(self) -> bool:
        """Whether its time is over."""
        return self.age >= self.after

    @property
    def ratio(self) -> float:
        """Its age as a part of the longest there may be, enforcement included."""
        return self.age / (self.after + ENFORCED_WITHIN)


@dataclass(frozen=True, slots=True)
class Times:
    """``now`` is the processes' clock; ``since``: from when on there were sweeps without a break.

    ``lease`` as in the settings of workers.
    """

    now: datetime
    since: datetime
    abandoned: timedelta
    lease: timedelta

    def at(self, now: datetime) -> Self:
        """The times of a later sweep, the last one having been at these."""
        return replace(self, now=now, since=now if now - self.now > BREAK else self.since)


Lock = Callable[[AsyncSession, UUID], Awaitable[object]]
Enforce = Callable[[AsyncSession, UUID, Times], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Watch:
    """One look at some states of a machine: who is in them, and what is done with those past their time.

    ``lock``: what whoever moves such a thing takes first. ``enforce`` None: somebody else does it.
    """

    machine: str
    states: tuple[StrEnum, ...]
    query: str
    lock: Lock | None = None
    enforce: Enforce | None = None


async def aged(session: AsyncSession, watch: Watch, times: Times) -> Sequence[Aged]:
    """Those nearest to their limit, or longest past it, at most ``BATCH`` of each state. Reads only."""
    return await _look(session, watch, times, NEAREST, limit=BATCH, within=ENFORCED_WITHIN)


async def _look(
    session: AsyncSession, watch: Watch, times: Times, query: str, **given: object
) -> Sequence[Aged]:
    values = {
        "now": times.now,
        "since": times.since,
        "abandoned": times.abandoned,
        "lease": times.lease,
        "away": AWAY,
        "break": BREAK,
        "spare": SPARE,
        "orphaned": ORPHANED,
        "unsettled": UNSETTLED,
        **given,
    }
    named = text(query.format(query=watch.query))
    rows = await session.execute(named, values)  # each names those that it needs
    return [Aged(watch.machine, row.state, row.id, row.age, row.after) for row in rows]


async def move_on(session: AsyncSession, watch: Watch, each: Aged, times: Times) -> bool:
    """Move on what was seen past its time; False if it is not so any more, or is not ours to move.

    Its owner, or another sweeper, may have come first: it is locked, and looked at again.
    """
    if watch.enforce is None or watch.lock is None or not each.overdue:
        return False
    await watch.lock(session, each.id)
    again = await _look(session, watch, times, AGAIN, id=each.id)
    if not any(found.overdue and found.state == each.state for found in again):
        return False
    await watch.enforce(session, each.id, times)
    return True


async def lock_effect(session: AsyncSession, effect_id: UUID) -> None:
    """Whoever settles it waits."""
    await session.execute(select(Effect.id).where(Effect.id == effect_id).with_for_update())


async def abandon(session: AsyncSession, deployment_id: UUID, times: Times) -> None:
    """End a deployment that nobody has moved for so long: what is installed stays, the rest is withdrawn."""
    deployment = await deployments.lock(session, deployment_id)
    reason = f"nobody has moved it for {times.abandoned.days} days"
    status = DeploymentStatus.CANCELLED
    await withdrawal.stop(session, deployment, status, actor=SYSTEM, now=times.now, reason=reason)


async def end_rollback(session: AsyncSession, deployment_id: UUID, times: Times) -> None:
    """Leave a rollback to a person that has not moved for so long."""
    deployment = await deployments.lock(session, deployment_id)
    waiting = [lane for lane in deployment.lanes if lane.status is LaneStatus.ROLLING_BACK]
    lane = max(waiting, key=lambda lane: lane.position)
    reason = f"nothing has moved for {times.abandoned.days} days"
    if await _end_work(session, lane, Failure("transient", "deadline", reason)):
        return
    await rollback.give_up(session, deployment, lane, reason=reason, now=times.now)


async def hold_away(session: AsyncSession, lane_id: UUID, times: Times) -> None:
    """Leave a lane to a person whose plane has been away for so long."""
    await _hold(session, lane_id, TOO_LONG_AWAY, times)


async def hold_late(session: AsyncSession, lane_id: UUID, times: Times) -> None:
    """Leave a lane to a person that got no verdict in all its time."""
    await _hold(session, lane_id, outcomes.LATE, times)


async def hold_orphan(session: AsyncSession, lane_id: UUID, times: Times) -> None:
    """Leave a lane to a person whose work has ended without it."""
    deployment, lane = await lanes.lock_lane(session, lane_id)
    if lane.status is LaneStatus.ROLLING_BACK:
        await rollback.give_up(session, deployment, lane, reason=STUCK.message, now=times.now)
    else:
        await _hold(session, lane_id, STUCK, times)


async def _hold(session: AsyncSession, lane_id: UUID, failure: Failure, times: Times) -> None:
    """End the lane's work, which holds it; or hold it, if it has none."""
    deployment, lane = await lanes.lock_lane(session, lane_id)
    if await _end_work(session, lane, failure):
        return
    lane.error = failure.to_json()
    await lanes.hold(session, deployment, lane, Code.PUSH_FAILED, now=times.now, reason=failure.message)


async def _end_work(session: AsyncSession, lane: RingDeployment, failure: Failure) -> bool:
    """Whether the lane had work, which has FAILED now with what that means for the lane."""
    if lane.operation_id is None:
        return False
    work = await session.get(Operation, lane.operation_id, with_for_update=True, populate_existing=True)
    if work is None or work.status in operations.ENDED:
        return False
    ended = outcomes.operation_ended
    await operations.end(session, work, OperationStatus.FAILED, failure=failure, ended=ended)
    return True


async def reject_unsent(session: AsyncSession, effect_id: UUID, times: Times) -> None:
    """Close an effect that was planned, never sent, and is not wanted any more."""
    never = Failure("permanent", "never_sent", "its deployment was over before it was sent")
    await effects.rejected(session, effect_id, error=never.to_json(), now=times.now)


async def ask_about(session: AsyncSession, effect_id: UUID, times: Times) -> None:
    """Have the plane asked about an effect whose answer was lost with its work."""
    del times
    effect = await session.get_one(Effect, effect_id)
    deployment = await session.get_one(Deployment, effect.deployment_id)
    await operations.enqueue(
        session,
        OperationKind.SETTLE_EFFECT,
        subject=Subject("effect", str(effect_id)),
        deployment_id=deployment.id,
        correlation_id=deployment.correlation_id,
    )


async def close_drift(session: AsyncSession, drift_id: UUID, times: Times) -> None:
    """A suspicion nobody could confirm, and an escalation nobody came for, are over, and may come again."""
    found, deployment = await drift.lock(session, drift_id)
    if found.status is DriftStatus.OPEN:
        await drift.escalate(session, deployment, found, now=times.now, why="no repair has ended it in time")
    else:
        why = "it is looked at anew after so long a time"
        await drift.resolve(session, deployment, found, now=times.now, why=why)


async def leave_unanswered(session: AsyncSession, message_id: UUID, times: Times) -> None:
    """End an answer that nobody writes any more."""
    await conversations.break_off(session, message_id, STUCK, now=times.now)


async def fail_task(session: AsyncSession, task_id: UUID, times: Times) -> None:
    """End a task that nobody works on any more."""
    await ai_tasks.fail(session, task_id, STUCK, now=times.now)


async def expire_proposal(session: AsyncSession, task_id: UUID, times: Times) -> None:
    """Nobody has decided in time."""
    await ai_tasks.expire(session, task_id, now=times.now)


_D, _L, _E, _V, _O = DeploymentStatus, LaneStatus, EffectState, DriftStatus, OperationStatus
_T = AiTaskStatus
_WORKED_ON = (_T.PENDING, _T.RUNNING, _T.REVISION_REQUESTED, _T.APPROVED, _T.EXECUTING)
_MOVING = (_L.PUSHING, _L.WAITING_PLANE, _L.MEASURING, _L.ROLLING_BACK)
_ACTIVE = (_D.PENDING, _D.DEPLOYING, _D.AWAITING_CAB, _D.APPROVED)
_UNRESOLVED = (_V.SUSPECTED, _V.OPEN, _V.ESCALATED)

WATCHES: tuple[Watch, ...] = (
    Watch("deployment", _ACTIVE, ABANDONED, deployments.lock, abandon),
    Watch("deployment", (_D.ROLLING_BACK,), BACKWARDS, deployments.lock, end_rollback),
    Watch("lane", (_L.WAITING_PLANE,), WAITING, lanes.lock_lane, hold_away),
    Watch("lane", (_L.MEASURING,), MEASURED, lanes.lock_lane, hold_late),
    Watch("lane", _MOVING, ORPHANS, lanes.lock_lane, hold_orphan),
    Watch("effect", (_E.PLANNED,), NEVER_SENT, lock_effect, reject_unsent),
    Watch("effect", (_E.SENT, _E.UNKNOWN), IN_DOUBT, lock_effect, ask_about),
    Watch("drift", _UNRESOLVED, DRIFTS, drift.lock, close_drift),
    Watch("message", conversations.OPEN, SILENT, conversations.lock_of, leave_unanswered),
    Watch("ai_task", _WORKED_ON, FORSAKEN, ai_tasks.lock_both, fail_task),
    Watch("ai_task", (_T.AWAITING_APPROVAL,), PROPOSALS, ai_tasks.lock_both, expire_proposal),
    Watch("request", (ApprovalStatus.PENDING,), REQUESTS),
    Watch("operation", (_O.QUEUED, _O.WAITING), OPEN_WORK),
    Watch("operation", (_O.RUNNING,), LEASES),
)
"""All states of ``deadlines`` but those that something else ends."""
