# SPDX-License-Identifier: Apache-2.0
"""The two wire formats: framing, contracts, keys, refusals."""

import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest

from sandbox.scripted_model import MODEL
from tests.connectors.contract_check import ABSENT, Contract
from tests.sandbox.provider import (
    ANTHROPIC,
    OPENAI,
    AnthropicClient,
    Client,
    OpenAiClient,
    documents,
    exchange_of,
)
from tests.sandbox.tenant import Tenant
from tests.wire import PLAIN

QUESTIONS = {
    "words": "[[words 3]]",
    "a call": "why is firefox stuck?",
    "no JSON": "[[malformed]]",
    "refusal": "[[refuse]]",
    "too long": "[[length]]",
}
TOOLS = ("find_deployments",)
CALL = {"id": "c1", "type": "function", "function": {"name": "find_deployments", "arguments": "{}"}}
MISSING = "missing_required_parameter"
USE = {"type": "tool_use", "id": "c1", "name": "find_deployments", "input": {}}


@pytest.fixture
def openai(tenant: Tenant) -> Iterator[OpenAiClient]:
    with OpenAiClient(tenant.url) as client:
        yield client


@pytest.fixture
def anthropic(tenant: Tenant) -> Iterator[AnthropicClient]:
    with AnthropicClient(tenant.url) as client:
        yield client


@pytest.fixture(params=["openai", "anthropic"])
def client(request: pytest.FixtureRequest) -> Client:
    found: Client = request.getfixturevalue(request.param)
    return found


def at_hand(contract: Contract) -> Contract:
    if not contract.is_at_hand:
        pytest.skip(ABSENT)
    return contract


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_openais_answers_are_in_its_contract(openai: OpenAiClient, question: str) -> None:
    contract = at_hand(OPENAI)
    streamed = documents(openai.ask(question, tools=TOOLS, stream=True).iter_lines())
    chunk = "#/components/schemas/CreateChatCompletionStreamResponse"

    answer = openai.ask(question, tools=TOOLS)

    assert answer.status_code == 200
    assert contract.problems(exchange_of(answer)) == []
    assert [problem for each in streamed for problem in contract._errors(chunk, each)] == []


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
@pytest.mark.parametrize("version", ANTHROPIC)
def test_anthropics_answers_are_in_the_contract_of_each_version(
    anthropic: AnthropicClient, version: str, question: str
) -> None:
    contract = at_hand(ANTHROPIC[version])
    anthropic.http.headers["anthropic-version"] = version
    begun = next(documents(anthropic.ask(question, tools=TOOLS, stream=True).iter_lines()))

    answer = anthropic.ask(question, tools=TOOLS)

    assert answer.status_code == 200
    assert contract.problems(exchange_of(answer)) == []
    assert contract._errors("#/components/schemas/Message", begun["message"]) == []


@pytest.mark.parametrize("path", ["/v1/models", f"/v1/models/{MODEL}"])
def test_models_are_in_the_contracts(openai: OpenAiClient, anthropic: AnthropicClient, path: str) -> None:
    told = at_hand(OPENAI).problems(exchange_of(openai.http.get(path)))
    for version, contract in ANTHROPIC.items():
        answer = anthropic.http.get(path, headers={"anthropic-version": version})
        told += at_hand(contract).problems(exchange_of(answer))

    assert told == []


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 429, 500, 504, 529])
def test_errors_are_in_the_contracts(openai: OpenAiClient, anthropic: AnthropicClient, status: int) -> None:
    openai.fault(status=status)
    anthropic.fault(status=status)

    told, other = openai.ask("hello"), anthropic.ask("hello")

    assert at_hand(OPENAI)._errors("#/components/schemas/ErrorResponse", told.json()) == []
    assert [
        each for known in ANTHROPIC.values() for each in at_hand(known).problems(exchange_of(other))
    ] == []
    assert (told.status_code, other.status_code) == (status, status)


def test_openais_stream_is_framed_as_openai_does(openai: OpenAiClient) -> None:
    body = openai.body("[[words 2]]", stream=True) | {"stream_options": {"include_usage": True}}

    answer = openai.http.post(openai.path, json=body)

    *events, done, empty = answer.text.split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (done, empty) == ("data: [DONE]", "")
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:-1]] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "w1"},
        {"content": " w2"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, None, "stop"]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 4
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 3 + 2)


def test_there_is_no_usage_in_a_stream_unless_it_is_asked_for(openai: OpenAiClient) -> None:
    chunks = list(documents(openai.ask("[[words 2]]", stream=True).iter_lines()))

    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)


def test_anthropics_stream_is_framed_as_anthropic_does(anthropic: AnthropicClient) -> None:
    answer = anthropic.ask("[[words 2]]", stream=True)

    *events, empty = answer.text.split("\n\n")
    heads = [event.split("\n")[0] for event in events]
    told = [json.loads(event.split("\n")[1].removeprefix("data: ")) for event in events]
    assert empty == ""
    assert heads == [f"event: {each['type']}" for each in told]
    assert [each["type"] for each in told] == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert told[0]["message"]["usage"]["input_tokens"] == 3
    assert told[3]["delta"] == {"type": "text_delta", "text": "w1"}
    assert told[6]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert told[6]["usage"] == {"output_tokens": 2}


