# SPDX-License-Identifier: Apache-2.0
"""Providers that misbehave: each answer ends in a defined state, within its time, and changes nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from itertools import cycle
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr

from app import telemetry
from app.ai.guardrails import LONGEST_ANSWER
from app.domain import conversations, dispatch, operations, outcomes
from app.domain.operations import KINDS, OperationKind
from app.embedded import Server
from app.models import (
    Deployment,
    DeploymentStatus,
    Message,
    MessageRole,
    MessageStatus,
    Operation,
    OperationStatus,
)
from app.settings import Settings
from tests.faults.gate import gated
from tests.logs import captured_lines
from tests.sandbox.stage import Stage
from tests.waiting import eventually
from tests.workers.assisted import Assisted, opened, stuck
from tests.workers.conftest import product_runner, run_once
from tests.workers.tasking import saying
from workers.asking import LAST_WORD
from workers.assistant import MOST_ROUNDS
from workers.main import JOBS
from workers.runner import Runner
from workers.watchdog import Watchdog

KIND = OperationKind.PROCESS_AI_CONVERSATION
WORDS = " ".join(f"w{number}" for number in range(1, 31))


@pytest.fixture
async def assisted(
    settings: Settings, stage: Stage, request: pytest.FixtureRequest
) -> AsyncIterator[Assisted]:
    """Nothing may come for 2 s, and waits are short; OpenAI's format unless the test wants another."""
    hasty = settings.model_copy(update={"worker": settings.worker.model_copy(update={"backoff": 0.01})})
    provider = getattr(request, "param", "openai")
    async with opened(hasty, stage, provider=provider, idle_timeout="2", first_timeout="2") as made:
        yield made


async def ended(assisted: Assisted, operation_id: UUID | None, *, within: float = 20) -> Operation:
    """As workers and relays do it until it is over."""
    assert operation_id is not None
    runner = product_runner(assisted.runtime)

    async def turn() -> Operation:
        async with assisted.runtime.transaction() as session:
            for each in await dispatch.hopeless(session):
                await dispatch.give_up(session, each, ended=outcomes.operation_ended)
        return await run_once(runner, operation_id)

    return await eventually(turn, until=lambda row: row.status in operations.ENDED, within=within)


async def told(assisted: Assisted, content: str) -> tuple[Message, Operation]:
    """The answer, once there is one, and its operation; there is one question and one answer."""
    conversation = await assisted.say(content)
    operation = await ended(assisted, conversation.operation_id)
    said = await assisted.messages(conversation.id)
    assert [each.role for each in said] == [MessageRole.USER, MessageRole.ASSISTANT]
    return said[-1], operation


async def outrun(assisted: Assisted, operation_id: UUID | None) -> None:
    """The time in which it may be answered is over."""
    past = "now() - interval '1 second'"
    await assisted.sql(f"UPDATE operations SET deadline = {past} WHERE id = :id", id=operation_id)
    began = "now() - interval '111 seconds'"
    await assisted.sql(f"UPDATE messages SET began_at = {began} WHERE operation_id = :id", id=operation_id)


def both(*values: Any) -> list[Any]:
    """Cases of both wire formats in turn, each case in one of them."""
    formats = cycle(["openai", "anthropic"])
    return [
        pytest.param(name, value, id=f"{value} of {name}")
        for name, value in zip(formats, values, strict=False)
    ]


AGAIN: dict[str, dict[str, Any]] = {
    "500": {"status": 500},
    "529": {"status": 529},
    "a short 429": {"status": 429, "headers": {"Retry-After": "1"}},
    "reset": {"reset": True},
}


