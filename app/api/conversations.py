# SPDX-License-Identifier: Apache-2.0
"""Conversations with the assistant: begin, go on, read, and listen while an answer is written."""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from fastapi import APIRouter, Header, Path
from pydantic import Field
from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import Response

from app.api.dependencies import CallDep, ExpectedVersion, RuntimeDep, ServiceDep, SessionDep
from app.api.events import LIVE
from app.api.operations import FailureRead
from app.api.paging import CursorKey, Newest, Page, PageDep
from app.api.routing import Route, requires
from app.api.schema import CONTENT_FORM, Count, Given, Label, Message, ResourceVersion, Shown, as_json, tagged
from app.api.streams import EventStream, Watched, Watcher, message
from app.domain import conversations
from app.errors import FieldError, Invalid
from app.models import Conversation, MessageRole, MessageStatus
from app.models import Message as Row
from app.security import Permission

router = APIRouter(prefix="/ai/conversations", tags=["ai"], route_class=Route)

ConversationId = Annotated[UUID, Path(description="The conversation's id.")]
NEWEST: CursorKey[tuple[datetime, UUID]] = CursorKey(Newest)
LONGEST = 8000
Content = Annotated[str, Field(min_length=1, max_length=LONGEST, pattern=CONTENT_FORM)]
Answer = Annotated[str, Field(max_length=1_000_000)]
Spot = tuple[int, int, int, int]
"""Where a listener is: the message, calls of tools, the draft of its text, and characters of that.

One character more than there are: the end was told, too.
"""
BEGINNING: Spot = (0, 0, 0, 0)
SPOT = re.compile(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})\.(\d{1,9})", re.ASCII)


class MessageCreate(Given):
    """What is said. Secrets in it are cut out before it is stored."""

    content: Content


class ToolCallRead(Shown):
    """Something that the assistant looked up; `ok`: it got an answer."""

    tool: Label
    arguments: Annotated[str, Field(max_length=1_000_000)]
    ok: bool


class CitationRead(Shown):
    """Something named in an answer, by its id."""

    id: Label


class MessageRead(Shown):
    """One thing said. `author` is who said it, or who is answered.

    `citations` are ids that the answer names and the assistant has read; `unverified` those it has not read:
    do not rely on them. What there is of an INCOMPLETE answer is in `content`; `error` says why it ended.
    """

    id: UUID
    sequence: Count
    role: MessageRole
    status: MessageStatus
    author: Label
    content: Answer
    tool_calls: Annotated[list[ToolCallRead], Field(max_length=1000)]
    citations: Annotated[list[CitationRead], Field(max_length=1000)]
    unverified: Annotated[list[CitationRead], Field(max_length=1000)]
    stop_reason: Label | None
    model: Label | None
    error: FailureRead | None
    operation_id: UUID | None
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, row: Row) -> Self:
        """What is shown of a row."""
        plain = {name: getattr(row, name) for name in cls.model_fields if name != "tool_calls"}
        return cls.model_validate(
            plain | {"tool_calls": [call for step in row.steps for call in calls_of(step)]}
        )


def calls_of(step: dict[str, Any]) -> list[ToolCallRead]:
    """What was asked for in one round."""
    failed = {result["call_id"] for result in step["results"] if result["is_error"]}
    return [
        ToolCallRead(tool=call["name"][:200], arguments=call["arguments"], ok=call["id"] not in failed)
        for call in step["calls"]
    ]


class ConversationShort(Shown):
    """A conversation without what was said. `operation_id` is the work that answers, or did last."""

    id: UUID
    title: Label
    created_by: Label
    correlation_id: UUID
    operation_id: UUID | None
    version: ResourceVersion
    created_at: datetime
    updated_at: datetime


class ConversationRead(ConversationShort):
    """A conversation with its messages in order.

    `summary` stands for those up to `summarised_through` when the model is asked.
    """

    answering: bool
    summary: Message | None
    summarised_through: Count
    messages: Annotated[list[MessageRead], Field(max_length=conversations.MOST_MESSAGES)]

    @classmethod
    def of(cls, row: Conversation, said: Sequence[Row]) -> Self:
        """What is shown of a conversation and its messages."""
        derived: dict[str, Any] = {
            "answering": any(each.status in conversations.OPEN for each in said),
            "summary": row.summary[:4000] if row.summary else None,
            "messages": [MessageRead.of(each) for each in said],
        }
        plain = {name: getattr(row, name) for name in cls.model_fields if name not in derived}
        return cls.model_validate(plain | derived)


class ConversationPage(Page[ConversationShort]):
    """Some conversations, and where to go on."""


async def shown(session: AsyncSession, row: Conversation) -> ConversationRead:
    """A conversation with all that was said."""
    return ConversationRead.of(row, await conversations.messages(session, [row.id]))


async def accepted(session: AsyncSession, row: Conversation) -> Response:
    """The answer to something said: it will be answered."""
    return tagged(await shown(session, row), 202, location=f"/api/v1/ai/conversations/{row.id}")


@router.post(
    "", status_code=202, response_model=ConversationRead, summary="Begin a conversation with the assistant"
)
@requires(Permission.AI_ASK, key_required=True)
async def create_conversation(
    body: MessageCreate, session: SessionDep, call: CallDep, runtime: RuntimeDep
) -> Response:
    """Say the first thing; `operation_id` is the work that answers it."""
    assistant = runtime.assistant
    row = await conversations.begin(
        session,
        assistant.redactor.text(body.content),
        actor=call.actor,
        correlation_id=call.correlation_id,
        allowance=assistant.allowance,
        now=runtime.clock(),
    )
    return await accepted(session, row)


