# SPDX-License-Identifier: Apache-2.0
"""What comes of an answer, as it should be or not, over real sockets."""

import asyncio
import gzip
from contextlib import aclosing

import pytest

from app.ai.contract import Reply, StopReason, ToolCall, Usage
from app.resilience.errors import Throttled
from tests.ai.conftest import Connect
from tests.ai.dialects import ANTHROPIC, ASK, CALLING, OPENAI, Dialect, Json, Said, pouring, sse, whole
from tests.resilience.misbehaving import misbehaving

CALLED = Reply(
    "Let me see.",
    (ToolCall("id-a", "look", '{"id": "7"}'), ToolCall("id-b", "look", "{}")),
    StopReason.TOOLS,
    Usage(12, 5),
    "m-1-2026",
)
only_openai = pytest.mark.parametrize("dialect", [OPENAI], ids=["openai"])
only_anthropic = pytest.mark.parametrize("dialect", [ANTHROPIC], ids=["anthropic"])


def without_spaces(reply: Reply) -> Reply:
    """Arguments that were an object were written anew by somebody."""
    calls = tuple(ToolCall(call.id, call.name, call.arguments.replace(" ", "")) for call in reply.calls)
    return Reply(reply.text, calls, reply.stop, reply.usage, reply.model)


async def test_text_comes_piece_by_piece_and_at_last_the_reply(connect: Connect, dialect: Dialect) -> None:
    async with misbehaving(pouring(*dialect.events(Said()))) as server:
        connected = await connect(server)
        pieces = await connected.pieces()

    assert pieces == ["Ca", "nary", ".", Reply("Canary.", (), StopReason.END, Usage(12, 5), "m-1-2026")]
    assert connected.breaker.fail_counter == 0


async def test_a_piece_is_given_before_the_next_one_is_there(connect: Connect, dialect: Dialect) -> None:
    events = dialect.events(Said())
    begun = next(number for number, event in enumerate(events) if b'"Ca"' in event)
    async with misbehaving(pouring(*events[: begun + 1], then="silence")) as server:
        connected = await connect(server, idle_timeout=30.0)
        async with asyncio.timeout(20), aclosing(connected.provider.answer(ASK)) as answers:
            assert await anext(answers) == "Ca"

    assert connected.breaker.fail_counter == 0


async def test_calls_are_put_together(connect: Connect, dialect: Dialect) -> None:
    async with misbehaving(pouring(*dialect.events(CALLING))) as server:
        assert await (await connect(server)).ask() == CALLED


async def test_a_server_that_does_not_stream_is_understood(connect: Connect, dialect: Dialect) -> None:
    async with misbehaving(whole(dialect.message(CALLING))) as server:
        connected = await connect(server)
        *pieces, reply = await connected.pieces()

    assert pieces == ["Let me see."]
    assert without_spaces(reply) == without_spaces(CALLED)


async def test_a_compressed_stream_is_read(connect: Connect, dialect: Dialect) -> None:
    packed = gzip.compress(b"".join(dialect.events(Said())))
    async with misbehaving(pouring(packed, headers={"Content-Encoding": "gzip"})) as server:
        assert (await (await connect(server)).ask()).text == "Canary."


@pytest.mark.parametrize(
    ("stop", "reason"),
    [
        ("end", StopReason.END),
        ("length", StopReason.LENGTH),
        ("refusal", StopReason.REFUSAL),
        ("something new", StopReason.OTHER),
    ],
)
@pytest.mark.parametrize("form", ["streamed", "whole"])
async def test_the_reason_for_a_stop_is_told(
    connect: Connect, dialect: Dialect, stop: str, reason: StopReason, form: str
) -> None:
    said = Said(stop=stop)
    behaviour = pouring(*dialect.events(said)) if form == "streamed" else whole(dialect.message(said))
    async with misbehaving(behaviour) as server:
        assert (await (await connect(server)).ask()).stop is reason


@only_anthropic
@pytest.mark.parametrize(
    ("stop", "reason"),
    [("stop_sequence", StopReason.END), ("model_context_window_exceeded", StopReason.LENGTH)],
)
async def test_anthropic_has_more_reasons(connect: Connect, stop: str, reason: StopReason) -> None:
    async with misbehaving(pouring(*ANTHROPIC.events(Said(stop=stop)))) as server:
        assert (await (await connect(server)).ask()).stop is reason


