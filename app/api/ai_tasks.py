# SPDX-License-Identifier: Apache-2.0
"""Tasks of the assistant: ask for a proposal, read it, decide on it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from fastapi import APIRouter, Path
from pydantic import Field, ValidationError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import Response

from app.api.dependencies import CallDep, Order, OrderDep, RuntimeDep, SessionDep
from app.api.operations import FailureRead
from app.api.paging import CursorKey, Newest, Page, PageDep
from app.api.routing import V1, Route, requires
from app.api.schema import (
    Command,
    Count,
    Digest,
    Given,
    Label,
    Message,
    Reason,
    ResourceVersion,
    Shown,
    as_json,
    tagged,
)
from app.domain import ai_decisions, ai_tasks, proposals
from app.domain.ai_decisions import Decision
from app.domain.proposals import ActionKind, ProposalDenied
from app.models import ActionOutcome, AiAction, AiTask, AiTaskKind, AiTaskStatus
from app.models.base import Json
from app.security import Permission

router = APIRouter(prefix=V1 + "/ai/tasks", tags=["ai"], route_class=Route)

TaskId = Annotated[UUID, Path(description="The task's id.")]
NEWEST: CursorKey[tuple[datetime, UUID]] = CursorKey(Newest)
MOST_ACTIONS = 10
FACTS = (
    *("id", "kind", "deployment_id", "correlation_id", "author", "instructions", "status", "status_since"),
    *("operation_id", "error", "version", "created_at", "finished_at"),
)


class TaskCreate(Given):
    """What to prepare, about which deployment. Secrets in the instructions are cut out."""

    kind: AiTaskKind
    deployment_id: UUID
    instructions: Reason | None = None


class ActionTarget(Shown):
    """What an action is done to."""

    deployment_id: UUID


class ActionArguments(Shown):
    """What an action is given."""

    reason: Message


class ActionRead(Shown):
    """One thing that is done once the proposal is approved; `outcome` is null until then."""

    action: ActionKind
    target: ActionTarget
    arguments: ActionArguments
    outcome: ActionOutcome | None
    detail: Message | None
    operation_id: UUID | None
    at: datetime | None


class ProposalRead(Shown):
    """What an approval is bound to, by `digest`; holds until `expires_at`."""

    revision: Count
    text: Annotated[str, Field(max_length=proposals.LONGEST_TEXT)]
    actions: Annotated[list[ActionRead], Field(max_length=MOST_ACTIONS)]
    digest: Digest
    model: Label | None
    proposed_at: datetime
    expires_at: datetime


class DecisionRead(Shown):
    """Who decided, when, and why."""

    decided_by: Label
    decided_at: datetime
    reason: Message | None


class TaskRead(Shown):
    """A task: what was asked for, what is proposed, what was decided, and what came of it."""

    id: UUID
    kind: AiTaskKind
    deployment_id: UUID
    correlation_id: UUID
    author: Label
    instructions: Message | None
    status: AiTaskStatus
    status_since: datetime
    proposal: ProposalRead | None
    decision: DecisionRead | None
    operation_id: UUID | None
    error: FailureRead | None
    version: ResourceVersion
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, row: AiTask, done: Sequence[AiAction]) -> Self:
        """What is shown of a task, with what became of its actions."""
        facts = {name: getattr(row, name) for name in FACTS}
        decision = DecisionRead.model_validate(row) if row.decided_by else None
        return cls.model_validate(facts | {"proposal": _shown_proposal(row, done), "decision": decision})


def _shown_proposal(row: AiTask, done: Sequence[AiAction]) -> ProposalRead | None:
    """None: there is none yet, or somebody altered the row so that it holds what no proposal may hold."""
    if row.digest is None or row.actions is None:
        return None
    try:
        proposals.stored(row.kind, row.deployment_id, row.actions)
        return ProposalRead.model_validate(_proposal_of(row, row.actions, done))
    except (ProposalDenied, ValidationError):
        return None


def _proposal_of(row: AiTask, proposed: Sequence[Json], done: Sequence[AiAction]) -> dict[str, Any]:
    outcomes = {each.position: each for each in done if each.task_id == row.id}
    nothing = dict.fromkeys(("outcome", "detail", "operation_id", "at"))
    actions = [
        {**action, **nothing, **(_outcome_of(outcomes[number]) if number in outcomes else {})}
        for number, action in enumerate(proposed)
    ]
    plain = ("revision", "text", "digest", "model", "proposed_at", "expires_at")
    return {name: getattr(row, name) for name in plain} | {"actions": actions}


def _outcome_of(row: AiAction) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("outcome", "detail", "operation_id", "at")}


class TaskPage(Page[TaskRead]):
    """Some tasks, and where to go on."""


class DecisionGiven(Command):
    """What speaks for it, without secrets. With a `digest` it is refused (409) for any other proposal.

    Where there was more than one, an approval says which is meant, by `digest` or `If-Match`.
    """

    digest: Digest | None = None


async def shown(session: AsyncSession, row: AiTask) -> TaskRead:
    """A task with what became of its actions."""
    return TaskRead.of(row, await ai_tasks.actions_of(session, [row.id]))


@router.post("", status_code=202, response_model=TaskRead, summary="Ask the assistant for a proposal")
@requires(Permission.AI_ASK, key_required=True)
async def create_ai_task(
    body: TaskCreate, session: SessionDep, call: CallDep, runtime: RuntimeDep
) -> Response:
    """The proposal waits for somebody else's decision; nothing is done before that."""
    assistant = runtime.assistant
    row = await ai_tasks.request(
        session,
        body.kind,
        body.deployment_id,
        instructions=assistant.redactor.text(body.instructions) if body.instructions else None,
        actor=call.actor,
        correlation_id=call.correlation_id,
        allowance=assistant.allowance,
        now=runtime.clock(),
    )
    return tagged(await shown(session, row), 202, location=f"{V1}/ai/tasks/{row.id}")


