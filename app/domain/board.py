# SPDX-License-Identifier: Apache-2.0
"""The change advisory board decides: yes, with or without an exception, no, or nothing in time."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import approvals, deployments, operations, promotion, risk, withdrawal
from app.domain.events import SYSTEM
from app.errors import (
    FieldError,
    IllegalTransition,
    Invalid,
    OwnSubmission,
    ScopeChangeRequired,
    VersionMismatch,
)
from app.models import Approval, ApprovalStatus, Deployment, DeploymentStatus

EXCEPTION_ABOVE = 75
"""Scores above this are approved only with an exception."""
EXCEPTION_DAYS = timedelta(days=30)
SHORTEST, LONGEST = timedelta(days=1), timedelta(days=90)


@dataclass(frozen=True, slots=True)
class ExceptionGiven:
    """Why a risk is borne for a while, and until when; None: for the usual 30 days."""

    compensating_controls: str
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an approver says. ``digest``: of what they looked at, if they say so; see ``Approval``."""

    reason: str
    conditions: str | None = None
    exception: ExceptionGiven | None = None
    digest: str | None = None


async def approve(
    session: AsyncSession,
    approval_id: UUID,
    verdict: Verdict,
    *,
    actor: str,
    now: datetime,
    version: int | None = None,
) -> tuple[Approval, UUID | None]:
    """Say yes; the request, and the first operation that the decision started. A repeat changes nothing.

    Locks the deployment, then the request.

    Raises:
        NotFound, VersionMismatch: no such request, or another version of it.
        IllegalTransition: it is decided otherwise, or ran out.
        OwnSubmission: the approver submitted the deployment.
        ScopeChangeRequired: it is not what was asked about any more.
        Invalid: an exception is missing, or too short or long.
    """
    deployment, approval = await _open(session, approval_id, actor=actor, version=version)
    if approval.status is ApprovalStatus.APPROVED and approval.decided_by == actor:
        return approval, None
    await _check_open(session, deployment, approval, verdict, now=now)
    _set_exception(deployment, approval, verdict.exception, now=now)
    approval.decided_by, approval.reason, approval.conditions = actor, verdict.reason, verdict.conditions
    told = {"reason": verdict.reason, "conditions": verdict.conditions}
    if approval.exception_expires_at is not None:
        told["exception_expires_at"] = approval.exception_expires_at.isoformat()
    await approvals.settle(
        session, deployment, approval, ApprovalStatus.APPROVED, actor=actor, now=now, **told
    )
    return approval, await _go_on(session, deployment, now=now)


async def _go_on(session: AsyncSession, deployment: Deployment, *, now: datetime) -> UUID | None:
    """Start what waited for the decision."""
    if deployment.status is not DeploymentStatus.AWAITING_CAB:
        return None
    await deployments.move(session, deployment, DeploymentStatus.APPROVED, now=now)
    ring = promotion.ring_to_begin(deployment)
    if any(lane.started_at for lane in deployments.ring_lanes(deployment, ring)):
        await deployments.move(session, deployment, DeploymentStatus.DEPLOYING, now=now)
        await operations.hasten(session, deployment.id)
        return None
    if deployment.paused:
        return None
    return await promotion.begin_ring(session, deployment, ring, now=now)


async def reject(
    session: AsyncSession,
    approval_id: UUID,
    verdict: Verdict,
    *,
    actor: str,
    now: datetime,
    version: int | None = None,
) -> tuple[Approval, UUID | None]:
    """Say no: the deployment ends where it is; the first operation that withdraws, if one has to.

    Raises:
        As ``approve``; IllegalTransition also where the deployment is over or being taken back.
    """
    deployment, approval = await _open(session, approval_id, actor=actor, version=version)
    if approval.status is ApprovalStatus.REJECTED and approval.decided_by == actor:
        return approval, None
    await _check_open(session, deployment, approval, verdict, now=now)
    approval.decided_by, approval.reason, approval.conditions = actor, verdict.reason, verdict.conditions
    told = {"reason": verdict.reason}
    await approvals.settle(
        session, deployment, approval, ApprovalStatus.REJECTED, actor=actor, now=now, **told
    )
    started = await withdrawal.stop(
        session, deployment, DeploymentStatus.REJECTED, actor=actor, now=now, reason=verdict.reason
    )
    return approval, started


async def _open(
    session: AsyncSession, approval_id: UUID, *, actor: str, version: int | None
) -> tuple[Deployment, Approval]:
    """The request with its deployment, both locked."""
    approval = await approvals.get(session, approval_id)
    deployment = await deployments.lock(session, approval.deployment_id)
    await session.refresh(approval)
    if version is not None and approval.version != version:
        raise VersionMismatch(f"the approval is at version {approval.version}, not {version}")
    if actor.lower() == approval.submitted_by.lower():
        raise OwnSubmission(f"{actor} submitted the deployment: another person must decide")
    return deployment, approval


async def _check_open(
    session: AsyncSession, deployment: Deployment, approval: Approval, verdict: Verdict, *, now: datetime
) -> None:
    if approval.status is not ApprovalStatus.PENDING or approval.expires_at <= now:
        status = ApprovalStatus.EXPIRED if approval.expires_at <= now else approval.status
        raise IllegalTransition(f"the request is {status.value}", status=status.value)
    content = approvals.digest_now(deployment, await approvals.planes_of(session, deployment.id))
    if content != approval.digest or verdict.digest not in {None, approval.digest}:
        detail = "the content is not what the request is about: submit it anew and ask for another decision"
        raise ScopeChangeRequired(detail, requested=approval.digest, current=content)


def _set_exception(
    deployment: Deployment, approval: Approval, given: ExceptionGiven | None, *, now: datetime
) -> None:
    critical = deployment.risk_factors["sbom_vulnerability"] >= risk.CRITICAL
    if given is None:
        if critical or deployment.risk_score > EXCEPTION_ABOVE:
            why = "a critical vulnerability" if critical else f"a risk score above {EXCEPTION_ABOVE}"
            wrong = FieldError("/exception", f"{why} is approved only with an exception")
            raise Invalid("an exception is required", wrong)
        return
    ends = given.expires_at or now + EXCEPTION_DAYS
    if not now + SHORTEST <= ends <= now + LONGEST:
        wrong = FieldError("/exception/expires_at", "must lie 1 to 90 days ahead")
        raise Invalid("the exception breaks a rule", wrong)
    approval.exception_expires_at, approval.compensating_controls = ends, given.compensating_controls


async def overdue(session: AsyncSession, *, now: datetime, limit: int = 100) -> list[UUID]:
    """The deployments whose open request has run out, for ``expire``."""
    query = select(Approval.deployment_id).where(
        Approval.status == ApprovalStatus.PENDING, Approval.expires_at <= now
    )
    return list(await session.scalars(query.limit(limit)))


async def expire(session: AsyncSession, deployment_id: UUID, *, now: datetime) -> bool:
    """Close the request of a deployment that ran out undecided; False if somebody was quicker.

    A deployment that waits for just this decision is paused: whoever resumes it asks again.
    """
    deployment = await deployments.lock(session, deployment_id)
    approval = await approvals.newest(session, deployment_id)
    if approval is None or approval.status is not ApprovalStatus.PENDING or approval.expires_at > now:
        return False
    await approvals.settle(session, deployment, approval, ApprovalStatus.EXPIRED, now=now)
    if deployment.status is DeploymentStatus.AWAITING_CAB:
        reason = "nobody decided in time: resuming it asks the board again"
        await deployments.set_paused(session, deployment, paused=True, actor=SYSTEM, now=now, reason=reason)
    return True
