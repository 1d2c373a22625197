# SPDX-License-Identifier: Apache-2.0
"""Claims and successes of many operations in one statement: what costs most of either is its commit.

Rows in another's hands are skipped, so that nobody waits for one, and no two statements for each other.
Whoever is not among those returned goes alone, through ``leases``, and hears there what is the matter.
``connection`` is the driver's own and in autocommit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import asyncpg

from app.domain.leases import CLAIMABLE, LEFT, SHOWN, TAKEN, Claimed, as_claimed
from app.models.base import Json
from app.storable import storable_json

CLAIM = f"""
WITH free AS (
    SELECT id FROM operations WHERE id = ANY ($1::uuid[]) AND {CLAIMABLE} FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE operations SET {TAKEN}, lease_owner = $2, lease_until = clock_timestamp() + $3::interval
FROM free WHERE operations.id = free.id
RETURNING {SHOWN}
"""  # noqa: S608 - made of the constants above
SUCCEED = f"""
WITH held AS (
    SELECT id, done.result FROM operations
    JOIN unnest($1::uuid[], $2::int[], $3::jsonb[]) AS done (id, fence, result) USING (id)
    WHERE operations.fence = done.fence AND status = 'RUNNING' FOR NO KEY UPDATE OF operations SKIP LOCKED
)
UPDATE operations SET {LEFT}, result = held.result FROM held WHERE operations.id = held.id
RETURNING operations.id
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Success:
    """An operation that is to be SUCCEEDED; ``result`` is JSON text."""

    id: UUID
    fence: int
    result: str | None

    @classmethod
    def of(cls, claimed: Claimed, result: Json | None) -> "Success":
        """Of a run.

        Raises:
            TypeError, ValueError: the result is no JSON.
        """
        return cls(claimed.id, claimed.fence, None if result is None else storable_json(result))


async def claim(
    connection: asyncpg.Connection, ids: Sequence[UUID], *, owner: str, lease: timedelta
) -> dict[UUID, Claimed]:
    """Take those that are due and that nobody has or is about to have; see ``leases.claim``."""
    rows = await connection.fetch(CLAIM, list(ids), owner, lease)
    return {row["id"]: as_claimed(row) for row in rows}


async def succeed(connection: asyncpg.Connection, successes: Sequence[Success]) -> set[UUID]:
    """SUCCEEDED, all that are still held under their fence and that nobody is looking at."""
    columns = ([each.id for each in successes], [each.fence for each in successes])
    rows = await connection.fetch(SUCCEED, *columns, [each.result for each in successes])
    return {row["id"] for row in rows}
