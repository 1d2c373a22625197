# SPDX-License-Identifier: Apache-2.0
"""The job of a task's two halves: a proposal is made; once a person approved it, it is carried out."""

import contextlib
from collections.abc import Iterator, Sequence
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app import telemetry
from app.ai import guardrails
from app.ai.contract import Reply, StopReason, ToolCall, ToolResult, UserTurn
from app.ai.prompts import load
from app.ai.tools import SUBMIT, BadArguments, arguments_of
from app.domain import ai_actions, ai_tasks, proposals
from app.domain.ai_actions import Means
from app.domain.ai_tasks import CARRY_OUT, Wanted
from app.domain.operations import Failure
from app.domain.proposals import Proposal, ProposalDenied
from app.models import ActionOutcome, AiTaskStatus, Operation
from app.models.base import Json
from workers.asking import Line, Over, assistant_of
from workers.assistant import Talk, denied
from workers.context import CancelRequested, Done, Job, Outcome, WorkFailed

TASK = load("task.v1")
MOST_DENIALS = 3
"""How often a proposal may be refused before the task fails."""
REMINDER = "Hand the proposal in with `submit_proposal`."


async def execute_ai_task(job: Job) -> Outcome:
    """Make the proposal, or carry out what was approved. May be repeated: each action is done once."""
    if job.claimed.args.get("half") == CARRY_OUT:
        return await carry_out(job)
    return await propose(job)


async def propose(job: Job) -> Outcome:
    """A text and typed actions, checked, laid before whoever decides."""
    model, task_id = assistant_of(job).provider.model, UUID(job.claimed.subject.id)
    async with job.holding() as session:
        wanted = await ai_tasks.begin_proposing(session, task_id, now=job.runtime.clock())
    if wanted is None:
        return Done()
    proposal = await Making(job, wanted).proposal()
    async with job.holding() as session:
        await ai_tasks.propose(session, task_id, proposal, model=model, now=job.runtime.clock())
    return Done({"outcome": "proposed", "actions": len(proposal.actions)})


class Making:
    """A proposal that is being made."""

    def __init__(self, job: Job, wanted: Wanted) -> None:
        self._job = job
        self._wanted = wanted
        self._made: Proposal | None = None
        self._denials = 0
        self._talk = Talk(
            line=Line(job, wanted.author_id, until=job.soft_deadline),
            prompt=TASK,
            turns=(UserTurn(order(wanted)),),
            steps=list(wanted.steps),
            on_step=self._keep_step,
            extra={SUBMIT.name: (SUBMIT, self._submit)},
            finished=lambda: self._made is not None,
        )
        self._take_up(wanted.steps)

    def _take_up(self, steps: Sequence[Json]) -> None:
        """What a run before this one was handed in, and was lost with: it counts."""
        for call, result in handed_in(steps):
            if result.is_error:
                self._denials += 1
            else:
                with contextlib.suppress(BadArguments, ProposalDenied):
                    self._made = self._checked(call)

    async def proposal(self) -> Proposal:
        """One that may be decided about.

        Raises:
            Over: the model would not make one.
            CallError: as ``Talk.answer``.
        """
        if self._made is not None:
            return self._made
        reply = await self._talk.answer()
        if self._made is None and reply.stop is not StopReason.REFUSAL and not self._is_reminded():
            await self._talk.remind(reply, REMINDER)
            reply = await self._talk.answer()
        if self._made is None:
            raise Over(*_why_none(reply))
        return self._made

    def _is_reminded(self) -> bool:
        return any("told" in step for step in self._talk.steps)

    async def _submit(self, call: ToolCall) -> ToolResult:
        if self._made is not None:
            return denied(call, "proposal", "a proposal was handed in already, and is not replaced")
        try:
            self._made = self._checked(call)
        except (BadArguments, ProposalDenied) as error:
            refused = denied(call, "proposal", str(error))
            self._denials += 1
            if self._denials >= MOST_DENIALS:
                raise Over("proposal_denied", str(error), error_class="policy_violation") from error
            return refused
        return guardrails.envelope(call.id, call.name, {"accepted": True})

    def _checked(self, call: ToolCall) -> Proposal:
        """What is handed in, without secrets, if it may be.

        Raises:
            BadArguments, ProposalDenied: it is none, or not one of this task.
        """
        given, redactor = arguments_of(call), self._job.runtime.assistant.redactor
        try:
            return proposals.check(self._wanted.kind, self._wanted.deployment_id, redactor.data(given))
        except RecursionError as error:
            raise BadArguments("the arguments are nested too deeply") from error

    async def _keep_step(self, steps: list[Json]) -> None:
        async with self._job.holding() as session:
            await ai_tasks.keep_step(session, self._wanted.task_id, steps)


def handed_in(steps: Sequence[Json]) -> Iterator[tuple[ToolCall, ToolResult]]:
    """The proposals of finished rounds, with what was answered."""
    for step in steps:
        for call, result in zip(step["calls"], step["results"], strict=True):
            if call["name"] == SUBMIT.name:
                yield ToolCall(**call), ToolResult(**result)


def _why_none(reply: Reply) -> tuple[str, str]:
    if reply.stop is StopReason.REFUSAL:
        return "refused", "the model declined to answer"
    return "no_proposal", "the model did not hand in a proposal"


def order(wanted: Wanted) -> str:
    """What the model is asked for, in lines."""
    rules = proposals.RULES[wanted.kind]
    allowed = ", ".join(sorted(action.value for action in rules.actions)) or "none: a text only"
    lines = [
        f"task: {wanted.kind.value}",
        f"deployment: {wanted.deployment_id}",
        f"actions you may propose: {allowed}; at most {rules.most}",
    ]
    if wanted.instructions:
        lines.append(f"instructions: {wanted.instructions}")
    if wanted.note:
        lines += [f"the proposal before: {wanted.before}", f"revision: {wanted.note}"]
    return "\n".join(lines)


async def carry_out(job: Job) -> Outcome:
    """The approved actions, in order, each in a transaction of its own that looks at everything anew.

    Raises:
        WorkFailed: not all of it may be, or might be: the task has ended so.
    """
    task_id = UUID(job.claimed.subject.id)
    async with job.holding() as session:
        number = await ai_actions.begin(session, task_id, means_of(job))
    for position in range(number or 0):
        async with job.holding() as session:
            await _go_on(job, session)
            carried = await ai_actions.carry_out(session, task_id, position, means_of(job))
        if carried is not None and not carried.again:
            telemetry.ai_actions.labels(carried.kind.value, carried.outcome.value).inc()
        if carried is None or carried.outcome is not ActionOutcome.DONE:
            break
    async with job.holding() as session:
        task = await ai_actions.finish(session, task_id, means_of(job))
    if task.status is AiTaskStatus.COMPLETED:
        return Done({"outcome": "completed"})
    raise WorkFailed(Failure.from_json(task.error) if task.error else ai_actions.EXPIRED)


async def _go_on(job: Job, session: AsyncSession) -> None:
    """Unless somebody wants the operation to stop; it is locked.

    Raises:
        CancelRequested: so it is.
    """
    if (await session.get_one(Operation, job.claimed.id)).cancel_requested:
        raise CancelRequested


def means_of(job: Job) -> Means:
    """What actions need of this worker."""
    runtime = job.runtime
    return Means(manifests=runtime.manifests, limits=runtime.limits, now=runtime.clock())