@pytest.mark.parametrize(("assisted", "fault"), both(*AGAIN), indirect=["assisted"])
async def test_a_provider_that_is_away_for_a_while_answers_later(assisted: Assisted, fault: str) -> None:
    await assisted.faults(AGAIN[fault])
    conversation = await assisted.say("[[words 3]]")
    waiting = await assisted.run(conversation.operation_id)
    assert waiting.status is OperationStatus.WAITING
    await assisted.faults()

    operation = await ended(assisted, conversation.operation_id)

    question, answer = await assisted.messages(conversation.id)
    assert operation.status is OperationStatus.SUCCEEDED
    assert question.content == "[[words 3]]"
    assert (answer.status, answer.content) == (MessageStatus.COMPLETE, "w1 w2 w3")
    refused, *_, last = await assisted.calls()
    assert (refused.error_code is None, refused.input_tokens, refused.output_tokens) == (False, 0, 0)
    assert (last.error_code, last.stop_reason) == (None, "end")


AWAY: dict[str, tuple[dict[str, Any], str]] = {
    "429 for an hour": ({"status": 429, "headers": {"Retry-After": "3600"}}, "throttled"),
    "529": ({"status": 529}, "deadline"),
    "hang": ({"latency": 3600}, "deadline"),
}


@pytest.mark.parametrize(("assisted", "fault"), both(*AWAY), indirect=["assisted"])
async def test_a_provider_that_stays_away_is_waited_for_as_long_as_a_person_waits(
    assisted: Assisted, fault: str
) -> None:
    await assisted.faults(AWAY[fault][0])
    conversation = await assisted.say("[[words 3]]")

    waiting = await assisted.run(conversation.operation_id)

    assert waiting.status is OperationStatus.WAITING
    assert waiting.deadline is not None
    assert waiting.deadline - assisted.runtime.clock() < conversations.ANSWERED_WITHIN
    await outrun(assisted, conversation.operation_id)
    operation = await ended(assisted, conversation.operation_id)
    answer = (await assisted.messages(conversation.id))[-1]
    assert operation.status is OperationStatus.FAILED
    assert answer.status is MessageStatus.INCOMPLETE
    assert answer.error is not None
    assert answer.error == operation.error
    assert answer.error["code"] == AWAY[fault][1]
    assert answer.error["service"] == "ai_provider"
    assert waiting.error is not None
    assert waiting.error["message"] in answer.error["message"]


BROKE = json.dumps({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})
JSON = {"content-type": "application/json"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "401": ({"status": 401}, "auth_denied"),
    "400": ({"status": 400}, "permanent"),
    "429 without money": ({"status": 429, "body": BROKE, "headers": JSON}, "permanent"),
    "an HTML page": (
        {"status": 200, "body": "<p>Hello", "headers": {"content-type": "text/html"}},
        "permanent",
    ),
    "garbage": ({"status": 200, "body": "\x00\ufffd{", "headers": JSON}, "permanent"),
    "a stream of garbage": (
        {"status": 200, "body": "data: {\n\n", "headers": {"content-type": "text/event-stream"}},
        "permanent",
    ),
}


@pytest.mark.parametrize(("assisted", "fault"), both(*REFUSED), indirect=["assisted"])
async def test_a_provider_that_will_not_answer_ends_it(assisted: Assisted, fault: str) -> None:
    await assisted.faults(REFUSED[fault][0])

    answer, operation = await told(assisted, "[[words 3]]")

    assert operation.status is OperationStatus.FAILED
    assert (answer.status, answer.content) == (MessageStatus.INCOMPLETE, "")
    assert answer.error is not None
    assert answer.error["code"] == REFUSED[fault][1]
    assert len(await assisted.asked()) <= 2  # 401 says that a credential may have been renewed meanwhile
    assert {call.error_code for call in await assisted.calls()} == {REFUSED[fault][1]}


async def test_a_worker_without_a_language_model_leaves_it_to_one_that_has_one(assisted: Assisted) -> None:
    conversation = await assisted.say("[[words 2]]")
    without = replace(assisted, runtime=replace(assisted.runtime, model=None))

    before = (await assisted.messages(conversation.id))[-1]

    waiting = await without.run(conversation.operation_id)

    assert waiting.status is OperationStatus.WAITING
    assert waiting.deadline is not None
    assert waiting.deadline - assisted.runtime.clock() > timedelta(minutes=50)
    after = (await assisted.messages(conversation.id))[-1]
    assert (after.status, after.began_at) == (MessageStatus.PENDING, before.began_at)
    assert waiting.error is not None
    assert waiting.error["code"] == "ai_not_configured"
    assert "EUCORA_AI__PROVIDER" in waiting.error["message"]
    await ended(assisted, conversation.operation_id)
    assert (await assisted.messages(conversation.id))[-1].content == "w1 w2"


