# SPDX-License-Identifier: Apache-2.0
"""Answers that break off, hang, make no sense or turn into errors, over real sockets."""

import asyncio
from contextlib import aclosing

import pytest

from app.resilience import BreakerOpen
from app.resilience.errors import (
    AttemptTimeout,
    AuthError,
    CallError,
    NotThere,
    PermanentError,
    PolicyError,
    ServerError,
    Throttled,
    TransientError,
)
from tests.ai.conftest import KEY, Connect
from tests.ai.dialects import ANTHROPIC, ASK, OPENAI, Dialect, Json, Said, pouring, sse, whole
from tests.resilience.misbehaving import Behaviour, answer, broken_off, misbehaving

only_openai = pytest.mark.parametrize("dialect", [OPENAI], ids=["openai"])
only_anthropic = pytest.mark.parametrize("dialect", [ANTHROPIC], ids=["anthropic"])


async def test_a_stream_that_is_not_ended_is_a_failure_of_the_service(
    connect: Connect, dialect: Dialect
) -> None:
    async with misbehaving(pouring(*dialect.events(Said())[:-1])) as server:
        connected = await connect(server)
        with pytest.raises(TransientError, match="before the end"):
            await connected.ask()

    assert connected.breaker.fail_counter == 1
    assert len(server.received) == 1


async def test_an_end_without_a_reason_is_a_failure_of_the_service(
    connect: Connect, dialect: Dialect
) -> None:
    events = [event for event in dialect.events(Said()) if b"stop_sequence" not in event or b"start" in event]
    events = [event for event in events if b'"finish_reason": "stop"' not in event]
    async with misbehaving(pouring(*events)) as server:
        connected = await connect(server)
        with pytest.raises(TransientError, match="without saying why"):
            await connected.ask()

    assert connected.breaker.fail_counter == 1


async def test_a_broken_connection_is_a_failure_of_the_service(connect: Connect, dialect: Dialect) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with misbehaving(broken_off(head + b"5\r\ndata:\r\n")) as server:
        connected = await connect(server)
        with pytest.raises(TransientError):
            await connected.ask()

    assert connected.breaker.fail_counter == 1


async def test_five_answers_that_break_off_open_the_breaker(connect: Connect, dialect: Dialect) -> None:
    async with misbehaving(pouring(*dialect.events(Said())[:-1])) as server:
        connected = await connect(server)
        for _ in range(5):
            with pytest.raises(TransientError):
                await connected.ask()
        with pytest.raises(BreakerOpen):
            await connected.ask()


@pytest.mark.parametrize("then", ["silence", "forever"])
async def test_what_brings_nothing_for_too_long_is_cut(connect: Connect, dialect: Dialect, then: str) -> None:
    async with misbehaving(pouring(*dialect.events(Said())[:4], then=then, forever=dialect.ping)) as server:
        connected = await connect(server)
        async with asyncio.timeout(20):
            with pytest.raises(AttemptTimeout):
                await connected.ask()

    assert connected.breaker.fail_counter == 1


@only_openai
async def test_chunks_without_content_are_signs_of_life_only(connect: Connect) -> None:
    told = [{"role": "assistant", "content": ""}, {}]
    chunks = [sse("", OPENAI.chunk(delta, usage={"prompt_tokens": 1})) for delta in told]
    filtered: Json = {"index": 0, "finish_reason": None, "content_filter_results": {}}
    chunks.append(sse("", OPENAI.chunk(None) | {"choices": [filtered]}))
    first = sse("", OPENAI.chunk({"content": "Ca"}))
    async with misbehaving(pouring(first, then="forever", forever=b"".join(chunks))) as server:
        async with asyncio.timeout(20):
            with pytest.raises(AttemptTimeout):
                await (await connect(server)).ask()


async def test_a_whole_answer_that_does_not_come_to_its_end_is_cut(
    connect: Connect, dialect: Dialect
) -> None:
    behaviour = pouring(b"{", then="forever", forever=b" ", kind="application/json")
    async with misbehaving(behaviour) as server, asyncio.timeout(20):
        connected = await connect(server, first_timeout=0.5)
        with pytest.raises(AttemptTimeout):
            await connected.ask()

    assert connected.breaker.fail_counter == 1


async def test_who_stops_listening_says_nothing_of_the_service(connect: Connect, dialect: Dialect) -> None:
    async with misbehaving(pouring(*dialect.events(Said()), then="silence")) as server:
        connected = await connect(server, max_concurrency=1)
        for _ in range(2):
            async with aclosing(connected.provider.answer(ASK)) as pieces:
                assert await anext(pieces)

    assert connected.breaker.fail_counter == 0


