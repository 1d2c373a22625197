# SPDX-License-Identifier: Apache-2.0
"""Deployments: read, lock, move from state to state; which ring is open. Moving on is ``promotion``'s."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from app.domain import events, rollout
from app.domain.events import SYSTEM
from app.domain.pages import Newest, newest_first
from app.domain.policies import GatePolicy
from app.errors import ActiveDeploymentExists, IllegalTransition, NotFound, VersionMismatch
from app.models import (
    Deployment,
    DeploymentPlane,
    DeploymentStatus,
    LaneStatus,
    Ring,
    RingDeployment,
)

RECENT = (Deployment.created_at.desc(), Deployment.id.desc())
WHOLE = (selectinload(Deployment.lanes), selectinload(Deployment.deployment_planes))


async def get(session: AsyncSession, deployment_id: UUID, *, whole: bool = False) -> Deployment:
    """One deployment with its lanes, in order of rings and planes; ``whole``: with what each plane gets, too.

    Raises:
        NotFound: no such deployment.
    """
    options = WHOLE if whole else WHOLE[:1]
    query = select(Deployment).where(Deployment.id == deployment_id).options(*options)
    deployment = (await session.scalars(query.execution_options(populate_existing=True))).one_or_none()
    if deployment is None:
        raise NotFound(f"there is no deployment {deployment_id}")
    return deployment


async def exists(session: AsyncSession, deployment_id: UUID) -> None:
    """Make sure of it, without reading its lanes.

    Raises:
        NotFound: no such deployment.
    """
    if await session.scalar(select(Deployment.id).where(Deployment.id == deployment_id)) is None:
        raise NotFound(f"there is no deployment {deployment_id}")


async def lock(session: AsyncSession, deployment_id: UUID, *, version: int | None = None) -> Deployment:
    """The same, its row locked until the transaction ends: whoever moves it or a lane does this first.

    Raises:
        NotFound: no such deployment.
        VersionMismatch: ``version`` is given and is not the current one.
    """
    query = select(Deployment.id).where(Deployment.id == deployment_id).with_for_update(key_share=True)
    await session.execute(query)
    deployment = await get(session, deployment_id)
    if version is not None and version != deployment.version:
        raise VersionMismatch(f"the deployment is at version {deployment.version}, not {version}")
    return deployment


@dataclass(frozen=True, slots=True)
class Filters:
    """What a list of deployments is narrowed by; None does not narrow."""

    status: DeploymentStatus | None = None
    app_name: str | None = None
    target_ring: Ring | None = None
    plane: str | None = None
    correlation_id: UUID | None = None
    created_after: datetime | None = None


async def page(
    session: AsyncSession, filters: Filters, *, before: Newest | None = None, limit: int
) -> tuple[Sequence[Deployment], Newest | None]:
    """Deployments with lanes, as ``newest_first``."""
    query = select(Deployment).options(*WHOLE)
    exact = {
        name: value
        for name in ("status", "app_name", "target_ring", "correlation_id")
        if (value := getattr(filters, name)) is not None
    }
    query = query.filter_by(**exact)
    if filters.plane is not None:
        query = query.where(Deployment.planes.contains([filters.plane]))
    if filters.created_after is not None:
        query = query.where(Deployment.created_at > filters.created_after)
    return await newest_first(session, query, Deployment, before=before, limit=limit)


def check_status(deployment: Deployment, allowed: Collection[DeploymentStatus]) -> None:
    """Refuse what is only legal in some states.

    Raises:
        IllegalTransition: naming the state the deployment is in.
    """
    if deployment.status not in allowed:
        raise IllegalTransition(
            f"the deployment is {deployment.status.value}", status=deployment.status.value
        )


def policy_of(deployment: Deployment) -> GatePolicy:
    """The gate policy the deployment was accepted under."""
    return GatePolicy.from_json(deployment.gates)


def ring_lanes(deployment: Deployment, ring: Ring) -> list[RingDeployment]:
    """The deployment's lanes of one ring."""
    return [lane for lane in deployment.lanes if lane.ring is ring]


def current_ring(deployment: Deployment) -> Ring:
    """The newest ring that was begun, or the first."""
    begun = [lane for lane in deployment.lanes if lane.status is not LaneStatus.PENDING]
    return max(begun, key=lambda lane: lane.position).ring if begun else rollout.RINGS[0]


