# SPDX-License-Identifier: Apache-2.0
"""What is new of conversations for those who listen to them, however far each has come. Reads only."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from uuid import UUID

from sqlalchemy import UUID as SQL_UUID
from sqlalchemy import bindparam, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain.conversations import OPEN
from app.models import Message

MOVED = (
    text("""
    SELECT m.id
    FROM jsonb_to_recordset(:spots)
        AS spot (id uuid, sequence int, run int, calls int, draft int, "offset" int)
    JOIN messages m ON m.conversation_id = spot.id AND m.sequence >= spot.sequence
    WHERE m.sequence > spot.sequence OR (m.run <> spot.run AND spot.calls > 0)
        OR ((m.run, m.draft) <> (spot.run, spot.draft) AND spot."offset" > 0)
        OR jsonb_array_length(m.tool_calls) > spot.calls OR char_length(m.content) > spot."offset"
        OR (m.finished_at IS NOT NULL AND char_length(m.content) >= spot."offset")
    """)
    .bindparams(bindparam("spots", type_=JSONB))
    .columns(id=SQL_UUID)
)
"""The messages that have more than is read at one of the spots."""


@dataclass(frozen=True, slots=True)
class Spot:
    """How far somebody has read: which message, in which ``run`` and ``draft`` of it, and how much of that.

    ``calls`` of tools, and ``offset`` in its text: one more than there is, if its end is read too.
    """

    sequence: int = 0
    run: int = 0
    calls: int = 0
    draft: int = 0
    offset: int = 0


async def news(
    session: AsyncSession, spots: Mapping[UUID, Collection[Spot]]
) -> Mapping[UUID, Sequence[Message]]:
    """Of these conversations the messages that have more than is read at one of the spots, in order.

    What tools gave is not loaded.
    """
    wanted = [
        {"id": str(conversation_id), **asdict(spot)}
        for conversation_id, places in spots.items()
        for spot in places
    ]
    query = select(Message).where(Message.id.in_(MOVED)).order_by(Message.conversation_id, Message.sequence)
    found: dict[UUID, list[Message]] = {conversation_id: [] for conversation_id in spots}
    for row in (
        await session.scalars(query, {"spots": wanted}, execution_options={"populate_existing": True})
    ).all():
        found[row.conversation_id].append(row)
    return found


async def answering(session: AsyncSession, conversation_ids: Collection[UUID]) -> set[UUID]:
    """Those of these conversations in which something is being answered."""
    query = select(Message.conversation_id)
    query = query.where(Message.conversation_id.in_(conversation_ids), Message.status.in_(OPEN))
    return set(await session.scalars(query))
