# SPDX-License-Identifier: Apache-2.0
"""Conversations with the assistant: begin, go on, read, and listen while an answer is written."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace
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
from app.api.routing import V1, Route, requires
from app.api.schema import CONTENT_FORM, Count, Given, Label, Message, ResourceVersion, Shown, as_json, tagged
from app.api.streams import EventStream, Watched, Watcher, by_itself, message
from app.domain import conversations, listening
from app.domain.listening import Spot
from app.errors import FieldError, Invalid
from app.models import Conversation, MessageRole, MessageStatus
from app.models import Message as Row
from app.security import Permission

router = APIRouter(prefix=V1 + "/ai/conversations", tags=["ai"], route_class=Route)

ConversationId = Annotated[UUID, Path(description="The conversation's id.")]
NEWEST: CursorKey[tuple[datetime, UUID]] = CursorKey(Newest)
LONGEST = 8000
Content = Annotated[str, Field(min_length=1, max_length=LONGEST, pattern=CONTENT_FORM)]
Answer = Annotated[str, Field(max_length=1_000_000)]
BEGINNING = Spot()
SPOT = re.compile(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})\.(\d{1,9})\.(\d{1,9})", re.ASCII)
"""The id of an event: the parts of the spot that it leads to."""
NEWEST_SHOWN = 2


class MessageCreate(Given):
    """What is said. Secrets in it are cut out before it is stored."""

    content: Content


class ToolCallRead(Shown):
    """Something that the assistant looked up; `ok`: it got an answer. Long `arguments` are cut."""

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
        return cls.model_validate({name: getattr(row, name) for name in cls.model_fields})


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


async def shown(session: AsyncSession, row: Conversation, *, newest: int | None = None) -> ConversationRead:
    """A conversation with all that was said, or the ``newest`` so many messages."""
    begin = 1 if newest is None else max(1, row.last_sequence - newest + 1)
    return ConversationRead.of(row, await conversations.messages(session, [row.id], from_sequence=begin))


async def accepted(session: AsyncSession, row: Conversation) -> Response:
    """The answer to something said, which is kept for its repetitions: it will be answered."""
    body = await shown(session, row, newest=NEWEST_SHOWN)
    return tagged(body, 202, location=f"{V1}/ai/conversations/{row.id}")


@router.post(
    "", status_code=202, response_model=ConversationRead, summary="Begin a conversation with the assistant"
)
@requires(Permission.AI_ASK, key_required=True)
async def create_conversation(
    body: MessageCreate, session: SessionDep, call: CallDep, runtime: RuntimeDep
) -> Response:
    """Say the first thing; `operation_id` is the work that answers it.

    `messages` are the question and the answer to come.
    """
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
    """One message at a time: while one is being answered, the next is refused (409 `conversation_busy`).

    `messages` are the question and the answer to come; `GET` has those before them, too.
    """
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

    Ends once nothing is being answered. `restarted`: the text so far of this answer is void, another begins;
    with `anew` so are its calls of tools.
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
    return Spot(*map(int, found.groups()))


async def feed(session: AsyncSession, watched: Watched[Spot]) -> None:
    """Offer every listener what it was not told; ends those for whom nothing is being answered."""
    answering = await listening.answering(session, list(watched))
    spots = {key: {watcher.after for watcher in watchers} for key, watchers in watched.items()}
    said = await listening.news(session, spots)
    for conversation_id, watchers in watched.items():
        rows = said[conversation_id]
        goes_on = conversation_id in answering or any(row.status in conversations.OPEN for row in rows)
        with by_itself(watchers):
            for watcher in watchers:
                if offered(watcher, rows) and not goes_on:
                    watcher.end()


def offered(watcher: Watcher[Spot], said: Sequence[Row]) -> bool:
    """Whether there was room for all that the listener does not have."""
    return all(
        watcher.offer(message(".".join(map(str, astuple(spot))), to_json(body)), spot)
        for row in said
        if row.sequence >= watcher.after.sequence
        for spot, body in news(row, watcher.after)
    )


def news(row: Row, after: Spot) -> Iterator[tuple[Spot, dict[str, Any]]]:
    """What a message has that a listener at that spot was not told, each with the spot it leads to."""
    number = row.sequence
    if row.role is MessageRole.USER:
        yield Spot(number + 1), {"type": "message", "message": whole(row)}
        return
    at = after if after.sequence == number else Spot(number, run=row.run)
    if at.run != row.run:
        if at.calls or at.offset:
            at = Spot(number, run=row.run, draft=row.draft)
            yield at, {"type": "restarted", "sequence": number, "anew": True}
        at = Spot(number, run=row.run, draft=row.draft)
    for told, call in enumerate(row.tool_calls[at.calls :], at.calls + 1):
        at = replace(at, calls=told)
        yield at, {"type": "tool", "sequence": number, **ToolCallRead.model_validate(call).model_dump()}
    if at.draft != row.draft:
        had, at = at.offset, replace(at, draft=row.draft, offset=0)
        if had:
            yield at, {"type": "restarted", "sequence": number, "anew": False}
    yield from text_of(row, at)


def text_of(row: Row, at: Spot) -> Iterator[tuple[Spot, dict[str, Any]]]:
    """What an answer's text has from that spot on, and its end."""
    number, length = row.sequence, len(row.content)
    if at.offset < length:
        told = {"type": "token", "sequence": number, "text": row.content[at.offset :]}
        yield replace(at, offset=length), told
    if row.status not in conversations.OPEN and at.offset <= length:
        yield replace(at, offset=length + 1), {"type": "answer", "message": whole(row)}


def whole(row: Row) -> dict[str, Any]:
    """A message as it stands in an event."""
    return MessageRead.of(row).model_dump(mode="json", by_alias=True)
