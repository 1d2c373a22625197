# SPDX-License-Identifier: Apache-2.0
"""When devices may be touched: freezes, and maintenance windows of a ring on a plane."""

from datetime import datetime, time, timedelta
from typing import Annotated, Any, Self
from uuid import UUID

from fastapi import APIRouter, Path
from pydantic import Field
from starlette.responses import Response

from app.api.dependencies import CallDep, ExpectedVersion, RuntimeDep, SessionDep
from app.api.paging import CursorKey, Page, PageDep, Text
from app.api.routing import V1, Route, requires
from app.api.schema import (
    HOUR_FORM,
    Given,
    Instant,
    Label,
    Message,
    Reason,
    ResourceVersion,
    Shown,
    as_json,
    tagged,
)
from app.connectors.contract import Plane
from app.domain import calendars, freezes, operations
from app.domain.calendars import Calendar, FreezeSpan, Span, Weekday
from app.errors import FieldError, Invalid
from app.models import MaintenanceWindow, Ring
from app.security import Permission

router = APIRouter(prefix=V1, tags=["freezes"], route_class=Route)

FreezeId = Annotated[UUID, Path(description="The freeze's id.")]
NEWEST: CursorKey[UUID] = CursorKey(UUID)
BY_LANE: CursorKey[tuple[str, Ring]] = CursorKey(tuple[Text, Ring])
Rings = Annotated[list[Ring], Field(max_length=len(Ring))]
Planes = Annotated[list[Plane], Field(max_length=len(Plane))]
Local = Annotated[str, Field(pattern=HOUR_FORM, max_length=5, min_length=5, examples=["22:00"])]
LONGEST = timedelta(days=366)


class FreezeCreate(Given):
    """From `starts_at` until `ends_at` no device is touched. No rings, or no planes, mean all of them."""

    starts_at: Instant
    ends_at: Instant
    rings: Rings | None = None
    planes: Planes | None = None
    reason: Reason

    def to_span(self) -> FreezeSpan:
        """The same in the domain's words.

        Raises:
            Invalid: it ends before it begins, or lasts for more than a year.
        """
        if not self.starts_at < self.ends_at <= self.starts_at + LONGEST:
            wrong = FieldError("/ends_at", "must lie after starts_at, within a year")
            raise Invalid("the freeze breaks a rule", wrong)
        rings, planes = frozenset(self.rings or ()), frozenset(plane.value for plane in self.planes or ())
        return FreezeSpan(self.starts_at, self.ends_at, rings, planes, self.reason)


class FreezeRead(Shown):
    """A freeze; empty `rings` or `planes` mean all."""

    id: UUID
    starts_at: datetime
    ends_at: datetime
    rings: Rings
    planes: Planes
    reason: Message
    created_by: Label
    created_at: datetime
    version: ResourceVersion


class FreezePage(Page[FreezeRead]):
    """Some freezes, and where to go on."""


class SpanGiven(Given):
    """Weekly hours, local to the window's time zone; an `end` that is not later is on the next day."""

    days: Annotated[list[Weekday], Field(min_length=1, max_length=len(Weekday))]
    start: Local
    end: Local

    def to_span(self) -> Span:
        """The same in the domain's words."""
        return Span(
            tuple(dict.fromkeys(self.days)), time.fromisoformat(self.start), time.fromisoformat(self.end)
        )


class WindowPut(Given):
    """The hours in which a ring's devices on a plane may be touched, in a named time zone."""

    timezone: Annotated[str, Field(min_length=1, max_length=100, examples=["Europe/Berlin"])]
    spans: Annotated[list[SpanGiven], Field(min_length=1, max_length=50)]

    def to_calendar(self) -> Calendar:
        """The same in the domain's words.

        Raises:
            Invalid: nobody knows the time zone.
        """
        calendars.check_zone(self.timezone)
        return Calendar(self.timezone, tuple(span.to_span() for span in self.spans))


class SpanRead(Shown):
    """Weekly hours, local to the window's time zone."""

    days: Annotated[list[Weekday], Field(max_length=len(Weekday))]
    start: Local
    end: Local


class WindowRead(Shown):
    """When a ring's devices on a plane may be touched; `opens_at` is null while it is open."""

    plane: Plane
    ring: Ring
    timezone: Label
    spans: Annotated[list[SpanRead], Field(max_length=50)]
    is_open: bool
    opens_at: datetime | None
    updated_by: Label
    updated_at: datetime
    version: ResourceVersion

    @classmethod
    def of(cls, row: MaintenanceWindow, now: datetime) -> Self:
        """What is shown of a window at this moment."""
        calendar = freezes.calendar_of(row)
        is_open = calendar.is_open(now)
        derived: dict[str, Any] = {
            "timezone": row.zone,
            "is_open": is_open,
            "opens_at": None if is_open else calendar.opens(now),
        }
        plain = {name: getattr(row, name) for name in cls.model_fields if name not in derived}
        return cls.model_validate(plain | derived)