def test_openais_calls_come_in_pieces(openai: OpenAiClient) -> None:
    chunks = list(documents(openai.ask("why is firefox stuck?", tools=TOOLS, stream=True).iter_lines()))

    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    pieces = [call["function"]["arguments"] for call in calls]
    assert calls[0]["id"].startswith("call_")
    assert (calls[0]["function"]["name"], pieces[0]) == ("find_deployments", "")
    assert len(pieces) >= 3
    assert json.loads("".join(pieces)) == {"text": "firefox"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_anthropics_calls_come_in_pieces(anthropic: AnthropicClient) -> None:
    events = list(documents(anthropic.ask("why is firefox stuck?", tools=TOOLS, stream=True).iter_lines()))

    begun = next(event["content_block"] for event in events if event["type"] == "content_block_start")
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert (begun["type"], begun["name"], begun["input"]) == ("tool_use", "find_deployments", {})
    assert len(deltas) >= 3
    assert json.loads("".join(delta["partial_json"] for delta in deltas)) == {"text": "firefox"}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_arguments_that_are_no_json_are_streamed_as_they_are(
    openai: OpenAiClient, anthropic: AnthropicClient
) -> None:
    chunks = documents(openai.ask("[[malformed]]", stream=True).iter_lines())
    events = list(documents(anthropic.ask("[[malformed]]", stream=True).iter_lines()))

    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    parts = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(call["function"]["arguments"] for call in calls) == '{"deployment_id": '
    assert "".join(parts) == '{"deployment_id": '
    assert anthropic.ask("[[malformed]]").json()["content"][0]["input"] == {}


def test_a_refusal_is_the_vendors_own(openai: OpenAiClient, anthropic: AnthropicClient) -> None:
    choice, message = openai.ask("[[refuse]]").json()["choices"][0], anthropic.ask("[[refuse]]").json()

    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "stop")
    assert choice["message"]["refusal"] == message["stop_details"]["explanation"]
    assert (message["content"], message["stop_reason"]) == ([], "refusal")


def test_an_answer_that_is_cut_says_so(openai: OpenAiClient, anthropic: AnthropicClient) -> None:
    assert openai.ask("[[length]]").json()["choices"][0]["finish_reason"] == "length"
    assert anthropic.ask("[[length]]").json()["stop_reason"] == "max_tokens"