def touch(deployment: Deployment, now: datetime) -> None:
    """A status, a flag or the plan changed: the version rises."""
    deployment.version += 1
    deployment.updated_at = now


async def move(
    session: AsyncSession,
    deployment: Deployment,
    status: DeploymentStatus,
    *,
    actor: str = SYSTEM,
    now: datetime,
    reason: str | None = None,
) -> None:
    """Change the state, with its event; a final state lets another deployment of the application start.

    Raises:
        IllegalTransition: the table does not have the move.
        ActiveDeploymentExists: it leaves a final state while another deployment of the application is active.
    """
    before = deployment.status
    rollout.check_deployment_move(before, status)
    deployment.status, deployment.status_since = status, now
    touch(deployment, now)
    final = status in rollout.FINAL
    deployment.finished_at = now if final else None
    if final or before in rollout.FINAL:
        await _set_active(session, deployment, active=not final)
    change: dict[str, Any] = {"status": status.value}
    if reason is not None:
        change["reason"] = reason
    told: dict[str, Mapping[str, Any]] = {"before": {"status": before.value}, "after": change}
    events.record(session, deployment, f"deployment.{status.value.lower()}", actor=actor, now=now, **told)
    await session.flush()


async def _set_active(session: AsyncSession, deployment: Deployment, *, active: bool) -> None:
    change = (
        update(DeploymentPlane).where(DeploymentPlane.deployment_id == deployment.id).values(active=active)
    )
    try:
        async with session.begin_nested():
            await session.execute(change)
    except IntegrityError as error:
        others = await _active_deployments(session, deployment)
        raise ActiveDeploymentExists(f"{deployment.app_name} is being deployed by {others}") from error


async def _active_deployments(session: AsyncSession, deployment: Deployment) -> str:
    same_name = func.lower(DeploymentPlane.app_name) == func.lower(deployment.app_name)
    query = select(DeploymentPlane.deployment_id).where(DeploymentPlane.active, same_name)
    found = await session.scalars(query.where(DeploymentPlane.plane.in_(deployment.planes)).distinct())
    return "deployment " + ", ".join(str(deployment_id) for deployment_id in found)


async def set_paused(
    session: AsyncSession,
    deployment: Deployment,
    *,
    paused: bool,
    actor: str,
    now: datetime,
    reason: str | None,
) -> None:
    """Set or clear the flag, with its event; nothing happens where it already holds."""
    if deployment.paused is paused:
        return
    before = deployment.paused
    deployment.paused = paused
    deployment.paused_by, deployment.paused_at = (actor, now) if paused else (None, None)
    deployment.pause_reason = reason if paused else None
    touch(deployment, now)
    kind = "deployment.paused" if paused else "deployment.resumed"
    told: dict[str, Mapping[str, Any]] = {
        "before": {"paused": before},
        "after": {"paused": paused, "reason": reason},
    }
    events.record(session, deployment, kind, actor=actor, now=now, **told)
    await session.flush()


async def move_lane(
    session: AsyncSession,
    deployment: Deployment,
    lane: RingDeployment,
    status: LaneStatus,
    *,
    now: datetime,
    actor: str = SYSTEM,
    **told: Any,
) -> None:
    """Change a lane's state, with its event; ``told`` is added to the event.

    Raises:
        IllegalTransition: the table does not have the move.
    """
    before = lane.status
    rollout.check_lane_move(before, status)
    lane.status, lane.status_since = status, now
    lane.held_for = lane.held_for if status is LaneStatus.HELD else None
    lane.reserved = lane.reserved if status in rollout.UNVERIFIED else 0
    touch(deployment, now)
    where = {"ring": lane.ring.value, "plane": lane.plane}
    events.record(
        session,
        deployment,
        f"lane.{status.value.lower()}",
        actor=actor,
        now=now,
        before={**where, "status": before.value},
        after={**where, "status": status.value, **told},
    )
    await session.flush()


def following(ring: Ring) -> Ring:
    """The ring after this one; there is none after the last."""
    return rollout.RINGS[rollout.RINGS.index(ring) + 1]