async def test_a_run_that_follows_another_has_what_is_left_of_the_time(assisted: Assisted) -> None:
    await assisted.pace(cut_after=3, once=True)
    conversation = await assisted.say("[[words 100000]]")
    await assisted.run(conversation.operation_id)
    await assisted.pace(per_word=0.05)
    began = "now() - interval '108.5 seconds'"
    await assisted.sql(f"UPDATE messages SET began_at = {began} WHERE status = 'ANSWERING'")

    await ended(assisted, conversation.operation_id, within=10)

    answer = (await assisted.messages(conversation.id))[-1]
    assert answer.status is MessageStatus.INCOMPLETE
    assert answer.error is not None
    assert answer.error["code"] == "deadline"
    assert answer.content.startswith("w1 w2 w3")
    assert [call.error_code for call in await assisted.calls()] == ["transient", "deadline"]


ENDINGS = ("silent_after", "pings_after", "cut_after", "error_after")


@pytest.mark.parametrize(("assisted", "how"), both(*ENDINGS), indirect=["assisted"])
async def test_an_answer_that_breaks_off_is_begun_again(assisted: Assisted, how: str) -> None:
    await assisted.pace(**{how: 5, "once": True})
    conversation = await assisted.say("[[words 30]]")

    await assisted.run(conversation.operation_id)

    half = (await assisted.messages(conversation.id))[-1]
    assert (half.status, half.content) == (MessageStatus.ANSWERING, "w1 w2 w3 w4 w5")
    await ended(assisted, conversation.operation_id)
    _, answer = await assisted.messages(conversation.id)
    assert (answer.status, answer.content) == (MessageStatus.COMPLETE, WORDS)
    assert answer.draft > half.draft
    broken, whole = await assisted.calls()
    assert broken.error_code is not None
    assert broken.ended_at is not None
    assert broken.output_tokens > 0
    assert whole.error_code is None


@pytest.mark.parametrize(("assisted", "how"), both(*reversed(ENDINGS)), indirect=["assisted"])
async def test_an_answer_that_breaks_off_each_time_keeps_what_there_was_of_it(
    assisted: Assisted, how: str
) -> None:
    await assisted.pace(**{how: 5})

    answer, operation = await told(assisted, "[[words 30]]")

    assert operation.status is OperationStatus.FAILED
    assert operation.attempt == operation.max_attempts == len(await assisted.calls())
    assert (answer.status, answer.content) == (MessageStatus.INCOMPLETE, "w1 w2 w3 w4 w5")
    assert answer.error == operation.error


async def test_an_answer_that_never_ends_is_cut_when_its_time_is_over(assisted: Assisted) -> None:
    await assisted.pace(per_word=0.05)
    brief = replace(KINDS[KIND], soft_limit=timedelta(seconds=2), hard_limit=timedelta(seconds=20))
    conversation = await assisted.say("[[words 100000]]")
    assert conversation.operation_id is not None

    runner = product_runner(assisted.runtime, kinds={**KINDS, KIND: brief})
    operation = await run_once(runner, conversation.operation_id)

    answer = (await assisted.messages(conversation.id))[-1]
    assert operation.status is OperationStatus.FAILED
    assert answer.status is MessageStatus.INCOMPLETE
    assert answer.error is not None
    assert answer.error == operation.error
    assert (answer.error["class"], answer.error["code"]) == ("transient", "deadline")
    assert answer.content.startswith("w1 w2 w3 ")
    (call,) = await assisted.calls()
    assert call.error_code == "deadline"
    assert call.output_tokens > 0


async def test_an_answer_without_end_that_comes_fast_is_cut_at_its_length(assisted: Assisted) -> None:
    answer, _ = await told(assisted, "[[words 100000]]")

    assert answer.status is MessageStatus.INCOMPLETE
    assert answer.error is not None
    assert answer.error["code"] == "answer_too_long"
    assert len(answer.content) == LONGEST_ANSWER


