# SPDX-License-Identifier: Apache-2.0
"""Every way in which a provider declines, as it means it."""

import pytest

from app.ai.contract import Reply, StopReason
from app.resilience.errors import (
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
from tests.ai.dialects import ANTHROPIC, OPENAI, Dialect, Json, Said, pouring, whole
from tests.resilience.misbehaving import answer, misbehaving

SPEND_LIMIT = ANTHROPIC.error("rate_limit_error", details={"error_code": "enforced_spend_limit_reached"})
NO = {"X-Should-Retry": "false"}
YES = {"X-Should-Retry": "true"}


@pytest.mark.parametrize(
    ("status", "headers", "kind", "requests"),
    [
        (400, {}, PermanentError, 1),
        (400, YES, TransientError, 2),
        (401, {}, AuthError, 1),
        (402, {}, PermanentError, 1),
        (402, YES, PermanentError, 1),
        (403, {}, PolicyError, 1),
        (404, {}, NotThere, 1),
        (408, {}, TransientError, 2),
        (409, {}, TransientError, 2),
        (409, NO, PermanentError, 1),
        (413, {}, PermanentError, 1),
        (422, NO, PermanentError, 1),
        (429, {"Retry-After-Ms": "10"}, Throttled, 2),
        (429, {"Retry-After": "60"}, Throttled, 1),
        (429, {"Retry-After": "60", "Retry-After-Ms": "10"}, Throttled, 2),
        (429, NO, Throttled, 2),
        (429, NO | {"Retry-After": "60"}, Throttled, 1),
        (429, YES | {"Retry-After": "60"}, Throttled, 1),
        (500, {}, ServerError, 2),
        (500, NO, PermanentError, 1),
        (502, {}, TransientError, 2),
        (503, {}, TransientError, 2),
        (504, {}, TransientError, 2),
        (529, {}, ServerError, 2),
        (529, NO, PermanentError, 1),
    ],
)
async def test_a_status_is_what_it_means_here(  # noqa: PLR0917 - a table's columns
    connect: Connect, dialect: Dialect, status: int, headers: Json, kind: type[CallError], requests: int
) -> None:
    async with misbehaving(whole(dialect.error("something_else", "because"), status, headers)) as server:
        connected = await connect(server)
        with pytest.raises(kind) as raised:
            await connected.ask()

    assert type(raised.value) is kind
    assert len(server.received) == requests
    assert status == 401 or "because" in str(raised.value)


@pytest.mark.parametrize(
    ("dialect", "error"),
    [
        (OPENAI, OPENAI.error("insufficient_quota", code="insufficient_quota")),
        (OPENAI, OPENAI.error("x", code="credit_balance_exhausted")),
        (OPENAI, OPENAI.error("x", code="billing_hard_limit_reached")),
        (OPENAI, OPENAI.error("billing_not_active")),
        (ANTHROPIC, SPEND_LIMIT),
        (ANTHROPIC, ANTHROPIC.error("billing_error")),
    ],
)
@pytest.mark.parametrize("wish", [YES, NO], ids=["again", "not again"])
async def test_where_the_money_ran_out_nothing_is_asked_again(
    connect: Connect, dialect: Dialect, error: Json, wish: Json
) -> None:
    async with misbehaving(whole(error, 429, wish | {"Retry-After": "1"})) as server:
        connected = await connect(server)
        with pytest.raises(PermanentError):
            await connected.ask()

    assert len(server.received) == 1
    assert connected.breaker.gate.remaining() == 0
    assert connected.breaker.fail_counter == 0


async def test_a_question_is_posed_again_where_that_may_help(connect: Connect, dialect: Dialect) -> None:
    async with misbehaving(answer(503), pouring(*dialect.events(Said()))) as server:
        reply: Reply = await (await connect(server)).ask()

    assert reply.text == "Canary."
    assert server.received[0].body == server.received[1].body


FILTERED = OPENAI.error(
    "",
    f"The prompt of {KEY} was filtered",
    type=None,
    param="prompt",
    code="content_filter",
    status=400,
    innererror={
        "code": "ResponsibleAIPolicyViolation",
        "content_filter_result": {"hate": {"filtered": True, "severity": "high"}},
    },
)


@pytest.mark.parametrize("dialect", [OPENAI], ids=["openai"])
@pytest.mark.parametrize("headers", [{}, YES, NO], ids=["as it is", "again", "not again"])
async def test_a_prompt_that_a_filter_refuses_gets_a_refusal_for_an_answer(
    connect: Connect, headers: Json
) -> None:
    async with misbehaving(whole(FILTERED, 400, headers)) as server:
        connected = await connect(server)
        reply: Reply = await connected.ask()

    words = "The prompt of *** was filtered"
    assert reply == Reply(words, (), StopReason.REFUSAL, None, "m-1")
    assert len(server.received) == 1
    assert connected.breaker.fail_counter == 0


@pytest.mark.parametrize(
    ("dialect", "status", "error"),
    [
        (OPENAI, 400, OPENAI.error("invalid_request_error", code="context_length_exceeded")),
        (OPENAI, 403, FILTERED),
        (ANTHROPIC, 400, ANTHROPIC.error("content_filter")),
    ],
)
async def test_other_refusals_are_errors(
    connect: Connect, dialect: Dialect, status: int, error: Json
) -> None:
    async with misbehaving(whole(error, status)) as server:
        with pytest.raises(CallError, match=f"answered {status}"):
            await (await connect(server)).ask()


async def test_a_refusal_that_tells_only_its_limits_is_waited_out(connect: Connect, dialect: Dialect) -> None:
    date = "Wed, 21 Oct 2026 10:00:00 GMT"
    limits = {
        "openai": {
            "X-RateLimit-Limit-Requests": "9",
            "X-RateLimit-Remaining-Requests": "0",
            "X-RateLimit-Reset-Requests": "23h",
        },
        "anthropic": {
            "Anthropic-RateLimit-Requests-Limit": "9",
            "Anthropic-RateLimit-Requests-Remaining": "0",
            "Anthropic-RateLimit-Requests-Reset": "2026-10-22T09:00:00Z",
            "Date": date,
        },
    }
    async with misbehaving(whole({}, 429, limits[dialect.name])) as server:
        with pytest.raises(Throttled) as raised:
            await (await connect(server)).ask()

    assert raised.value.retry_after == 23 * 3600.0
    assert len(server.received) == 1


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b'{"error": null}', b'{"error": {"message": 5, "details": []}}', b"[" * 10_000],
    ids=len,
)
async def test_a_refusal_may_say_anything(connect: Connect, dialect: Dialect, body: bytes) -> None:
    async with misbehaving(answer(400, body)) as server:
        with pytest.raises(PermanentError, match="answered 400"):
            await (await connect(server)).ask()


async def test_a_key_that_a_refusal_repeats_is_cut_out(connect: Connect, dialect: Dialect) -> None:
    error = dialect.error("invalid_request_error", f"not for {KEY}")
    async with misbehaving(whole(error, 400), whole(error, 401)) as server:
        connected = await connect(server)
        for _ in range(2):
            with pytest.raises(CallError) as raised:
                await connected.ask()
            assert KEY not in str(raised.value)
            assert KEY not in repr(raised.value)
