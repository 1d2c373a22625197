# SPDX-License-Identifier: Apache-2.0
"""What each device of a lane has done: stored by pages, the lane's counters in the same statement."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import DeviceReport, InstallState, Member
from app.domain.columns import column, rows_of
from app.domain.policies import DAY
from app.models import Connectivity, DeviceState
from app.storable import storable

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

LOCK_COUNTERS = text("SELECT deployment_id, plane FROM ring_deployments WHERE id = :lane FOR NO KEY UPDATE")
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

STORE_MEMBERS = text(f"""
    INSERT INTO device_results (lane_id, device_id, name, connectivity, late, updated_at)
    SELECT :lane, given.device_id, given.name, given.connectivity::connectivity, :late, :now
    FROM {rows_of(ids="device_id", names="name", connectivities="connectivity")}
    ON CONFLICT DO NOTHING
""")  # noqa: S608 - composed of constants

GIVEN = rows_of(ids="device_id", names="name", states="state", details="detail", codes="error_code")
"""A page of reports."""

TOLD = f"""
    WITH told AS MATERIALIZED (
        SELECT given.*, known.*
        FROM (SELECT * FROM {GIVEN} ORDER BY device_id) AS given
        LEFT JOIN LATERAL (
            SELECT state AS before, detail AS detail_before, error_code AS error_code_before, late,
                rollback_state, connectivity
            FROM device_results WHERE (lane_id, device_id) >= (:lane, given.device_id)
                AND (lane_id, device_id) <= (:lane, given.device_id)
            ORDER BY lane_id, device_id LIMIT 1) AS known ON true
    )"""  # noqa: S608 - composed of constants
"""What is told of each device beside what is known of it; ``before`` is null if that is nothing.

A look into the primary key for each device, by its form: the planner does not know how large a lane is that
was filled a moment ago, and given the choice it reads all of it for each page, or (PostgreSQL 15, if the two
columns are compared one by one) its part of the index of states for each device.
"""

STORE_REPORTS = text(f"""{TOLD}, changed AS MATERIALIZED (
        SELECT device_id, name, before, state::device_state AS after, detail, error_code, late, connectivity
        FROM told WHERE before IS NOT NULL AND (state <> 'PENDING' OR before = 'PENDING')
            AND (before, detail_before, error_code_before)
                IS DISTINCT FROM (state::device_state, detail, error_code)
    ), stored AS (
        INSERT INTO device_results AS device
            (lane_id, device_id, name, state, detail, error_code, connectivity, updated_at)
        SELECT :lane, device_id, name, after, detail, error_code, connectivity, :now FROM changed
        ON CONFLICT (lane_id, device_id) DO UPDATE SET state = excluded.state, detail = excluded.detail,
            error_code = excluded.error_code, updated_at = excluded.updated_at
    ), counted AS ({COUNTERS})
    SELECT device_id FROM told WHERE before IS NULL AND state <> 'PENDING'
""")  # noqa: S608 - composed of constants
"""Each row that is stored is there: it is always the update that happens."""

STORE_LATE = text(f"""
    WITH added AS (
        INSERT INTO device_results
            (lane_id, device_id, name, state, detail, error_code, connectivity, late, updated_at)
        SELECT :lane, device_id, name, state::device_state, detail, error_code, 'online', true, :now
        FROM {GIVEN}
        LEFT JOIN LATERAL (
            SELECT true AS found FROM device_results AS there
            WHERE there.device_id = given.device_id AND there.lane_id = ANY (ARRAY(
                SELECT id FROM ring_deployments WHERE deployment_id = :deployment AND plane = :plane))
            LIMIT 1) AS elsewhere ON true
        WHERE elsewhere.found IS NULL
        ON CONFLICT DO NOTHING RETURNING 1
    )
    UPDATE ring_deployments SET late_count = late_count + added.total
    FROM (SELECT count(*) AS total FROM added) AS added WHERE id = :lane AND added.total > 0
""")  # noqa: S608 - composed of constants

FORGET_FAILURES = text(f"""
    WITH known AS (
        SELECT device_id, state, late FROM device_results WHERE lane_id = :lane AND state = 'FAILED'
    ), changed AS (
        UPDATE device_results AS device SET state = 'PENDING', detail = NULL, error_code = NULL,
            updated_at = :now
        FROM known WHERE device.lane_id = :lane AND device.device_id = known.device_id
        RETURNING known.state AS before, device.state AS after, device.late
    )
    {COUNTERS}
""")  # noqa: S608 - composed of constants

STORE_ROLLBACK = text(f"""{TOLD}
    INSERT INTO device_results AS device (lane_id, device_id, name, connectivity, rollback_state, updated_at)
    SELECT :lane, device_id, name, connectivity, state::device_state, :now FROM told
    WHERE before IS NOT NULL AND rollback_state IS DISTINCT FROM state::device_state
        AND (NOT :answered_only OR rollback_state IS NOT NULL)
    ON CONFLICT (lane_id, device_id) DO UPDATE
        SET rollback_state = excluded.rollback_state, updated_at = excluded.updated_at
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
            "ids": column(member.device_id for member in members),
            "names": column(member.name for member in members),
            "connectivities": column(connectivity(member, now).value for member in members),
        },
    )


async def forget_members(session: AsyncSession, lane_id: UUID) -> None:
    """Drop the devices of a lane whose push was never confirmed, before its target is read again."""
    await session.execute(text("DELETE FROM device_results WHERE lane_id = :lane"), {"lane": lane_id})