@router.get("", response_model=ConversationPage, summary="List conversations, newest first")
@requires(Permission.READ)
async def list_conversations(
    session: SessionDep, page: PageDep, created_by: Annotated[str, Field(max_length=200)] | None = None
) -> Response:
    """All conversations, without what was said."""
    rows, following = await conversations.page(
        session, created_by=created_by, before=NEWEST.decode(page), limit=page.limit
    )
    items = [ConversationShort.model_validate(row) for row in rows]
    return as_json(ConversationPage(items=items, next_cursor=NEWEST.encode(following, page)))


@router.get("/{conversation_id}", response_model=ConversationRead, summary="Read a conversation")
@requires(Permission.READ)
async def read_conversation(conversation_id: ConversationId, session: SessionDep) -> Response:
    """What was said, in order, and how far an answer has come."""
    return tagged(await shown(session, await conversations.get(session, conversation_id)))


@router.post(
    "/{conversation_id}/messages",
    status_code=202,
    response_model=ConversationRead,
    summary="Say one more thing",
)
@requires(Permission.AI_ASK, key_required=True)
async def create_message(
    *,
    conversation_id: ConversationId,
    body: MessageCreate,
    session: SessionDep,
    call: CallDep,
    runtime: RuntimeDep,
    version: ExpectedVersion,
) -> Response:
    """One message at a time: while one is being answered, the next is refused (409 `conversation_busy`)."""
    assistant = runtime.assistant
    row = await conversations.append(
        session,
        conversation_id,
        assistant.redactor.text(body.content),
        actor=call.actor,
        allowance=assistant.allowance,
        now=runtime.clock(),
        version=version,
    )
    return await accepted(session, row)


@router.get(
    "/{conversation_id}/events",
    responses={200: LIVE},
    response_class=Response,
    summary="Listen to a conversation",
)
@requires(Permission.READ)
async def list_conversation_events(
    *,
    conversation_id: ConversationId,
    service: ServiceDep,
    session: SessionDep,
    last_event_id: Annotated[
        str | None,
        Header(alias="Last-Event-ID", max_length=50, description="Where a stream that was cut goes on."),
    ] = None,
) -> Response:
    """What is said, as it is said: `message`, `tool`, `token`, `restarted` and `answer`, as the `type` says.

    Ends once nothing is being answered. `restarted`: the text so far of this answer is void, another begins.
    """
    await conversations.get(session, conversation_id)
    return EventStream(service.streams(feed), conversation_id, spot_of(last_event_id))


def spot_of(last_event_id: str | None) -> Spot:
    """Where a listener goes on.

    Raises:
        Invalid: no stream of ours gave this id.
    """
    if last_event_id is None:
        return BEGINNING
    found = SPOT.fullmatch(last_event_id)
    if found is None:
        wrong = FieldError("/header/Last-Event-ID", "is no id of an event of this stream")
        raise Invalid("the Last-Event-ID is malformed", wrong)
    sequence, steps, draft, offset = map(int, found.groups())
    return sequence, steps, draft, offset


async def feed(session: AsyncSession, watched: Watched[Spot]) -> None:
    """Offer every listener what was said since; ends those for whom nothing is being answered."""
    begin = (
        min(max(watcher.after[0], 1) for watchers in watched.values() for watcher in watchers)
        if watched
        else 1
    )
    said = await conversations.messages(session, list(watched), from_sequence=begin)
    for conversation_id, watchers in watched.items():
        own = [each for each in said if each.conversation_id == conversation_id]
        for watcher in watchers:
            if offered(watcher, own) and not any(each.status in conversations.OPEN for each in own):
                watcher.end()


def offered(watcher: Watcher[Spot], said: Sequence[Row]) -> bool:
    """Whether there was room for all that the listener does not have."""
    return all(
        watcher.offer(message(".".join(map(str, spot)), to_json(body)), spot)
        for row in said
        if row.sequence >= watcher.after[0]
        for spot, body in news(row, watcher.after)
    )


def news(row: Row, after: Spot) -> Iterator[tuple[Spot, dict[str, Any]]]:
    """What a message has that a listener at that spot was not told, each with the spot it leads to."""
    if row.role is MessageRole.USER:
        yield (row.sequence + 1, 0, 0, 0), {"type": "message", "message": whole(row)}
        return
    number = row.sequence
    _, told, draft, offset = after if after[0] == number else (number, 0, 0, 0)
    calls = [call for step in row.steps for call in calls_of(step)]
    told = told if told <= len(calls) else 0  # it was taken up anew
    for call in calls[told:]:
        told += 1
        yield (number, told, draft, offset), {"type": "tool", "sequence": number, **call.model_dump()}
    if draft != row.draft and offset:
        yield (number, told, row.draft, 0), {"type": "restarted", "sequence": number}
    yield from text_of(row, told, offset if draft == row.draft else 0)


def text_of(row: Row, told: int, offset: int) -> Iterator[tuple[Spot, dict[str, Any]]]:
    """What an answer's text has from that character on, and its end."""
    number, length = row.sequence, len(row.content)
    if offset < length:
        told_text = {"type": "token", "sequence": number, "text": row.content[offset:]}
        yield (number, told, row.draft, length), told_text
    if row.status not in conversations.OPEN and offset <= length:
        yield (number, told, row.draft, length + 1), {"type": "answer", "message": whole(row)}


def whole(row: Row) -> dict[str, Any]:
    """A message as it stands in an event."""
    return MessageRead.of(row).model_dump(mode="json", by_alias=True)