NOBODY = "0199c0de-0000-7000-8000-00000000dead"
SLIPS = {
    "malformed": "[[malformed]] [[words 2]]",
    "wrong arguments": "[[wrong-arguments]] [[words 2]]",
    "both": "[[malformed]] [[wrong-arguments]] [[words 2]]",
    "undeclared": '[[call pause_deployment {"deployment_id": "<id>"}]] [[words 2]]',
    "one of a task": '[[call submit_proposal {"text": "x", "actions": []}]] [[words 2]]',
    "NUL": '[[call find_deployments {"text": "a\\u0000b"}]] [[words 2]]',
    "nobody": f'[[call read_deployment {{"deployment_id": "{NOBODY}"}}]] [[words 2]]',
}


@pytest.mark.parametrize(("assisted", "slip"), both(*SLIPS), indirect=["assisted"])
async def test_a_call_that_cannot_be_is_told_to_the_model_which_goes_on(
    assisted: Assisted, slip: str
) -> None:
    deployment_id = await stuck(assisted.runtime)
    before = await history(assisted, deployment_id)

    answer, operation = await told(assisted, SLIPS[slip].replace("<id>", str(deployment_id)))

    assert operation.status is OperationStatus.SUCCEEDED, operation.error
    assert (answer.status, answer.content) == (MessageStatus.COMPLETE, "w1 w2")
    results = [result for step in answer.steps for result in step["results"]]
    assert results
    assert all(result["is_error"] for result in results)
    assert all(json.loads(result["content"])["error"] for result in results)
    assert await history(assisted, deployment_id) == before


STUBBORN = {
    "a strange name": '[[call rollback.all {"deployment_id": "<id>"}]]',
    "half a character": '[[call find_deployments {"text": "a\\ud800b"}]]',
}


@pytest.mark.parametrize(("assisted", "slip"), both(*STUBBORN), indirect=["assisted"])
async def test_a_call_that_cannot_even_be_told_again_is_told_as_far_as_it_can(
    assisted: Assisted, slip: str
) -> None:
    deployment_id = await stuck(assisted.runtime)
    before = await history(assisted, deployment_id)

    answer, operation = await told(assisted, STUBBORN[slip].replace("<id>", str(deployment_id)))

    assert operation.status is OperationStatus.FAILED
    assert answer.error is not None  # for the scripted model takes what it is told for another call
    assert answer.error["code"] == "too_many_rounds"
    assert await history(assisted, deployment_id) == before


async def history(assisted: Assisted, deployment_id: UUID) -> tuple[int, int, DeploymentStatus, bool]:
    """What would tell if anything had been done to a deployment."""
    async with assisted.runtime.transaction() as session:
        found = await session.get_one(Deployment, deployment_id)
        return found.version, found.event_sequence, found.status, found.paused


@pytest.mark.parametrize("assisted", ["openai", "anthropic"], indirect=True)
async def test_a_model_that_asks_and_asks_is_stopped(assisted: Assisted) -> None:
    answer, operation = await told(assisted, "[[loop]]")

    assert operation.status is OperationStatus.FAILED
    assert answer.status is MessageStatus.INCOMPLETE
    assert answer.error is not None
    assert answer.error == operation.error
    assert (answer.error["class"], answer.error["code"]) == ("permanent", "too_many_rounds")
    assert answer.error["service"] == "ai_provider"
    assert len(await assisted.asked()) == MOST_ROUNDS + 1


