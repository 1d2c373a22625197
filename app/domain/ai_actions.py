# SPDX-License-Identifier: Apache-2.0
"""What was approved is carried out: just that, once, by the functions that people's commands go through.

Before each action everything is looked at anew: that what stands in the task is what its approval is bound
to, by the digest kept with it and by the one in the deployment's history, that it still holds, and that
whoever approved it may still do so. An action's row is written in the transaction of what it does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app import security
from app.connectors.contract import Manifest, Plane
from app.domain import accounts, ai_tasks, commands, proposals, retries, rollback
from app.domain.budgets import Limits
from app.domain.operations import Failure
from app.domain.proposals import Action, ActionKind, ProposalDenied
from app.errors import ControlPlaneError
from app.models import ActionOutcome, AiAction, AiTask, AiTaskStatus, Deployment, Event
from app.models.base import Json
from app.security import Permission


@dataclass(frozen=True, slots=True)
class Means:
    """What actions need beside the database: what planes can do, the budgets, and the time."""

    manifests: Mapping[Plane, Manifest]
    limits: Limits
    now: datetime


async def begin(session: AsyncSession, task_id: UUID, means: Means) -> int | None:
    """How many actions there are to be carried out; None if the task is not approved, or is refused now."""
    deployment, task = await ai_tasks.lock_both(session, task_id)
    if task.status not in {AiTaskStatus.APPROVED, AiTaskStatus.EXECUTING}:
        return None
    if await _refused(session, deployment, task, means):
        return None
    if task.status is AiTaskStatus.APPROVED:
        await ai_tasks.move(session, task, AiTaskStatus.EXECUTING, now=means.now)
    return len(task.actions or [])


@dataclass(frozen=True, slots=True)
class Carried:
    """What became of one action; ``again``: it was so before."""

    kind: ActionKind
    outcome: ActionOutcome
    again: bool = False


async def carry_out(session: AsyncSession, task_id: UUID, position: int, means: Means) -> Carried | None:
    """One action, unless it was carried out before; None if the task came to its end instead.

    What the rules refuse is written down as refused, and ends the task.
    """
    deployment, task = await ai_tasks.lock_both(session, task_id)
    if task.status is not AiTaskStatus.EXECUTING or task.actions is None:
        return None
    done = await session.get(AiAction, (task.id, position))
    if done is not None:
        return Carried(ActionKind(task.actions[position]["action"]), done.outcome, again=True)
    if await _refused(session, deployment, task, means, position):
        return None
    action = Action.from_json(task.actions[position])
    made = await _perform(session, deployment, task, action, means)
    row = AiAction(task_id=task.id, position=position, at=means.now, **made)
    session.add(row)
    told = {"position": position, "action": action.kind.value, "on_behalf_of": task.decided_by}
    told |= {"outcome": row.outcome.value, "detail": row.detail}
    ai_tasks.record(session, deployment, task, "executed", actor=actor_of(task), now=means.now, **told)
    if row.outcome is ActionOutcome.REFUSED:
        failure = Failure("policy_violation", "action_refused", f"{action.kind.value}: {row.detail}")
        await ai_tasks.end(session, deployment, task, AiTaskStatus.FAILED, failure, now=means.now)
    await session.flush()
    return Carried(action.kind, row.outcome)


async def finish(session: AsyncSession, task_id: UUID, means: Means) -> AiTask:
    """All actions are carried out, if the task has not come to another end; it as it is then."""
    task = await ai_tasks.lock(session, task_id)
    if task.status is AiTaskStatus.EXECUTING:
        await ai_tasks.move(session, task, AiTaskStatus.COMPLETED, now=means.now)
    return task


def actor_of(task: AiTask) -> str:
    """As whom the task acts; the history says on whose behalf."""
    return f"ai:{task.id}"


async def _refused(
    session: AsyncSession, deployment: Deployment, task: AiTask, means: Means, position: int | None = None
) -> bool:
    """Whether what stands there must not be carried out; the task has come to its end then."""
    why = await why_not(session, task, means.now)
    if why is None and position is not None and await _told(session, task, position):
        why = ALTERED
    if why is None:
        return False
    status = AiTaskStatus.EXPIRED if why is EXPIRED else AiTaskStatus.FAILED
    await ai_tasks.end(session, deployment, task, status, why, now=means.now)
    return True


EXPIRED = Failure("policy_violation", "proposal_expired", "the proposal does not hold any more")
ALTERED = Failure("policy_violation", "proposal_altered", "what is stored is not what was approved")
UNAPPROVED = Failure("policy_violation", "approver_gone", "whoever approved it may not do so any more")


async def why_not(session: AsyncSession, task: AiTask, now: datetime) -> Failure | None:
    """Why the task must not be carried out as it stands; None: it may be."""
    digest = _digest_of_valid(task)
    if digest is None or digest != task.approved_digest or digest != task.digest:
        return ALTERED
    if await _approval(session, task) != ai_tasks.approval(task):
        return ALTERED
    if task.expires_at is None or task.expires_at <= now:
        return EXPIRED
    approver = await accounts.current(session, task.decided_by_id, now) if task.decided_by_id else None
    if approver is None or approver.name != task.decided_by or approver.name.lower() == task.author.lower():
        return UNAPPROVED
    return None if security.allows(approver.role, Permission.AI_DECIDE) else UNAPPROVED


def _digest_of_valid(task: AiTask) -> str | None:
    """The digest of the proposal as it stands; None if it holds what no proposal may hold."""
    try:
        proposals.stored(task.kind, task.deployment_id, task.actions)
    except ProposalDenied:
        return None
    return ai_tasks.digest_now(task)


async def _approval(session: AsyncSession, task: AiTask) -> Json | None:
    """What the history tells of the newest approval of this task by the one who stands in it."""
    query = select(Event.after).where(
        Event.deployment_id == task.deployment_id,
        Event.type == "ai_task.approved",
        Event.actor == task.decided_by,
        Event.after["task"].astext == str(task.id),
    )
    found: Json | None = await session.scalar(query.order_by(Event.sequence.desc()).limit(1))
    return found


async def _told(session: AsyncSession, task: AiTask, position: int) -> bool:
    """Whether the history tells that this action was carried out: its row was there, and is gone."""
    query = select(Event.sequence).where(
        Event.deployment_id == task.deployment_id,
        Event.type == "ai_task.executed",
        Event.actor == actor_of(task),
        Event.after["position"].as_integer() == position,
    )
    return await session.scalar(query.limit(1)) is not None


async def _perform(
    session: AsyncSession, deployment: Deployment, task: AiTask, action: Action, means: Means
) -> dict[str, object]:
    """What came of it, as columns of ``AiAction``; what is refused has changed nothing."""
    try:
        async with session.begin_nested():
            started = await _order(session, deployment.id, task, action, means)
    except ControlPlaneError as error:
        for changed in (deployment, task):  # as they are without what was undone
            await session.refresh(changed)
        return {"outcome": ActionOutcome.REFUSED, "detail": error.detail[:1000]}
    return {"outcome": ActionOutcome.DONE, "operation_id": started}


async def _order(
    session: AsyncSession, deployment_id: UUID, task: AiTask, action: Action, means: Means
) -> UUID | None:
    """The action as a person would order it, with the budgets a person has."""
    approval = f"approved by {task.decided_by}" + (f": {task.reason}" if task.reason else "")
    reason = f"{action.reason} ({approval})"[:2000]
    actor, now = actor_of(task), means.now
    if action.kind is ActionKind.ROLLBACK:
        _, started = await rollback.begin(session, deployment_id, actor=actor, now=now, reason=reason)
    elif action.kind is ActionKind.PAUSE:
        await commands.pause(session, deployment_id, actor=actor, now=now, reason=reason)
        started = None
    else:
        _, started = await retries.retry(
            session,
            deployment_id,
            manifests=means.manifests,
            limits=means.limits,
            actor=actor,
            now=now,
            reason=reason,
        )
    return started
