# SPDX-License-Identifier: Apache-2.0
"""Answers: found out, cited, written as they come, and ended within their time whatever the provider does."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from app.domain import conversations, operations, outcomes
from app.errors import ConversationBusy, ConversationFull, IllegalTransition
from app.models import Message, MessageStatus, Operation, OperationStatus
from app.settings import Settings
from tests.sandbox.stage import Stage
from tests.waiting import eventually
from tests.workers.assisted import Assisted, opened, stuck
from tests.workers.conftest import product_runner


@pytest.fixture(params=["openai", "anthropic"])
async def assisted(
    settings: Settings, stage: Stage, request: pytest.FixtureRequest
) -> AsyncIterator[Assisted]:
    """Each in both wire formats."""
    async with opened(settings, stage, provider=request.param) as made:
        yield made


async def test_a_question_is_answered_from_the_control_planes_own_data(assisted: Assisted) -> None:
    deployment_id = await stuck(assisted.runtime)

    answer = await assisted.answered("why is firefox stuck?")

    assert answer.status is MessageStatus.COMPLETE, answer.error
    assert "gate_not_met" in answer.content
    assert "0x87d1041c" in answer.content.lower()
    assert answer.citations == [{"id": str(deployment_id)}]
    assert answer.unverified == []
    asked = [call["name"] for step in answer.steps for call in step["calls"]]
    assert asked[0] == "find_deployments"
    assert {"read_blockers", "read_gates", "read_failures"} <= set(asked)


async def test_each_question_to_the_model_is_written_down(assisted: Assisted) -> None:
    await stuck(assisted.runtime)

    await assisted.answered("why is firefox stuck?")

    calls = await assisted.calls()
    assert len(calls) == len(await assisted.asked()) == 3
    for call in calls:
        assert call.ended_at is not None
        assert call.actor == "Alice"
        assert call.prompt == "conversation.v1"
        assert len(call.input_digest) == len(call.output_digest or "") == 64
        assert call.input_tokens > 0
        assert call.output_tokens > 0
    assert len({call.input_digest for call in calls}) == 3


@pytest.fixture
async def alone(settings: Settings, stage: Stage) -> AsyncIterator[Assisted]:
    """In one format, where the format does not matter."""
    brisk = {"heartbeat": 0.2, "lease": 5.0, "backoff": 0.01}
    hasty = settings.model_copy(update={"worker": settings.worker.model_copy(update=brisk)})
    async with opened(hasty, stage) as made:
        yield made


async def newest(assisted: Assisted, conversation_id: UUID) -> Message:
    return (await assisted.messages(conversation_id))[-1]


async def begun(
    assisted: Assisted, content: str = "[[words 200]]"
) -> tuple[UUID, UUID, "asyncio.Task[Operation]"]:
    """An answer whose text is read while it comes, a word in 20 ms: conversation, operation, its run."""
    await assisted.pace(per_word=0.02)
    conversation = await assisted.say(content)
    assert conversation.operation_id is not None
    run = asyncio.create_task(assisted.run(conversation.operation_id))
    await eventually(
        lambda: newest(assisted, conversation.id), until=lambda each: "w5 " in each.content, within=10
    )
    return conversation.id, conversation.operation_id, run


async def cancelled(assisted: Assisted, operation_id: UUID) -> None:
    async with assisted.runtime.transaction() as session:
        await operations.cancel(session, operation_id, ended=outcomes.operation_ended)


async def revived(assisted: Assisted, operation_id: UUID) -> None:
    async with assisted.runtime.transaction() as session:
        await operations.revive(session, operation_id, revived=outcomes.operation_revived)


async def test_one_answer_is_made_however_often_it_is_delivered(alone: Assisted) -> None:
    conversation = await alone.say("[[words 40]]")
    runners = [product_runner(alone.runtime) for _ in range(5)]

    await asyncio.gather(
        *(runner.deliver({}, str(conversation.operation_id)) for runner in runners for _ in range(2))
    )

    said = await alone.messages(conversation.id)
    assert len(said) == 2
    assert said[-1].status is MessageStatus.COMPLETE
    assert len(await alone.asked()) == len(await alone.calls()) == 1


async def test_an_answer_that_is_complete_is_not_made_again(alone: Assisted) -> None:
    answer = await alone.answered("[[words 3]]")
    back = "status = 'QUEUED', finished_at = NULL, run_after = now()"
    await alone.sql(f"UPDATE operations SET {back}")  # its worker died before it could say so

    operation = await alone.run(answer.operation_id)

    assert operation.status is OperationStatus.SUCCEEDED
    assert len(await alone.asked()) == 1
    assert (await newest(alone, answer.conversation_id)).finished_at == answer.finished_at


async def test_an_answer_that_is_cancelled_keeps_what_there_was_and_can_be_had_after_all(
    alone: Assisted,
) -> None:
    conversation_id, operation_id, run = await begun(alone)

    await cancelled(alone, operation_id)
    operation = await run

    half = await newest(alone, conversation_id)
    assert operation.status is OperationStatus.CANCELLED
    assert (half.status, half.error) == (MessageStatus.INCOMPLETE, conversations.CANCELLED.to_json())
    assert half.content.startswith("w1 w2 w3 w4 w5 ")
    assert "w200" not in half.content
    assert [call.error_code for call in await alone.calls()] == ["cancelled"]
    await alone.pace()
    await revived(alone, operation_id)
    again = await newest(alone, conversation_id)
    assert (again.status, again.error, again.content) == (MessageStatus.PENDING, None, half.content)
    await alone.run(operation_id)
    _, answer = await alone.messages(conversation_id)
    assert answer.status is MessageStatus.COMPLETE
    assert answer.content.endswith("w200")
    assert answer.draft > half.draft


async def test_an_answer_is_not_had_after_all_once_something_was_said_since(alone: Assisted) -> None:
    conversation = await alone.say("[[words 2]]")
    assert conversation.operation_id is not None
    await cancelled(alone, conversation.operation_id)
    later = await alone.answered("[[words 3]]", conversation.id)

    with pytest.raises(IllegalTransition):
        await revived(alone, conversation.operation_id)

    assert later.content == "w1 w2 w3"
    assert [each.status for each in await alone.messages(conversation.id)] == [
        *(MessageStatus.COMPLETE, MessageStatus.INCOMPLETE, MessageStatus.COMPLETE, MessageStatus.COMPLETE)
    ]
    told = (await alone.asked())[-1]["body"]["messages"]
    assert [each["content"] for each in told if each["role"] == "user"] == ["[[words 2]]", "[[words 3]]"]


async def test_an_answer_taken_up_again_rests_on_what_is_true_by_then(alone: Assisted) -> None:
    await stuck(alone.runtime)
    await alone.pace(silent_after=1)
    conversation = await alone.say("why is firefox stuck?")
    assert conversation.operation_id is not None
    run = asyncio.create_task(alone.run(conversation.operation_id))
    await eventually(
        lambda: newest(alone, conversation.id), until=lambda each: len(each.steps) == 2, within=10
    )
    await cancelled(alone, conversation.operation_id)
    await run
    await alone.pace()

    await revived(alone, conversation.operation_id)

    assert (await newest(alone, conversation.id)).steps == []
    await alone.run(conversation.operation_id)
    answer = await newest(alone, conversation.id)
    assert answer.status is MessageStatus.COMPLETE
    assert len(answer.steps) == 2


async def test_a_worker_that_lost_its_lease_writes_nothing_more_of_an_answer(alone: Assisted) -> None:
    conversation_id, operation_id, run = await begun(alone)
    await alone.sql("UPDATE operations SET fence = fence + 1 WHERE id = :id", id=operation_id)
    before = await newest(alone, conversation_id)

    operation = await run

    after = await newest(alone, conversation_id)
    assert operation.status is OperationStatus.RUNNING  # somebody else's
    assert (after.status, after.draft, after.steps) == (before.status, before.draft, before.steps)
    assert after.content == before.content


async def test_the_time_for_an_answer_begins_with_its_first_run_and_is_not_prolonged(alone: Assisted) -> None:
    conversation = await alone.say("[[words 2]]")
    await alone.sql("UPDATE operations SET created_at = created_at - interval '50 minutes'")
    await alone.faults({"status": 500})

    first = await alone.run(conversation.operation_id)
    began = (await newest(alone, conversation.id)).began_at
    second = await eventually(
        lambda: alone.run(conversation.operation_id), until=lambda row: row.fence == 2, within=5
    )

    assert first.deadline == second.deadline
    assert began is not None
    assert began == (await newest(alone, conversation.id)).began_at
    assert abs(first.deadline - began - conversations.ANSWERED_WITHIN).total_seconds() < 30  # type: ignore[operator]


async def test_one_message_is_answered_at_a_time(alone: Assisted) -> None:
    conversation = await alone.say("[[words 2]]")

    with pytest.raises(ConversationBusy):
        await alone.say("and?", conversation.id)

    await alone.run(conversation.operation_id)
    said = await asyncio.gather(
        *(alone.say("[[words 2]]", conversation.id) for _ in range(6)), return_exceptions=True
    )
    refused = [each for each in said if isinstance(each, BaseException)]
    assert len(refused) == 5
    assert all(isinstance(each, ConversationBusy) for each in refused)
    assert [each.sequence for each in await alone.messages(conversation.id)] == [1, 2, 3, 4]


async def test_a_conversation_has_an_end(alone: Assisted) -> None:
    conversation = await alone.say("[[words 2]]")
    await alone.run(conversation.operation_id)
    change = "UPDATE conversations SET last_sequence = :number"
    await alone.sql("UPDATE messages SET sequence = sequence + 196")
    await alone.sql(change, number=198)

    await alone.answered("[[words 2]]", conversation.id)

    with pytest.raises(ConversationFull):
        await alone.say("one more", conversation.id)


REVOKE = "UPDATE api_tokens SET revoked_at = now() WHERE id = :id"


async def test_nothing_is_read_for_somebody_whose_token_was_revoked(alone: Assisted) -> None:
    await stuck(alone.runtime)
    conversation = await alone.say("why is firefox stuck?")
    await alone.sql(REVOKE, id=alone.author.id)

    await alone.run(conversation.operation_id)

    answer = await newest(alone, conversation.id)
    assert answer.status is MessageStatus.INCOMPLETE
    assert answer.error is not None
    assert answer.error["code"] == "forbidden"
    assert answer.steps == []
    assert await alone.asked() == []


async def test_nothing_more_is_read_for_somebody_whose_token_is_revoked_meanwhile(alone: Assisted) -> None:
    await stuck(alone.runtime)
    await alone.faults({"latency": 0.3})
    conversation = await alone.say("why is firefox stuck?")
    run = asyncio.create_task(alone.run(conversation.operation_id))
    await eventually(alone.asked, within=5)

    await alone.sql(REVOKE, id=alone.author.id)
    await run

    answer = await newest(alone, conversation.id)
    assert answer.status is MessageStatus.INCOMPLETE
    assert answer.error is not None
    assert answer.error["code"] == "forbidden"
    assert answer.steps == []
    assert len(await alone.asked()) == 1


async def test_ids_that_the_assistant_has_not_read_are_told_apart(alone: Assisted) -> None:
    deployment_id, other = await stuck(alone.runtime), "0199c0de-0000-7000-8000-00000000dead"
    read = f'[[call read_deployment {{"deployment_id": "{deployment_id}"}}]]'
    refused = f'[[call read_deployment {{"deployment_id": "{other}"}}]]'

    answer = await alone.answered(f"{read} {refused} [[say {deployment_id} is like {other}]]")

    assert answer.citations == [{"id": str(deployment_id)}]
    assert answer.unverified == [{"id": other}]


async def test_an_answer_ends_where_the_callers_tokens_of_the_day_end(
    settings: Settings, stage: Stage
) -> None:
    async with opened(settings, stage, tokens_per_day="100") as assisted:
        await stuck(assisted.runtime)

        answer = await assisted.answered("why is firefox stuck?")

        assert answer.status is MessageStatus.INCOMPLETE
        assert answer.error is not None
        assert answer.error["code"] == "ai_limit_reached"
        assert len(answer.steps) == len(await assisted.asked()) == 1
        spent: Any = [call.input_tokens + call.output_tokens for call in await assisted.calls()]
        assert spent[0] >= 100