async def count_members(session: AsyncSession, lane_id: UUID) -> int:
    """How many devices the lane targets; late ones are not counted."""
    query = text("SELECT count(*) FROM device_results WHERE lane_id = :lane AND NOT late")
    return int(await session.scalar(query, {"lane": lane_id}) or 0)


async def lock_counters(session: AsyncSession, lane_id: UUID) -> RowMapping:
    """Keep others who count the lane's devices waiting until the transaction ends; its deployment and plane.

    Whoever counts looks at the devices in a statement after this one. So it sees them as they are, and none
    of their rows need be locked: of a lane of a million a hundred have something new to tell.
    """
    return (await session.execute(LOCK_COUNTERS, {"lane": lane_id})).mappings().one()


async def store_reports(
    session: AsyncSession, lane_id: UUID, reports: Sequence[DeviceReport], *, now: datetime
) -> None:
    """Store a page of reports and move the lane's counters with them. May be repeated.

    Devices that no lane of the deployment on this plane knows are added as late. Locks the lane.
    """
    known = _of_interest(reports, ROLLOUT_STATES)
    if not known:
        return
    lane = await lock_counters(session, lane_id)
    values = {"lane": lane_id, "now": now}
    told = values | values_of(known.values(), ROLLOUT_STATES)
    unknown = set(await session.scalars(STORE_REPORTS, told))
    if unknown:
        late = [report for device_id, report in known.items() if device_id in unknown]
        values |= {"deployment": lane["deployment_id"], "plane": lane["plane"]}
        await session.execute(STORE_LATE, values | values_of(late, ROLLOUT_STATES))


async def store_removal(
    session: AsyncSession, lane_id: UUID, reports: Sequence[DeviceReport], *, now: datetime
) -> None:
    """Store a page of what devices say of the version that is being taken back."""
    values = values_of(_of_interest(reports, REMOVAL_STATES).values(), REMOVAL_STATES)
    await session.execute(STORE_ROLLBACK, {**values, "lane": lane_id, "now": now, "answered_only": False})


async def store_return(
    session: AsyncSession, lane_id: UUID, reports: Sequence[DeviceReport], *, now: datetime
) -> None:
    """Store a page of what devices say of the version they return to, after ``store_removal``.

    Devices that never answered are left out: for them nothing has been taken back yet.
    """
    values = values_of(_of_interest(reports, RETURN_STATES).values(), RETURN_STATES)
    await session.execute(STORE_ROLLBACK, {**values, "lane": lane_id, "now": now, "answered_only": True})


def _of_interest(
    reports: Iterable[DeviceReport], states: dict[InstallState, DeviceState]
) -> dict[str, DeviceReport]:
    """Those that say something, by their device as it is kept: the later of two, but an answer stays one."""
    found: dict[str, DeviceReport] = {}
    for report in reports:
        state, device_id = states.get(report.state), storable(report.device_id)
        if state and (state is not DeviceState.PENDING or device_id not in found):
            found[device_id] = report
    return found


def values_of(reports: Collection[DeviceReport], states: dict[InstallState, DeviceState]) -> dict[str, Any]:
    """As ``GIVEN`` takes them."""
    return {
        "ids": column(report.device_id for report in reports),
        "names": column(report.name for report in reports),
        "states": column(states[report.state].value for report in reports),
        "details": column(report.detail for report in reports),
        "codes": column(report.error_code for report in reports),
    }


async def forget_failures(session: AsyncSession, lane_id: UUID, *, now: datetime) -> None:
    """The devices that failed are asked to try again: they have yet to begin. Locks the lane."""
    await lock_counters(session, lane_id)
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


PAGE = """
    SELECT device.device_id, device.name, lane.ring::text AS ring, lane.plane, device.state::text AS state,
        device.detail, device.error_code, device.late, device.rollback_state::text AS rollback_state,
        device.updated_at, lane.position
    FROM (SELECT id, ring, plane, position,
            CASE WHEN (position, plane) = (:at_position, CAST(:at_plane AS text))
                THEN CAST(:at_device AS text) ELSE '' END AS after
          FROM ring_deployments
          WHERE deployment_id = :deployment AND (CAST(:ring AS text) IS NULL OR ring::text = :ring)
            AND (CAST(:plane AS text) IS NULL OR plane = :plane)
            AND (position, plane) >= (:at_position, CAST(:at_plane AS text))) AS lane
    CROSS JOIN LATERAL (
        SELECT * FROM device_results WHERE lane_id = lane.id AND device_id > lane.after {state}
        ORDER BY device_id LIMIT :limit) AS device
    ORDER BY lane.position, lane.plane, device.device_id LIMIT :limit
"""
OF_ANY_STATE = text(PAGE.format(state=""))
OF_ONE_STATE = text(PAGE.format(state="AND state = CAST(CAST(:state AS text) AS device_state)"))


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
    values = {"deployment": deployment_id, "ring": ring, "plane": plane, "limit": limit + 1}
    values |= {"at_position": position, "at_plane": at_plane, "at_device": at_device}
    query = OF_ANY_STATE
    if state is not None:
        query, values = OF_ONE_STATE, values | {"state": state}
    found = [_as_row(row) for row in (await session.execute(query, values)).mappings()]
    more = len(found) > limit
    last = found[limit - 1] if more else None
    return found[:limit], (last.position, last.plane, last.device_id) if last else None


def _as_row(row: RowMapping) -> DeviceRow:
    rollback = row["rollback_state"] and DeviceState(row["rollback_state"])
    return DeviceRow(**{**row, "state": DeviceState(row["state"]), "rollback_state": rollback})
