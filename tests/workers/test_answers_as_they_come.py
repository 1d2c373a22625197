# SPDX-License-Identifier: Apache-2.0
"""What may be read of an answer while it comes: whole words, no half of a secret, never another's text."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from itertools import pairwise
from uuid import UUID

import pytest

from app.ai.contract import Ask, Reply, StopReason, ToolCall
from app.models import Message, MessageStatus
from app.runtime import Assistant
from app.settings import Settings
from tests.sandbox.stage import Stage
from tests.waiting import eventually
from tests.workers.assisted import Assisted, opened
from workers.asking import FLUSH_EVERY

PACE = FLUSH_EVERY + 0.02


class Dictated:
    """A model that says what it is told to, slowly enough that each piece is stored."""

    name, model = "dictated", "m"

    def __init__(self, *pieces: str, calls: tuple[ToolCall, ...] = (), model: str = "m") -> None:
        self.pieces = pieces
        self.replies = [Reply("".join(pieces), (), StopReason.END, None, model)]
        if calls:
            self.replies.insert(0, Reply("", calls, StopReason.TOOLS, None, model))

    async def answer(self, ask: Ask) -> AsyncGenerator[str | Reply, None]:
        assert ask.turns
        reply = self.replies.pop(0)
        for piece in self.pieces if reply.text else ():
            await asyncio.sleep(PACE)
            yield piece
        yield reply

    async def check(self) -> str:
        return "here"


@pytest.fixture
async def assisted(settings: Settings, stage: Stage) -> AsyncIterator[Assisted]:
    async with opened(settings, stage) as made:
        yield made


async def dictated(assisted: Assisted, model: Dictated) -> list[Message]:
    """All that could be read of the answer, as it changed."""
    assert assisted.runtime.model is not None
    own: Assistant = replace(assisted.runtime.model, provider=model)
    writing = replace(assisted, runtime=replace(assisted.runtime, model=own))
    conversation = await assisted.say("why?")
    run = asyncio.create_task(writing.run(conversation.operation_id))
    seen: list[Message] = []
    while not run.done():
        await newest(assisted, conversation.id, seen)
        await asyncio.wait({run}, timeout=0.02)
    await newest(assisted, conversation.id, seen)
    return seen


async def newest(assisted: Assisted, conversation_id: UUID, seen: list[Message]) -> None:
    found = (await assisted.messages(conversation_id))[-1]
    if not seen or (found.content, found.draft, found.status) != (
        *(seen[-1].content, seen[-1].draft, seen[-1].status),
    ):
        seen.append(found)


async def test_it_is_read_in_whole_words_and_grows(assisted: Assisted) -> None:
    seen = await dictated(assisted, Dictated("Fire", "fox is st", "uck, see ", "below"))

    assert seen[-1].status is MessageStatus.COMPLETE
    texts = [each.content for each in seen]
    assert texts[-1] == "Firefox is stuck, see below"
    assert set(texts) <= {"", "Firefox is ", "Firefox is stuck, see ", texts[-1]}
    assert "Firefox is " in texts
    assert len({each.draft for each in seen if each.content}) == 1


async def test_half_a_secret_that_the_model_makes_up_is_never_read(assisted: Assisted) -> None:
    pieces = "the password is hunt", "er22, ", "key AKIA", "IOSFODNN7", "EXAMPLE so"

    seen = await dictated(assisted, Dictated(*pieces))

    assert seen[-1].content == "the password is [redacted], key [redacted] so"
    for each in seen:
        assert "hunt" not in each.content
        assert "AKIA" not in each.content


async def test_a_text_that_turns_out_to_be_a_secret_is_begun_again(assisted: Assisted) -> None:
    seen = await dictated(assisted, Dictated('use password: "my ', 'horse battery" and ', "not another"))

    assert seen[-1].content == "use password: [redacted] and not another"
    shown = [(each.draft, each.content) for each in seen if each.content]
    assert shown[0] == (1, 'use password: "my ')
    for (draft, before), (later, after) in pairwise(shown):
        assert later > draft or after.startswith(before)


async def test_what_cannot_be_stored_is_left_out(assisted: Assisted) -> None:
    strange = ToolCall("\x00", "a\x00b", '{"text": "\x00"}')

    seen = await dictated(assisted, Dictated("a\x00", "b c ", "d", calls=(strange,), model="m\x00"))

    assert (seen[-1].status, seen[-1].content, seen[-1].model) == (MessageStatus.COMPLETE, "ab c d", "m")
    assert seen[-1].steps[0]["calls"] == [{"id": "-", "name": "a-b", "arguments": '{"text": ""}'}]


async def test_a_secret_in_what_a_model_asks_for_is_not_stored(assisted: Assisted) -> None:
    told = '{"text": "password: hunter22"}'

    seen = await dictated(assisted, Dictated("so", calls=(ToolCall("1", "find_deployments", told),)))

    assert seen[-1].status is MessageStatus.COMPLETE
    assert "hunter22" not in str(seen[-1].steps)


class Pausing(Dictated):
    """A model that says some of it at once, and the rest only when it is told to."""

    def __init__(self, *pieces: str) -> None:
        super().__init__(*pieces)
        self.goes_on = asyncio.Event()

    async def answer(self, ask: Ask) -> AsyncGenerator[str | Reply, None]:
        assert ask.turns
        for piece in self.pieces:
            yield piece
        await self.goes_on.wait()
        yield self.replies.pop(0)


async def test_what_came_at_once_is_read_though_nothing_follows(assisted: Assisted) -> None:
    model = Pausing("Firefox ", "is ", "stuck ", "be")
    own = replace(assisted.runtime.assistant, provider=model)
    writing = replace(assisted, runtime=replace(assisted.runtime, model=own))
    conversation = await assisted.say("why?")
    run = asyncio.create_task(writing.run(conversation.operation_id))

    async def text() -> str:
        return (await assisted.messages(conversation.id))[-1].content

    await eventually(text, until=lambda each: each == "Firefox is stuck ", within=10)
    model.goes_on.set()
    await run

    assert await text() == "Firefox is stuck be"
