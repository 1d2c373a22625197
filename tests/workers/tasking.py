# SPDX-License-Identifier: Apache-2.0
"""Tasks of the assistant in the hands of workers: asked for, broken, run until they are over."""

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app import telemetry
from app.ai.contract import Ask, Reply, StopReason, ToolCall
from app.domain import ai_tasks, audit, deployments, dispatch, operations, outcomes, proposals
from app.models import AiTask, AiTaskKind, AiTaskStatus, Deployment, Event, Operation, OperationStatus, new_id
from app.settings import Settings
from tests.sandbox.stage import Stage
from tests.waiting import eventually
from tests.workers.assisted import PLENTY, Assisted, opened
from tests.workers.conftest import product_runner, run_once
from workers.ai_tasks import execute_ai_task
from workers.context import Job, JobFunction, Outcome

LOCK = 0x7461736B  # "task"
HOLD = """
CREATE FUNCTION hold_action() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.position = {position} THEN
        PERFORM pg_advisory_xact_lock({lock});
    END IF;
    RETURN NEW;
END $$
"""
TRIGGER = "CREATE TRIGGER hold_action AFTER INSERT ON ai_actions FOR EACH ROW EXECUTE FUNCTION hold_action()"
WAITS = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = :lock AND NOT granted")


@asynccontextmanager
async def desk_of(settings: Settings, stage: Stage, *, provider: str = "openai") -> AsyncIterator[Assisted]:
    """With planes, short waits, and a model of which nothing may come for 2 s."""
    worker = settings.worker.model_copy(update={"backoff": 0.01})
    hasty = settings.model_copy(update={"worker": worker, "sandbox_url": stage.url})
    async with opened(hasty, stage, provider=provider, idle_timeout="2", first_timeout="2") as made:
        yield made


def handing_in(deployment_id: UUID, *actions: str, **more: Any) -> str:
    """An order to the scripted model: what to hand in, word for word."""
    named = [
        {"action": each, "deployment_id": str(deployment_id), "reason": "as measured"} for each in actions
    ]
    return f"[[propose {json.dumps({'text': 'It failed.', 'actions': named} | more)}]]"


@dataclass(slots=True)
class Scripted:
    """A model behind the port that says just this, answer by answer, and keeps what it was asked."""

    replies: list[Reply]
    name: str = "openai"
    model: str = "scripted"
    asks: list[Ask] = field(default_factory=list)

    async def answer(self, ask: Ask) -> AsyncGenerator[str | Reply, None]:
        self.asks.append(ask)
        yield self.replies.pop(0)

    async def check(self) -> str:
        return "it is there"


def saying(assisted: Assisted, *replies: tuple[str, list[tuple[str, str]]]) -> Assisted:
    """With a model that gives these texts, each with calls: a tool's name and its arguments."""
    made = [
        Reply(
            said,
            tuple(ToolCall(f"call-{number}", *call) for number, call in enumerate(calls)),
            StopReason.TOOLS if calls else StopReason.END,
            None,
            "scripted",
        )
        for said, calls in replies
    ]
    model = replace(assisted.runtime.assistant, provider=Scripted(made))
    return replace(assisted, runtime=replace(assisted.runtime, model=model))


async def asked(assisted: Assisted, deployment_id: UUID, kind: AiTaskKind, **given: Any) -> AiTask:
    """A task that nobody has begun."""
    values: dict[str, Any] = {"instructions": None, "actor": assisted.author, "allowance": PLENTY, **given}
    async with assisted.runtime.transaction() as session:
        return await ai_tasks.request(
            session, kind, deployment_id, correlation_id=new_id(), now=assisted.runtime.clock(), **values
        )


async def laid(assisted: Assisted, deployment_id: UUID, *actions: str, kind: AiTaskKind) -> AiTask:
    """A task whose proposal was made without a model."""
    task = await asked(assisted, deployment_id, kind)
    named = [
        {"action": each, "deployment_id": str(deployment_id), "reason": "as measured"} for each in actions
    ]
    made = proposals.check(kind, deployment_id, {"text": "It failed.", "actions": named})
    async with assisted.runtime.transaction() as session:
        await ai_tasks.begin_proposing(session, task.id, now=assisted.runtime.clock())
        await ai_tasks.propose(session, task.id, made, model="none", now=assisted.runtime.clock())
    await assisted.sql(
        "UPDATE operations SET status = 'SUCCEEDED', finished_at = now() WHERE id = :id", id=task.operation_id
    )
    return await assisted.seen(task.id)