async def test_work_that_came_to_nothing_is_counted_as_failed_and_can_be_had_after_all(
    assisted: Assisted,
) -> None:
    labels = {"kind": KIND.value, "outcome": "failed"}
    before = telemetry.registry.get_sample_value("eucora_operations_ended_total", labels) or 0
    await assisted.sql("UPDATE api_tokens SET revoked_at = now() WHERE id = :id", id=assisted.author.id)
    answer, operation = await told(assisted, "[[words 2]]")
    assert (answer.error or {})["code"] == "forbidden"
    assert telemetry.registry.get_sample_value("eucora_operations_ended_total", labels) == before + 1
    await assisted.sql("UPDATE api_tokens SET revoked_at = NULL")

    async with assisted.runtime.transaction() as session:
        await operations.revive(session, operation.id, revived=outcomes.operation_revived)
    done = await ended(assisted, operation.id)

    assert done.status is OperationStatus.SUCCEEDED
    (_, after) = await assisted.messages(answer.conversation_id)
    assert (after.status, after.content, after.error) == (MessageStatus.COMPLETE, "w1 w2", None)


ENDS = {
    "refuse": ("refusal", "I cannot help with that."),
    "length": ("length", "This answer is longer than it may"),
}


@pytest.mark.parametrize("assisted", ["openai", "anthropic"], indirect=True)
@pytest.mark.parametrize("order", ENDS)
async def test_why_an_answer_ended_is_told(assisted: Assisted, order: str) -> None:
    answer, _ = await told(assisted, f"[[{order}]]")

    reason, words = ENDS[order]
    assert (answer.status, answer.stop_reason) == (MessageStatus.COMPLETE, reason)
    assert answer.content in {words, ""}  # refusals have no words in Anthropic's format


@pytest.mark.parametrize("assisted", ["openai", "anthropic"], indirect=True)
async def test_a_model_that_says_nothing_has_answered_nothing(assisted: Assisted) -> None:
    answer, _ = await told(assisted, "[[words 0]]")

    assert (answer.status, answer.content, answer.stop_reason) == (MessageStatus.COMPLETE, "", "end")


async def test_what_cannot_be_read_now_is_told_to_the_model_which_goes_on(
    settings: Settings, stage: Stage, valkey: Server
) -> None:
    own = settings.model_copy(update={"redis_url": SecretStr(valkey.url)})
    async with opened(own, stage) as assisted:
        await valkey.child.stop()

        answer = await assisted.answered("[[call list_breakers {}]] [[words 2]]")

        assert (answer.status, answer.content) == (MessageStatus.COMPLETE, "w1 w2"), answer.error
        (result,) = [result for step in answer.steps for result in step["results"]]
        assert result["is_error"]
        assert "cannot be read now" in result["content"]


async def test_an_answer_that_breaks_off_before_its_next_round_says_anything_keeps_what_it_said_last(
    assisted: Assisted,
) -> None:
    look = ("I look at the planes.", [("list_planes", "{}")])
    model = saying(assisted, look, ("", [("list_breakers", "{}")]))
    conversation = await model.say("why?")

    waiting = await model.run(conversation.operation_id)  # it has nothing more to say, which is a bug
    assert waiting.status is OperationStatus.WAITING
    await outrun(assisted, waiting.id)
    operation = await ended(model, waiting.id)

    answer = (await assisted.messages(conversation.id))[-1]
    assert operation.status is OperationStatus.FAILED
    assert len(answer.steps) == 2
    assert (answer.status, answer.content) == (MessageStatus.INCOMPLETE, "I look at the planes.")


async def test_a_run_that_is_stopped_while_the_database_is_silent_does_not_wait_for_it(
    settings: Settings, stage: Stage
) -> None:
    brisk = settings.worker.model_copy(update={"lease": 1.5, "heartbeat": 0.3, "grace": 3.0})
    own = settings.model_copy(update={"worker": brisk})
    async with gated(own) as (through, gate), opened(through, stage) as assisted:
        await assisted.pace(silent_after=0)
        conversation = await assisted.say("[[words 3]]")
        watchdog = Watchdog(overrun=60)
        runner = Runner(assisted.runtime, JOBS, ended=outcomes.operation_ended, watchdog=watchdog)
        run = asyncio.create_task(runner.deliver({}, str(conversation.operation_id)))
        await eventually(assisted.asked, within=10)

        gate.hush()
        with captured_lines() as written:
            await asyncio.wait_for(run, brisk.lease + LAST_WORD + 10)
            told_of = [line["event"] for line in written()]

        assert "job_ignores_cancellation" not in told_of
        gate.speak()
