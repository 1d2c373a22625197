# SPDX-License-Identifier: Apache-2.0
"""What planes have against what was decided: differences seen, believed, repaired in bounds, escalated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Manifest, Plane
from app.domain import comparison, deployments, events, lanes, operations
from app.domain.comparison import Finding
from app.domain.events import SYSTEM
from app.domain.operations import OperationKind, Subject
from app.errors import IllegalTransition, NotFound
from app.models import (
    Deployment,
    Drift,
    DriftStatus,
    DriftType,
    Ring,
    RingDeployment,
    Severity,
)
from app.storable import storable

MOVES: Mapping[DriftStatus, frozenset[DriftStatus]] = MappingProxyType(
    {
        DriftStatus.SUSPECTED: frozenset({DriftStatus.OPEN, DriftStatus.ESCALATED, DriftStatus.RESOLVED}),
        DriftStatus.OPEN: frozenset({DriftStatus.ESCALATED, DriftStatus.RESOLVED}),
        DriftStatus.ESCALATED: frozenset({DriftStatus.RESOLVED}),
        DriftStatus.RESOLVED: frozenset(),
    }
)
SEVERITIES: Mapping[DriftType, Severity] = MappingProxyType(
    {
        DriftType.MISSING_ASSIGNMENT: Severity.HIGH,
        DriftType.VERSION_MISMATCH: Severity.MEDIUM,
        DriftType.SCOPE_MISMATCH: Severity.HIGH,
        DriftType.COMPLIANCE_DRIFT: Severity.MEDIUM,
    }
)
REPAIRED_TYPES = frozenset({DriftType.MISSING_ASSIGNMENT, DriftType.VERSION_MISMATCH})
REPAIRED_RINGS = frozenset({Ring.LAB, Ring.CANARY})
MOST_REPAIRS = 3
REMEMBERED = timedelta(days=1)
"""How long repairs of a difference that is over count on when it comes back: somebody else may undo them
after every good look, and without this each return would be met by three more repairs, for ever."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How far apart two looks must be to be believed, and the first of the waits between repairs."""

    apart: timedelta
    repair: timedelta

    def until_next(self, repairs: int) -> timedelta:
        """How long a repair is left to work; each is given twice as long as the one before."""
        return self.repair * float(2 ** (repairs - 1))


async def record(
    session: AsyncSession,
    lane_id: UUID,
    findings: Sequence[Finding],
    *,
    manifest: Manifest,
    pace: Pace,
    tick: datetime,
    now: datetime,
) -> None:
    """Write down what one look at a lane saw: new suspicions, what is believed now, what is over.

    Locks the deployment. ``tick`` is that of the schedule: no second look belongs to it.
    """
    deployment, lane = await lanes.lock_lane(session, lane_id)
    lane.looked_at = max(now, tick)
    known = {drift.type: drift for drift in await _unresolved(session, lane_id)}
    found = {each.type: replace(each, detail=storable(each.detail)) for each in findings}
    for kind in DriftType:
        drift, finding = known.get(kind), found.get(kind)
        if finding is None and drift is not None:
            await resolve(session, deployment, drift, now=now, why="it is as it was decided")
        elif finding is not None and drift is None:
            session.add(_suspicion(lane, finding, now))
        elif finding is not None and drift is not None:
            _see_again(drift, finding, now)
            await _act(session, deployment, drift, manifest=manifest, pace=pace, now=now)
    await session.flush()


async def not_readable(session: AsyncSession, lane_id: UUID, *, tick: datetime, now: datetime) -> None:
    """A lane could not be read: nothing is known of it, what was known stays, the next tick asks again."""
    _, lane = await lanes.lock_lane(session, lane_id)
    lane.looked_at = max(now, tick)
    await session.flush()


