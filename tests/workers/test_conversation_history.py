# SPDX-License-Identifier: Apache-2.0
"""What was said before reaches the model, whole or in few words, within its context."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field, replace

import pytest

from app.ai.contract import SERVICE, Ask, Reply, StopReason, ToolTurn, UserTurn
from app.domain import conversations
from app.models import MessageStatus
from app.resilience.errors import CallError, PermanentError
from app.settings import Settings
from tests.sandbox.stage import Stage
from tests.workers.assisted import Assisted, opened, stuck
from tests.workers.tasking import Scripted, saying


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


def reply(content: str, stop: StopReason = StopReason.END) -> Reply:
    return Reply(content, (), stop, None, "m")


@dataclass
class NoSummaries(Scripted):
    """A model that answers, but does not summarise: that is what it says, or what is raised."""

    instead: Reply | CallError = field(default_factory=lambda: reply(""))

    async def answer(self, ask: Ask) -> AsyncGenerator[str | Reply, None]:
        self.asks.append(ask)
        if ask.tools:
            yield self.replies.pop(0)
        elif isinstance(self.instead, CallError):
            raise self.instead
        else:
            yield self.instead


NO_SUMMARY: dict[str, Reply | CallError] = {
    "nothing": reply("  "),
    "a refusal": reply("I will not.", StopReason.REFUSAL),
    "an error for ever": PermanentError("400: too many tokens", service=SERVICE),
}


@pytest.mark.parametrize("instead", NO_SUMMARY.values(), ids=NO_SUMMARY)
async def test_where_there_is_no_summary_the_oldest_is_left_out_and_every_question_is_answered(
    small: Assisted, instead: Reply | CallError
) -> None:
    first = await small.say("[[words 1]] " + "FIRST " * 1200)
    await small.run(first.operation_id)
    await small.answered("[[words 1]] " + "SECOND " * 1000, first.id)
    provider = NoSummaries([reply("it 0"), reply("it 1")], instead=instead)
    model = replace(small.runtime.assistant, provider=provider)
    silent = replace(small, runtime=replace(small.runtime, model=model))

    for number in range(2):
        answer = await silent.answered("why?", first.id)

        assert (answer.status, answer.content) == (MessageStatus.COMPLETE, f"it {number}"), answer.error
        told = provider.asks[-1].turns
        assert isinstance(told[0], UserTurn)
        assert "messages are left out here" in told[0].text
        assert "FIRST " * 100 not in str(told)
        assert "SECOND " * 100 in str(told)
    async with small.runtime.transaction() as session:
        stored = await conversations.get(session, first.id)
    assert (stored.summary, stored.summarised_through) == (None, 0)


async def test_what_is_too_long_for_one_summary_is_summarised_in_pieces_that_fit(small: Assisted) -> None:
    first = await small.say("[[words 1]] 1")
    await small.run(first.operation_id)
    for number in range(2, 5):
        await small.answered(f"[[words 1]] {number}", first.id)
    await small.sql("UPDATE messages SET content = :long WHERE sequence < 6", long="LONG " * 8_000)

    answer = await small.answered("[[say done]]", first.id)

    assert (answer.status, answer.content) == (MessageStatus.COMPLETE, "done"), answer.error
    calls = [call for call in await small.calls() if call.prompt == "summary.v1"]
    assert len(calls) >= 2
    assert all(call.error_code is None and call.input_tokens < 9000 for call in calls)
    async with small.runtime.transaction() as session:
        stored = await conversations.get(session, first.id)
    assert stored.summarised_through >= 4
    *_, last = await small.asked()
    assert len(json.dumps(last["body"])) < 9000 * 3.5


async def test_an_answer_that_was_long_does_not_end_the_conversation(small: Assisted) -> None:
    first = await small.say("[[words 1]]")
    await small.run(first.operation_id)
    await small.sql("UPDATE messages SET content = :long WHERE sequence = 2", long="\u4e2d" * 100_000)

    answer = await small.answered("[[say done]]", first.id)

    assert (answer.status, answer.content) == (MessageStatus.COMPLETE, "done"), answer.error
    *_, last = await small.asked()
    assert "(cut here)" in json.dumps(last["body"])


async def test_what_was_read_first_is_left_out_of_the_question_once_there_is_no_room_for_it(
    small: Assisted,
) -> None:
    deployment_id = await stuck(small.runtime)
    await small.sql("UPDATE deployments SET pause_reason = :long", long="why " * 500)
    read = ("", [("read_deployment", json.dumps({"deployment_id": str(deployment_id)}))])
    model = saying(small, *[read] * 9, (f"[deployment {deployment_id}] is stuck", []))

    answer = await model.answered("why?")

    assert answer.status is MessageStatus.COMPLETE, answer.error
    assert answer.citations == [{"id": str(deployment_id)}]
    scripted = model.runtime.assistant.provider
    assert isinstance(scripted, Scripted)
    turns = [turn for turn in scripted.asks[-1].turns if isinstance(turn, ToolTurn)]
    left = ["left_out" in turn.results[0].content for turn in turns]
    assert len(left) == 9
    assert (left[0], left[-1]) == (True, False)
    assert left == sorted(left, reverse=True)
    stored = [result["content"] for step in answer.steps for result in step["results"]]
    assert not any("left_out" in each for each in stored)
    assert all(call.input_tokens <= 9000 * 0.9 for call in await small.calls())


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