@pytest.mark.parametrize(
    "text", ["{", "[]", '"a"', '{"choices": 5, "type": 5}', "[" * 10_000], ids=str.__len__
)
async def test_what_is_no_chunk_is_no_answer(connect: Connect, dialect: Dialect, text: str) -> None:
    async with misbehaving(pouring(sse("", text)), whole(text)) as server:
        connected = await connect(server)
        for _ in range(2):
            with pytest.raises(PermanentError, match="no answer in its wire format"):
                await connected.ask()

    assert connected.breaker.fail_counter == 0


@pytest.mark.parametrize(
    "behaviour",
    [whole({}), whole({"choices": []}), answer(200, b"<html>sign in", Content_Type="text/html")],
    ids=["nothing", "no choice", "a page"],
)
async def test_a_good_status_alone_is_no_answer(
    connect: Connect, dialect: Dialect, behaviour: Behaviour
) -> None:
    async with misbehaving(behaviour) as server:
        with pytest.raises(PermanentError):
            await (await connect(server)).ask()


@only_anthropic
@pytest.mark.parametrize(
    "kind", ["message_start", "content_block_start", "content_block_delta", "message_delta"]
)
async def test_an_event_without_what_it_is_about_is_no_answer(connect: Connect, kind: str) -> None:
    async with misbehaving(pouring(ANTHROPIC.typed(kind))) as server:
        with pytest.raises(PermanentError):
            await (await connect(server)).ask()


OPENAI_ERRORS: list[tuple[object, type[CallError]]] = [
    (OPENAI.error("server_error"), ServerError),
    (OPENAI.error("requests", code="rate_limit_exceeded"), Throttled),
    (OPENAI.error("insufficient_quota", code="insufficient_quota"), PermanentError),
    (OPENAI.error("x", code="credit_balance_exhausted"), PermanentError),
    (OPENAI.error("invalid_request_error", code="invalid_api_key"), AuthError),
    (OPENAI.error("invalid_request_error", code="context_length_exceeded"), PermanentError),
    (OPENAI.error("BadRequestError", code=400), PermanentError),
    (OPENAI.error("InternalServerError", code=500), ServerError),
    (OPENAI.error("x", code=429), Throttled),
    (OPENAI.error("x", code=["?"]), ServerError),
    ({"error": "in words"}, ServerError),
    ({"error": {"code": 7}}, ServerError),
]
ANTHROPIC_ERRORS: list[tuple[object, type[CallError]]] = [
    (ANTHROPIC.error("overloaded_error"), TransientError),
    (ANTHROPIC.error("api_error"), ServerError),
    (ANTHROPIC.error("timeout_error"), TransientError),
    (ANTHROPIC.error("rate_limit_error"), Throttled),
    (
        ANTHROPIC.error("rate_limit_error", details={"error_code": "enforced_spend_limit_reached"}),
        PermanentError,
    ),
    (ANTHROPIC.error("billing_error"), PermanentError),
    (ANTHROPIC.error("authentication_error"), AuthError),
    (ANTHROPIC.error("permission_error"), PolicyError),
    (ANTHROPIC.error("not_found_error"), NotThere),
    (ANTHROPIC.error("invalid_request_error"), PermanentError),
    (ANTHROPIC.error("something_new"), ServerError),
    ({"type": "error"}, ServerError),
]


@pytest.mark.parametrize(
    ("dialect", "error", "kind"),
    [
        *((OPENAI, error, kind) for error, kind in OPENAI_ERRORS),
        *((ANTHROPIC, error, kind) for error, kind in ANTHROPIC_ERRORS),
    ],
)
@pytest.mark.parametrize("form", ["streamed", "whole"])
async def test_an_error_in_place_of_the_rest_is_what_it_means(
    connect: Connect, dialect: Dialect, error: Json, kind: type[CallError], form: str
) -> None:
    stream = pouring(*dialect.events(Said())[:3], dialect.broken_off(error))
    async with misbehaving(stream if form == "streamed" else whole(error)) as server:
        connected = await connect(server)
        with pytest.raises(kind) as raised:
            await connected.ask()

    assert type(raised.value) is kind
    assert connected.breaker.fail_counter == int(issubclass(kind, TransientError))
    assert (connected.breaker.gate.remaining() > 0) is (kind is Throttled)


async def test_a_key_that_an_error_repeats_is_cut_out(connect: Connect, dialect: Dialect) -> None:
    error = dialect.error("invalid_request_error", f"not for {KEY}\n or Bearer abcdef")
    async with misbehaving(pouring(dialect.broken_off(error))) as server:
        with pytest.raises(PermanentError) as raised:
            await (await connect(server)).ask()

    assert KEY not in str(raised.value)
    assert "abcdef" not in str(raised.value)
    assert "not for ***" in str(raised.value)