async def over(assisted: Assisted, operation_id: UUID | None, *, within: float = 20) -> Operation:
    """As workers and relays do it until the operation has ended."""
    assert operation_id is not None
    runner = product_runner(assisted.runtime)

    async def turn() -> Operation:
        async with assisted.runtime.transaction() as session:
            for each in await dispatch.hopeless(session):
                await dispatch.give_up(session, each, ended=outcomes.operation_ended)
        return await run_once(runner, operation_id)

    return await eventually(turn, until=lambda row: row.status in operations.ENDED, within=within)


async def row(assisted: Assisted, operation_id: UUID | None) -> Operation:
    assert operation_id is not None
    async with assisted.runtime.transaction() as session:
        return await operations.get(session, operation_id)


async def outrun(assisted: Assisted, operation_id: UUID | None) -> None:
    """The time of the operation is over."""
    past = "UPDATE operations SET deadline = now() - interval '1 second' WHERE id = :id"
    await assisted.sql(past, id=operation_id)


async def deployed(assisted: Assisted, deployment_id: UUID) -> Deployment:
    async with assisted.runtime.transaction() as session:
        return await deployments.get(session, deployment_id)


async def history(assisted: Assisted, deployment_id: UUID) -> Sequence[Event]:
    """The deployment's events; they tell what is stored."""
    async with assisted.runtime.transaction() as session:
        assert (await audit.verify(session)).broken == []
        query = select(Event).filter_by(deployment_id=deployment_id).order_by(Event.sequence)
        return (await session.scalars(query)).all()


async def untouched(assisted: Assisted, deployment_id: UUID) -> None:
    """Nobody did anything to it, and nobody was asked to."""
    found = await deployed(assisted, deployment_id)
    assert (found.status.value, found.paused, found.retries_used) == ("DEPLOYING", False, 0)
    async with assisted.runtime.transaction() as session:
        open_work = await operations.find(session, limit=50, deployment_id=deployment_id)
        assert await session.scalar(text("SELECT count(*) FROM ai_actions")) == 0
    assert {work.kind for work in open_work} <= {
        *("execute_ai_task", "deploy_to_connector", "measure_ring"),
    }


def code_of(task: AiTask) -> tuple[AiTaskStatus, str | None]:
    """How it ended."""
    return task.status, (task.error or {}).get("code")


def denied(reason: str) -> float:
    """How often something was denied so far."""
    return telemetry.registry.get_sample_value("eucora_ai_denied_total", {"reason": reason}) or 0.0


def acted(action: str, outcome: str) -> float:
    """How often an action of a proposal came to that so far."""
    labels = {"action": action, "outcome": outcome}
    return telemetry.registry.get_sample_value("eucora_ai_actions_total", labels) or 0.0


def oldest(state: AiTaskStatus) -> float:
    """How near the oldest task in a state is to its limit, as the metric tells; fails if it does not."""
    labels = {"machine": "ai_task", "state": state.value}
    value = telemetry.registry.get_sample_value("eucora_oldest_state_age_ratio", labels)
    assert value is not None
    return value


@asynccontextmanager
async def held_at(assisted: Assisted, position: int) -> AsyncIterator[None]:
    """Whoever carries out the action there is kept from committing it."""
    await assisted.sql(HOLD.format(position=position, lock=LOCK))
    await assisted.sql(TRIGGER)
    async with assisted.runtime.engine.connect() as connection:
        await connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
        await connection.commit()
        try:
            yield
        finally:
            await connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": LOCK})
            await connection.commit()


async def reached(assisted: Assisted) -> None:
    """Somebody is there."""

    async def waiting() -> int:
        async with assisted.runtime.autocommit() as connection:
            return int(await connection.scalar(WAITS, {"lock": LOCK}) or 0)

    await eventually(waiting, within=10)


def stopped_before(position: int, go_on: asyncio.Event) -> JobFunction:
    """The job, which looks at the action there only once it may."""

    async def run(job: Job) -> Outcome:
        numbers = itertools.count(-1)  # the first transaction begins the task

        class Stopping(Job):
            @asynccontextmanager
            async def holding(self) -> AsyncIterator[AsyncSession]:
                if next(numbers) == position:
                    await go_on.wait()
                async with Job.holding(self) as session:
                    yield session

        return await execute_ai_task(Stopping(job.runtime, job.claimed, job.soft_deadline))

    return run


async def waiting_behind(assisted: Assisted) -> None:
    """Somebody else waits for a lock of whoever is there."""
    waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")

    async def waiting() -> int:
        async with assisted.runtime.autocommit() as connection:
            return int(await connection.scalar(waits) or 0)

    await eventually(waiting, until=lambda number: number >= 2, within=10)


async def is_(assisted: Assisted, operation_id: UUID | None, *statuses: OperationStatus) -> Operation:
    """Wait for it."""

    async def look() -> Operation:
        return await row(assisted, operation_id)

    return await eventually(look, until=lambda found: found.status in statuses, within=20)
