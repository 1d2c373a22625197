# SPDX-License-Identifier: Apache-2.0
"""The history of a deployment: written in the transaction of the change it tells, in order, without gaps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import exists, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import operations, rollout
from app.models import Deployment, Event, Operation, RingDeployment

SYSTEM = "system"
"""The actor of what the control plane does by itself."""


def record(
    session: AsyncSession,
    deployment: Deployment,
    kind: str,
    *,
    actor: str,
    now: datetime,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> Event:
    """Add the next event. The caller holds the deployment's row lock, so the sequence has no gaps."""
    deployment.event_sequence += 1
    event = Event(
        deployment_id=deployment.id,
        sequence=deployment.event_sequence,
        type=kind,
        actor=actor,
        at=now,
        before=dict(before) if before is not None else None,
        after=dict(after) if after is not None else None,
        correlation_id=deployment.correlation_id,
    )
    session.add(event)
    return event


async def page(session: AsyncSession, deployment_id: UUID, *, after: int, limit: int) -> Sequence[Event]:
    """Up to ``limit`` events with a sequence greater than ``after``, in order."""
    query = select(Event).where(Event.deployment_id == deployment_id, Event.sequence > after)
    return (await session.scalars(query.order_by(Event.sequence).limit(limit))).all()


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest event of a deployment; ``final`` says that nothing more comes by itself.

    A deployment that failed on one plane may still be measured on another.
    """

    sequence: int
    final: bool


async def newest(session: AsyncSession, deployment_ids: Sequence[UUID]) -> dict[UUID, Newest]:
    """How far the history of each of these deployments is; one statement for all that are watched."""
    works = exists().where(
        RingDeployment.deployment_id == Deployment.id,
        Operation.id == RingDeployment.operation_id,
        Operation.status.not_in(operations.ENDED),
    )
    query = select(Deployment.id, Deployment.event_sequence, Deployment.status, works.label("goes_on"))
    rows = await session.execute(query.where(Deployment.id.in_(deployment_ids)))
    return {
        row.id: Newest(row.event_sequence, row.status in rollout.FINAL and not row.goes_on) for row in rows
    }
