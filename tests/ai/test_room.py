# SPDX-License-Identifier: Apache-2.0
"""How much fits into a question: what is left out of one that is too large is the oldest that was read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from app.ai import room
from app.ai.contract import Ask, ModelTurn, Tool, ToolCall, ToolResult, ToolTurn, UserTurn
from app.ai.guardrails import tokens
from app.ai.settings import AiSettings
from app.ai.tools import INQUIRIES

SETTINGS = AiSettings(provider="openai", model="m", api_key=SecretStr("k"), context_tokens=10_000)
TOOLS = tuple(each.tool() for each in INQUIRIES.values())


def read(*sizes: int) -> Ask:
    """A question after rounds of one call each that gave so many tokens."""
    turns: list[UserTurn | ModelTurn | ToolTurn] = [UserTurn("why?")]
    for number, size in enumerate(sizes):
        turns.append(ModelTurn("", (ToolCall(f"c{number}", "t", "{}"),)))
        turns.append(ToolTurn((ToolResult(f"c{number}", "x" * int(size * 3.5)),)))
    return Ask("system", tuple(turns), TOOLS)


def left_out(ask: Ask) -> list[bool]:
    results = [result for turn in ask.turns if isinstance(turn, ToolTurn) for result in turn.results]
    return ["left_out" in result.content for result in results]


def test_tools_and_the_answer_take_their_part_of_the_room() -> None:
    alone = room.room(SETTINGS)

    assert alone == 9000 - 2048
    assert room.room(SETTINGS, TOOLS) == alone - room.size_of_tools(TOOLS)
    assert room.size_of_tools(TOOLS) >= sum(tokens(each.description) for each in TOOLS)


@pytest.mark.parametrize(
    ("most", "left"),
    [
        (5000, [False, False, False]),
        (3000, [True, False, False]),
        (2200, [True, True, False]),
        (1300, [True, True, False]),
        (1000, None),
    ],
)
def test_the_oldest_that_was_read_is_left_out_first_and_the_newest_never(
    most: int, left: list[bool] | None
) -> None:
    ask = read(1000, 1200, 1000)

    fitted = room.fitted(ask, most)

    if left is None:
        assert fitted is None
    else:
        assert fitted is not None
        assert left_out(fitted) == left
        assert room.size_of(fitted) <= most
        assert (fitted.system, fitted.tools) == (ask.system, ask.tools)


def test_of_one_round_the_newest_result_stays() -> None:
    results = tuple(ToolResult(f"c{number}", "x" * 3500, is_error=number == 1) for number in range(3))
    ask = Ask("", (UserTurn("why?"), ModelTurn(""), ToolTurn(results)))

    fitted = room.fitted(ask, 1300)

    assert fitted is not None
    assert left_out(fitted) == [True, True, False]
    turn = fitted.turns[-1]
    assert isinstance(turn, ToolTurn)
    assert [(each.call_id, each.is_error) for each in turn.results] == [
        *(("c0", False), ("c1", True), ("c2", False))
    ]
    json.loads(turn.results[0].content)


@given(st.lists(st.integers(0, 2000), max_size=8), st.integers(-100, 10_000))
def test_what_is_asked_fits_or_is_not_asked(sizes: list[int], most: int) -> None:
    ask = read(*sizes)

    fitted = room.fitted(ask, most)

    if fitted is not None:
        assert room.size_of(fitted) <= most
        assert len(fitted.turns) == len(ask.turns)
        assert left_out(fitted) == sorted(left_out(fitted), reverse=True) or min(sizes) < 30
    else:
        assert most < room.size_of(ask)


@given(st.text(max_size=400), st.integers(0, 300))
def test_a_text_is_cut_to_so_many_tokens_and_says_so(text: str, most: int) -> None:
    short = room.cut(text, most)

    if short != text:
        assert short.endswith(room.CUT_HERE)
        assert tokens(short.removesuffix(room.CUT_HERE)) <= max(most, 1)
        assert text.startswith(short.removesuffix(room.CUT_HERE))
    else:
        assert tokens(text) <= most or text.endswith(room.CUT_HERE)


def test_a_tool_without_parameters_is_counted() -> None:
    assert room.size_of_tools([Tool("t", "does", {})]) > room.FRAME
