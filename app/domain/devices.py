# SPDX-License-Identifier: Apache-2.0
"""What each device of a lane has done: stored by pages, the lane's counters in the same statement."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import DeviceReport, InstallState, Member
from app.domain.policies import DAY, GatePolicy
from app.models import Connectivity, DeviceState, RingDeployment

ROLLOUT_STATES = {
    InstallState.PENDING: DeviceState.PENDING,
    InstallState.UNAPPROVED: DeviceState.PENDING,
    InstallState.UNDELIVERED: DeviceState.PENDING,
    InstallState.INSTALLING: DeviceState.IN_PROGRESS,
    InstallState.INSTALLED: DeviceState.SUCCEEDED,
    InstallState.FAILED: DeviceState.FAILED,
    InstallState.UNREACHABLE: DeviceState.UNREACHABLE,
    InstallState.UNKNOWN: DeviceState.UNKNOWN,
}
"""What a report means while a lane is rolled out; the states that are not here say nothing new.

A report that a device has yet to begin adds why; it takes back nothing that is known of the device.
"""

REMOVAL_STATES = {
    InstallState.INSTALLED: DeviceState.IN_PROGRESS,
    InstallState.INSTALLING: DeviceState.IN_PROGRESS,
    InstallState.NOT_INSTALLED: DeviceState.SUCCEEDED,
    InstallState.FAILED: DeviceState.SUCCEEDED,
    InstallState.REMOVE_FAILED: DeviceState.FAILED,
    InstallState.UNKNOWN: DeviceState.UNKNOWN,
}
"""What a report of the removed version means in a rollback; an install that failed left nothing."""

RETURN_STATES = {
    InstallState.PENDING: DeviceState.IN_PROGRESS,
    InstallState.INSTALLING: DeviceState.IN_PROGRESS,
    InstallState.NOT_INSTALLED: DeviceState.IN_PROGRESS,
    InstallState.FAILED: DeviceState.FAILED,
    InstallState.UNKNOWN: DeviceState.UNKNOWN,
}
"""What a report of the version that comes back means; a device that has it is where it should be."""

COUNTERS = """
    UPDATE ring_deployments SET
        success_count = success_count + delta.succeeded,
        failure_count = failure_count + delta.failed,
        unreachable_count = unreachable_count + delta.unreachable
    FROM (
        SELECT coalesce(sum((after = 'SUCCEEDED')::int - (before = 'SUCCEEDED')::int), 0) AS succeeded,
            coalesce(sum((after = 'FAILED')::int - (before = 'FAILED')::int), 0) AS failed,
            coalesce(sum((after = 'UNREACHABLE')::int - (before = 'UNREACHABLE')::int), 0) AS unreachable
        FROM changed WHERE NOT late
    ) AS delta
    WHERE id = :lane AND (delta.succeeded, delta.failed, delta.unreachable) <> (0, 0, 0)
"""

STORE_MEMBERS = text("""
    INSERT INTO device_results (lane_id, device_id, name, connectivity, late, updated_at)
    SELECT :lane, given.device_id, given.name, given.connectivity::connectivity, :late, :now
    FROM unnest(CAST(:ids AS text[]), CAST(:names AS text[]), CAST(:connectivities AS text[]))
        AS given (device_id, name, connectivity)
    ON CONFLICT DO NOTHING
""")

GIVEN = """
    WITH given AS (
        SELECT * FROM unnest(CAST(:ids AS text[]), CAST(:names AS text[]), CAST(:states AS text[]),
                CAST(:details AS text[]), CAST(:codes AS text[]))
            AS given (device_id, name, state, detail, error_code)
    )"""

STORE_REPORTS = text(f"""{GIVEN}, known AS (
        SELECT device_id, state, late FROM device_results
        WHERE lane_id = :lane AND device_id IN (SELECT device_id FROM given)
        ORDER BY device_id FOR UPDATE
    ), changed AS (
        UPDATE device_results AS device SET state = given.state::device_state, detail = given.detail,
            error_code = given.error_code, updated_at = :now
        FROM given JOIN known USING (device_id)
        WHERE device.lane_id = :lane AND device.device_id = given.device_id
            AND (given.state <> 'PENDING' OR device.state = 'PENDING')
            AND (device.state, device.detail, device.error_code)
                IS DISTINCT FROM (given.state::device_state, given.detail, given.error_code)
        RETURNING known.state AS before, device.state AS after, device.late
    )
    {COUNTERS}