async def set_back(session: AsyncSession, lane_id: UUID, *, tick: datetime) -> None:
    """The plane was away when it was asked about a lane: of those that are due at the tick, it comes last."""
    _, lane = await lanes.lock_lane(session, lane_id)
    lane.looked_at = tick - timedelta.resolution
    await session.flush()


async def lock(session: AsyncSession, drift_id: UUID) -> tuple[Drift, Deployment]:
    """A drift as it is under the lock of its deployment."""
    drift = await session.get_one(Drift, drift_id)
    deployment = await deployments.lock(session, drift.deployment_id)
    await session.refresh(drift)
    return drift, deployment


async def _unresolved(session: AsyncSession, lane_id: UUID) -> Sequence[Drift]:
    query = select(Drift).where(Drift.lane_id == lane_id, Drift.status != DriftStatus.RESOLVED)
    return (await session.scalars(query.with_for_update())).all()


def _suspicion(lane: RingDeployment, finding: Finding, now: datetime) -> Drift:
    return Drift(
        deployment_id=lane.deployment_id,
        lane_id=lane.id,
        ring=lane.ring,
        plane=lane.plane,
        type=finding.type,
        severity=SEVERITIES[finding.type],
        status_since=now,
        detail=finding.detail,
        expected=dict(finding.expected),
        observed=dict(finding.observed),
        first_seen_at=now,
        last_seen_at=now,
    )


def _see_again(drift: Drift, finding: Finding, now: datetime) -> None:
    drift.seen += 1
    drift.last_seen_at, drift.detail, drift.observed = now, finding.detail, dict(finding.observed)


async def _act(
    session: AsyncSession,
    deployment: Deployment,
    drift: Drift,
    *,
    manifest: Manifest,
    pace: Pace,
    now: datetime,
) -> None:
    """Believe it, repair it, or leave it to a person."""
    if drift.status is DriftStatus.SUSPECTED and now - drift.first_seen_at < pace.apart:
        return
    why_not = why_not_repaired(deployment, drift, manifest)
    if drift.status is DriftStatus.SUSPECTED:
        _tell(session, deployment, drift, "drift.found", now=now, severity=drift.severity.value)
        drift.repairs = await _repairs_before(session, drift)
        if why_not is None:
            move(drift, DriftStatus.OPEN, now)
    if drift.status is DriftStatus.ESCALATED or await _is_being_repaired(session, drift, now):
        return
    if why_not is None and drift.repairs >= MOST_REPAIRS:
        why_not = f"{drift.repairs} repairs did not last"
    if why_not is None:
        await _order_repair(session, deployment, drift, pace=pace, now=now)
    else:
        await escalate(session, deployment, drift, now=now, why=why_not)


async def _repairs_before(session: AsyncSession, drift: Drift) -> int:
    """How many repairs the same difference has had, if it was over only a short time ago."""
    query = select(func.max(Drift.repairs)).where(
        Drift.deployment_id == drift.deployment_id,
        Drift.lane_id == drift.lane_id,
        Drift.type == drift.type,
        Drift.resolved_at >= drift.first_seen_at - REMEMBERED,
    )
    return await session.scalar(query) or 0


async def escalate(
    session: AsyncSession, deployment: Deployment, drift: Drift, *, now: datetime, why: str
) -> None:
    """Leave it to a person."""
    move(drift, DriftStatus.ESCALATED, now)
    _tell(session, deployment, drift, "drift.escalated", now=now, reason=why)
    await session.flush()


def why_not_repaired(deployment: Deployment, drift: Drift, manifest: Manifest) -> str | None:
    """Why this is a person's business; None where the control plane repairs it by itself."""
    if drift.type not in REPAIRED_TYPES:
        return f"{drift.type.value} is never repaired without a person"
    if drift.ring not in REPAIRED_RINGS:
        return f"nothing is repaired in {drift.ring.value} without a person"
    if deployment.privileged:
        return "privileged tooling is never repaired without a person"
    if drift.type is DriftType.VERSION_MISMATCH and not manifest.mends_version:
        return f"{manifest.title} does not bring the version back when it is assigned again"
    return None


