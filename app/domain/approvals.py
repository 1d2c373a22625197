# SPDX-License-Identifier: Apache-2.0
"""Requests to the change advisory board: what one is about, how it is made, found and settled."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from app.domain import digests, events, rollout
from app.domain.events import SYSTEM
from app.domain.facts import Decision, Facts
from app.domain.pages import Newest, newest_first
from app.errors import NotFound
from app.models import Approval, ApprovalStatus, Deployment, DeploymentPlane, Ring, WayBack

WAIT, URGENT_WAIT = timedelta(hours=48), timedelta(hours=24)
"""How long a request waits for its decision; the second where the application is critical."""
URGENT = "critical"


def wait(criticality: str) -> timedelta:
    """How long a request about an application of this criticality waits for its decision."""
    return URGENT_WAIT if criticality == URGENT else WAIT


def digest_of(app: str, version: str, packages: Mapping[str, Any], target_ring: Ring) -> str:
    """What a decision is bound to: 64 hexadecimal digits over application, version, packages and ring.

    ``packages`` are JSON by plane. The same content has the same digest, also after it was stored.
    """
    content = {"app": app, "version": version, "packages": dict(packages), "target_ring": target_ring.value}
    return digests.digest(content)


async def planes_of(session: AsyncSession, deployment_id: UUID) -> Sequence[DeploymentPlane]:
    """What each plane gets in a deployment, by plane."""
    query = select(DeploymentPlane).filter_by(deployment_id=deployment_id).order_by(DeploymentPlane.plane)
    return (await session.scalars(query)).all()


def digest_now(deployment: Deployment, planes: Sequence[DeploymentPlane]) -> str:
    """The digest of what the deployment would push now."""
    packages = {plane.plane: plane.package for plane in planes}
    return digest_of(deployment.app_name, deployment.app_version, packages, deployment.target_ring)


async def newest(session: AsyncSession, deployment_id: UUID) -> Approval | None:
    """The newest request about a deployment."""
    query = select(Approval).filter_by(deployment_id=deployment_id).order_by(Approval.id.desc())
    return (await session.scalars(query.limit(1))).one_or_none()


async def granted(session: AsyncSession, deployment_id: UUID) -> Approval | None:
    """The newest request about a deployment that was approved."""
    query = select(Approval).filter_by(deployment_id=deployment_id, status=ApprovalStatus.APPROVED)
    return (await session.scalars(query.order_by(Approval.id.desc()).limit(1))).one_or_none()


def decision_of(approval: Approval | None) -> Decision | None:
    """A request as guards look at it."""
    if approval is None:
        return None
    return Decision(
        status=approval.status,
        digest=approval.digest,
        requested_at=approval.created_at,
        expires_at=approval.expires_at,
        exception_expires_at=approval.exception_expires_at,
        irreversible=frozenset(approval.irreversible),
    )


async def facts_of(session: AsyncSession, deployment: Deployment, *, now: datetime) -> Facts:
    """What the guards look at that only a decision removes."""
    planes, asked = await planes_of(session, deployment.id), await newest(session, deployment.id)
    decided = asked is None or asked.status is ApprovalStatus.APPROVED
    return Facts(
        now=now,
        digest=digest_now(deployment, planes),
        decision=decision_of(asked),
        granted=decision_of(asked if decided else await granted(session, deployment.id)),
        ways_back={plane.plane: plane.way_back for plane in planes},
    )


async def request(session: AsyncSession, deployment: Deployment, *, now: datetime) -> Approval:
    """Ask the board, unless an open request asks the same already. The deployment is locked.

    An open one about other content, or without a plane known to be irreversible by now, is replaced.
    """
    planes = await planes_of(session, deployment.id)
    digest = digest_now(deployment, planes)
    stuck = sorted(plane.plane for plane in planes if plane.way_back is WayBack.NONE)
    asked = await newest(session, deployment.id)
    if asked is not None and asked.status is ApprovalStatus.PENDING:
        if asked.digest == digest and asked.irreversible == stuck:
            return asked
        await settle(session, deployment, asked, ApprovalStatus.WITHDRAWN, now=now)
    made = Approval(
        deployment_id=deployment.id,
        digest=digest,
        submitted_by=deployment.submitted_by,
        expires_at=now + wait(deployment.criticality),
        irreversible=stuck,
        created_at=now,
    )
    session.add(made)
    told = {"digest": digest, "expires_at": made.expires_at.isoformat(), "irreversible": stuck}
    events.record(session, deployment, "approval.requested", actor=SYSTEM, now=now, after=told)
    await session.flush()
    return made


async def settle(
    session: AsyncSession,
    deployment: Deployment,
    approval: Approval,
    status: ApprovalStatus,
    *,
    now: datetime,
    actor: str = SYSTEM,
    **told: Any,
) -> None:
    """Close a request, with its event. The deployment is locked.

    Raises:
        IllegalTransition: it is closed already.
    """
    rollout.check_approval_move(approval.status, status)
    before = approval.status
    approval.status, approval.settled_at = status, now
    approval.version += 1
    after = {"status": status.value, "digest": approval.digest, **told}
    kind = f"approval.{status.value.lower()}"
    change: dict[str, Mapping[str, Any]] = {"before": {"status": before.value}, "after": after}
    events.record(session, deployment, kind, actor=actor, now=now, **change)
    await session.flush()


async def withdraw(session: AsyncSession, deployment: Deployment, *, now: datetime) -> None:
    """Close the open request of a deployment that needs no decision any more."""
    asked = await newest(session, deployment.id)
    if asked is not None and asked.status is ApprovalStatus.PENDING:
        await settle(session, deployment, asked, ApprovalStatus.WITHDRAWN, now=now)


async def get(session: AsyncSession, approval_id: UUID) -> Approval:
    """One request with its deployment.

    Raises:
        NotFound: no such request.
    """
    query = select(Approval).where(Approval.id == approval_id).options(selectinload(Approval.deployment))
    found = (await session.scalars(query.execution_options(populate_existing=True))).one_or_none()
    if found is None:
        raise NotFound(f"there is no approval {approval_id}")
    return found


async def page(
    session: AsyncSession,
    *,
    status: ApprovalStatus | None,
    deployment_id: UUID | None,
    before: Newest | None,
    limit: int,
) -> tuple[Sequence[Approval], Newest | None]:
    """Requests with deployments, as ``newest_first``."""
    query = select(Approval).options(selectinload(Approval.deployment))
    if status is not None:
        query = query.filter_by(status=status)
    if deployment_id is not None:
        query = query.filter_by(deployment_id=deployment_id)
    return await newest_first(session, query, Approval, before=before, limit=limit)
