# SPDX-License-Identifier: Apache-2.0
"""Devices that stay silent after a push: unreachable at first, failed by their deadline."""

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain.devices import COUNTERS, lock_counters
from app.domain.policies import GatePolicy

BATCH = 20_000
EXPIRE = text(f"""
    WITH overdue AS MATERIALIZED (
        SELECT device_id, name, connectivity, state AS before, detail, error_code, late,
            connectivity = ANY(CAST(:failed AS connectivity[])) AS failed
        FROM device_results
        WHERE lane_id = :lane AND device_id > :after
            AND state IN ('PENDING', 'IN_PROGRESS', 'UNREACHABLE', 'UNKNOWN')
            AND (connectivity = ANY(CAST(:failed AS connectivity[]))
                OR (connectivity = ANY(CAST(:silent AS connectivity[])) AND state = 'PENDING'))
        ORDER BY device_id LIMIT :limit
    ), changed AS MATERIALIZED (
        SELECT *, (CASE WHEN failed THEN 'FAILED' ELSE 'UNREACHABLE' END)::device_state AS after FROM overdue
    ), stored AS (
        INSERT INTO device_results AS device
            (lane_id, device_id, name, connectivity, state, error_code, detail, updated_at)
        SELECT :lane, device_id, name, connectivity, after,
            CASE WHEN failed THEN 'deadline' ELSE error_code END,
            CASE WHEN failed THEN 'no result before its deadline'
                ELSE 'nothing heard of it since the push' END, :now
        FROM changed
        ON CONFLICT (lane_id, device_id) DO UPDATE SET state = excluded.state, detail = excluded.detail,
            error_code = excluded.error_code, updated_at = excluded.updated_at
    ), counted AS ({COUNTERS})
    SELECT count(*) AS number, max(device_id) AS last FROM overdue
""")  # noqa: S608 - composed of constants
"""The rows are there: it is always the update that happens, and no plan reads the lane for it."""


async def expire(
    session: AsyncSession,
    lane_id: UUID,
    policy: GatePolicy,
    *,
    asked_for: timedelta,
    now: datetime,
    batch: int = BATCH,
) -> None:
    """Mark devices that stay silent as UNREACHABLE, and those past their class's deadline as FAILED.

    ``asked_for`` is how long the lane has been on its devices, without the time its plane was away. In
    batches: a large lane that is silent as a whole is more than one statement has time for. Locks the lane.
    """
    await lock_counters(session, lane_id)
    silent = [kind.value for kind, wait in policy.connectivity.items() if asked_for >= wait / 4]
    failed = [kind.value for kind, wait in policy.connectivity.items() if asked_for >= wait]
    values = {"lane": lane_id, "now": now, "silent": silent, "failed": failed, "limit": batch}
    after, more = "", bool(silent)
    while more:
        done = (await session.execute(EXPIRE, {**values, "after": after})).one()
        after, more = done.last, done.number == batch
