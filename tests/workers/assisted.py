# SPDX-License-Identifier: Apache-2.0
"""Conversations and tasks whose operations the test runs itself, against the sandbox's scripted model."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import httpx
from pydantic import SecretStr
from sqlalchemy import select, text
from sqlalchemy.orm import undefer

from app.connectors.contract import DeviceReport, InstallState
from app.domain import accounts, ai_decisions, ai_tasks, conversations, deployments, devices, measurements
from app.domain.accounts import Actor
from app.domain.ai_calls import Allowance
from app.domain.ai_decisions import Decision
from app.domain.intents import GateNumbers
from app.models import (
    AiAction,
    AiCall,
    AiTask,
    AiTaskKind,
    Conversation,
    LaneStatus,
    Message,
    Operation,
    Ring,
    Role,
    new_id,
)
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from sandbox.main import create_app
from tests.domain.steps import push
from tests.factories import make_deployment
from tests.sandbox.stage import Stage
from tests.wire import PLAIN
from tests.workers.conftest import product_runner, run_once

SCALE = 0.05
KEY = "sandbox-secret"
PLENTY = Allowance(requests=1000, tokens=10_000_000)


@dataclass(slots=True)
class Assisted:
    """Who asks, who decides, and the model they ask."""

    runtime: Runtime
    http: httpx.AsyncClient
    author: Actor
    approver: Actor
    provider: str = "openai"

    async def control(self, what: str, body: Any = None) -> Any:
        """Ask the scripted model's control, or tell it something."""
        place = f"/{self.provider}/_sandbox/{what}"
        answer = await (self.http.get(place) if body is None else self.http.put(place, json=body))
        return answer.raise_for_status().json()

    async def pace(self, **how: Any) -> None:
        await self.control("pace", how)

    async def faults(self, *items: dict[str, Any]) -> None:
        await self.control("faults", {"items": list(items)})

    async def asked(self) -> list[Any]:
        """The questions that reached the model, oldest first."""
        items: list[Any] = (await self.control("requests"))["items"]
        return [item for item in items if item["method"] == "POST"]

    async def say(self, content: str, conversation_id: UUID | None = None) -> Conversation:
        now = self.runtime.clock()
        async with self.runtime.transaction() as session:
            if conversation_id is None:
                return await conversations.begin(
                    session, content, actor=self.author, correlation_id=new_id(), allowance=PLENTY, now=now
                )
            return await conversations.append(
                session, conversation_id, content, actor=self.author, allowance=PLENTY, now=now
            )

    async def run(self, operation_id: UUID | None) -> Operation:
        assert operation_id is not None
        return await run_once(product_runner(self.runtime), operation_id)

    async def answered(self, content: str, conversation_id: UUID | None = None) -> Message:
        """The answer to something that is said."""
        conversation = await self.say(content, conversation_id)
        await self.run(conversation.operation_id)
        return (await self.messages(conversation.id))[-1]

    async def messages(self, conversation_id: UUID) -> Sequence[Message]:
        """In order, with all that was read for them."""
        query = select(Message).filter_by(conversation_id=conversation_id).order_by(Message.sequence)
        async with self.runtime.transaction() as session:
            return (await session.scalars(query.options(undefer(Message.steps)))).all()

    async def task(
        self,
        deployment_id: UUID,
        kind: AiTaskKind = AiTaskKind.PROPOSE_ROLLBACK,
        instructions: str | None = None,
    ) -> AiTask:
        """A task whose proposal was made, or could not be."""
        async with self.runtime.transaction() as session:
            task = await ai_tasks.request(
                session,
                kind,
                deployment_id,
                instructions=instructions,
                actor=self.author,
                correlation_id=new_id(),
                allowance=PLENTY,
                now=self.runtime.clock(),
            )
        await self.run(task.operation_id)
        return await self.seen(task.id)

    async def seen(self, task_id: UUID) -> AiTask:
        async with self.runtime.transaction() as session:
            return await ai_tasks.get(session, task_id)

    def decision(self, **given: Any) -> Decision:
        return replace(Decision(self.approver, "I agree", self.runtime.clock()), **given)

    async def approve(self, task_id: UUID, **given: Any) -> UUID | None:
        """The operation that carries it out."""
        async with self.runtime.transaction() as session:
            _, started = await ai_decisions.approve(session, task_id, self.decision(**given))
        return started

    async def done(self, task_id: UUID) -> Sequence[AiAction]:
        async with self.runtime.transaction() as session:
            return await ai_tasks.actions_of(session, [task_id])

    async def calls(self) -> Sequence[AiCall]:
        async with self.runtime.transaction() as session:
            return (await session.scalars(select(AiCall).order_by(AiCall.began_at, AiCall.id))).all()

    async def sql(self, statement: str, **values: Any) -> None:
        """What another process, or somebody with the database's password, would do."""
        async with self.runtime.autocommit() as connection:
            await connection.execute(text(statement), values)


async def actor(runtime: Runtime, name: str, role: Role) -> Actor:
    async with runtime.transaction() as session:
        row, _ = await accounts.create_token(session, name=name, role=role)
    return Actor(row.id, row.name, row.role)


async def stuck(runtime: Runtime, **overrides: Any) -> UUID:
    """A deployment whose LAB is held, for 3 of its 10 devices have failed."""
    now = runtime.clock()
    gates = {Ring.LAB: GateNumbers(max_failure_rate=0.9)}
    names = [f"lab-{number}" for number in range(10)]
    async with runtime.transaction() as session:
        deployment = await make_deployment(session, gates=gates, **overrides)
        (lane,) = deployments.ring_lanes(deployment, Ring.LAB)
        await push(session, lane, *names, now=now)
        assert await measurements.begin_measure(session, lane.id) is not None
        await devices.store_reports(session, lane.id, reports(names), now=now)
        await measurements.finish_measure(session, lane.id, read_since=now, now=now)
        await session.refresh(lane)
        assert lane.status is LaneStatus.HELD
    return deployment.id


def reports(
    names: Sequence[str], *, detail: str = "0x87D1041C: the detection rule found nothing"
) -> list[DeviceReport]:
    """Three that failed, and the others."""
    failed = [DeviceReport(name, name, InstallState.FAILED, detail=detail) for name in names[:3]]
    return failed + [DeviceReport(name, name, InstallState.INSTALLED) for name in names[3:]]


@asynccontextmanager
async def opened(
    settings: Settings, stage: Stage, *, provider: str = "openai", **ai: str
) -> AsyncIterator[Assisted]:
    """With a scripted model of one wire format; ``ai``: other settings of ``EUCORA_AI__…``."""
    base = {"openai": f"{stage.url}/openai/v1", "anthropic": f"{stage.url}/anthropic"}[provider]
    given = {"provider": provider, "model": "sandbox-scripted", "base_url": base, "api_key": KEY, **ai}
    own = settings.model_copy(update={"ai": {name: SecretStr(value) for name, value in given.items()}})
    async with (
        stage.showing(create_app(scale=SCALE, clock=time.time)),
        open_runtime(own, process="test") as runtime,
        httpx.AsyncClient(verify=PLAIN, base_url=stage.url, trust_env=False) as http,
    ):
        author = await actor(runtime, "Alice", Role.PACKAGER)
        approver = await actor(runtime, "Bob", Role.APPROVER)
        yield Assisted(runtime, http, author, approver, provider)
