# SPDX-License-Identifier: Apache-2.0
"""Conversations: something is said, and answered, one message at a time; an answer grows as it comes.

Whoever writes an answer has locked its operation before; the conversation comes after it, then the message.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import undefer

from app.domain import ai_calls, operations, rollout
from app.domain.accounts import Actor
from app.domain.ai_calls import Allowance
from app.domain.operations import Failure, OperationKind, Subject
from app.domain.pages import Newest, newest_first
from app.errors import ConversationBusy, ConversationFull, IllegalTransition, NotFound, VersionMismatch
from app.models import (
    Conversation,
    Message,
    MessageRole,
    MessageStatus,
    Operation,
    OperationStatus,
    new_id,
)
from app.models.base import Json

_M = MessageStatus
MOVES: Mapping[MessageStatus, frozenset[MessageStatus]] = MappingProxyType(
    {
        _M.PENDING: frozenset({_M.ANSWERING, _M.INCOMPLETE}),
        _M.ANSWERING: frozenset({_M.COMPLETE, _M.INCOMPLETE}),
        _M.COMPLETE: frozenset(),
        _M.INCOMPLETE: frozenset({_M.PENDING}),
    }
)
OPEN = (_M.PENDING, _M.ANSWERING)
MOST_MESSAGES = 200
TITLE = 80
LONGEST_SHOWN = 4_000
"""Characters of what a tool was asked with, as far as it is shown."""
ANSWERED_WITHIN = timedelta(seconds=110)
"""How long answering may take from its first run on, waits and repeats included: a person waits for it."""
CANCELLED = Failure("transient", "cancelled", "it was cancelled")
WHOLE = (undefer(Message.steps),)
"""With all that was read for an answer."""


@dataclass(frozen=True, slots=True)
class Said:
    """A message as the model is told of it."""

    sequence: int
    role: MessageRole
    content: str
    complete: bool


@dataclass(frozen=True, slots=True)
class Turn:
    """An answer to be written: to whom, after what, how far it has come, and how much time is left for it.

    ``history`` ends with the question; what is before it is in ``summary``.
    """

    message_id: UUID
    conversation_id: UUID
    caller_id: UUID
    history: tuple[Said, ...]
    summary: str | None
    steps: tuple[Json, ...]
    draft: int
    left: timedelta


async def begin(
    session: AsyncSession,
    content: str,
    *,
    actor: Actor,
    correlation_id: UUID,
    allowance: Allowance,
    now: datetime,
) -> Conversation:
    """Begin a conversation with its first message, and have it answered by ``operation_id``.

    Raises:
        AiLimitReached: the caller has had enough of today.
    """
    conversation = Conversation(
        id=new_id(),
        correlation_id=correlation_id,
        title=" ".join(content.split())[:TITLE],
        created_by=actor.name,
        last_sequence=0,
        summarised_through=0,
        version=1,
        created_at=now,
        updated_at=now,
    )
    session.add(conversation)
    await _say(session, conversation, content, actor=actor, allowance=allowance, now=now)
    return conversation


async def append(
    session: AsyncSession,
    conversation_id: UUID,
    content: str,
    *,
    actor: Actor,
    allowance: Allowance,
    now: datetime,
    version: int | None = None,
) -> Conversation:
    """Say one more thing, and have it answered. Locks the conversation.

    Raises:
        NotFound, VersionMismatch: no such conversation, or another version of it.
        ConversationBusy, ConversationFull: the message before is not answered yet, or it was the last.
        AiLimitReached: the caller has had enough of today.
    """
    conversation = await lock(session, conversation_id)
    if version is not None and version != conversation.version:
        raise VersionMismatch(f"the conversation is at version {conversation.version}, not {version}")
    if await _open(session, conversation_id) is not None:
        raise ConversationBusy("the message before is still being answered")
    if conversation.last_sequence + 2 > MOST_MESSAGES:
        raise ConversationFull(f"it has {conversation.last_sequence} messages: begin another conversation")
    await _say(session, conversation, content, actor=actor, allowance=allowance, now=now)
    _touch(conversation, now)
    await session.flush()
    return conversation


async def _say(
    session: AsyncSession,
    conversation: Conversation,
    content: str,
    *,
    actor: Actor,
    allowance: Allowance,
    now: datetime,
) -> None:
    await ai_calls.check_requests(session, actor.name, allowance, now=now)
    answer_id = new_id()
    conversation.operation_id = await operations.enqueue(
        session,
        OperationKind.PROCESS_AI_CONVERSATION,
        subject=Subject("message", str(answer_id)),
        correlation_id=conversation.correlation_id,
    )
    sequence = conversation.last_sequence
    common: dict[str, Any] = {
        "conversation_id": conversation.id,
        "author": actor.name,
        "author_id": actor.id,
        "created_at": now,
        "status_since": now,
    }
    session.add(
        Message(
            id=new_id(),
            sequence=sequence + 1,
            role=MessageRole.USER,
            status=MessageStatus.COMPLETE,
            content=content,
            finished_at=now,
            **common,
        )
    )
    session.add(
        Message(
            id=answer_id,
            sequence=sequence + 2,
            role=MessageRole.ASSISTANT,
            status=MessageStatus.PENDING,
            operation_id=conversation.operation_id,
            **common,
        )
    )
    conversation.last_sequence = sequence + 2
    await session.flush()


def _touch(conversation: Conversation, now: datetime) -> None:
    conversation.version += 1
    conversation.updated_at = now


async def lock(session: AsyncSession, conversation_id: UUID) -> Conversation:
    """One conversation, its row locked: whoever adds to it or moves a message of it does this first.

    Raises:
        NotFound: no such conversation.
    """
    query = select(Conversation).where(Conversation.id == conversation_id).with_for_update(key_share=True)
    found = await session.scalar(query, execution_options={"populate_existing": True})
    if found is None:
        raise NotFound(f"there is no conversation {conversation_id}")
    return found


async def get(session: AsyncSession, conversation_id: UUID) -> Conversation:
    """One conversation.

    Raises:
        NotFound: no such conversation.
    """
    found = await session.get(Conversation, conversation_id, populate_existing=True)
    if found is None:
        raise NotFound(f"there is no conversation {conversation_id}")
    return found


async def page(
    session: AsyncSession, *, created_by: str | None, before: Newest | None, limit: int
) -> tuple[Sequence[Conversation], Newest | None]:
    """Conversations, as ``newest_first``."""
    query = select(Conversation)
    if created_by is not None:
        query = query.filter_by(created_by=created_by)
    return await newest_first(session, query, Conversation, before=before, limit=limit)


async def messages(
    session: AsyncSession, conversation_ids: Sequence[UUID], *, from_sequence: int = 1
) -> Sequence[Message]:
    """The messages of these conversations from a sequence on, in order."""
    query = select(Message).where(Message.conversation_id.in_(conversation_ids))
    query = query.where(Message.sequence >= from_sequence)
    query = query.order_by(Message.conversation_id, Message.sequence)
    return (await session.scalars(query.execution_options(populate_existing=True))).all()


async def _open(session: AsyncSession, conversation_id: UUID) -> UUID | None:
    query = select(Message.id).where(Message.conversation_id == conversation_id, Message.status.in_(OPEN))
    found: UUID | None = await session.scalar(query)
    return found


async def lock_of(session: AsyncSession, message_id: UUID) -> tuple[Conversation, Message]:
    """A message, with all that was read for it, and its conversation, which is locked.

    Raises:
        NotFound: no such message.
    """
    conversation_id = await session.scalar(select(Message.conversation_id).filter_by(id=message_id))
    if conversation_id is None:
        raise NotFound(f"there is no message {message_id}")
    conversation = await lock(session, conversation_id)
    message = await session.get_one(Message, message_id, options=WHOLE, populate_existing=True)
    return conversation, message


def _move(
    conversation: Conversation, message: Message, status: MessageStatus, *, now: datetime, **values: Any
) -> None:
    rollout.check_move("message", MOVES, message.status, status)
    message.status, message.status_since = status, now
    for name, value in values.items():
        setattr(message, name, value)
    _touch(conversation, now)


async def begin_turn(session: AsyncSession, message_id: UUID, *, now: datetime) -> Turn | None:
    """Take an answer up, or up again; None if it is over. The time for it begins with the first run.

    The operation, which the caller holds, ends at that time too, whatever it waits for then.
    """
    conversation, message = await lock_of(session, message_id)
    if message.status not in OPEN:
        return None
    if message.status is MessageStatus.PENDING:
        _move(conversation, message, MessageStatus.ANSWERING, now=now, began_at=now)
        await _end_operation_within(session, message)
    assert message.began_at is not None  # it is written with ANSWERING
    steps = tuple(message.steps)
    said = await messages(session, [conversation.id], from_sequence=conversation.summarised_through + 1)
    await session.flush()
    return Turn(
        message_id=message.id,
        conversation_id=conversation.id,
        caller_id=message.author_id,
        history=tuple(_said(each) for each in said if each.sequence < message.sequence),
        summary=conversation.summary,
        steps=steps,
        draft=message.draft,
        left=message.began_at + ANSWERED_WITHIN - now,
    )


async def _end_operation_within(session: AsyncSession, message: Message) -> None:
    soon = func.least(Operation.deadline, operations.after(ANSWERED_WITHIN))
    change = update(Operation).where(Operation.id == message.operation_id).values(deadline=soon)
    await session.execute(change, execution_options={"synchronize_session": False})


def _said(message: Message) -> Said:
    complete = message.status is MessageStatus.COMPLETE
    return Said(message.sequence, message.role, message.content, complete)


async def keep_text(session: AsyncSession, message_id: UUID, text: str, *, draft: int) -> None:
    """Store the answer's round as far as it has come. May be repeated."""
    await _keep(session, message_id, content=text, draft=draft)


