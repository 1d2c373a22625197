# SPDX-License-Identifier: Apache-2.0
"""How long what is kept: keys, finished work, device rows and conversations go, events never do.

Tasks of the assistant stay with the deployment they are about, without what the assistant read for them.

A device's row goes once nothing can need it any more: its deployment was taken back, or a newer version has
taken its place. As long as a deployment may still be rolled back, or compared with its plane, its rows stay.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncSession

KEYS, WORK = timedelta(hours=48), timedelta(days=90)
BATCH = 5000

OLD_KEYS = text("""
    DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM idempotency_keys WHERE created_at < :before ORDER BY created_at LIMIT :limit))
    RETURNING 1
""")

OLD_OPERATIONS = text("""
    WITH gone AS (
        DELETE FROM operations WHERE id = ANY (ARRAY(
            SELECT work.id FROM operations AS work
            LEFT JOIN deployments AS deployment ON deployment.id = work.deployment_id
            WHERE work.created_at < :before AND work.finished_at < :before
                AND (deployment.id IS NULL OR deployment.finished_at < :before)
            ORDER BY work.created_at LIMIT :limit))
        RETURNING id, deployment_id
    ), lanes AS (
        UPDATE ring_deployments SET operation_id = NULL WHERE operation_id IN (SELECT id FROM gone)
            AND deployment_id IN (SELECT deployment_id FROM gone)
    ), repairs AS (
        UPDATE drifts SET operation_id = NULL WHERE operation_id IN (SELECT id FROM gone)
            AND deployment_id IN (SELECT deployment_id FROM gone)
    )
    SELECT 1 FROM gone
""")
"""Who named one of them last names none now, and may be given other work: found by its deployment, which work
on lanes and repairs always has."""

OLD_DEVICES = text("""
    DELETE FROM device_results WHERE ctid = ANY (ARRAY(
        SELECT device.ctid FROM deployments AS old
        JOIN ring_deployments AS lane ON lane.deployment_id = old.id
        JOIN device_results AS device ON device.lane_id = lane.id
        WHERE old.finished_at < :before AND (
            old.status = 'ROLLED_BACK'
            OR EXISTS (
                SELECT FROM deployments AS newer
                JOIN ring_deployments AS same ON same.deployment_id = newer.id
                WHERE lower(newer.app_name) = lower(old.app_name) AND newer.id > old.id
                    AND newer.status = 'COMPLETED' AND newer.finished_at < :before
                    AND same.plane = lane.plane AND same.ring = lane.ring))
        LIMIT :limit))
    RETURNING 1
""")

OLD_CONVERSATIONS = text("""
    DELETE FROM conversations WHERE id = ANY (ARRAY(
        SELECT id FROM conversations WHERE updated_at < :before ORDER BY created_at LIMIT :limit))
    RETURNING 1
""")

OLD_AI_CALLS = text("""
    DELETE FROM ai_calls WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM ai_calls WHERE began_at < :before ORDER BY began_at LIMIT :limit))
    RETURNING 1
""")

OLD_STEPS = text("""
    UPDATE ai_tasks SET steps = '[]' WHERE id = ANY (ARRAY(
        SELECT id FROM ai_tasks WHERE finished_at < :before AND steps <> '[]' LIMIT :limit))
    RETURNING 1
""")

STATEMENTS: Mapping[str, tuple[TextClause, timedelta]] = MappingProxyType(
    {
        "idempotency_keys": (OLD_KEYS, KEYS),
        "operations": (OLD_OPERATIONS, WORK),
        "device_results": (OLD_DEVICES, WORK),
        "conversations": (OLD_CONVERSATIONS, WORK),
        "ai_calls": (OLD_AI_CALLS, WORK),
        "ai_steps": (OLD_STEPS, WORK),
    }
)
"""What is deleted, by what, and how old it must be."""


async def forget(session: AsyncSession, what: str, *, now: datetime) -> int:
    """Delete at most one batch of what is too old; how many rows. Call again while it is a full one."""
    statement, age = STATEMENTS[what]
    gone = await session.execute(statement, {"before": now - age, "limit": BATCH})
    return len(gone.all())
