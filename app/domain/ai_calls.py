# SPDX-License-Identifier: Apache-2.0
"""What the language model was asked and what it cost; how much of it one caller may have in a day."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import AiLimitReached
from app.models import AiCall, AiTask, Message, MessageRole, new_id


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one caller may have between two midnights, UTC: questions and tasks, and tokens of both ways."""

    requests: int
    tokens: int


def midnight_before(now: datetime) -> datetime:
    """When the day began, in UTC."""
    return now.replace(hour=0, minute=0, second=0, microsecond=0)


async def check_tokens(session: AsyncSession, actor: str, allowance: Allowance, *, now: datetime) -> None:
    """Whether the caller may ask the model again today.

    Raises:
        AiLimitReached: the tokens are used up.
    """
    since = midnight_before(now)
    spent = func.coalesce(func.sum(AiCall.input_tokens + AiCall.output_tokens), 0)
    used = await session.scalar(select(spent).where(AiCall.actor == actor, AiCall.began_at >= since))
    if (used or 0) >= allowance.tokens:
        raise _reached(f"{used} of {allowance.tokens} tokens of today are used", now)


async def check_requests(session: AsyncSession, actor: str, allowance: Allowance, *, now: datetime) -> None:
    """Whether the caller may put one more question or task today; makes others of the caller wait meanwhile.

    Raises:
        AiLimitReached: questions or tokens are used up.
    """
    lock = func.pg_advisory_xact_lock(func.hashtextextended(f"ai requests of {actor}", 0))
    await session.execute(select(lock))
    since = midnight_before(now)
    asked = select(func.count()).where(
        Message.author == actor, Message.role == MessageRole.USER, Message.created_at >= since
    )
    tasks = select(func.count()).where(AiTask.author == actor, AiTask.created_at >= since)
    used = (await session.scalar(asked) or 0) + (await session.scalar(tasks) or 0)
    if used >= allowance.requests:
        raise _reached(f"{used} of {allowance.requests} questions of today are asked", now)
    await check_tokens(session, actor, allowance, now=now)


def _reached(what: str, now: datetime) -> AiLimitReached:
    tomorrow = midnight_before(now) + timedelta(days=1)
    return AiLimitReached(f"{what}; more from midnight UTC on", retry_after=(tomorrow - now).total_seconds())


async def begin(
    session: AsyncSession, *, operation_id: UUID, actor: str, now: datetime, **facts: Any
) -> UUID:
    """Write down that the model is about to be asked; ``facts`` are columns of ``AiCall``."""
    call_id = new_id()
    session.add(AiCall(id=call_id, operation_id=operation_id, actor=actor, began_at=now, **facts))
    await session.flush()
    return call_id


async def end(session: AsyncSession, call_id: UUID, *, now: datetime, **facts: Any) -> None:
    """Write down what came of it; ``facts`` are columns of ``AiCall``."""
    change = update(AiCall).where(AiCall.id == call_id).values(ended_at=now, **facts)
    await session.execute(change, execution_options={"synchronize_session": False})
