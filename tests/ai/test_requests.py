# SPDX-License-Identifier: Apache-2.0
"""What is sent, held against the vendors' contracts; and the samples of the other tests, too."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.ai import anthropic, openai
from app.ai.contract import Ask, ModelTurn, ToolCall, ToolResult, ToolTurn, UserTurn
from tests.ai.conftest import Connect
from tests.ai.dialects import (
    ANTHROPIC,
    ASK,
    CALLING,
    LONG_ASK,
    NEWER_ANTHROPIC_CONTRACT,
    OPENAI,
    Dialect,
    Said,
    pouring,
    whole,
)
from tests.connectors.contract_check import ABSENT, Contract, Exchange
from tests.resilience.misbehaving import Received, misbehaving

BARE = Ask("", (UserTurn("Hi"),))
ASKS = pytest.mark.parametrize("ask", [ASK, LONG_ASK, BARE], ids=["short", "long", "bare"])


def held_against(contract: Contract, request: Received, answer: bytes, *, staged: bool = False) -> list[str]:
    if not contract.is_at_hand:
        pytest.skip(ABSENT)
    path, _, query = request.target.partition("?")
    body = json.loads(request.body)
    if contract is not OPENAI.contract:
        assert body.pop("stream") is True  # these documents were made of the type for whole answers only
    sent = json.dumps(body).encode()
    return contract.problems(Exchange(request.method, path, query, sent, 200, answer, staged))


@ASKS
async def test_a_question_is_one_of_the_format(connect: Connect, ask: Ask, dialect: Dialect) -> None:
    async with misbehaving(pouring(*dialect.events(Said()))) as server:
        await (await connect(server)).ask(ask)

    assert held_against(dialect.contract, server.received[0], b"", staged=True) == []


@ASKS
@pytest.mark.parametrize("dialect", [ANTHROPIC], ids=["anthropic"])
async def test_a_question_is_one_of_the_newer_version_too(connect: Connect, ask: Ask) -> None:
    async with misbehaving(pouring(*ANTHROPIC.events(Said()))) as server:
        await (await connect(server, anthropic_version="2026-10-21")).ask(ask)

    assert server.received[0].headers["anthropic-version"] == "2026-10-21"
    assert held_against(NEWER_ANTHROPIC_CONTRACT, server.received[0], b"", staged=True) == []


async def test_the_whole_answers_of_these_tests_are_as_the_contract_says(
    connect: Connect, dialect: Dialect
) -> None:
    for said in (Said(), CALLING):
        message = dialect.message(said)
        async with misbehaving(whole(message)) as server:
            await (await connect(server)).ask()
        assert held_against(dialect.contract, server.received[0], json.dumps(message).encode()) == []


@pytest.mark.parametrize("said", [Said(), CALLING], ids=["text", "calls"])
def test_the_chunks_of_these_tests_are_as_the_contract_says(said: Said) -> None:
    if not OPENAI.contract.is_at_hand:
        pytest.skip(ABSENT)
    schema = "#/components/schemas/CreateChatCompletionStreamResponse"
    told = [problem for chunk in OPENAI.chunks(said) for problem in OPENAI.contract._errors(schema, chunk)]

    assert told == []


async def body_of(connect: Connect, dialect: Dialect, ask: Ask, **settings: str) -> Any:
    async with misbehaving(pouring(*dialect.events(Said()))) as server:
        await (await connect(server, **settings)).ask(ask)
    assert server.received[0].target == dialect.path
    return json.loads(server.received[0].body)


async def test_nothing_is_sent_that_shapes_the_sampling(connect: Connect, dialect: Dialect) -> None:
    body = await body_of(connect, dialect, ASK)

    assert body.keys() <= {
        *("model", "messages", "stream", "stream_options", "tools", "system"),
        *("max_tokens", "max_completion_tokens"),
    }


@pytest.mark.parametrize("dialect", [OPENAI], ids=["openai"])
@pytest.mark.parametrize("name", ["max_completion_tokens", "max_tokens"])
async def test_the_limit_has_the_name_that_the_server_knows(connect: Connect, name: str) -> None:
    body = await body_of(connect, OPENAI, ASK, output_limit_field=name)

    assert body[name] == 100
    assert body["stream_options"] == {"include_usage": True}


def test_a_conversation_in_openais_format() -> None:
    assert list(openai.messages(LONG_ASK)) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Which ring?"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"id":"7"}'}},
                {"id": "c2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "canary"},
        {"role": "tool", "tool_call_id": "c2", "content": "no such"},
        {"role": "user", "content": "And now?"},
        {"role": "user", "content": ""},
        {"role": "user", "content": "Please."},
    ]


def test_a_conversation_in_anthropics_format() -> None:
    assert anthropic.messages(LONG_ASK) == [
        {"role": "user", "content": [{"type": "text", "text": "Which ring?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "c1", "name": "look", "input": {"id": "7"}},
                {"type": "tool_use", "id": "c2", "name": "look", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "canary"},
                {"type": "tool_result", "tool_use_id": "c2", "content": "no such", "is_error": True},
                {"type": "text", "text": "And now?"},
                {"type": "text", "text": "Please."},
            ],
        },
    ]


NO_OBJECTS = ["", "[1]", "null", "7", '{"a":', "[" * 10_000, '{"a":"\\ud800"}', '{"a":' + "9" * 5000 + "}"]
NOT_FINITE = ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", '[{"b":[0,1E+999]}]']


@pytest.mark.parametrize("arguments", NO_OBJECTS + [f'{{"a":{number}}}' for number in NOT_FINITE])
def test_arguments_that_are_no_object_are_sent_as_an_empty_one(arguments: str) -> None:
    ask = Ask("", (ModelTurn(" ", (ToolCall("c", "look", arguments),)), ToolTurn((ToolResult("c", ""),))))

    assert anthropic.messages(ask)[0]["content"] == [
        {"type": "tool_use", "id": "c", "name": "look", "input": {}}
    ]
    assert next(openai.messages(ask))["tool_calls"][0]["function"]["arguments"] == "{}"


WRITTEN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(WRITTEN.map(json.dumps) | st.dictionaries(st.text(), WRITTEN).map(json.dumps) | st.text())
def test_whatever_a_model_writes_the_next_question_can_be_sent(arguments: str) -> None:
    calls = ToolCall("c", "look", arguments), ToolCall(arguments, arguments, arguments)
    ask = Ask("", (ModelTurn(arguments, calls), ToolTurn((ToolResult(arguments, arguments),))))

    for told in (anthropic.messages(ask), list(openai.messages(ask))):
        httpx.Request("POST", "http://provider.example", json=told)
