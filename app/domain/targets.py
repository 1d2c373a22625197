# SPDX-License-Identifier: Apache-2.0
"""Ring targets: which devices a ring means on a plane, and how many there were when they were last counted."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app.connectors.contract import Plane, Target, TargetKind
from app.domain.intents import KnownTarget
from app.errors import NotFound
from app.models import Ring, RingTarget


async def known(connection: AsyncConnection | AsyncSession) -> dict[tuple[Plane, Ring], KnownTarget]:
    """Every target that is set, as intents are judged against them."""
    rows = await connection.execute(select(RingTarget.__table__))
    return {
        (Plane(row.plane), row.ring): KnownTarget(Target(TargetKind(row.kind), row.ref), row.device_count)
        for row in rows
    }


async def get(session: AsyncSession, plane: Plane, ring: Ring) -> RingTarget:
    """One target.

    Raises:
        NotFound: none is set.
    """
    target = await session.get(RingTarget, (plane.value, ring))
    if target is None:
        raise NotFound(f"{plane.value} has no target for {ring.value}")
    return target


async def page(
    session: AsyncSession, *, after: tuple[str, Ring] | None, limit: int
) -> tuple[Sequence[RingTarget], tuple[str, Ring] | None]:
    """Up to ``limit`` targets by plane and ring, and the key to go on after, None at the end."""
    query = select(RingTarget).order_by(RingTarget.plane, RingTarget.ring).limit(limit + 1)
    if after is not None:
        plane, ring = after
        query = query.where(
            (RingTarget.plane > plane) | ((RingTarget.plane == plane) & (RingTarget.ring > ring))
        )
    rows = (await session.scalars(query)).all()
    last = rows[limit - 1] if len(rows) > limit else None
    return rows[:limit], (last.plane, last.ring) if last else None


async def put(session: AsyncSession, plane: Plane, ring: Ring, target: Target) -> RingTarget:
    """Set or change a target; the device count is unknown again when it changed. Locks the row.

    Lanes that are already planned keep the target they were planned with.
    """
    row = await session.get(RingTarget, (plane.value, ring), with_for_update=True)
    if row is None:
        row = RingTarget(plane=plane.value, ring=ring, kind=target.kind.value, ref=target.ref, version=1)
        session.add(row)
    elif (row.kind, row.ref) != (target.kind.value, target.ref):
        row.kind, row.ref, row.device_count, row.counted_at = target.kind.value, target.ref, None, None
        row.version += 1
    await session.flush()
    return row


async def counted(
    session: AsyncSession, plane: Plane, ring: Ring, target: Target, *, devices: int, now: datetime
) -> None:
    """Store how many devices the plane says ``target`` holds, unless it was changed meanwhile."""
    row = await session.get(RingTarget, (plane.value, ring), with_for_update=True)
    if row is not None and (row.kind, row.ref) == (target.kind.value, target.ref):
        row.device_count, row.counted_at = devices, now
        await session.flush()


async def count(session: AsyncSession) -> int:
    """How many targets are set."""
    return (await session.scalar(select(func.count()).select_from(RingTarget))) or 0