async def _keep(session: AsyncSession, message_id: UUID, **values: Any) -> None:
    change = update(Message).where(Message.id == message_id, Message.status == MessageStatus.ANSWERING)
    await session.execute(change.values(**values), execution_options={"synchronize_session": False})


async def keep_step(session: AsyncSession, message_id: UUID, steps: Sequence[Json], *, draft: int) -> None:
    """Store all finished rounds of an answer; the text of the next one begins with nothing."""
    calls = shown_calls(steps)
    await _keep(session, message_id, steps=list(steps), tool_calls=calls, content="", draft=draft)


def shown_calls(steps: Sequence[Json]) -> list[Json]:
    """What is shown of finished rounds: what was asked for, and whether there was an answer."""
    shown = []
    for step in steps:
        failed = {result["call_id"] for result in step["results"] if result["is_error"]}
        for call in step["calls"]:
            asked, ok = call["arguments"], call["id"] not in failed
            asked = asked if len(asked) <= LONGEST_SHOWN else f"{asked[:LONGEST_SHOWN]}…"
            shown.append({"tool": call["name"][:200], "arguments": asked, "ok": ok})
    return shown


async def keep_summary(session: AsyncSession, conversation_id: UUID, summary: str, *, through: int) -> None:
    """Let a summary stand for the messages up to a sequence. Locks the conversation."""
    conversation = await lock(session, conversation_id)
    conversation.summary = summary
    conversation.summarised_through = max(conversation.summarised_through, through)
    await session.flush()