def test_what_was_said_and_done_comes_back_to_the_model(
    openai: OpenAiClient, anthropic: AnthropicClient
) -> None:
    result = json.dumps({"tool": "find_deployments", "data": {"deployments": []}})
    call = {**CALL, "function": {"name": "find_deployments", "arguments": '{"text":"firefox"}'}}
    body = openai.body("why is firefox stuck?", tools=TOOLS)
    body["messages"] += [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": result},
    ]
    other = anthropic.body("why is firefox stuck?", tools=TOOLS)
    other["messages"] += [
        {"role": "assistant", "content": [{**USE, "input": {"text": "firefox"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": result}]},
    ]

    answers = [openai.http.post(openai.path, json=body), anthropic.http.post(anthropic.path, json=other)]

    assert openai.said(answers[0].json()) == "I found no deployment of firefox."
    assert anthropic.said(answers[1].json()) == "I found no deployment of firefox."


def test_what_a_user_says_in_one_message_after_another_is_told_apart(anthropic: AnthropicClient) -> None:
    texts = [{"type": "text", "text": text} for text in ("[[words 9]]", "[[words 1]]")]
    body = anthropic.body("") | {"messages": [{"role": "user", "content": texts}]}

    assert anthropic.said(anthropic.http.post(anthropic.path, json=body).json()) == "w1"


def test_system_texts_reach_the_model_from_where_each_vendor_has_them(
    openai: OpenAiClient, anthropic: AnthropicClient
) -> None:
    body = openai.body("[[echo-system]]")
    body["messages"].insert(0, {"role": "system", "content": "Be nice."})
    blocks = anthropic.body("[[echo-system]]") | {"system": [{"type": "text", "text": "Be nice."}]}

    assert openai.said(openai.http.post(openai.path, json=body).json()) == "Be nice."
    assert anthropic.said(anthropic.http.post(anthropic.path, json=blocks).json()) == "Be nice."


def test_who_forbids_calls_gets_none(openai: OpenAiClient, anthropic: AnthropicClient) -> None:
    question = "why is firefox stuck?"
    body = openai.body(question, tools=TOOLS) | {"tool_choice": "none"}
    other = anthropic.body(question, tools=TOOLS) | {"tool_choice": {"type": "none"}}

    assert openai.said(openai.http.post(openai.path, json=body).json()).startswith("I cannot look")
    assert anthropic.said(anthropic.http.post(anthropic.path, json=other).json()).startswith("I cannot look")


@pytest.mark.parametrize("key", [{"authorization": "Bearer sandbox-secret"}, {"api-key": "sandbox-secret"}])
def test_openais_key_may_come_either_way(tenant: Tenant, key: dict[str, str]) -> None:
    assert httpx.get(f"{tenant.url}/openai/v1/models", headers=key, verify=PLAIN).status_code == 200


@pytest.mark.parametrize("key", [{"authorization": "Bearer sandbox-secret"}, {"x-api-key": "sandbox-secret"}])
def test_anthropics_key_may_come_either_way(tenant: Tenant, key: dict[str, str]) -> None:
    url, version = f"{tenant.url}/anthropic/v1/models", {"anthropic-version": "2026-10-21"}

    assert httpx.get(url, headers=key | version, verify=PLAIN).status_code == 200


@pytest.mark.parametrize("key", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic x"}])
def test_nobody_else_is_let_in(tenant: Tenant, key: dict[str, str]) -> None:
    answers = [
        httpx.post(f"{tenant.url}{path}", json={}, headers=key, verify=PLAIN)
        for path in ("/openai/v1/chat/completions", "/anthropic/v1/messages")
    ]

    assert [answer.status_code for answer in answers] == [401, 401]
    assert answers[0].json()["error"]["type"] == "invalid_request_error"
    assert answers[1].json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("version", [None, "2020-01-01"])
def test_anthropic_wants_to_know_its_version(tenant: Tenant, version: str | None) -> None:
    headers = {"x-api-key": "sandbox-secret", **({"anthropic-version": version} if version else {})}

    answer = httpx.get(f"{tenant.url}/anthropic/v1/models", headers=headers, verify=PLAIN)

    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_there_is_one_model(openai: OpenAiClient, anthropic: AnthropicClient) -> None:
    wrong = {"model": "gpt-9"}

    told = openai.http.post(openai.path, json=openai.body("hello") | wrong)
    other = anthropic.http.post(anthropic.path, json=anthropic.body("hello") | wrong)

    assert (told.status_code, told.json()["error"]["code"]) == (404, "model_not_found")
    assert (other.status_code, other.json()["error"]) == (
        404,
        {"type": "not_found_error", "message": "model: gpt-9"},
    )


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"model": None}, "model", "invalid_value"),
        ({"messages": None}, "messages", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0].type", MISSING),
        ({"messages": [{"role": "user"}]}, "messages.[0].content", None),
        ({"messages": [{"role": "tool", "tool_call_id": "c1", "content": "x"}]}, "messages.[0].role", None),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL]}]}, "messages", None),
        ({"invented": 1}, "invented", "unknown_parameter"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
    ],
)
def test_openai_refuses_what_it_does_not_understand(
    openai: OpenAiClient, change: dict[str, Any], param: str, code: str | None
) -> None:
    answer = openai.http.post(openai.path, json=openai.body("hello") | change)

    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_openai_says_what_is_missing(openai: OpenAiClient, missing: str) -> None:
    body = {name: value for name, value in openai.body("hello").items() if name != missing}

    answer = openai.http.post(openai.path, json=body)

    assert answer.status_code == 400
    assert missing in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_tokens": 0}, "max_tokens: "),
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages: first message"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages.0: all messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]},
            "messages: text content",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1"}]}]},
            "messages.0.content.0: unexpected `tool_use_id`",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": [USE]}]},
            "messages.1: `tool_use` ids were found without `tool_result`",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0.text.text: Field",
        ),
        ({"invented": 1}, "invented: Extra inputs are not permitted"),
    ],
)
def test_anthropic_refuses_what_it_does_not_understand(
    anthropic: AnthropicClient, change: dict[str, Any], words: str
) -> None:
    answer = anthropic.http.post(anthropic.path, json=anthropic.body("hello") | change)

    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert answer.json()["error"]["message"].startswith(words)


@pytest.mark.parametrize("missing", ["model", "messages", "max_tokens"])
def test_anthropic_says_what_is_missing(anthropic: AnthropicClient, missing: str) -> None:
    body = {name: value for name, value in anthropic.body("hello").items() if name != missing}

    answer = anthropic.http.post(anthropic.path, json=body)

    assert (answer.status_code, answer.json()["error"]["message"]) == (400, f"{missing}: Field required")


def test_a_body_that_is_no_json_is_refused(client: Client) -> None:
    answer = client.http.post(client.path, content=b"{")

    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_every_answer_has_an_id_and_the_limits_in_the_vendors_units(
    openai: OpenAiClient, anthropic: AnthropicClient
) -> None:
    told, other = openai.ask("hello").headers, anthropic.ask("hello").headers

    assert told["x-request-id"] != openai.ask("hello").headers["x-request-id"]
    assert re.fullmatch(r"(\d+h)?(\d+m)?(\d+(\.\d+)?(s|ms))?", told["x-ratelimit-reset-tokens"])
    assert int(told["x-ratelimit-remaining-requests"]) > 0
    assert datetime.fromisoformat(other["anthropic-ratelimit-output-tokens-reset"]).tzinfo is not None
    assert int(other["anthropic-ratelimit-requests-remaining"]) > 0
    refused = anthropic.http.post(anthropic.path, json={})
    assert refused.json()["request_id"] == refused.headers["request-id"]
