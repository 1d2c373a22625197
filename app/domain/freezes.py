# SPDX-License-Identifier: Apache-2.0
"""Freezes and maintenance windows: stored, listed, ended."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Plane
from app.domain.calendars import Calendar, FreezeSpan, Span
from app.errors import NotFound, VersionMismatch
from app.models import Freeze, MaintenanceWindow, Ring


async def create(session: AsyncSession, span: FreezeSpan, *, actor: str, now: datetime) -> Freeze:
    """Store a freeze; it holds from its ``starts_at``, for what has not begun by then."""
    made = Freeze(
        starts_at=span.starts_at,
        ends_at=span.ends_at,
        rings=sorted(span.rings, key=list(Ring).index),
        planes=sorted(span.planes),
        reason=span.reason,
        created_by=actor,
        created_at=now,
    )
    session.add(made)
    await session.flush()
    await session.refresh(made)
    return made


async def end(session: AsyncSession, freeze_id: UUID) -> None:
    """Remove a freeze.

    Raises:
        NotFound: no such freeze.
    """
    removed = await session.scalar(delete(Freeze).where(Freeze.id == freeze_id).returning(Freeze.id))
    if removed is None:
        raise NotFound(f"there is no freeze {freeze_id}")


async def get(session: AsyncSession, freeze_id: UUID) -> Freeze:
    """One freeze.

    Raises:
        NotFound: no such freeze.
    """
    found = await session.get(Freeze, freeze_id)
    if found is None:
        raise NotFound(f"there is no freeze {freeze_id}")
    return found


async def page(
    session: AsyncSession, *, before: UUID | None, limit: int
) -> tuple[Sequence[Freeze], UUID | None]:
    """Up to ``limit`` freezes, the newest first, and the id to go on from, None at the end."""
    query = select(Freeze).order_by(Freeze.id.desc()).limit(limit + 1)
    if before is not None:
        query = query.where(Freeze.id < before)
    rows = (await session.scalars(query)).all()
    return rows[:limit], rows[limit - 1].id if len(rows) > limit else None


async def ahead(session: AsyncSession, now: datetime) -> tuple[FreezeSpan, ...]:
    """Every freeze that is not over."""
    rows = await session.scalars(select(Freeze).where(Freeze.ends_at > now).order_by(Freeze.starts_at))
    return tuple(
        FreezeSpan(row.starts_at, row.ends_at, frozenset(row.rings), frozenset(row.planes), row.reason)
        for row in rows
    )


def calendar_of(window: MaintenanceWindow) -> Calendar:
    """A stored window as it is asked about."""
    return Calendar(window.zone, tuple(Span.from_json(span) for span in window.spans))


async def windows(session: AsyncSession) -> dict[tuple[str, Ring], Calendar]:
    """Every maintenance window, by plane and ring."""
    rows = await session.scalars(select(MaintenanceWindow))
    return {(row.plane, row.ring): calendar_of(row) for row in rows}


async def window(session: AsyncSession, plane: Plane, ring: Ring) -> MaintenanceWindow:
    """The window of a ring on a plane.

    Raises:
        NotFound: none is set: its devices may be touched at any time.
    """
    found = await session.get(MaintenanceWindow, (plane.value, ring))
    if found is None:
        raise NotFound(f"{plane.value} has no maintenance window for {ring.value}")
    return found


async def put_window(
    session: AsyncSession,
    plane: Plane,
    ring: Ring,
    calendar: Calendar,
    *,
    actor: str,
    now: datetime,
    version: int | None = None,
) -> MaintenanceWindow:
    """Set or change a window. Locks the row.

    Raises:
        VersionMismatch: ``version`` is given and is not the current one, or there was none.
    """
    spans = [span.to_json() for span in calendar.spans]
    values = {"zone": calendar.zone, "spans": spans, "updated_by": actor, "updated_at": now}
    fresh = insert(MaintenanceWindow).values(plane=plane.value, ring=ring, **values)
    created = await session.scalar(fresh.on_conflict_do_nothing().returning(MaintenanceWindow.version))
    row = await session.get(
        MaintenanceWindow, (plane.value, ring), with_for_update=True, populate_existing=True
    )
    if row is None or (version is not None and (created is not None or row.version != version)):
        raise VersionMismatch(f"the window is not at version {version}")
    if (row.zone, row.spans) != (calendar.zone, spans):
        row.zone, row.spans, row.updated_by, row.updated_at = calendar.zone, spans, actor, now
        row.version += 1
    await session.flush()
    return row


async def drop_window(session: AsyncSession, plane: Plane, ring: Ring, *, version: int | None = None) -> None:
    """Remove a window: the devices may be touched at any time.

    Raises:
        NotFound: none is set.
        VersionMismatch: ``version`` is given and is not the current one.
    """
    row = await session.get(MaintenanceWindow, (plane.value, ring), with_for_update=True)
    if row is None:
        raise NotFound(f"{plane.value} has no maintenance window for {ring.value}")
    if version is not None and row.version != version:
        raise VersionMismatch(f"the window is at version {row.version}, not {version}")
    await session.delete(row)
    await session.flush()


async def page_windows(
    session: AsyncSession, *, after: tuple[str, Ring] | None, limit: int
) -> tuple[Sequence[MaintenanceWindow], tuple[str, Ring] | None]:
    """Up to ``limit`` windows by plane and ring, and the key to go on after, None at the end."""
    query = select(MaintenanceWindow).order_by(MaintenanceWindow.plane, MaintenanceWindow.ring)
    if after is not None:
        plane, ring = after
        query = query.where(
            (MaintenanceWindow.plane > plane)
            | ((MaintenanceWindow.plane == plane) & (MaintenanceWindow.ring > ring))
        )
    rows = (await session.scalars(query.limit(limit + 1))).all()
    last = rows[limit - 1] if len(rows) > limit else None
    return rows[:limit], (last.plane, last.ring) if last else None