async def complete(session: AsyncSession, message_id: UUID, *, now: datetime, **answer: Any) -> None:
    """End an answer; ``answer`` are columns of ``Message``. Nothing happens if it is over already."""
    conversation, message = await lock_of(session, message_id)
    if message.status is MessageStatus.ANSWERING:
        _move(conversation, message, MessageStatus.COMPLETE, now=now, finished_at=now, **answer)
        await session.flush()


async def break_off(
    session: AsyncSession, message_id: UUID, failure: Failure, *, now: datetime, **answer: Any
) -> None:
    """End an answer without its end: what there is of it stays. Nothing happens if it is over already.

    Where its last round has no text yet, what was said before it is shown.
    """
    conversation, message = await lock_of(session, message_id)
    if message.status in OPEN:
        said = [message.content, *(step["text"] for step in reversed(message.steps))]
        last = next((each for each in said if each.strip()), message.content)
        told = {"error": failure.to_json(), "finished_at": now, "content": last, **answer}
        _move(conversation, message, MessageStatus.INCOMPLETE, now=now, **told)
        await session.flush()


async def work_ended(session: AsyncSession, operation: Operation, *, now: datetime) -> None:
    """The operation that answers a message has FAILED or was CANCELLED."""
    message_id = UUID(operation.subject_id)
    if await session.get(Message, message_id) is None:
        return
    error = operation.error if operation.status is not OperationStatus.CANCELLED else None
    failure = CANCELLED if error is None else Failure.from_json(error)
    await break_off(session, message_id, failure, now=now)


async def work_revived(session: AsyncSession, operation: Operation, *, now: datetime) -> None:
    """The operation is taken up again: the message is to be answered after all, from what is true by then.

    What there was of the answer is shown until there is more of the new one.

    Raises:
        IllegalTransition: something was said since.
        NotFound: it is forgotten.
    """
    conversation, message = await lock_of(session, UUID(operation.subject_id))
    if message.sequence != conversation.last_sequence:
        raise IllegalTransition("something was said since: ask again", status=message.status.value)
    nothing: dict[str, Any] = {"error": None, "finished_at": None, "began_at": None, "stop_reason": None}
    nothing |= {"steps": [], "tool_calls": [], "run": message.run + 1, "draft": message.draft + 1}
    _move(conversation, message, MessageStatus.PENDING, now=now, **nothing)
    await session.flush()
