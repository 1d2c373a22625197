# SPDX-License-Identifier: Apache-2.0
"""How long an answer is waited for: until its first piece, and then between its pieces."""

import asyncio
import json

import pytest

from app.ai.catalogue import open_provider
from app.ai.contract import SERVICE
from app.ai.exchange import patience
from app.ai.settings import parse
from app.resilience import Breakers
from app.resilience.errors import AttemptTimeout
from tests.ai.conftest import IDLE, Connect
from tests.ai.dialects import ANTHROPIC, OPENAI, Dialect, Said, pouring, sse
from tests.resilience.misbehaving import Behaviour, hang, misbehaving, slowly

LONG = 3 * IDLE
ROLE = sse("", OPENAI.chunk({"role": "assistant", "content": ""}))
THINKING = ANTHROPIC.typed("content_block_start", index=0, content_block={"type": "thinking", "thinking": ""})
BEGUN = {"openai": [ROLE], "anthropic": [ANTHROPIC.start(), THINKING]}


def begun(dialect: Dialect) -> list[bytes]:
    """The events before the first that brings something: a head of the answer, and that it is thought of."""
    return BEGUN[dialect.name]


def rest(dialect: Dialect) -> list[bytes]:
    return dialect.events(Said())[1:]


def in_one(dialect: Dialect, pause: float) -> Behaviour:
    text = json.dumps(dialect.message(Said())).encode()
    return pouring(text[:20], pause, text[20:], kind="application/json")


@pytest.mark.parametrize("how", ["head", "pings", "silence", "whole"])
async def test_the_beginning_of_an_answer_may_take_longer_than_any_pause_in_it(
    connect: Connect, dialect: Dialect, how: str
) -> None:
    behaviours = {
        "head": slowly(pouring(*begun(dialect), *rest(dialect)), LONG),
        "pings": pouring(*begun(dialect), LONG, *rest(dialect), forever=dialect.ping),
        "silence": pouring(*begun(dialect), LONG, *rest(dialect)),
        "whole": in_one(dialect, LONG),
    }
    async with misbehaving(behaviours[how]) as server:
        assert (await (await connect(server)).ask()).text == "Canary."

    assert len(server.received) == 1


async def test_a_pause_after_the_beginning_may_not(connect: Connect, dialect: Dialect) -> None:
    events = dialect.events(Said())
    first = next(number for number, event in enumerate(events) if b'"Ca"' in event) + 1
    async with misbehaving(pouring(*events[:first], then="forever", forever=dialect.ping)) as server:
        connected = await connect(server)
        async with asyncio.timeout(20):
            with pytest.raises(AttemptTimeout, match=f"for {IDLE:g} s"):
                await connected.ask()

    assert connected.breaker.fail_counter == 1


async def test_the_head_is_part_of_the_beginning(connect: Connect, dialect: Dialect) -> None:
    late = pouring(*begun(dialect), 0.9, *rest(dialect), forever=dialect.ping)
    async with misbehaving(slowly(late, 0.9)) as server:
        connected = await connect(server, first_timeout=1.5)
        with pytest.raises(AttemptTimeout, match=r"for 1\.5 s"):
            await connected.ask()

    assert connected.breaker.fail_counter == 1


@pytest.mark.parametrize("how", ["pings", "silence"])
async def test_signs_of_life_are_no_beginning(connect: Connect, dialect: Dialect, how: str) -> None:
    alive = dialect.ping if how == "pings" else b""
    async with misbehaving(pouring(*begun(dialect), 60.0, forever=alive)) as server:
        connected = await connect(server, first_timeout=0.5)
        async with asyncio.timeout(20):
            with pytest.raises(AttemptTimeout, match=r"for 0\.5 s"):
                await connected.ask()


async def test_who_does_not_answer_at_all_is_asked_twice(connect: Connect, dialect: Dialect) -> None:
    async with misbehaving(hang) as server:
        connected = await connect(server, first_timeout=0.5, idle_timeout=30.0)
        async with asyncio.timeout(20):
            with pytest.raises(AttemptTimeout):
                await connected.ask()

    assert len(server.received) == 2


@pytest.mark.parametrize(
    ("first", "total"), [(60.0, 100.0), (20.0, 45.0), (50.0, 100.0), (100.0, 100.0), (600.0, 600.0)]
)
def test_two_attempts_fit_into_what_a_conversation_has_unless_one_alone_may_take_longer(
    first: float, total: float
) -> None:
    found = patience(first)

    assert (found.attempts, found.attempt_timeout, found.total) == (2, first, total)


async def test_a_minute_is_the_default() -> None:
    settings = parse({"provider": "openai", "model": "m", "base_url": "http://127.0.0.1:1/v1"})
    assert settings is not None
    breakers = Breakers()
    async with open_provider(settings, breakers):
        (client,) = (await breakers.status(SERVICE)).clients

    assert (settings.first_timeout, settings.idle_timeout) == (60.0, 20.0)
    assert (client.profile.attempt_timeout, client.profile.total) == (60.0, 100.0)
