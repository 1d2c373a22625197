# SPDX-License-Identifier: Apache-2.0
"""What the guards look at, read from the database; and the blockers of one deployment."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import approvals, budgets, deployments, devices, freezes, guards, operations
from app.domain.budgets import Limits
from app.domain.facts import Blocker, Facts, Work
from app.models import Deployment, LaneStatus, Operation, OperationStatus, RingDeployment


async def facts_of(
    session: AsyncSession,
    deployment: Deployment,
    *,
    now: datetime,
    limits: Limits,
    lane: RingDeployment | None = None,
) -> Facts:
    """Everything the guards of the deployment look at; with ``lane`` also how many devices that one needs."""
    return replace(
        await approvals.facts_of(session, deployment, now=now),
        freezes=await freezes.ahead(session, now),
        windows=await freezes.windows(session),
        budget=await budgets.budget(session, limits, without=lane.id if lane else None),
        needed={lane.id: await devices.count_members(session, lane.id)} if lane else {},
    )


async def of_deployment(
    session: AsyncSession, deployment_id: UUID, *, now: datetime, limits: Limits
) -> list[Blocker]:
    """Why the deployment does not move: empty exactly when it moves or is over.

    Raises:
        NotFound: no such deployment.
    """
    deployment = await deployments.get(session, deployment_id)
    facts = await facts_of(session, deployment, now=now, limits=limits)
    unpushed = [lane for lane in deployment.lanes if lane.status is LaneStatus.PUSHING]
    facts = replace(
        facts,
        needed={lane.id: await devices.count_members(session, lane.id) for lane in unpushed},
        work=await _work(session, deployment.lanes),
        soak_ends=_soak_ends(deployment, now),
    )
    return guards.blockers(deployment, facts)


async def _work(session: AsyncSession, lanes: Iterable[RingDeployment]) -> dict[UUID, Work]:
    ids = [lane.operation_id for lane in lanes if lane.operation_id is not None]
    rows = await session.scalars(select(Operation).where(Operation.id.in_(ids)))
    return {
        row.id: Work(row.status is OperationStatus.WAITING, row.run_after, row.error)
        for row in rows
        if row.status not in operations.ENDED
    }


def _soak_ends(deployment: Deployment, now: datetime) -> dict[UUID, datetime]:
    """When each measured lane has soaked enough, if its measurements stay fresh."""
    policy = deployments.policy_of(deployment)
    return {
        lane.id: (lane.measured_at or now)
        + max(policy.gates[lane.ring].soak - lane.soak_elapsed, timedelta(0))
        for lane in deployment.lanes
        if lane.status is LaneStatus.MEASURING
    }
