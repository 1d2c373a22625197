# SPDX-License-Identifier: Apache-2.0
"""Tasks of the assistant: asked for, proposed, over. ``ai_decisions`` and ``ai_actions`` have the rest.

Locks: the deployment, the operation, the task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import ai_calls, deployments, events, operations, proposals, rollout
from app.domain.accounts import Actor
from app.domain.ai_calls import Allowance
from app.domain.events import SYSTEM
from app.domain.operations import Failure, OperationKind, Subject
from app.domain.pages import Newest, newest_first
from app.domain.proposals import Proposal
from app.errors import FieldError, IllegalTransition, Invalid, NotFound
from app.models import (
    AiAction,
    AiTask,
    AiTaskKind,
    AiTaskStatus,
    Deployment,
    Operation,
    OperationStatus,
    new_id,
)
from app.models.base import Json

_T = AiTaskStatus
MOVES: Mapping[AiTaskStatus, frozenset[AiTaskStatus]] = MappingProxyType(
    {
        _T.PENDING: frozenset({_T.RUNNING, _T.FAILED}),
        _T.RUNNING: frozenset({_T.AWAITING_APPROVAL, _T.FAILED}),
        _T.AWAITING_APPROVAL: frozenset({_T.APPROVED, _T.REJECTED, _T.REVISION_REQUESTED, _T.EXPIRED}),
        _T.REVISION_REQUESTED: frozenset({_T.RUNNING, _T.FAILED}),
        _T.APPROVED: frozenset({_T.EXECUTING, _T.FAILED, _T.EXPIRED}),
        _T.EXECUTING: frozenset({_T.COMPLETED, _T.FAILED, _T.EXPIRED}),
        _T.REJECTED: frozenset(),
        _T.COMPLETED: frozenset(),
        _T.FAILED: frozenset({_T.PENDING}),
        _T.EXPIRED: frozenset(),
    }
)
FINISHED = frozenset({_T.REJECTED, _T.COMPLETED, _T.FAILED, _T.EXPIRED})
PROPOSING = frozenset({_T.PENDING, _T.RUNNING, _T.REVISION_REQUESTED})
CANCELLED = Failure("transient", "cancelled", "its operation was cancelled")
PROPOSE, CARRY_OUT = "propose", "carry_out"
"""The two halves of a task, as its operations are told them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A proposal to be made: for whom, about what, and how far it has come.

    ``note`` is what was to be different from the proposal before, ``before`` the text of that one.
    """

    task_id: UUID
    kind: AiTaskKind
    deployment_id: UUID
    author_id: UUID
    instructions: str | None
    note: str | None
    before: str | None
    steps: tuple[Json, ...]


async def request(
    session: AsyncSession,
    kind: AiTaskKind,
    deployment_id: UUID,
    *,
    instructions: str | None,
    actor: Actor,
    correlation_id: UUID,
    allowance: Allowance,
    now: datetime,
) -> AiTask:
    """Ask for a proposal about a deployment; ``operation_id`` makes it.

    Raises:
        Invalid: no such deployment.
        AiLimitReached: the caller has had enough of today.
    """
    try:
        await deployments.exists(session, deployment_id)
    except NotFound as error:
        raise Invalid(error.detail, FieldError("/deployment_id", error.detail)) from error
    await ai_calls.check_requests(session, actor.name, allowance, now=now)
    task = AiTask(
        id=new_id(),
        kind=kind,
        deployment_id=deployment_id,
        correlation_id=correlation_id,
        author=actor.name,
        author_id=actor.id,
        instructions=instructions,
        status=AiTaskStatus.PENDING,
        status_since=now,
        revision=0,
        version=1,
        created_at=now,
    )
    session.add(task)
    await session.flush()
    await enqueue(session, task, PROPOSE)
    return task


async def enqueue(session: AsyncSession, task: AiTask, half: str) -> UUID:
    """Have one half of the task done."""
    task.operation_id = await operations.enqueue(
        session,
        OperationKind.EXECUTE_AI_TASK,
        subject=Subject("ai_task", str(task.id)),
        correlation_id=task.correlation_id,
        deployment_id=task.deployment_id,
        args={"half": half},
    )
    await session.flush()
    return task.operation_id


async def get(session: AsyncSession, task_id: UUID) -> AiTask:
    """One task.

    Raises:
        NotFound: no such task.
    """
    found = await session.get(AiTask, task_id, populate_existing=True)
    if found is None:
        raise NotFound(f"there is no task {task_id}")
    return found


async def actions_of(session: AsyncSession, task_ids: Sequence[UUID]) -> Sequence[AiAction]:
    """What became of the actions of these tasks, in order."""
    query = select(AiAction).where(AiAction.task_id.in_(task_ids))
    return (await session.scalars(query.order_by(AiAction.task_id, AiAction.position))).all()


async def page(
    session: AsyncSession,
    *,
    status: AiTaskStatus | None,
    kind: AiTaskKind | None,
    deployment_id: UUID | None,
    before: Newest | None,
    limit: int,
) -> tuple[Sequence[AiTask], Newest | None]:
    """Tasks, as ``newest_first``."""
    given = {"status": status, "kind": kind, "deployment_id": deployment_id}
    query = select(AiTask).filter_by(**{name: value for name, value in given.items() if value is not None})
    return await newest_first(session, query, AiTask, before=before, limit=limit)


async def lock(session: AsyncSession, task_id: UUID) -> AiTask:
    """One task, its row locked. Its deployment, if that is to be written too, is locked before.

    Raises:
        NotFound: no such task.
    """
    query = select(AiTask).where(AiTask.id == task_id).with_for_update(key_share=True)
    found = await session.scalar(query, execution_options={"populate_existing": True})
    if found is None:
        raise NotFound(f"there is no task {task_id}")
    return found


async def lock_both(session: AsyncSession, task_id: UUID) -> tuple[Deployment, AiTask]:
    """The task and its deployment, both locked.

    Raises:
        NotFound: no such task.
    """
    deployment = await deployments.lock(session, (await get(session, task_id)).deployment_id)
    return deployment, await lock(session, task_id)


async def move(
    session: AsyncSession, task: AiTask, status: AiTaskStatus, *, now: datetime, **values: Any
) -> None:
    """Change the state and other columns with it. The task is locked.

    Raises:
        IllegalTransition: the table does not have the move.
    """
    rollout.check_move("task", MOVES, task.status, status)
    task.status, task.status_since = status, now
    task.finished_at = now if status in FINISHED else None
    task.version += 1
    for name, value in values.items():
        setattr(task, name, value)
    await session.flush()


async def begin_proposing(session: AsyncSession, task_id: UUID, *, now: datetime) -> Wanted | None:
    """What to propose; None if nobody waits for it any more."""
    task = await lock(session, task_id)
    if task.status not in PROPOSING:
        return None
    if task.status is not AiTaskStatus.RUNNING:
        await move(session, task, AiTaskStatus.RUNNING, now=now)
    return Wanted(
        task_id=task.id,
        kind=task.kind,
        deployment_id=task.deployment_id,
        author_id=task.author_id,
        instructions=task.instructions,
        note=task.revision_note,
        before=task.text,
        steps=tuple(task.steps),
    )


async def keep_step(session: AsyncSession, task_id: UUID, steps: Sequence[Json]) -> None:
    """Store all finished rounds of a proposal that is being made."""
    change = update(AiTask).where(AiTask.id == task_id, AiTask.status == AiTaskStatus.RUNNING)
    await session.execute(change.values(steps=list(steps)), execution_options={"synchronize_session": False})


async def propose(
    session: AsyncSession, task_id: UUID, proposal: Proposal, *, model: str, now: datetime
) -> None:
    """Lay a proposal before whoever decides. Nothing happens if nobody waits for it any more."""
    task = await lock(session, task_id)
    if task.status is not AiTaskStatus.RUNNING:
        return
    expires_at = now + proposals.RULES[task.kind].lasts
    actions = [action.to_json() for action in proposal.actions]
    task.revision, task.text, task.actions = task.revision + 1, proposal.text, actions
    task.expires_at, task.proposed_at, task.model, task.steps = expires_at, now, model, []
    await move(session, task, AiTaskStatus.AWAITING_APPROVAL, now=now, digest=digest_now(task))


def digest_now(task: AiTask) -> str:
    """The digest of the task's proposal as it stands."""
    if task.text is None or task.actions is None or task.expires_at is None:
        return ""
    return proposals.digest_of(
        task_id=task.id,
        kind=task.kind,
        deployment_id=task.deployment_id,
        author=task.author,
        revision=task.revision,
        text=task.text,
        actions=task.actions,
        expires_at=task.expires_at,
    )


