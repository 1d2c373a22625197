# SPDX-License-Identifier: Apache-2.0
"""Tasks of the assistant without a model: what it proposes is given, who decides and what is altered too."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import InstallState, Plane
from app.domain import accounts, ai_actions, ai_decisions, ai_tasks, conversations, proposals
from app.domain.accounts import Actor
from app.domain.ai_actions import Means
from app.domain.ai_calls import Allowance
from app.domain.ai_decisions import Decision
from app.domain.budgets import Limits
from app.domain.intents import GateNumbers
from app.models import (
    ActionOutcome,
    AiAction,
    AiTask,
    AiTaskKind,
    AiTaskStatus,
    Conversation,
    Deployment,
    LaneStatus,
    Operation,
    Ring,
    Role,
    new_id,
)
from tests.domain.steps import S, measure, push, reload
from tests.factories import NOON, make_deployment, manifest

PLENTY = Allowance(requests=1000, tokens=10_000_000)
MEANS = Means({Plane.INTUNE: manifest(Plane.INTUNE)}, Limits(), NOON + 10 * S)


async def held(session: AsyncSession, **overrides: Any) -> Deployment:
    """A deployment whose LAB stopped at its gate: two of four devices failed."""
    gates = {Ring.LAB: GateNumbers(max_failure_rate=0.9)}
    deployment = await make_deployment(session, gates=gates, **overrides)
    await push(session, deployment.lanes[0], "a", "b", "c", "d")
    await measure(session, deployment.lanes[0], InstallState.FAILED, "a", "b", now=NOON + S)
    await measure(session, deployment.lanes[0], InstallState.INSTALLED, "c", "d", now=NOON + 2 * S)
    assert (await reload(session, deployment)).lanes[0].status is LaneStatus.HELD
    return deployment


async def token(session: AsyncSession, name: str, role: Role) -> Actor:
    row, _ = await accounts.create_token(session, name=name, role=role)
    return Actor(row.id, row.name, row.role)


@dataclass(slots=True)
class Table:
    """One deployment that is stuck, who asks about it, and who decides."""

    session: AsyncSession
    deployment: Deployment
    author: Actor
    approver: Actor

    async def asked(self, kind: AiTaskKind = AiTaskKind.PROPOSE_ROLLBACK) -> AiTask:
        return await ai_tasks.request(
            self.session,
            kind,
            self.deployment.id,
            instructions=None,
            actor=self.author,
            correlation_id=new_id(),
            allowance=PLENTY,
            now=NOON + 3 * S,
        )

    async def proposed(
        self, *actions: str, kind: AiTaskKind = AiTaskKind.PROPOSE_ROLLBACK, task: AiTask | None = None
    ) -> AiTask:
        """What a job writes that was handed in a proposal."""
        task = task or await self.asked(kind)
        wanted = await ai_tasks.begin_proposing(self.session, task.id, now=NOON + 4 * S)
        assert wanted is not None
        named = [
            {"action": each, "deployment_id": str(self.deployment.id), "reason": "2 of 4"} for each in actions
        ]
        made = proposals.check(task.kind, self.deployment.id, {"text": "It failed.", "actions": named})
        await ai_tasks.propose(self.session, task.id, made, model="none", now=NOON + 5 * S)
        return task

    def decision(self, **given: Any) -> Decision:
        return replace(Decision(self.approver, "I agree", NOON + 6 * S), **given)

    async def approved(self, *actions: str, kind: AiTaskKind = AiTaskKind.PROPOSE_ROLLBACK) -> AiTask:
        task = await self.proposed(*actions, kind=kind)
        await ai_decisions.approve(self.session, task.id, self.decision())
        return task

    async def carried_out(self, task_id: UUID, means: Means = MEANS) -> AiTask:
        """What the job does, but for its transactions."""
        number = await ai_actions.begin(self.session, task_id, means)
        for position in range(number or 0):
            done = await ai_actions.carry_out(self.session, task_id, position, means)
            if done is None or done.outcome is not ActionOutcome.DONE:
                return await self.seen(task_id)
        return await ai_actions.finish(self.session, task_id, means)

    async def said(self) -> Conversation:
        """A question that is yet to be answered."""
        given: dict[str, Any] = {"correlation_id": new_id(), "allowance": PLENTY, "now": NOON}
        return await conversations.begin(self.session, "why?", actor=self.author, **given)

    async def seen(self, task_id: UUID) -> AiTask:
        return await ai_tasks.get(self.session, task_id)

    async def done(self, task_id: UUID) -> Sequence[AiAction]:
        return await ai_tasks.actions_of(self.session, [task_id])

    async def sql(self, statement: str, **values: Any) -> None:
        """What somebody with the database's password would do."""
        await self.session.execute(text(statement), values)

    async def sign(self, task_id: UUID) -> None:
        """Make both digests those of what stands there now, as whoever alters it would."""
        digest = ai_tasks.digest_now(await self.seen(task_id))
        await self.sql(
            "UPDATE ai_tasks SET digest = :digest, approved_digest = :digest WHERE id = :id",
            digest=digest,
            id=task_id,
        )

    async def state(self, deployment_id: UUID) -> tuple[Any, ...]:
        """Everything that an order would have changed of a deployment."""
        self.session.expunge_all()
        found = await self.session.get_one(Deployment, deployment_id)
        kinds = select(Operation.kind, Operation.status).where(Operation.deployment_id == deployment_id)
        work = (await self.session.execute(kinds.order_by(Operation.id))).all()
        own = [tuple(row) for row in work if row.kind != "execute_ai_task"]
        return found.status, found.paused, found.version, found.retries_used, own


async def seated(session: AsyncSession, deployment: Deployment) -> Table:
    author = await token(session, "Alice", Role.PACKAGER)
    return Table(session, deployment, author, await token(session, "Bob", Role.APPROVER))


async def table(session: AsyncSession, **overrides: Any) -> Table:
    return await seated(session, await held(session, **overrides))


def at(now: datetime) -> Means:
    return replace(MEANS, now=now)


def code_of(task: AiTask) -> tuple[AiTaskStatus, str | None]:
    """How it ended."""
    return task.status, (task.error or {}).get("code")
