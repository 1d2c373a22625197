# SPDX-License-Identifier: Apache-2.0
"""How much fits into a question, and what is left out of a larger one. Pure; tokens are estimates."""

from collections.abc import Iterable
from dataclasses import replace

from app.ai.contract import Ask, ModelTurn, Tool, ToolResult, ToolTurn, Turn, UserTurn
from app.ai.guardrails import as_json, tokens
from app.ai.settings import AiSettings

WHOLE_CONTEXT = 0.9
"""Part of the context that may be filled; counting is an estimate."""
FRAME = 8
"""Tokens around each turn, call, result and tool."""
LEFT_OUT = as_json({"left_out": "there was no room for it any more; ask again for what is needed"})
CUT_HERE = " … (cut here)"


def room(settings: AiSettings, tools: Iterable[Tool] = ()) -> int:
    """What a question's instructions and turns may take beside the answer and the tools; none if negative."""
    whole = int(settings.context_tokens * WHOLE_CONTEXT)
    return whole - settings.max_output_tokens - size_of_tools(tools)


def size_of_tools(tools: Iterable[Tool]) -> int:
    """What telling of them takes."""
    told = (tool.name + tool.description + as_json(dict(tool.parameters)) for tool in tools)
    return sum(tokens(each) + FRAME for each in told)


def size_of(ask: Ask) -> int:
    """What a question's instructions and turns take."""
    return tokens(ask.system) + sum(map(_size_of_turn, ask.turns))


def _size_of_turn(turn: Turn) -> int:
    if isinstance(turn, UserTurn):
        return FRAME + tokens(turn.text)
    if isinstance(turn, ModelTurn):
        return FRAME + tokens(turn.text) + sum(tokens(each.name + each.arguments) for each in turn.calls)
    return sum(FRAME + tokens(each.content) for each in turn.results)


def fitted(ask: Ask, most: int) -> Ask | None:
    """The question, without the oldest results of tools where they do not fit; the newest one stays.

    None: it does not fit so either.
    """
    excess, turns = size_of(ask) - most, list(ask.turns)
    last = max((place for place, turn in enumerate(turns) if isinstance(turn, ToolTurn)), default=None)
    for place, turn in enumerate(turns):
        if excess > 0 and isinstance(turn, ToolTurn):
            turns[place] = _emptied(turn, excess, spared=1 if place == last else 0)
            excess -= _size_of_turn(turn) - _size_of_turn(turns[place])
    return replace(ask, turns=tuple(turns)) if excess <= 0 else None


def _emptied(turn: ToolTurn, excess: int, *, spared: int) -> ToolTurn:
    """Without as many of its first results as ``excess`` takes; the last ``spared`` stay."""
    results: list[ToolResult] = []
    for place, result in enumerate(turn.results):
        gained = tokens(result.content) - tokens(LEFT_OUT)
        if excess > 0 and gained > 0 and place < len(turn.results) - spared:
            results.append(replace(result, content=LEFT_OUT))
            excess -= gained
        else:
            results.append(result)
    return ToolTurn(tuple(results))


def cut(text: str, most: int) -> str:
    """The beginning of a text that takes more than ``most`` tokens; it says that it was cut."""
    if (size := tokens(text)) <= most:
        return text
    length = len(text)
    while length and size > most:
        length = min(length - 1, length * max(most, 0) // size)
        size = tokens(text[:length])
    return text[:length] + CUT_HERE