""")  # noqa: S608 - composed of constants

STORE_LATE = text(f"""{GIVEN}, added AS (
        INSERT INTO device_results
            (lane_id, device_id, name, state, detail, error_code, connectivity, late, updated_at)
        SELECT :lane, device_id, name, state::device_state, detail, error_code, 'online', true, :now
        FROM given
        WHERE state <> 'PENDING' AND NOT EXISTS (
            SELECT FROM device_results AS there JOIN ring_deployments AS lane ON lane.id = there.lane_id
            WHERE lane.deployment_id = :deployment AND lane.plane = :plane
                AND there.device_id = given.device_id
        )
        ON CONFLICT DO NOTHING RETURNING 1
    )
    UPDATE ring_deployments SET late_count = late_count + added.total
    FROM (SELECT count(*) AS total FROM added) AS added WHERE id = :lane AND added.total > 0
""")  # noqa: S608 - composed of constants

EXPIRE = text(f"""
    WITH deadlines AS (
        SELECT * FROM unnest(CAST(:kinds AS text[]), CAST(:waits AS interval[]))
            AS deadlines (connectivity, wait)
    ), overdue AS (
        SELECT device_id, state,
            CASE WHEN :asked_for >= wait THEN 'FAILED' ELSE 'UNREACHABLE' END::device_state AS next
        FROM device_results JOIN deadlines ON deadlines.connectivity = device_results.connectivity::text
        WHERE lane_id = :lane AND (
            (:asked_for >= wait AND state IN ('PENDING', 'IN_PROGRESS', 'UNREACHABLE', 'UNKNOWN'))
            OR (:asked_for >= wait / 4 AND state = 'PENDING'))
        ORDER BY device_id FOR UPDATE OF device_results
    ), changed AS (
        UPDATE device_results AS device SET state = overdue.next, updated_at = :now,
            error_code = CASE WHEN overdue.next = 'FAILED' THEN 'deadline' ELSE device.error_code END,
            detail = CASE WHEN overdue.next = 'FAILED' THEN 'no result before its deadline'
                ELSE 'nothing heard of it since the push' END
        FROM overdue WHERE device.lane_id = :lane AND device.device_id = overdue.device_id
        RETURNING overdue.state AS before, device.state AS after, device.late
    )
    {COUNTERS}
""")  # noqa: S608 - composed of constants

FORGET_FAILURES = text(f"""
    WITH known AS (
        SELECT device_id, state, late FROM device_results
        WHERE lane_id = :lane AND state = 'FAILED' ORDER BY device_id FOR UPDATE
    ), changed AS (
        UPDATE device_results AS device SET state = 'PENDING', detail = NULL, error_code = NULL,
            updated_at = :now
        FROM known WHERE device.lane_id = :lane AND device.device_id = known.device_id
        RETURNING known.state AS before, device.state AS after, device.late
    )
    {COUNTERS}
""")  # noqa: S608 - composed of constants

STORE_ROLLBACK = text(f"""{GIVEN}
    UPDATE device_results AS device SET rollback_state = given.state::device_state, updated_at = :now
    FROM given WHERE device.lane_id = :lane AND device.device_id = given.device_id
        AND device.rollback_state IS DISTINCT FROM given.state::device_state
        AND (NOT :answered_only OR device.rollback_state IS NOT NULL)