@router.get("", response_model=TaskPage, summary="List tasks of the assistant, newest first")
@requires(Permission.READ)
async def list_ai_tasks(
    *,
    session: SessionDep,
    page: PageDep,
    status: AiTaskStatus | None = None,
    kind: AiTaskKind | None = None,
    deployment_id: UUID | None = None,
) -> Response:
    """All tasks; `status=AWAITING_APPROVAL` is the queue of those who decide."""
    rows, following = await ai_tasks.page(
        session,
        status=status,
        kind=kind,
        deployment_id=deployment_id,
        before=NEWEST.decode(page),
        limit=page.limit,
    )
    done = await ai_tasks.actions_of(session, [row.id for row in rows])
    items = [TaskRead.of(row, done) for row in rows]
    return as_json(TaskPage(items=items, next_cursor=NEWEST.encode(following, page)))


@router.get("/{task_id}", response_model=TaskRead, summary="Read a task of the assistant")
@requires(Permission.READ)
async def read_ai_task(task_id: TaskId, session: SessionDep) -> Response:
    """The proposal with its typed actions and digest, and what became of it."""
    return tagged(await shown(session, await ai_tasks.get(session, task_id)))


@router.post("/{task_id}/approve", status_code=202, response_model=TaskRead, summary="Approve a proposal")
@requires(Permission.AI_DECIDE)
async def approve_ai_task(task_id: TaskId, order: OrderDep, body: DecisionGiven | None = None) -> Response:
    """Say yes to just this proposal: its actions are carried out, once. Nobody approves their own task."""
    row, _ = await ai_decisions.approve(order.session, task_id, decision_of(order, body))
    return tagged(await shown(order.session, row), 202)


@router.post("/{task_id}/reject", status_code=202, response_model=TaskRead, summary="Reject a proposal")
@requires(Permission.AI_DECIDE)
async def reject_ai_task(task_id: TaskId, order: OrderDep, body: DecisionGiven | None = None) -> Response:
    """Say no, for good."""
    row = await ai_decisions.reject(order.session, task_id, decision_of(order, body))
    return tagged(await shown(order.session, row), 202)


@router.post(
    "/{task_id}/request-revision",
    status_code=202,
    response_model=TaskRead,
    summary="Ask for another proposal",
)
@requires(Permission.AI_DECIDE)
async def revise_ai_task(task_id: TaskId, order: OrderDep, body: DecisionGiven | None = None) -> Response:
    """Have it proposed once more, with the reason in mind."""
    row, _ = await ai_decisions.request_revision(order.session, task_id, decision_of(order, body))
    return tagged(await shown(order.session, row), 202)


def decision_of(order: Order, body: DecisionGiven | None) -> Decision:
    """The same in the domain's words."""
    by, given = order.by, body or DecisionGiven()
    reason = order.runtime.cleaned(given.reason) if given.reason else None
    return Decision(order.call.actor, reason, by["now"], given.digest, by["version"])