async def _is_being_repaired(session: AsyncSession, drift: Drift, now: datetime) -> bool:
    if drift.next_repair_at is not None and now < drift.next_repair_at:
        return True
    if drift.operation_id is None:
        return False
    return (await operations.get(session, drift.operation_id)).status not in operations.ENDED


async def _order_repair(
    session: AsyncSession, deployment: Deployment, drift: Drift, *, pace: Pace, now: datetime
) -> None:
    drift.operation_id = await operations.enqueue(
        session,
        OperationKind.REPAIR_LANE,
        subject=Subject("drift", str(drift.id)),
        deployment_id=deployment.id,
        correlation_id=deployment.correlation_id,
    )
    drift.repairs += 1
    drift.version += 1
    drift.next_repair_at = now + pace.until_next(drift.repairs)
    _tell(session, deployment, drift, "drift.repair_ordered", now=now, repair=drift.repairs)


def move(drift: Drift, status: DriftStatus, now: datetime) -> None:
    """Change the state.

    Raises:
        IllegalTransition: the table does not have the move.
    """
    if status not in MOVES[drift.status]:
        raise IllegalTransition(f"drift {drift.id} is {drift.status.value}, not to be {status.value}")
    drift.status, drift.status_since = status, now
    drift.version += 1


async def resolve(
    session: AsyncSession, deployment: Deployment, drift: Drift, *, now: datetime, why: str
) -> None:
    """It is gone; whoever heard of it hears that too."""
    told = drift.status is not DriftStatus.SUSPECTED
    drift.resolved_at = now
    move(drift, DriftStatus.RESOLVED, now)
    if told:
        _tell(session, deployment, drift, "drift.resolved", now=now, reason=why)
    await session.flush()


def _tell(
    session: AsyncSession, deployment: Deployment, drift: Drift, kind: str, *, now: datetime, **told: Any
) -> None:
    about = {"ring": drift.ring.value, "plane": drift.plane, "type": drift.type.value}
    after = {**about, "drift_id": str(drift.id), "detail": drift.detail, **told}
    events.record(session, deployment, kind, actor=SYSTEM, now=now, after=after)


async def get(session: AsyncSession, drift_id: UUID) -> Drift:
    """One difference.

    Raises:
        NotFound: no such one.
    """
    found = await session.get(Drift, drift_id)
    if found is None:
        raise NotFound(f"there is no drift {drift_id}")
    return found


async def page(
    session: AsyncSession, filters: Mapping[str, Any], *, before: UUID | None, limit: int
) -> tuple[Sequence[Drift], UUID | None]:
    """Up to ``limit`` differences, newest first, and the id to go on after, None at the end."""
    query = select(Drift).filter_by(**filters).order_by(Drift.id.desc()).limit(limit + 1)
    if before is not None:
        query = query.where(Drift.id < before)
    rows = (await session.scalars(query)).all()
    return rows[:limit], rows[limit - 1].id if len(rows) > limit else None


async def close_moot(session: AsyncSession, plane: Plane, *, now: datetime) -> int:
    """Resolve what concerns lanes that are not in force any more; how many. Locks their deployments."""
    moot = list(await session.scalars(comparison.MOOT, {"plane": plane.value}))
    closed = [await _close_if_moot(session, drift_id, now) for drift_id in moot]
    return sum(closed)


async def _close_if_moot(session: AsyncSession, drift_id: UUID, now: datetime) -> bool:
    """Looked at again under the lock: another worker may have closed it meanwhile."""
    drift, deployment = await lock(session, drift_id)
    in_force = await session.scalar(comparison.HOLDS, {"lane": drift.lane_id})
    if in_force or drift.status is DriftStatus.RESOLVED:
        return False
    await resolve(session, deployment, drift, now=now, why="its lane is not in force any more")
    return True
