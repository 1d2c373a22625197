# SPDX-License-Identifier: Apache-2.0
"""Listening to a conversation: whoever is cut off goes on anywhere, and has in the end what is stored."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, text
from sqlalchemy.engine import Connection

from app.api.conversations import BEGINNING, news, spot_of
from app.domain import conversations, operations, outcomes
from app.errors import Invalid
from app.models import Message, MessageRole, MessageStatus
from app.runtime import Runtime
from tests.api.conftest import BOOTSTRAP, bearer, key, pointers, problem, serving
from tests.waiting import eventually
from tests.wire import PLAIN

PATH = "/ai/conversations"


@dataclass
class Listener:
    """What somebody has who does with the events what they say."""

    at: str | None = None
    ids: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    text: str = ""
    tools: list[str] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)

    def take(self, at: str, told: dict[str, Any]) -> None:
        self.at = at
        self.ids.append(at)
        self.types.append(told["type"])
        if told["type"] == "token":
            self.text += told["text"]
        elif told["type"] == "restarted":
            self.text = ""
            self.tools = [] if told["anew"] else self.tools
        elif told["type"] == "tool":
            self.tools.append(told["tool"])
        else:
            self.said.append(told["message"])


def row(**values: Any) -> Message:
    """An answer to come."""
    common: dict[str, Any] = {
        "id": uuid4(),
        "sequence": 2,
        "role": MessageRole.ASSISTANT,
        "status": MessageStatus.ANSWERING,
        "author": "me",
        "content": "",
        "run": 0,
        "draft": 0,
        "tool_calls": [],
        "citations": [],
        "unverified": [],
        "created_at": datetime(2026, 11, 26, 12, tzinfo=UTC),
    }
    return Message(**common | values)


def step(names: Sequence[str]) -> dict[str, Any]:
    calls = [{"id": name, "name": name, "arguments": "{}"} for name in names]
    return {"text": "", "calls": calls, "results": [{"call_id": name, "is_error": False} for name in names]}


NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=4)
CHANGE = (
    st.tuples(st.just("grow"), st.text("xyz ", min_size=1, max_size=5))
    | st.tuples(st.just("anew"), st.text("uvw", max_size=5))
    | st.tuples(st.just("step"), NAMES)
)
SEEN = st.integers(0, 9)
"""How many of the events that there are the listener gets before it is cut off."""


def change(answer: Message, what: str, value: Any) -> None:
    """What a worker does to an answer."""
    if what == "grow":
        answer.content += value
    elif what == "anew":
        answer.draft, answer.content = answer.draft + 1, value
    else:
        answer.tool_calls = [*answer.tool_calls, *conversations.shown_calls([step(value)])]
        answer.draft, answer.content = answer.draft + 1, ""


def listen(listener: Listener, answer: Message, most: int) -> None:
    """Connect, and be cut off after so many events; the id goes over the wire."""
    told = list(news(answer, spot_of(listener.at)))
    for spot, body in told[:most]:
        listener.take(".".join(map(str, astuple(spot))), json.loads(json.dumps(body)))


@given(st.lists(st.tuples(CHANGE, SEEN), max_size=12), SEEN)
def test_whoever_is_cut_off_anywhere_has_in_the_end_what_is_stored(
    life: list[tuple[tuple[str, Any], int]], last: int
) -> None:
    answer, listener = row(), Listener()

    for (what, value), most in life:
        change(answer, what, value)
        listen(listener, answer, most)
    answer.status = MessageStatus.COMPLETE
    listen(listener, answer, last)
    for _ in range(60):
        listen(listener, answer, 1)

    assert listener.text == answer.content
    assert listener.tools == [call["tool"] for call in answer.tool_calls]
    assert [each["content"] for each in listener.said] == [answer.content]
    assert len(set(listener.ids)) == len(listener.ids)
    assert listener.types[-1] == "answer"


@given(st.lists(st.tuples(CHANGE, SEEN), max_size=6), st.lists(st.tuples(CHANGE, SEEN), max_size=6), SEEN)
def test_an_answer_taken_up_again_is_told_to_whoever_had_heard_its_end(
    before: list[tuple[tuple[str, Any], int]], after: list[tuple[tuple[str, Any], int]], seen: int
) -> None:
    answer, listener = row(), Listener()
    for (what, value), most in before:
        change(answer, what, value)
        listen(listener, answer, most)
    answer.status = MessageStatus.INCOMPLETE
    listen(listener, answer, 99)
    heard = len(listener.said)

    answer.status, answer.tool_calls = MessageStatus.PENDING, []
    answer.run, answer.draft = answer.run + 1, answer.draft + 1
    listen(listener, answer, seen)
    for (what, value), most in after:
        change(answer, what, value)
        listen(listener, answer, most)
    answer.status = MessageStatus.COMPLETE
    listen(listener, answer, 99)

    assert heard == 1
    assert len(listener.said) == 2
    assert listener.text == listener.said[-1]["content"] == answer.content
    assert listener.tools == [call["tool"] for call in answer.tool_calls]
    assert len(set(listener.ids)) == len(listener.ids)


@pytest.mark.parametrize(
    "wrong",
    ["", "1", "1.2.3.4", "1.2.3.4.5.6", "-1.0.0.0.0", "a.b.c.d.e", "1.2.3.4.9999999999", "\u0661.0.0.0.0"],
)
def test_an_id_that_no_stream_gave_is_refused(wrong: str) -> None:
    with pytest.raises(Invalid):
        spot_of(wrong)


def test_without_an_id_it_begins_at_the_beginning() -> None:
    assert spot_of(None) == BEGINNING


async def said(client: httpx.AsyncClient, content: str = "why?", path: str = PATH) -> dict[str, Any]:
    response = await client.post(path, json={"content": content}, headers=key())
    assert response.status_code == 202, response.text
    body: dict[str, Any] = response.json()
    return body


@dataclass
class Writer:
    """As a worker writes an answer."""

    runtime: Runtime
    message_id: UUID

    async def begin(self) -> None:
        async with self.runtime.transaction() as session:
            await conversations.begin_turn(session, self.message_id, now=self.runtime.clock())

    async def text(self, text: str, draft: int = 1) -> None:
        async with self.runtime.transaction() as session:
            await conversations.keep_text(session, self.message_id, text, draft=draft)

    async def steps(self, *steps: Sequence[str], draft: int) -> None:
        async with self.runtime.transaction() as session:
            await conversations.keep_step(session, self.message_id, list(map(step, steps)), draft=draft)

    async def complete(self, content: str, draft: int) -> None:
        now, told = self.runtime.clock(), {"content": content, "draft": draft, "stop_reason": "end"}
        async with self.runtime.transaction() as session:
            await conversations.complete(session, self.message_id, now=now, **told)


def writer(runtime: Runtime, body: dict[str, Any]) -> Writer:
    return Writer(runtime, UUID(body["messages"][-1]["id"]))


@pytest.fixture
async def base_url(app: FastAPI) -> AsyncIterator[str]:
    async with serving(app) as base_url:
        yield base_url


@asynccontextmanager
async def streaming(
    base_url: str, conversation_id: str, last: str | None = None
) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[tuple[str, dict[str, Any]]]]]:
    """An open stream: the response, and its events as (id, data); one that does not end fails the test."""
    headers = bearer(BOOTSTRAP) | ({} if last is None else {"Last-Event-ID": last})
    async with (
        asyncio.timeout(20),
        httpx.AsyncClient(verify=PLAIN, headers=headers, timeout=20) as client,
        client.stream("GET", f"{base_url}{PATH}/{conversation_id}/events") as response,
    ):
        assert response.status_code == 200, await response.aread()
        yield response, events_of(response)


async def events_of(response: httpx.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    at = ""
    async for line in response.aiter_lines():
        if line.startswith("id: "):
            at = line.removeprefix("id: ")
        elif line.startswith("data: "):
            yield at, json.loads(line.removeprefix("data: "))


async def listened(base_url: str, conversation_id: str, listener: Listener | None = None) -> Listener:
    """Until the stream ends."""
    listener = listener or Listener()
    async with streaming(base_url, conversation_id, listener.at) as (_, events):
        async for at, told in events:
            listener.take(at, told)
    return listener


async def test_it_tells_what_is_said_as_it_is_said_and_ends(
    base_url: str, client: httpx.AsyncClient, api_runtime: Runtime
) -> None:
    body, listener = await said(client), Listener()
    write = writer(api_runtime, body)

    async with streaming(base_url, body["id"]) as (response, events):
        listener.take(*await anext(events))
        await write.begin()
        await write.text("I look")
        listener.take(*await anext(events))
        await write.steps(["find_deployments", "list_planes"], draft=2)
        for _ in range(3):
            listener.take(*await anext(events))
        await write.text("It is", draft=2)
        listener.take(*await anext(events))
        await write.text("It is \nstuck", draft=2)
        listener.take(*await anext(events))
        await write.complete("It is \nstuck: \u2028\x85\u2029so", draft=2)
        async for each in events:
            listener.take(*each)

    assert response.headers["content-type"].startswith("text/event-stream")
    assert listener.types == [
        *("message", "token", "tool", "tool", "restarted", "token", "token", "token", "answer")
    ]
    assert listener.text == "It is \nstuck: \u2028\x85\u2029so"
    shown = (await client.get(f"{PATH}/{body['id']}")).json()
    assert listener.said == shown["messages"]


async def test_whoever_is_cut_off_after_any_event_misses_none(
    base_url: str, client: httpx.AsyncClient, api_runtime: Runtime
) -> None:
    body = await said(client)
    write = writer(api_runtime, body)
    await write.begin()
    await write.steps(["a", "b", "c"], ["d"], draft=3)
    await write.text("once upon", draft=3)
    await write.complete("once upon a time", draft=3)
    whole = await listened(base_url, body["id"])

    for place in range(len(whole.ids)):
        rest = await listened(base_url, body["id"], Listener(at=whole.ids[place]))
        assert whole.ids[: place + 1] + rest.ids == whole.ids

    assert whole.tools == ["a", "b", "c", "d"]
    assert whole.text == "once upon a time"


async def test_the_next_message_is_told_to_whoever_goes_on(
    base_url: str, client: httpx.AsyncClient, api_runtime: Runtime
) -> None:
    body = await said(client)
    write = writer(api_runtime, body)
    await write.begin()
    await write.complete("one", draft=1)
    listener = await listened(base_url, body["id"])
    more = await said(client, "and?", f"{PATH}/{body['id']}/messages")
    write = writer(api_runtime, more)
    await write.begin()
    await write.complete("two", draft=1)

    await listened(base_url, body["id"], listener)

    assert listener.types == ["message", "token", "answer"] * 2
    assert [each["content"] for each in listener.said] == ["why?", "one", "and?", "two"]


async def test_an_answer_that_is_cancelled_and_had_after_all_is_told_on_the_same_line(
    base_url: str, client: httpx.AsyncClient, api_runtime: Runtime
) -> None:
    body = await said(client)
    write, operation_id = writer(api_runtime, body), UUID(body["operation_id"])
    await write.begin()
    await write.text("half")
    async with api_runtime.transaction() as session:
        await operations.cancel(session, operation_id, ended=outcomes.operation_ended)
    listener = await listened(base_url, body["id"])
    async with api_runtime.transaction() as session:
        await operations.revive(session, operation_id, revived=outcomes.operation_revived)
    again = asyncio.create_task(listened(base_url, body["id"], listener))
    await eventually(lambda: listener.types[-1] == "token", within=5)
    await write.begin()
    await write.complete("whole", draft=9)

    await again

    assert listener.types == [
        *("message", "token", "answer", "restarted", "token", "restarted", "token", "answer")
    ]
    assert [(each["status"], each["content"]) for each in listener.said[1:]] == [
        ("INCOMPLETE", "half"),
        ("COMPLETE", "whole"),
    ]
    assert listener.text == "whole"


async def test_many_listeners_cost_what_one_does(
    base_url: str, client: httpx.AsyncClient, api_runtime: Runtime
) -> None:
    body = await said(client)
    reads: list[str] = []

    def seen(_: Connection, __: Any, statement: str, *___: Any) -> None:
        if "FROM messages" in statement and "messages.content" in statement:
            reads.append(statement)

    listeners = [Listener() for _ in range(20)]
    tasks = [asyncio.create_task(listened(base_url, body["id"], each)) for each in listeners]
    await eventually(lambda: all(each.types for each in listeners), within=10)
    event.listen(api_runtime.engine.sync_engine, "before_cursor_execute", seen)
    write = writer(api_runtime, body)
    await write.begin()
    await write.complete("so", draft=1)
    began = len(reads)
    await asyncio.gather(*tasks)

    assert [each.text for each in listeners] == ["so"] * 20
    assert len(reads) - began < 10


async def test_calls_of_a_broken_run_are_void_for_whoever_was_told_of_them(
    base_url: str, client: httpx.AsyncClient, api_runtime: Runtime
) -> None:
    body = await said(client)
    write, operation_id = writer(api_runtime, body), UUID(body["operation_id"])
    await write.begin()
    await write.steps(["a", "b"], draft=1)
    async with api_runtime.transaction() as session:
        await operations.cancel(session, operation_id, ended=outcomes.operation_ended)
    listener = await listened(base_url, body["id"])
    assert listener.tools == ["a", "b"]

    async with api_runtime.transaction() as session:
        await operations.revive(session, operation_id, revived=outcomes.operation_revived)
    await write.begin()
    await write.steps(["c", "d"], ["e"], draft=4)
    await write.complete("whole", draft=4)
    await listened(base_url, body["id"], listener)

    assert (listener.tools, listener.text) == (["c", "d", "e"], "whole")
    shown = (await client.get(f"{PATH}/{body['id']}")).json()["messages"][-1]
    assert [call["tool"] for call in shown["tool_calls"]] == listener.tools


class Reads:
    """What the process that tells listeners reads of messages: rows, and bytes of them."""

    def __init__(self, runtime: Runtime) -> None:
        self.rows = 0
        self.statements: list[str] = []
        event.listen(runtime.engine.sync_engine, "before_cursor_execute", self._asked)
        event.listen(Message, "load", self._loaded)

    def _asked(self, _: Connection, __: Any, statement: str, *___: Any) -> None:
        self.statements.append(statement)

    def _loaded(self, *_: Any) -> None:
        self.rows += 1

    def end(self, runtime: Runtime) -> None:
        event.remove(runtime.engine.sync_engine, "before_cursor_execute", self._asked)
        event.remove(Message, "load", self._loaded)


async def test_what_has_not_moved_is_not_read_and_what_tools_gave_never(
    base_url: str, client: httpx.AsyncClient, api_runtime: Runtime
) -> None:
    """Five streams that have all there is, and one more that begins: only its two messages are read."""
    bodies = [await said(client) for _ in range(6)]
    writers = [writer(api_runtime, body) for body in bodies]
    for write in writers:
        await write.begin()
        await write.steps(["a", "b"], draft=1)
        await write.text("so far", draft=1)
    listeners = [Listener() for _ in bodies]
    tasks = [
        asyncio.create_task(listened(base_url, body["id"], listener))
        for body, listener in zip(bodies[:5], listeners[:5], strict=True)
    ]
    await eventually(lambda: all(each.text for each in listeners[:5]), within=10)

    reads = Reads(api_runtime)
    tasks.append(asyncio.create_task(listened(base_url, bodies[5]["id"], listeners[5])))
    await eventually(lambda: listeners[5].text, within=10)
    polls = len(reads.statements)
    await eventually(lambda: len(reads.statements) > polls + 8, within=10)
    reads.end(api_runtime)
    for write in writers:
        await write.complete("so far", draft=1)
    await asyncio.gather(*tasks)

    assert reads.rows == 2
    assert not [each for each in reads.statements if "steps" in each]
    assert all(each.tools == ["a", "b"] and each.text == "so far" for each in listeners)


async def test_a_message_that_cannot_be_shown_ends_nobody_elses_stream(
    base_url: str, client: httpx.AsyncClient, api_runtime: Runtime
) -> None:
    odd, body = await said(client), await said(client)
    write, listener = writer(api_runtime, body), Listener()
    task = asyncio.create_task(listened(base_url, body["id"], listener))
    await eventually(lambda: listener.types, within=10)
    async with api_runtime.transaction() as session:
        broken = "UPDATE messages SET tool_calls = '[{\"tool\": 7}]' WHERE id = :id"
        await session.execute(text(broken), {"id": UUID(odd["messages"][-1]["id"])})

    other = await listened(base_url, odd["id"])
    await write.begin()
    await write.complete("so", draft=1)
    await task

    assert other.types == ["message"]
    assert listener.types == ["message", "token", "answer"]


async def test_a_listener_of_nothing_and_with_a_wrong_id_is_refused(
    base_url: str, client: httpx.AsyncClient
) -> None:
    body = await said(client)
    path = f"{PATH}/{body['id']}/events"

    wrong = await client.get(path, headers={"Last-Event-ID": "seven"})
    assert pointers(wrong) == ["/header/Last-Event-ID"]
    problem(await client.get(f"{PATH}/{uuid4()}/events"), 404, "not_found")
    async with httpx.AsyncClient(verify=PLAIN) as stranger:
        problem(await stranger.get(f"{base_url}{path}"), 401, "unauthenticated")


async def test_head_tells_of_the_stream_and_does_not_begin_it(
    base_url: str, client: httpx.AsyncClient
) -> None:
    body = await said(client)

    async with httpx.AsyncClient(verify=PLAIN, headers=bearer(BOOTSTRAP), timeout=5) as plain:
        head = await plain.head(f"{base_url}{PATH}/{body['id']}/events")

    assert head.status_code == 200
    assert head.headers["content-type"].startswith("text/event-stream")
    assert head.content == b""