def record(
    session: AsyncSession,
    deployment: Deployment,
    task: AiTask,
    what: str,
    *,
    actor: str,
    now: datetime,
    **told: Any,
) -> None:
    """Add to the deployment's history what became of the task. The deployment is locked."""
    events.record(session, deployment, f"ai_task.{what}", actor=actor, now=now, after=facts(task, **told))


def facts(task: AiTask, **told: Any) -> Json:
    """What the history tells of a task, with ``told``."""
    return {"task": str(task.id), "kind": task.kind.value, "digest": task.digest} | told


def approval(task: AiTask) -> Json:
    """What the history tells of the approval that stands in the task."""
    approver = str(task.decided_by_id) if task.decided_by_id else None
    return facts(task, reason=task.reason, actions=task.actions, approver=approver)


async def fail(session: AsyncSession, task_id: UUID, failure: Failure, *, now: datetime) -> None:
    """End a task that came to nothing. Nothing happens if it is over or waits for a person."""
    deployment, task = await lock_both(session, task_id)
    if AiTaskStatus.FAILED in MOVES[task.status]:
        await end(session, deployment, task, AiTaskStatus.FAILED, failure, now=now)


async def expire(session: AsyncSession, task_id: UUID, *, now: datetime) -> None:
    """End a task whose proposal does not hold any more. Nothing happens if it is over."""
    deployment, task = await lock_both(session, task_id)
    if AiTaskStatus.EXPIRED in MOVES[task.status]:
        await end(session, deployment, task, AiTaskStatus.EXPIRED, None, now=now)


