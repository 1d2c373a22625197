# SPDX-License-Identifier: Apache-2.0
"""Lists with the newest item first, page by page, stable while items are added."""

from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from sqlalchemy import Select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import AiTask, Approval, Conversation, Deployment

Row = TypeVar("Row", Deployment, Approval, Conversation, AiTask)
Newest = tuple[datetime, UUID]
"""The key of an item: when it was created, and its id."""


async def newest_first(
    session: AsyncSession, query: Select[Row], row: type[Row], *, before: Newest | None, limit: int
) -> tuple[Sequence[Row], Newest | None]:
    """Up to ``limit`` rows of a query after ``before``, and the key to go on from, None at the end."""
    if before is not None:
        query = query.where(tuple_(row.created_at, row.id) < before)
    query = query.order_by(row.created_at.desc(), row.id.desc()).limit(limit + 1)
    rows = (await session.scalars(query)).all()
    last = rows[limit - 1] if len(rows) > limit else None
    return rows[:limit], (last.created_at, last.id) if last else None
