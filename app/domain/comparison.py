# SPDX-License-Identifier: Apache-2.0
"""What a plane has against what was decided for one lane: what to ask, and how the answer differs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Assignment, DeviceReport, InstallState, Observed, Plane
from app.domain import deployments
from app.domain.applications import made_on
from app.models import DriftType, LaneStatus, RingDeployment
from app.storable import storable

LOST = frozenset({InstallState.NOT_INSTALLED, InstallState.FAILED})
"""What a device reports that does not have any more what it had."""
EXAMPLES = 10

IN_FORCE = """
    lane.pushed_at IS NOT NULL AND lane.status IN ('MEASURING', 'HELD', 'PROMOTED')
    AND deployment.status IN ('DEPLOYING', 'AWAITING_CAB', 'APPROVED', 'COMPLETED')
    AND NOT EXISTS (
        SELECT FROM deployments AS newer JOIN ring_deployments AS same ON same.deployment_id = newer.id
        WHERE lower(newer.app_name) = lower(deployment.app_name) AND newer.id > deployment.id
            AND newer.status <> 'ROLLED_BACK' AND same.started_at IS NOT NULL
            AND same.plane = lane.plane AND same.ring = lane.ring)
"""
"""A lane whose plane is to have what it was given: no newer version was begun there, unless taken back."""

TO_LOOK_AT = text(f"""
    SELECT lane.id FROM ring_deployments AS lane
    JOIN deployments AS deployment ON deployment.id = lane.deployment_id
    WHERE lane.plane = :plane AND (lane.looked_at IS NULL OR lane.looked_at < :since)
        AND (NOT :critical OR deployment.criticality = 'critical') AND {IN_FORCE}
    ORDER BY lane.looked_at NULLS FIRST, lane.id LIMIT :limit
""")  # noqa: S608 - composed of constants
MOOT = text(f"""
    SELECT drift.id FROM drifts AS drift
    JOIN ring_deployments AS lane ON lane.id = drift.lane_id
    JOIN deployments AS deployment ON deployment.id = drift.deployment_id
    WHERE drift.status <> 'RESOLVED' AND drift.plane = :plane AND NOT ({IN_FORCE})
    ORDER BY drift.deployment_id, drift.id
""")  # noqa: S608 - composed of constants
HOLDS = text(f"""
    SELECT EXISTS (SELECT FROM ring_deployments AS lane JOIN deployments AS deployment
        ON deployment.id = lane.deployment_id WHERE lane.id = :lane AND {IN_FORCE})
""")  # noqa: S608 - composed of constants
HAD_IT = text("""
    SELECT device_id, name FROM device_results
    WHERE lane_id = :lane AND device_id = ANY(:devices) AND state = 'SUCCEEDED' AND NOT late
    ORDER BY device_id
""")


@dataclass(frozen=True, slots=True)
class Look:
    """What to ask of a plane about one lane, and what was decided there.

    ``decided`` has the targets of all lanes of the deployment on the plane. ``had_it``: how many devices
    succeeded; at least ``min_success_rate`` of ``targeted`` are to have it still. ``settled``: its devices
    are not measured any more, so nobody else sees them lose it.
    """

    lane_id: UUID
    assignment: Assignment
    decided: frozenset[str]
    targeted: int
    had_it: int
    min_success_rate: float
    settled: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """How many devices have not any more what they had, and the names of some."""

    number: int = 0
    examples: tuple[str, ...] = ()

    def and_these(self, devices: Sequence[tuple[str, str]]) -> Self:
        """With those of one more page: their ids and names."""
        names = (*self.examples, *(name for _, name in devices))
        return replace(self, number=self.number + len(devices), examples=names[:EXAMPLES])


NOBODY = Lost()


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference, as it was seen once."""

    type: DriftType
    detail: str
    expected: Mapping[str, Any]
    observed: Mapping[str, Any]


async def to_look_at(
    session: AsyncSession, plane: Plane, *, since: datetime, critical: bool, limit: int
) -> list[UUID]:
    """Lanes in force on a plane that nobody has looked at ``since`` then, the longest ago first."""
    values = {"plane": plane.value, "since": since, "critical": critical, "limit": limit}
    return list(await session.scalars(TO_LOOK_AT, values))


async def begin_look(session: AsyncSession, lane_id: UUID) -> Look | None:
    """What to ask about a lane; None if it is not in force any more."""
    if not await session.scalar(HOLDS, {"lane": lane_id}):
        return None
    lane = await session.get_one(RingDeployment, lane_id)
    deployment = await deployments.get(session, lane.deployment_id)
    of_plane = [other for other in deployment.lanes if other.plane == lane.plane]
    return Look(
        lane_id=lane_id,
        assignment=await made_on(session, deployment, lane),
        decided=frozenset(other.target_ref for other in of_plane),
        targeted=lane.targeted,
        had_it=lane.success_count,
        min_success_rate=deployments.policy_of(deployment).gates[lane.ring].min_success_rate,
        settled=lane.status is LaneStatus.PROMOTED,
    )


async def have_lost(
    session: AsyncSession, lane_id: UUID, reports: Sequence[DeviceReport]
) -> list[tuple[str, str]]:
    """Which devices of a page of reports had it and have not any more: their ids and names."""
    without = [storable(report.device_id) for report in reports if report.state in LOST]
    if not without:
        return []
    rows = await session.execute(HAD_IT, {"lane": lane_id, "devices": without})
    return [(row.device_id, row.name) for row in rows]


def weigh(look: Look, observed: Observed, lost: Lost) -> list[Finding]:
    """The differences between what was decided and what was seen. Pure."""
    return [finding for finding in (_missing(look, observed), *_others(look, observed, lost)) if finding]


def _missing(look: Look, observed: Observed) -> Finding | None:
    if observed.assigned:
        return None
    ref, version = look.assignment.target.ref, look.assignment.app.version
    told = {"target": ref, "version": version}
    return Finding(
        DriftType.MISSING_ASSIGNMENT, f"{version} is not assigned to {ref} any more", told, {"target": None}
    )


def _others(look: Look, observed: Observed, lost: Lost) -> Iterable[Finding | None]:
    decided = look.assignment.app.version
    if observed.assigned and observed.version not in {None, decided}:
        detail = f"devices would get {observed.version} in place of {decided}"
        told = {"version": decided}
        yield Finding(DriftType.VERSION_MISMATCH, detail, told, {"version": observed.version})
    more = sorted(set(observed.others) - look.decided)
    if more:
        detail = f"it is assigned to {', '.join(more[:3])} too, which nobody decided"
        told_scope = {"targets": sorted(look.decided)}
        yield Finding(DriftType.SCOPE_MISMATCH, detail, told_scope, {"others": more})
    yield _compliance(look, lost)


def _compliance(look: Look, lost: Lost) -> Finding | None:
    left = look.had_it - lost.number
    if not look.settled or not lost.number or left >= look.min_success_rate * look.targeted:
        return None
    return Finding(
        DriftType.COMPLIANCE_DRIFT,
        f"{lost.number} of {look.had_it} devices that had it have not any more",
        {"devices": look.had_it, "min_success_rate": look.min_success_rate},
        {"devices": left, "examples": list(lost.examples)},
    )