async def end(
    session: AsyncSession,
    deployment: Deployment,
    task: AiTask,
    status: AiTaskStatus,
    failure: Failure | None,
    *,
    now: datetime,
) -> None:
    """FAILED or EXPIRED; of what was laid before a person the history tells it. Both are locked."""
    waited = task.status not in PROPOSING
    error = None if failure is None else failure.to_json()
    await move(session, task, status, now=now, error=error)
    if waited:
        code = None if failure is None else failure.code
        record(session, deployment, task, status.value.lower(), actor=SYSTEM, now=now, code=code)
        await session.flush()


async def work_ended(session: AsyncSession, operation: Operation, *, now: datetime) -> None:
    """An operation of a task has FAILED or was CANCELLED: so has the task, if it was the newest."""
    task = await session.get(AiTask, UUID(operation.subject_id))
    if task is None or task.operation_id != operation.id:
        return
    failure = CANCELLED
    if operation.status is not OperationStatus.CANCELLED and operation.error is not None:
        failure = Failure.from_json(operation.error)
    await fail(session, task.id, failure, now=now)


async def work_revived(session: AsyncSession, operation: Operation, *, now: datetime) -> None:
    """The operation is taken up again, if it was to make a proposal: it looks at everything anew.

    Raises:
        IllegalTransition: it was to carry one out: that takes a new one, and a new decision.
    """
    task = await lock(session, UUID(operation.subject_id))
    if operation.args.get("half") != PROPOSE or task.operation_id != operation.id:
        raise IllegalTransition(
            "what was approved is not begun twice: ask for a new task", status=task.status.value
        )
    await move(session, task, AiTaskStatus.PENDING, now=now, error=None, steps=[])
