# SPDX-License-Identifier: Apache-2.0
"""Ring targets: which devices a ring means on a plane, and how many there were when last counted."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app.connectors.contract import Manifest, Plane, Target, TargetKind
from app.domain import operations
from app.domain.intents import KnownTarget, unknown_kind
from app.domain.operations import OperationKind, Subject
from app.errors import FieldError, Invalid, NotFound, VersionMismatch
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


def check_kind(target: Target, manifest: Manifest) -> None:
    """Refuse a target that the plane could not resolve.

    Raises:
        Invalid: the plane does not know its kind; names those it knows.
    """
    if target.kind not in manifest.target_kinds:
        wrong = FieldError("/kind", unknown_kind(manifest, target.kind))
        raise Invalid("the plane does not know this kind of target", wrong)


async def put(
    session: AsyncSession, plane: Plane, ring: Ring, target: Target, *, version: int | None = None
) -> RingTarget:
    """Set or change a target; the device count is unknown again when it changed. Locks the row.

    Lanes that are already planned keep the target they were planned with.

    Raises:
        VersionMismatch: ``version`` is given and is not the current one, or there was none.
    """
    fresh = insert(RingTarget).values(plane=plane.value, ring=ring, kind=target.kind.value, ref=target.ref)
    created = await session.scalar(fresh.on_conflict_do_nothing().returning(RingTarget.version))
    row = await session.get(RingTarget, (plane.value, ring), with_for_update=True, populate_existing=True)
    assert row is not None  # targets are never removed
    if version is not None and (created is not None or row.version != version):
        raise VersionMismatch(f"the target is at version {0 if created else row.version}, not {version}")
    if (row.kind, row.ref) != (target.kind.value, target.ref):
        row.kind, row.ref, row.device_count, row.counted_at = target.kind.value, target.ref, None, None
        row.version += 1
    await session.flush()
    return row


async def request_count(session: AsyncSession, row: RingTarget, *, correlation_id: UUID) -> UUID:
    """Have the target's devices counted on the plane; the operation that does it."""
    return await operations.enqueue(
        session,
        OperationKind.COUNT_TARGET,
        subject=Subject("target", f"{row.plane}/{row.ring.value}"),
        correlation_id=correlation_id,
        args={"kind": row.kind, "ref": row.ref},
    )


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
