# SPDX-License-Identifier: Apache-2.0
"""What the scripted model is given and what it answers, in no vendor's words."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Json = dict[str, Any]


class Stop(StrEnum):
    """Why the model stops."""

    END = "end"
    LENGTH = "length"
    TOOLS = "tools"
    REFUSAL = "refusal"


@dataclass(frozen=True, slots=True)
class Wish:
    """A tool the model wants to be called. ``arguments`` is the text it writes, as a rule JSON."""

    tool: str
    arguments: str

    @property
    def meaning(self) -> object:
        """Equal for two that ask for the same thing, however their JSON is written."""
        try:
            return self.tool, json.dumps(json.loads(self.arguments), sort_keys=True)
        except ValueError:
            return self.tool, self.arguments

    @property
    def size(self) -> int:
        """Characters."""
        return len(self.tool) + len(self.arguments)


@dataclass(frozen=True, slots=True)
class Call:
    """A wish as the client repeats it in the history, with the id it was given."""

    id: str
    wish: Wish


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person said."""

    text: str


@dataclass(frozen=True, slots=True)
class Said:
    """What the model said before, and asked for."""

    text: str
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What one call gave, as the client tells it."""

    call_id: str
    text: str


Turn = Asked | Said | Result


@dataclass(frozen=True, slots=True)
class Outcome:
    """A result that was read: the tool's data, or the words of its error."""

    found: Json
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says, and which tools it wants, all in this one turn."""

    text: str = ""
    wishes: tuple[Wish, ...] = ()
    stop: Stop = Stop.END

    @property
    def size(self) -> int:
        """Characters of the text and the calls."""
        return len(self.text) + sum(each.size for each in self.wishes)


@dataclass(frozen=True, slots=True)
class Conversation:
    """All the model knows. Only what came after the last thing a person said counts as done."""

    system: str
    turns: tuple[Turn, ...]
    tools: frozenset[str]

    @property
    def question(self) -> str:
        """The last thing a person said."""
        return next((turn.text for turn in reversed(self.turns) if isinstance(turn, Asked)), "")

    @property
    def recent(self) -> Sequence[Turn]:
        """The turns after it."""
        asked = [place for place, turn in enumerate(self.turns) if isinstance(turn, Asked)]
        return self.turns[asked[-1] + 1 :] if asked else self.turns

    @property
    def answered(self) -> int:
        """How often the model has spoken since."""
        return sum(isinstance(turn, Said) for turn in self.recent)

    def texts(self) -> Iterator[str]:
        """Every text there is, the system's first."""
        yield self.system
        yield from (turn.text for turn in self.turns)

    @property
    def size(self) -> int:
        """Characters of all texts and calls."""
        made = [call.wish for turn in self.turns if isinstance(turn, Said) for call in turn.calls]
        return sum(map(len, self.texts())) + sum(each.size for each in made)

    def calls(self, tool: str | None = None) -> list[Call]:
        """What was called since, in order; of one tool only if it is named."""
        made = [call for turn in self.recent if isinstance(turn, Said) for call in turn.calls]
        return [call for call in made if tool in {None, call.wish.tool}]

    def is_done(self, wish: Wish) -> bool:
        """Whether exactly that was called since."""
        return any(call.wish.meaning == wish.meaning for call in self.calls(wish.tool))

    def missing(self, wishes: Sequence[Wish]) -> tuple[Wish, ...]:
        """Those that could be called and were not."""
        return tuple(wish for wish in wishes if wish.tool in self.tools and not self.is_done(wish))

    def outcome(self, wish: Wish) -> Outcome | None:
        """What exactly that call gave; None without a result."""
        same = [call for call in self.calls(wish.tool) if call.wish.meaning == wish.meaning]
        return self.outcome_of(same[-1]) if same else None

    def outcome_of(self, call: Call) -> Outcome | None:
        """What a call gave; None without a result."""
        results = (turn for turn in self.recent if isinstance(turn, Result))
        return next((outcome_in(result.text) for result in results if result.call_id == call.id), None)


def wish(tool: str, **arguments: object) -> Wish:
    """A wish with arguments that are JSON."""
    return Wish(tool, json.dumps(arguments, ensure_ascii=False))


def outcome_in(text: str) -> Outcome:
    """A tool's result; what is none in the agreed form counts as the words of an error."""
    try:
        told = json.loads(text)
    except ValueError:
        return Outcome({}, text)
    if isinstance(told, dict) and isinstance(told.get("data"), dict):
        return Outcome(told["data"])
    error = told.get("error") if isinstance(told, dict) else None
    return Outcome({}, error if isinstance(error, str) else text)


def say(text: str) -> Answer:
    """An answer of words."""
    return Answer(text)


def ask_for(*wishes: Wish) -> Answer:
    """An answer of calls."""
    return Answer(wishes=wishes, stop=Stop.TOOLS)
