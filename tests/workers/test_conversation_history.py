# SPDX-License-Identifier: Apache-2.0
"""What was said before reaches the model, whole or in few words, within its context."""

import json
from collections.abc import AsyncIterator

import pytest

from app.domain import conversations
from app.models import MessageStatus
from app.settings import Settings
from tests.sandbox.stage import Stage
from tests.workers.assisted import Assisted, opened


@pytest.fixture
async def small(settings: Settings, stage: Stage) -> AsyncIterator[Assisted]:
    """A model that is not to be asked more than some 30 000 characters."""
    async with opened(settings, stage, context_tokens="9000", max_output_tokens="500") as made:
        yield made


async def test_a_long_conversation_is_summarised_once(small: Assisted) -> None:
    first = await small.say("[[words 1]] " + "FIRST " * 1200)
    await small.run(first.operation_id)
    await small.answered("[[words 1]] " + "SECOND " * 1000, first.id)

    third = await small.answered("[[say third]] THIRD", first.id)
    fourth = await small.answered("[[say fourth]] FOURTH", first.id)

    assert (third.content, fourth.content) == ("third", "fourth")
    assert [call.prompt for call in await small.calls()] == [
        *("conversation.v1", "conversation.v1", "summary.v1", "conversation.v1", "conversation.v1")
    ]
    async with small.runtime.transaction() as session:
        stored = await conversations.get(session, first.id)
    assert stored.summarised_through == 2
    assert "FIRST" in (stored.summary or "")
    *_, last = await small.asked()
    told = [str(each["content"]) for each in last["body"]["messages"]]
    assert "Summary of what was said before" in told[1]
    assert "FIRST " * 100 not in str(told)
    assert "SECOND " * 100 in str(told)
    assert told[-1] == "[[say fourth]] FOURTH"


async def test_a_summary_that_says_nothing_takes_nobodys_place(small: Assisted) -> None:
    first = await small.say("[[words 1]] " + "FIRST " * 1200)
    await small.run(first.operation_id)
    await small.answered("[[words 1]] " + "SECOND " * 1000, first.id)
    choice = {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}
    body = json.dumps({"id": "x", "object": "chat.completion", "model": "m", "choices": [choice]})
    await small.faults({"status": 200, "body": body, "headers": {"content-type": "application/json"}})

    answer = await small.answered("THIRD", first.id)

    assert (answer.status, answer.content) == (MessageStatus.COMPLETE, "")
    async with small.runtime.transaction() as session:
        stored = await conversations.get(session, first.id)
    assert (stored.summary, stored.summarised_through) == (None, 0)
    *_, last = await small.asked()
    assert "FIRST " * 100 in str(last["body"])


async def test_what_was_cut_off_is_told_as_cut_off(small: Assisted) -> None:
    first = await small.say("[[words 20]]")
    await small.pace(cut_after=3)
    for _ in range(4):
        await small.sql("UPDATE operations SET run_after = now() - interval '1 hour'")
        await small.run(first.operation_id)
    await small.pace()

    answer = await small.answered("[[words 2]]", first.id)

    assert answer.status is MessageStatus.COMPLETE
    *_, last = await small.asked()
    said = [(each["role"], each["content"]) for each in last["body"]["messages"][1:]]
    assert said == [
        ("user", "[[words 20]]"),
        ("assistant", "w1 w2 w3 (cut off here)"),
        ("user", "[[words 2]]"),
    ]


async def test_a_question_that_is_too_large_is_not_asked(small: Assisted) -> None:
    answer = await small.answered("x" * 40_000)

    assert answer.status is MessageStatus.INCOMPLETE
    assert answer.error is not None
    assert answer.error["code"] == "context_full"
    assert await small.asked() == []