async def test_without_usage_nothing_is_made_up(connect: Connect, dialect: Dialect) -> None:
    message = dialect.message(Said())
    del message["usage"]
    async with misbehaving(whole(message)) as server:
        assert (await (await connect(server)).ask()).usage is None


MOST = 2**31 - 1
OPENAI_USAGE: list[tuple[object, Usage | None]] = [
    ({}, None),
    ([], None),
    ("many", None),
    ({"prompt_tokens": None, "completion_tokens": None}, None),
    ({"prompt_tokens": "many", "completion_tokens": True}, None),
    ({"prompt_tokens": 7, "completion_tokens": None}, Usage(7, 0)),
    ({"completion_tokens": 7}, Usage(0, 7)),
    ({"prompt_tokens": 7.0, "completion_tokens": 2.5}, Usage(7, 2)),
    ({"prompt_tokens": -1, "completion_tokens": 10**30}, Usage(0, MOST)),
    ({"prompt_tokens": -(10**400), "completion_tokens": 10**400}, Usage(0, MOST)),
    ({"prompt_tokens": MOST, "completion_tokens": float("inf")}, Usage(MOST, 0)),
]
ANTHROPIC_USAGE: list[tuple[object, Usage | None]] = [
    ({}, None),
    ([], None),
    ({"input_tokens": None, "output_tokens": "many"}, None),
    ({"input_tokens": 7}, Usage(7, 0)),
    ({"input_tokens": -1, "output_tokens": 10**30}, Usage(0, MOST)),
    ({"input_tokens": MOST, "cache_read_input_tokens": 1, "output_tokens": 1}, Usage(MOST, 1)),
]


@pytest.mark.parametrize(
    ("dialect", "told", "usage"),
    [
        *((OPENAI, told, usage) for told, usage in OPENAI_USAGE),
        *((ANTHROPIC, told, usage) for told, usage in ANTHROPIC_USAGE),
    ],
)
async def test_whatever_is_counted_the_answer_holds(
    connect: Connect, dialect: Dialect, told: object, usage: Usage | None
) -> None:
    async with misbehaving(whole(dialect.message(Said()) | {"usage": told})) as server:
        reply = await (await connect(server)).ask()

    assert (reply.text, reply.usage) == ("Canary.", usage)


class TestOddOpenAi:
    pytestmark = only_openai

    @pytest.mark.parametrize("delta", [{}, {"delta": None}], ids=["missing", "null"])
    async def test_results_of_a_filter_without_a_delta_are_skipped(
        self, connect: Connect, delta: Json
    ) -> None:
        events = []
        for chunk in OPENAI.chunks(Said()):
            results = {"hate": {"filtered": False, "severity": "safe"}}
            judged = {"index": 0, "finish_reason": None, "content_filter_results": results} | delta
            events += [sse("", chunk), sse("", {"id": "", "object": "", "model": "", "choices": [judged]})]
        async with misbehaving(pouring(*events, sse("", "[DONE]"))) as server:
            reply = await (await connect(server)).ask()

        assert reply == Reply("Canary.", (), StopReason.END, Usage(12, 5), "m-1-2026")

    async def test_a_filter_that_ends_an_answer_without_a_delta_is_a_refusal(self, connect: Connect) -> None:
        ended = OPENAI.chunk({}, stop="content_filter")
        del ended["choices"][0]["delta"]
        events = [sse("", OPENAI.chunk({"content": "Ca"})), sse("", ended), sse("", "[DONE]")]
        async with misbehaving(pouring(*events)) as server:
            reply = await (await connect(server)).ask()

        assert (reply.text, reply.stop) == ("Ca", StopReason.REFUSAL)

    @pytest.mark.parametrize("form", ["streamed", "whole"])
    async def test_the_words_of_a_refusal_are_the_text(self, connect: Connect, form: str) -> None:
        message = OPENAI.message(Said(()))
        message["choices"][0]["message"]["refusal"] = "I will not."
        deltas = [{"refusal": "I will "}, {"refusal": "not."}]
        chunks = [*map(OPENAI.chunk, deltas), OPENAI.chunk({}, stop="stop")]
        events = [*(sse("", chunk) for chunk in chunks), sse("", "[DONE]")]
        async with misbehaving(pouring(*events) if form == "streamed" else whole(message)) as server:
            reply = await (await connect(server)).ask()

        assert (reply.text, reply.stop) == ("I will not.", StopReason.REFUSAL)

    async def test_a_call_without_an_id_gets_one_and_without_arguments_an_object(
        self, connect: Connect
    ) -> None:
        calls = [{"index": 1, "function": {"name": "b"}}, {"index": 0, "function": {"name": "a"}}]
        reply = await self.of_calls(connect, calls)

        assert reply.calls == (ToolCall("call_0", "a", "{}"), ToolCall("call_1", "b", "{}"))
        assert reply.stop is StopReason.TOOLS

    async def test_calls_without_an_index_are_told_apart(self, connect: Connect) -> None:
        calls: list[Json] = [
            {"id": "x", "function": {"name": "a", "arguments": '{"b"'}},
            {"function": {"arguments": ":1}"}},
            {"id": "y", "function": {"name": "c", "arguments": "{}"}},
        ]
        reply = await self.of_calls(connect, calls)

        assert reply.calls == (ToolCall("x", "a", '{"b":1}'), ToolCall("y", "c", "{}"))

    async def of_calls(self, connect: Connect, calls: list[Json]) -> Reply:
        chunks = [*(OPENAI.chunk({"tool_calls": [call]}) for call in calls), OPENAI.chunk({}, stop="stop")]
        events = [*(sse("", chunk) for chunk in chunks), sse("", "[DONE]")]
        async with misbehaving(pouring(*events)) as server:
            reply: Reply = await (await connect(server)).ask()
        return reply

    async def test_thoughts_and_other_choices_are_skipped(self, connect: Connect) -> None:
        other = OPENAI.chunk({"content": "other"})
        other["choices"][0]["index"] = 1
        odd = [OPENAI.chunk({"reasoning_content": "hm"}), other, OPENAI.chunk(None)]
        async with misbehaving(pouring(*(sse("", chunk) for chunk in odd), *OPENAI.events(Said()))) as server:
            assert (await (await connect(server)).ask()).text == "Canary."


