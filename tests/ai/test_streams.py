# SPDX-License-Identifier: Apache-2.0
"""Events out of bytes, and replies out of events, however they were cut."""

from collections.abc import AsyncGenerator, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.ai import streams
from app.ai.anthropic import MessageDraft
from app.ai.contract import Reply, StopReason, ToolCall, Usage
from app.ai.draft import Draft
from app.ai.openai import ChatDraft
from app.ai.streams import Event, events
from app.resilience.errors import PermanentError
from tests.ai.dialects import ANTHROPIC, CALLING, OPENAI, Dialect

DRAFTS: dict[str, type[Draft]] = {"openai": ChatDraft, "anthropic": MessageDraft}
TEXT = "é€😀 \u2028 ok"


async def cut(pieces: Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    for piece in pieces:
        yield piece


async def all_of(*pieces: bytes) -> list[Event]:
    return [event async for event in events(cut(pieces))]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("data: a\n\n", [("", "a")]),
        ("data:a\n\n", [("", "a")]),
        ("data:  a\n\n", [("", " a")]),
        ("event: x\ndata: a\ndata: b\n\n", [("x", "a\nb")]),
        ("event: x\n\ndata: a\n\n", [("", "a")]),
        (": alive\n\n:\n\n", []),
        ("id: 1\nretry: 5\nwhat: ever\ndata\n\n", [("", "")]),
        ("data: a\r\n\r\ndata: b\r\rdata: c\n\n", [("", "a"), ("", "b"), ("", "c")]),
        ("\ufeffdata: a\n\n", [("", "a")]),
        ("data: a\n\ndata: b\n", [("", "a")]),
        ("data: a", []),
        (f"data: {TEXT}\n\n", [("", TEXT)]),
        ("", []),
    ],
    ids=[
        "one",
        "no space",
        "two spaces",
        "lines",
        "a name without data",
        "comments",
        "unknown fields",
        "all line ends",
        "a mark",
        "cut before its end",
        "cut in a line",
        "any letters",
        "nothing",
    ],
)
async def test_events_are_found(text: str, found: list[tuple[str, str]]) -> None:
    assert await all_of(text.encode()) == found


@given(
    st.lists(st.sampled_from(["data: é", "data", "event: x", ": c", "", ""]), max_size=12),
    st.sampled_from(["\n", "\r", "\r\n"]),
    st.data(),
)
async def test_events_do_not_depend_on_how_the_bytes_were_cut(
    lines: list[str], end: str, data: st.DataObject
) -> None:
    text = "".join(line + end for line in lines).encode()
    places = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    pieces = [text[begin:stop] for begin, stop in zip([0, *places], [*places, len(text)], strict=True)]

    assert await all_of(*pieces) == await all_of(text)


async def reply_of(dialect: Dialect, pieces: Iterable[bytes]) -> Reply:
    draft = DRAFTS[dialect.name]("asked", str)
    async for event in events(cut(pieces)):
        draft.take(event)
    assert draft.ended
    return draft.reply()


@pytest.mark.parametrize("dialect", [OPENAI, ANTHROPIC], ids=["openai", "anthropic"])
@given(st.data())
async def test_a_reply_does_not_depend_on_how_its_stream_was_cut(
    dialect: Dialect, data: st.DataObject
) -> None:
    text = b"".join([dialect.ping, *dialect.events(CALLING)])
    text = data.draw(st.sampled_from([text, text.replace(b"\n", b"\r\n")]))
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=40)))
    pieces = [text[begin:stop] for begin, stop in zip([0, *places], [*places, len(text)], strict=True)]

    assert await reply_of(dialect, pieces) == Reply(
        "Let me see.",
        (ToolCall("id-a", "look", '{"id": "7"}'), ToolCall("id-b", "look", "{}")),
        StopReason.TOOLS,
        Usage(12, 5),
        "m-1-2026",
    )


@pytest.mark.parametrize("size", [1000, 2**20], ids=["small pieces", "large pieces"])
async def test_a_line_may_not_be_endless(size: int) -> None:
    pieces = [b"x" * size] * (streams.MAX_LINE_BYTES // size + 1)

    with pytest.raises(PermanentError, match="a line of more than"):
        await all_of(*pieces)


async def test_a_stream_may_not_be_endless() -> None:
    pieces = [b": " + b"x" * 2**16 + b"\n"] * (streams.MAX_STREAM_BYTES // 2**16)

    with pytest.raises(PermanentError, match="more than"):
        await all_of(*pieces)
