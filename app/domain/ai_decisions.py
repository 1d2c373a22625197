# SPDX-License-Identifier: Apache-2.0
"""People decide on what the assistant proposes: yes, no, or once more. Nobody says yes to their own task."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import ai_tasks, events, proposals
from app.domain.accounts import Actor
from app.domain.ai_tasks import CARRY_OUT, PROPOSE
from app.domain.proposals import ProposalDenied
from app.errors import IllegalTransition, OwnSubmission, ScopeChangeRequired, VersionMismatch
from app.models import AiTask, AiTaskStatus, Deployment

MOST_REVISIONS = 5
_T = AiTaskStatus
APPROVED = frozenset({_T.APPROVED, _T.EXECUTING, _T.COMPLETED})


@dataclass(frozen=True, slots=True)
class Decision:
    """Who says what, and when. ``digest``: of the proposal they looked at; ``version``: of the task."""

    actor: Actor
    reason: str | None
    now: datetime
    digest: str | None = None
    version: int | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """As it is stored with the task."""
        return {
            "decided_by": self.actor.name,
            "decided_by_id": self.actor.id,
            "decided_at": self.now,
            "reason": self.reason,
        }


async def approve(session: AsyncSession, task_id: UUID, decision: Decision) -> tuple[AiTask, UUID | None]:
    """Say yes to just this proposal; the task, and the operation that carries it out.

    The decision stands in the deployment's history too, which nobody can change afterwards. A repeat changes
    nothing.

    Raises:
        NotFound, VersionMismatch: no such task, or another version of it.
        OwnSubmission: it is the approver's own.
        IllegalTransition: there is nothing to decide, or its time is over.
        ScopeChangeRequired: ``digest`` is given and is not the proposal's; or it was proposed more than once
            and is not said which one is meant.
    """
    deployment, task = await _decidable(session, task_id, decision)
    same = task.decided_by == decision.actor.name and decision.digest in {None, task.approved_digest}
    if task.status in APPROVED and same:
        return task, task.operation_id
    if decision.actor.name.lower() == task.author.lower():
        raise OwnSubmission("nobody approves what was proposed for themselves")
    _check(task, decision)
    _check_named(task, decision)
    _check_whole(task)
    columns = {"approved_digest": task.digest, **decision.columns}
    await ai_tasks.move(session, task, AiTaskStatus.APPROVED, now=decision.now, **columns)
    told = ai_tasks.approval(task)
    events.record(
        session, deployment, "ai_task.approved", actor=decision.actor.name, now=decision.now, after=told
    )
    return task, await ai_tasks.enqueue(session, task, CARRY_OUT)


async def reject(session: AsyncSession, task_id: UUID, decision: Decision) -> AiTask:
    """Say no, for good; a repeat changes nothing. Errors as ``approve``, but one's own may be rejected."""
    deployment, task = await _decidable(session, task_id, decision)
    if task.status is AiTaskStatus.REJECTED and task.decided_by == decision.actor.name:
        return task
    _check(task, decision)
    await ai_tasks.move(session, task, AiTaskStatus.REJECTED, now=decision.now, **decision.columns)
    _record(session, deployment, task, "rejected", decision)
    await session.flush()
    return task


async def request_revision(
    session: AsyncSession, task_id: UUID, decision: Decision
) -> tuple[AiTask, UUID | None]:
    """Have another proposal made with the reason in mind; the task, and the operation that makes it.

    Errors as ``reject``; a repeat changes nothing.
    """
    deployment, task = await _decidable(session, task_id, decision)
    if task.status is AiTaskStatus.REVISION_REQUESTED and decision.reason in {None, task.revision_note}:
        return task, task.operation_id
    _check(task, decision)
    if task.revision >= MOST_REVISIONS:
        detail = f"it was proposed {task.revision} times: ask for a new task"
        raise IllegalTransition(detail, status=task.status.value)
    columns = {"revision_note": decision.reason or "make another proposal"}
    await ai_tasks.move(session, task, AiTaskStatus.REVISION_REQUESTED, now=decision.now, **columns)
    _record(session, deployment, task, "revision_requested", decision)
    return task, await ai_tasks.enqueue(session, task, PROPOSE)


async def _decidable(session: AsyncSession, task_id: UUID, decision: Decision) -> tuple[Deployment, AiTask]:
    deployment, task = await ai_tasks.lock_both(session, task_id)
    if decision.version is not None and decision.version != task.version:
        raise VersionMismatch(f"the task is at version {task.version}, not {decision.version}")
    return deployment, task


def _check(task: AiTask, decision: Decision) -> None:
    status = task.status.value
    if task.status is not AiTaskStatus.AWAITING_APPROVAL:
        raise IllegalTransition(f"the task is {status}, not AWAITING_APPROVAL", status=status)
    if decision.digest not in {None, task.digest}:
        raise ScopeChangeRequired("the proposal is not what was looked at: read it again")
    if task.expires_at is None or task.expires_at <= decision.now:
        raise IllegalTransition("the proposal has expired: ask for a new one", status=status)


def _check_named(task: AiTask, decision: Decision) -> None:
    """That it is said which one is meant, where there was more than one."""
    if task.revision > 1 and decision.digest is None and decision.version is None:
        raise ScopeChangeRequired(
            f"it was proposed {task.revision} times: give the `digest` of the proposal that is meant"
        )


def _check_whole(task: AiTask) -> None:
    """That it is what was proposed, and what may be. What is not can still be rejected, or be made anew."""
    try:
        proposals.stored(task.kind, task.deployment_id, task.actions)
    except ProposalDenied as error:
        raise ScopeChangeRequired(f"the proposal is not what may be proposed: {error}") from error
    if ai_tasks.digest_now(task) != task.digest:
        raise ScopeChangeRequired("the proposal is not what was proposed: reject it")


def _record(
    session: AsyncSession, deployment: Deployment, task: AiTask, what: str, decision: Decision, **told: Any
) -> None:
    told["reason"] = decision.reason
    ai_tasks.record(session, deployment, task, what, actor=decision.actor.name, now=decision.now, **told)
