# SPDX-License-Identifier: Apache-2.0
"""The history of a deployment, as a list or live."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query
from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import Response

from app.api.dependencies import ServiceDep, SessionDep
from app.api.deployments import DeploymentId
from app.api.paging import CursorKey, Page, PageDep
from app.api.routing import V1, Route, requires
from app.api.schema import MAX_COUNT, Label, Object, Shown, as_json
from app.api.streams import BATCH, STREAM, EventStream, Watched, Watcher, message
from app.domain import deployments, events
from app.models import Event
from app.security import Permission

router = APIRouter(prefix=V1 + "/deployments/{deployment_id}/events", tags=["deployments"], route_class=Route)

Number = Annotated[int, Field(ge=0, le=MAX_COUNT)]
BY_SEQUENCE: CursorKey[int] = CursorKey(Number)


class EventRead(Shown):
    """One change: what was ``before`` and is ``after`` it, as far as it changed."""

    sequence: Number
    type: Label
    actor: Label
    at: datetime
    before: Object | None
    after: Object | None
    correlation_id: UUID


LIVE: dict[str, Any] = {
    "description": "The events; with `Accept: text/event-stream` live, each with its sequence as `id`.",
    "content": {
        STREAM: {
            "schema": {
                "type": "string",
                "maxLength": 10_000_000,
                "examples": ['id: 1\ndata: {"sequence": 1}\n\n'],
            }
        }
    },
}


class EventPage(Page[EventRead]):
    """Some events, and where to go on."""


@router.get("", response_model=EventPage, responses={200: LIVE}, summary="Read a deployment's history")
@requires(Permission.READ)
async def list_events(
    *,
    deployment_id: DeploymentId,
    service: ServiceDep,
    session: SessionDep,
    page: PageDep,
    after: Annotated[int, Query(ge=0, le=MAX_COUNT, description="Only events with a greater sequence.")] = 0,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
    last_event_id: Annotated[
        int | None,
        Header(alias="Last-Event-ID", ge=0, le=MAX_COUNT, description="Where a stream that was cut goes on."),
    ] = None,
) -> Response:
    """Every change in order. A live stream ends after the final event."""
    await deployments.exists(session, deployment_id)
    if wants_stream(accept):
        begin = after if last_event_id is None else last_event_id
        return EventStream(service.streams(feed), deployment_id, begin)
    begin = max(after, BY_SEQUENCE.decode(page) or 0)
    rows = await events.page(session, deployment_id, after=begin, limit=page.limit + 1)
    items = [EventRead.model_validate(row) for row in rows[: page.limit]]
    following = items[-1].sequence if len(rows) > page.limit else None
    return as_json(EventPage(items=items, next_cursor=BY_SEQUENCE.encode(following, page)))


def wants_stream(accept: str | None) -> bool:
    """Whether a live stream is what the client would rather have than JSON."""
    preferred = {"application/json": 0.0, STREAM: 0.0}
    for offer in (accept or "").lower().split(","):
        kind, *parameters = (part.strip() for part in offer.split(";"))
        if kind in preferred:
            preferred[kind] = next((_quality(each) for each in parameters if each.startswith("q=")), 1.0)
    return preferred[STREAM] > preferred["application/json"]


def _quality(parameter: str) -> float:
    try:
        return float(parameter.removeprefix("q="))
    except ValueError:
        return 0.0


async def feed(session: AsyncSession, watched: Watched[int]) -> None:
    """Offer every watcher the events after those it has; a history that goes on no more ends it."""
    newest = await events.newest(session, list(watched))
    for deployment_id, watchers in watched.items():
        known = newest.get(deployment_id)
        after = min(watcher.after for watcher in watchers)
        found: Sequence[Event] = ()
        if known is not None and known.sequence > after:
            found = await events.page(session, deployment_id, after=after, limit=BATCH)
        told = [(event.sequence, rendered(event)) for event in found]
        for watcher in watchers:
            _offer(watcher, told)
            if known is None or (known.final and watcher.after >= known.sequence):
                watcher.end()


def _offer(watcher: Watcher[int], told: Sequence[tuple[int, bytes]]) -> None:
    for sequence, body in told:
        if sequence > watcher.after and not watcher.offer(body, sequence):
            return


def rendered(event: Event) -> bytes:
    """An event as it stands in a stream: one line of JSON."""
    return message(str(event.sequence), EventRead.model_validate(event).model_dump_json().encode())