""")  # noqa: S608 - composed of constants


def connectivity(member: Member, now: datetime) -> Connectivity:
    """How often a device is heard of, from when it last was: within a day, within a week, or longer ago.

    A plane that does not know gets the benefit of the doubt: ``online`` fails soonest, so ``intermittent``.
    """
    if member.last_seen is None:
        return Connectivity.INTERMITTENT
    silent = now - member.last_seen
    if silent <= DAY:
        return Connectivity.ONLINE
    return Connectivity.INTERMITTENT if silent <= 7 * DAY else Connectivity.AIR_GAPPED


async def store_members(
    session: AsyncSession, lane_id: UUID, members: Sequence[Member], *, now: datetime, late: bool = False
) -> None:
    """Add a page of the target's devices to the lane, all PENDING; not yet counted. May be repeated.

    ``late``: they never are; the lane's counters are of those that it was pushed to.
    """
    await session.execute(
        STORE_MEMBERS,
        {
            "lane": lane_id,
            "late": late,
            "now": now,
            "ids": [member.device_id for member in members],
            "names": [member.name for member in members],
            "connectivities": [connectivity(member, now).value for member in members],
        },
    )


async def forget_members(session: AsyncSession, lane_id: UUID) -> None:
    """Drop the devices of a lane whose push was never confirmed, before its target is read again."""
    await session.execute(text("DELETE FROM device_results WHERE lane_id = :lane"), {"lane": lane_id})


async def count_members(session: AsyncSession, lane_id: UUID) -> int:
    """How many devices the lane targets; late ones are not counted."""
    query = text("SELECT count(*) FROM device_results WHERE lane_id = :lane AND NOT late")
    return int(await session.scalar(query, {"lane": lane_id}) or 0)


async def store_reports(
    session: AsyncSession, lane: RingDeployment, reports: Sequence[DeviceReport], *, now: datetime
) -> None:
    """Store a page of reports and move the lane's counters with them. May be repeated.

    Devices that no lane of the deployment on this plane knows are added as late. Locks the device rows in
    order of their ids, then the lane.
    """
    values = _given(reports, ROLLOUT_STATES)
    if not values["ids"]:
        return
    values |= {"lane": lane.id, "now": now}
    await session.execute(STORE_REPORTS, values)
    await session.execute(STORE_LATE, {**values, "deployment": lane.deployment_id, "plane": lane.plane})


async def store_removal(
    session: AsyncSession, lane_id: UUID, reports: Sequence[DeviceReport], *, now: datetime
) -> None:
    """Store a page of what devices say of the version that is being taken back."""
    values = _given(reports, REMOVAL_STATES)
    await session.execute(STORE_ROLLBACK, {**values, "lane": lane_id, "now": now, "answered_only": False})


async def store_return(
    session: AsyncSession, lane_id: UUID, reports: Sequence[DeviceReport], *, now: datetime
) -> None:
    """Store a page of what devices say of the version they return to, after ``store_removal``.

    Devices that never answered are left out: for them nothing has been taken back yet.
    """
    values = _given(reports, RETURN_STATES)
    await session.execute(STORE_ROLLBACK, {**values, "lane": lane_id, "now": now, "answered_only": True})


def _given(reports: Sequence[DeviceReport], states: dict[InstallState, DeviceState]) -> dict[str, Any]:
    known = [report for report in reports if report.state in states]
    return {
        "ids": [report.device_id for report in known],
        "names": [report.name for report in known],
        "states": [states[report.state].value for report in known],
        "details": [report.detail for report in known],
        "codes": [report.error_code for report in known],
    }


async def expire(
    session: AsyncSession, lane_id: UUID, policy: GatePolicy, *, asked_for: timedelta, now: datetime
) -> None:
    """Mark devices that stay silent as UNREACHABLE, and those past their class's deadline as FAILED.

    ``asked_for`` is how long the lane has been on its devices, without the time its plane was away.
    """
    await session.execute(
        EXPIRE,
        {
            "lane": lane_id,
            "now": now,
            "asked_for": asked_for,
            "kinds": [kind.value for kind in policy.connectivity],
            "waits": list(policy.connectivity.values()),
        },
    )


async def forget_failures(session: AsyncSession, lane_id: UUID, *, now: datetime) -> None:
    """The devices that failed are asked to try again: they have yet to begin."""
    await session.execute(FORGET_FAILURES, {"lane": lane_id, "now": now})


async def named(session: AsyncSession, lane_id: UUID, *, most: int) -> tuple[Member, ...] | None:
    """The lane's devices, late ones too, in a fixed order; None if there are more than ``most``."""
    query = text(
        "SELECT device_id, name FROM device_results WHERE lane_id = :lane ORDER BY device_id LIMIT :limit"
    )
    rows = (await session.execute(query, {"lane": lane_id, "limit": most + 1})).all()
    return None if len(rows) > most else tuple(Member(row.device_id, row.name) for row in rows)