class TestOddAnthropic:
    pytestmark = only_anthropic

    async def test_thoughts_unknown_blocks_and_unknown_events_are_skipped(self, connect: Connect) -> None:
        start, *rest = ANTHROPIC.events(Said())
        odd = [
            *ANTHROPIC.block(7, {"type": "thinking"}, {"type": "thinking_delta", "thinking": "hm"}),
            *ANTHROPIC.block(8, {"type": "server_tool_use"}, {"type": "input_json_delta"}),
            ANTHROPIC.typed("something_new"),
        ]
        async with misbehaving(pouring(start, *odd, *rest)) as server:
            reply = await (await connect(server)).ask()

        assert (reply.text, reply.calls) == ("Canary.", ())

    async def test_arguments_that_come_with_the_beginning_of_a_call_count(self, connect: Connect) -> None:
        block = {"type": "tool_use", "id": "x", "name": "look", "input": {"id": "7"}}
        events = [ANTHROPIC.start(), *ANTHROPIC.block(0, block), *ANTHROPIC.finish(Said(stop="tools"))]
        async with misbehaving(pouring(*events)) as server:
            reply = await (await connect(server)).ask()

        assert reply.calls == (ToolCall("x", "look", '{"id":"7"}'),)

    async def test_tokens_of_a_cache_are_input_and_later_counts_go_before_earlier_ones(
        self, connect: Connect
    ) -> None:
        usage = {"input_tokens": 20, "cache_read_input_tokens": 3, "output_tokens": 9}
        start, *rest = ANTHROPIC.events(Said())
        later = ANTHROPIC.typed("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
        async with misbehaving(pouring(start, *rest[:-2], later, rest[-1])) as server:
            assert (await (await connect(server)).ask()).usage == Usage(23, 9)


@pytest.mark.parametrize("reset", ["1m0s", "23h0m0s"])
async def test_what_is_used_up_closes_the_gate_though_the_answer_was_good_for_a_minute_at_most(
    connect: Connect, dialect: Dialect, reset: str
) -> None:
    limits = {
        "X-RateLimit-Limit-Tokens": "100",
        "X-RateLimit-Remaining-Tokens": "0",
        "X-RateLimit-Reset-Tokens": reset,
    }
    async with misbehaving(pouring(*dialect.events(Said()), headers=limits)) as server:
        connected = await connect(server)
        assert (await connected.ask()).text == "Canary."
        with pytest.raises(Throttled):
            await connected.ask()

    assert 50 < connected.breaker.gate.remaining() <= 60