class WindowPage(Page[WindowRead]):
    """Some windows, and where to go on."""


@router.get("/freezes", response_model=FreezePage, summary="List freezes, newest first")
@requires(Permission.READ)
async def list_freezes(session: SessionDep, page: PageDep) -> Response:
    """Every freeze, those that are over too."""
    rows, following = await freezes.page(session, before=NEWEST.decode(page), limit=page.limit)
    items = [FreezeRead.model_validate(row) for row in rows]
    return as_json(FreezePage(items=items, next_cursor=NEWEST.encode(following, page)))


@router.get("/freezes/{freeze_id}", response_model=FreezeRead, summary="Read a freeze")
@requires(Permission.READ)
async def read_freeze(freeze_id: FreezeId, session: SessionDep) -> Response:
    """When nothing is touched, where, and why."""
    return tagged(FreezeRead.model_validate(await freezes.get(session, freeze_id)))


@router.post("/freezes", status_code=201, response_model=FreezeRead, summary="Freeze rings or planes")
@requires(Permission.FREEZE_WRITE)
async def create_freeze(
    body: FreezeCreate, session: SessionDep, runtime: RuntimeDep, call: CallDep
) -> Response:
    """What has begun goes on; nothing new begins, and a rollback does. Deployments say that they wait."""
    row = await freezes.create(session, body.to_span(), actor=call.actor.name, now=runtime.clock())
    call.tell("create_freeze", row.id, None)
    location = f"{V1}/freezes/{row.id}"
    return tagged(FreezeRead.model_validate(row), 201, location=location)


@router.delete("/freezes/{freeze_id}", status_code=204, response_model=None, summary="End a freeze")
@requires(Permission.FREEZE_WRITE)
async def delete_freeze(freeze_id: FreezeId, session: SessionDep, call: CallDep) -> Response:
    """What waited for its end goes on at once."""
    await freezes.end(session, freeze_id)
    await operations.hasten(session)
    call.tell("delete_freeze", freeze_id, None)
    return Response(status_code=204)


@router.get("/maintenance-windows", response_model=WindowPage, summary="List maintenance windows")
@requires(Permission.READ)
async def list_maintenance_windows(session: SessionDep, runtime: RuntimeDep, page: PageDep) -> Response:
    """Every window, by plane and ring."""
    after, now = BY_LANE.decode(page), runtime.clock()
    rows, following = await freezes.page_windows(session, after=after, limit=page.limit)
    items = [WindowRead.of(row, now) for row in rows]
    return as_json(WindowPage(items=items, next_cursor=BY_LANE.encode(following, page)))


@router.get(
    "/maintenance-windows/{plane}/{ring}", response_model=WindowRead, summary="Read a maintenance window"
)
@requires(Permission.READ)
async def read_maintenance_window(
    plane: Plane, ring: Ring, session: SessionDep, runtime: RuntimeDep
) -> Response:
    """When the ring's devices on the plane may be touched."""
    return tagged(WindowRead.of(await freezes.window(session, plane, ring), runtime.clock()))


@router.put(
    "/maintenance-windows/{plane}/{ring}", response_model=WindowRead, summary="Set a maintenance window"
)
@requires(Permission.FREEZE_WRITE)
async def put_maintenance_window(
    *,
    plane: Plane,
    ring: Ring,
    body: WindowPut,
    session: SessionDep,
    runtime: RuntimeDep,
    call: CallDep,
    version: ExpectedVersion,
) -> Response:
    """From now on the ring's devices on the plane are touched in these hours only; a rollback knows none."""
    actor, now = call.actor.name, runtime.clock()
    row = await freezes.put_window(
        session, plane, ring, body.to_calendar(), actor=actor, now=now, version=version
    )
    await operations.hasten(session)
    call.tell("put_maintenance_window", f"{plane.value}/{ring.value}", None)
    return tagged(WindowRead.of(row, now))


@router.delete(
    "/maintenance-windows/{plane}/{ring}",
    status_code=204,
    response_model=None,
    summary="Remove a maintenance window",
)
@requires(Permission.FREEZE_WRITE)
async def delete_maintenance_window(
    *, plane: Plane, ring: Ring, session: SessionDep, call: CallDep, version: ExpectedVersion
) -> Response:
    """The ring's devices on the plane may be touched at any time again."""
    await freezes.drop_window(session, plane, ring, version=version)
    await operations.hasten(session)
    call.tell("delete_maintenance_window", f"{plane.value}/{ring.value}", None)
    return Response(status_code=204)