@dataclass(frozen=True, slots=True)
class RollbackCounts:
    """How far a lane's rollback is. ``silent`` devices never answered: nothing to take back from them yet."""

    done: int
    failed: int
    silent: int
    open: int

    @property
    def total(self) -> int:
        """All of the lane's devices."""
        return self.done + self.failed + self.silent + self.open


async def rollback_counts(session: AsyncSession, lane_id: UUID) -> RollbackCounts:
    """Count the lane's devices, late ones too, by how far their rollback is."""
    query = text("""
        SELECT count(*) FILTER (WHERE rollback_state = 'SUCCEEDED') AS done,
            count(*) FILTER (WHERE rollback_state = 'FAILED') AS failed,
            count(*) FILTER (WHERE rollback_state IS NULL AND (state IN ('PENDING', 'UNREACHABLE')
                OR error_code = 'deadline')) AS silent,
            count(*) AS total
        FROM device_results WHERE lane_id = :lane""")
    row = (await session.execute(query, {"lane": lane_id})).one()
    return RollbackCounts(row.done, row.failed, row.silent, row.total - row.done - row.failed - row.silent)


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """One device of one lane, as it is listed."""

    device_id: str
    name: str
    ring: str
    plane: str
    state: DeviceState
    detail: str | None
    error_code: str | None
    late: bool
    rollback_state: DeviceState | None
    updated_at: datetime
    position: int


PAGE = text("""
    SELECT device.device_id, device.name, lane.ring::text AS ring, lane.plane, device.state::text AS state,
        device.detail, device.error_code, device.late, device.rollback_state::text AS rollback_state,
        device.updated_at, lane.position
    FROM (SELECT id, ring, plane, position FROM ring_deployments
          WHERE deployment_id = :deployment AND (CAST(:ring AS text) IS NULL OR ring::text = :ring)
            AND (CAST(:plane AS text) IS NULL OR plane = :plane)
            AND (position, plane) >= (:at_position, CAST(:at_plane AS text))) AS lane
    CROSS JOIN LATERAL (
        SELECT * FROM device_results WHERE lane_id = lane.id
            AND (CAST(:state AS text) IS NULL OR state = CAST(CAST(:state AS text) AS device_state))
            AND (device_id > :at_device
                OR (lane.position, lane.plane) > (:at_position, CAST(:at_plane AS text)))
        ORDER BY device_id LIMIT :limit) AS device
    ORDER BY lane.position, lane.plane, device.device_id LIMIT :limit
""")


async def page(
    session: AsyncSession,
    deployment_id: UUID,
    *,
    ring: str | None = None,
    plane: str | None = None,
    state: str | None = None,
    after: tuple[int, str, str] | None = None,
    limit: int,
) -> tuple[Sequence[DeviceRow], tuple[int, str, str] | None]:
    """Up to ``limit`` devices by ring, plane and device id, and the key to go on after, None at the end.

    Keyset over at most 25 lanes: a page at any depth costs what the first one does.
    """
    position, at_plane, at_device = after or (0, "", "")
    values = {"deployment": deployment_id, "ring": ring, "plane": plane, "state": state, "limit": limit + 1}
    values |= {"at_position": position, "at_plane": at_plane, "at_device": at_device}
    found = [_as_row(row) for row in (await session.execute(PAGE, values)).mappings()]
    more = len(found) > limit
    last = found[limit - 1] if more else None
    return found[:limit], (last.position, last.plane, last.device_id) if last else None


def _as_row(row: RowMapping) -> DeviceRow:
    rollback = row["rollback_state"] and DeviceState(row["rollback_state"])
    return DeviceRow(**{**row, "state": DeviceState(row["state"]), "rollback_state": rollback})
