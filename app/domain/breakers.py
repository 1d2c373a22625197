# SPDX-License-Identifier: Apache-2.0
"""What operators order of the breakers, and what follows from it for the work that waits."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import events
from app.domain.operations import OPEN, wake
from app.models import BreakerEvent, Deployment, DeploymentPlane, Operation

STANDING = ("isolated", "disabled")
"""The states that last until an operator, or their expiry, ends them."""
ASKED_TO_WAIT = "throttled"
"""The code of work that waits because the service wants it to, which no order of ours changes."""


@dataclass(frozen=True, slots=True)
class Order:
    """The state a service is ordered into: ``closed``, ``isolated``, ``disabled``."""

    state: str
    reason: str | None = None
    expires_at: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """As it stands in events."""
        ends = self.expires_at.isoformat().replace("+00:00", "Z") if self.expires_at else None
        return {"state": self.state, "reason": self.reason, "expires_at": ends}


async def ordered(
    session: AsyncSession,
    service: str,
    kind: str,
    *,
    before: Order,
    after: Order,
    actor: str,
    correlation_id: UUID,
    now: datetime,
) -> None:
    """Record an order in the service's history and in that of each active deployment on it.

    Locks those deployments, in the order of their ids.
    """
    told = {"before": before.to_json(), "after": after.to_json()}
    session.add(
        BreakerEvent(service=service, type=kind, actor=actor, at=now, correlation_id=correlation_id, **told)
    )
    for deployment in await _active_on(session, service):
        events.record(
            session,
            deployment,
            kind,
            actor=actor,
            now=now,
            before={"service": service, **told["before"]},
            after={"service": service, **told["after"]},
        )
    await session.flush()


async def _active_on(session: AsyncSession, service: str) -> Sequence[Deployment]:
    planes = select(DeploymentPlane.deployment_id).where(
        DeploymentPlane.plane == service, DeploymentPlane.active
    )
    query = select(Deployment).where(Deployment.id.in_(planes)).order_by(Deployment.id)
    return (await session.scalars(query.with_for_update())).all()


async def let_go(session: AsyncSession, service: str) -> int:
    """Have work that waits for the service's breaker looked at again at once; how much there is."""
    released = await session.scalars(
        update(Operation)
        .where(Operation.status.in_(OPEN), Operation.run_after > func.clock_timestamp())
        .where(Operation.error["service"].astext == service, Operation.deferrals > 0)
        .where(Operation.error["code"].astext != ASKED_TO_WAIT)
        .values(run_after=func.clock_timestamp(), dispatched_at=None)
        .returning(Operation.id)
        .execution_options(synchronize_session=False)
    )
    number = len(released.all())
    if number:
        wake(session)
    return number


async def page(
    session: AsyncSession, service: str, *, before: UUID | None, limit: int
) -> Sequence[BreakerEvent]:
    """Up to ``limit`` events of a service, newest first, older than the one with the id ``before``."""
    query = select(BreakerEvent).where(BreakerEvent.service == service)
    if before is not None:
        query = query.where(BreakerEvent.id < before)
    return (await session.scalars(query.order_by(BreakerEvent.id.desc()).limit(limit))).all()


async def standing(session: AsyncSession, now: datetime) -> list[BreakerEvent]:
    """The newest order of each service, where it is one that lasts and has not run out."""
    newest = select(BreakerEvent).ext(distinct_on(BreakerEvent.service))
    newest = newest.order_by(BreakerEvent.service, BreakerEvent.id.desc())
    return [event for event in await session.scalars(newest) if _stands(event.after or {}, now)]


def _stands(order: dict[str, Any], now: datetime) -> bool:
    ends = order["expires_at"]
    return order["state"] in STANDING and (ends is None or datetime.fromisoformat(ends) > now)
