# SPDX-License-Identifier: Apache-2.0
"""A worker dies while an answer is written, a provider hangs: no answer comes twice, no rollout waits."""

import asyncio
import signal
from uuid import UUID, uuid4

import pytest

from app.domain import operations
from app.domain.dispatch import Due
from app.domain.operations import OperationKind, Subject
from app.models import Message, MessageStatus, Operation, OperationStatus
from app.settings import Settings
from sandbox import CLIENT_SECRET
from tests.faults.conftest import Workers
from tests.faults.test_steps import PRODUCT
from tests.sandbox.stage import Stage
from tests.waiting import eventually
from tests.workers.assisted import KEY, Assisted, opened, stuck
from tests.workers.conftest import product_runner
from workers import queues
from workers.context import Done, Job, Outcome
from workers.main import JOBS, end, queue_loops

CONVERSATION, DEPLOY = OperationKind.PROCESS_AI_CONVERSATION, OperationKind.DEPLOY_TO_CONNECTOR


async def operation(assisted: Assisted, operation_id: UUID) -> Operation:
    async with assisted.runtime.transaction() as session:
        return await operations.get(session, operation_id)


async def test_a_worker_killed_in_the_middle_of_an_answer_leaves_one_answer(
    own: Settings, stage: Stage
) -> None:
    async with opened(own, stage) as assisted:
        await stuck(assisted.runtime)
        await assisted.pace(per_word=0.2)
        crew = Workers(own.model_copy(update={"sandbox_url": stage.url}), own.data_dir, command=PRODUCT)
        fleet = await asyncio.gather(*(crew.start(lease=3.0, heartbeat=0.5) for _ in range(2)))
        conversation = await assisted.say("why is firefox stuck?")

        async def answer() -> Message:
            return (await assisted.messages(conversation.id))[-1]

        half = await eventually(answer, until=lambda each: each.content.count(" ") > 4, within=20)
        holder = await operation(assisted, half.operation_id or uuid4())
        (killed,) = [each for each in fleet if f":{each.pid}:" in (holder.lease_owner or "")]
        killed.send(signal.SIGKILL)
        await killed.exited(within=5)
        await assisted.pace()

        whole = await eventually(answer, until=lambda each: each.status is MessageStatus.COMPLETE, within=30)

        assert half.status is MessageStatus.ANSWERING
        assert whole.content.startswith(half.content)
        assert whole.draft > half.draft
        assert len(await assisted.messages(conversation.id)) == 2
        done = await eventually(
            lambda: operation(assisted, holder.id),
            until=lambda row: row.status is OperationStatus.SUCCEEDED,
            within=5,
        )
        assert done.fence == 2
        *found_out, unfinished, last = await assisted.calls()
        assert len(found_out) == len(half.steps) == 2
        assert whole.steps == half.steps
        assert (unfinished.ended_at, unfinished.output_digest) == (None, None)
        assert last.ended_at is not None
        await crew.stop()
        for worker in crew.started:
            assert KEY not in worker.said()
            assert CLIENT_SECRET not in worker.said()


@pytest.mark.parametrize("hang", [{"silent_after": 0}, {"pings_after": 0}], ids=["silent", "pings"])
async def test_a_provider_that_hangs_keeps_no_rollout_waiting(
    own: Settings, stage: Stage, hang: dict[str, int]
) -> None:
    few = own.model_copy(update={"worker": own.worker.model_copy(update={"ai_jobs": 2, "poll": 0.05})})
    async with opened(few, stage) as assisted:
        await assisted.pace(**hang)
        runner = product_runner(assisted.runtime, jobs={**JOBS, DEPLOY: nothing_to_do})
        loops = [asyncio.create_task(loop.run()) for loop in queue_loops(runner)]
        asked = [(await assisted.say("[[words 3]]")).operation_id for _ in range(4)]
        await ring(assisted, CONVERSATION, "ai", *asked)
        await eventually(assisted.asked, until=lambda items: len(items) == 2, within=30)

        async with assisted.runtime.transaction() as session:
            subject = Subject("plane", "intune")
            pushed = await operations.enqueue(session, DEPLOY, subject=subject, correlation_id=uuid4())
        await ring(assisted, DEPLOY, "deploy", pushed)
        await eventually(
            lambda: operation(assisted, pushed),
            until=lambda row: row.status is OperationStatus.SUCCEEDED,
            within=30,
        )

        states = [(await operation(assisted, each)).status for each in asked if each]
        assert sorted(states) == sorted([OperationStatus.RUNNING] * 2 + [OperationStatus.QUEUED] * 2)
        await runner.stop(0)
        await end(*loops)


async def nothing_to_do(_: Job) -> Outcome:
    """A push that has nothing to do."""
    return Done()


async def ring(assisted: Assisted, kind: OperationKind, queue: str, *asked: UUID | None) -> None:
    """As a relay does."""
    await queues.ring(assisted.runtime.redis, [Due(each, kind, queue, 0) for each in asked if each])
