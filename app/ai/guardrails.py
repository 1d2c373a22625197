# SPDX-License-Identifier: Apache-2.0
"""What leaves for the model, and what comes back: secrets cut out, data kept data, ids checked. Pure."""

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from app.ai.contract import Ask, Json, ModelTurn, Reply, ToolCall, ToolResult, ToolTurn, Turn, UserTurn

LONGEST_RESULT = 24_000
"""Characters of one tool's answer: room for the gates of five rings on five planes."""
ROOM = ((2000, 400), (500, 100), (300, 40), (200, 20), (100, 10), (60, 5))
"""What is tried in turn where an answer is too long: characters of each text, and parts of each list."""
LONGEST_ANSWER, LONGEST_LABEL, LONGEST_NAME, LONGEST_CALL, LONGEST_REFUSAL = 200_000, 200, 64, 100_001, 2000
MOST_CALLS = 16
"""Of one turn of the model; what it asks for beyond that is forgotten."""
CHARACTERS_PER_TOKEN = 3.5
"""A low estimate for English and JSON, so that budgets are kept rather than overrun."""
CUT = "[redacted]"
UNSTORABLE = re.compile(r"\x00")
UNSPEAKABLE = re.compile(r"[^A-Za-z0-9_-]", re.ASCII)
"""In ids and names of calls, as vendors take them."""
UNSETTLED = re.compile(r"[!-~]+\Z")
"""The end of a growing text that may be half a word, or half a secret. Other scripts have no such ends."""
_UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.IGNORECASE)
_KEYS = (
    r"\bsk-[A-Za-z0-9_-]{16,}",
    r"\beucora_[A-Za-z0-9_-]{40,}",
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    r"\bgh[pousr]_[A-Za-z0-9]{30,}",
    r"\bgithub_pat_[A-Za-z0-9_]{20,}",
    r"\bglpat-[A-Za-z0-9_-]{20,}",
    r"\bAIza[A-Za-z0-9_-]{35}",
    r"\b[A-Za-z0-9_~.]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,34}",  # of an application of Entra ID
    r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)",
)
LOOKS_SECRET = re.compile("|".join(_KEYS), re.DOTALL)
"""Keys and tokens by the forms their makers gave them, so that scanners find them."""
PRESENTED = re.compile(
    r"\b((?i:bearer|basic)\s+)(?=[\w.~+/=-]*[0-9=+/]|[\w.~+/=-]*[a-z][A-Z]|\S{24})[\w.~+/=-]{6,}", re.ASCII
)
"""In a header: no such word as "basic installation" has."""
IN_ADDRESS = re.compile(r"\b(\w{1,20}(?:\+\w{1,20})?://[^\s:/@]*):(?!\[redacted\]@)[^\s@/]+@")
TELLING = (
    r"password|passwd|passphrase|pwd|secret|(?:api|access|account|private)[_ -]?key"
    r"|token|assertion|credentials?|(?<![A-Za-z])sig"
)
NAMED_SECRET = re.compile(
    rf"((?:{TELLING})[\"']?(?:\s*(?:\bis\s*)?[:=]{{1,2}}>?\s*|\s+is\s+(?=\S*\d)))"
    r"(?![\"']?\[redacted\]|0x[0-9a-f]{1,16}\b)"
    r"(?:\"[^\"\n]{4,}\"|'[^'\n]{4,}'|[\"']?[^\s\"',;&}\\]{4,})",
    re.IGNORECASE,
)
"""What stands beside a name that tells what it is; codes of errors do, too, and are none."""
TELLING_NAME = re.compile(rf"(?:{TELLING})\Z", re.IGNORECASE)


class Redactor:
    """Cuts secrets out of text: those that are known, those that look like one, those that are named so."""

    def __init__(self, known: Collection[str] = ()) -> None:
        longest_first = sorted(known, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first))) if known else None

    def text(self, text: str) -> str:
        """The text without them."""
        if self._known is not None:
            text = self._known.sub(CUT, text)
        text = LOOKS_SECRET.sub(CUT, text)
        text = PRESENTED.sub(rf"\1{CUT}", IN_ADDRESS.sub(rf"\1:{CUT}@", text))
        return NAMED_SECRET.sub(rf"\1{CUT}", text)

    def data(self, value: Any, *, name: str = "") -> Any:
        """The same for everything in a JSON value, and for what stands under a telling name; keys stay."""
        if isinstance(value, str):
            return CUT if value and TELLING_NAME.search(name) else self.text(value)
        if isinstance(value, dict):
            return {key: self.data(part, name=key) for key, part in value.items()}
        return [self.data(part, name=name) for part in value] if isinstance(value, list) else value

    def ask(self, ask: Ask) -> Ask:
        """A question whose every text was looked at; what leaves for a model has come through here."""
        return replace(ask, system=self.text(ask.system), turns=tuple(map(self._turn, ask.turns)))

    def json(self, text: str) -> str:
        """JSON that stays JSON, though something is cut out of it; anything else as a text."""
        try:
            value = json.loads(text)
            cut = self.data(value)
        except (ValueError, RecursionError):
            return self.text(text)
        as_it_is = cut == value and self.text(text) == text  # of a name given twice only one value was seen
        return text if as_it_is else as_json(cut)

    def _turn(self, turn: Turn) -> Turn:
        if isinstance(turn, UserTurn):
            return UserTurn(self.text(turn.text))
        if isinstance(turn, ModelTurn):
            calls = tuple(replace(call, arguments=self.json(call.arguments)) for call in turn.calls)
            return ModelTurn(self.text(turn.text), calls)
        return ToolTurn(tuple(replace(result, content=self.json(result.content)) for result in turn.results))


def storable(text: str) -> str:
    """The text as PostgreSQL and the wire take it: without NUL and halves of characters."""
    return UNSTORABLE.sub("", text).encode(errors="replace").decode()


def held(reply: Reply) -> Reply:
    """An answer within limits, whatever the provider sent: it can be stored, shown, and told again."""
    taken: set[str] = set()
    calls = tuple(_held_call(number, call, taken) for number, call in enumerate(reply.calls[:MOST_CALLS]))
    text, model = storable(reply.text[:LONGEST_ANSWER]), storable(reply.model[:LONGEST_LABEL])
    return replace(reply, text=text, calls=calls, model=model)


def _held_call(number: int, call: ToolCall, taken: set[str]) -> ToolCall:
    """A call with an id of its own, and a name that vendors take back; no tool of ours has a dash."""
    identity = UNSPEAKABLE.sub("-", call.id[:LONGEST_NAME])
    if not identity or identity in taken:
        identity = f"call_{number}_{len(taken)}"
    taken.add(identity)
    name = UNSPEAKABLE.sub("-", call.name[:LONGEST_NAME]) or "-"
    return ToolCall(identity, name, storable(call.arguments[:LONGEST_CALL]))


def settled(text: str) -> str:
    """What may be shown of a text that still grows: all but a word that may not have ended."""
    return UNSETTLED.sub("", text)


def as_json(value: Any) -> str:
    """As it is told to a model."""
    return storable(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def envelope(call_id: str, tool: str, data: Json) -> ToolResult:
    """A tool's answer as data: JSON, named, so that nothing in it can look like a turn of its own.

    What is too long for a model loses the ends of its texts and the middles of its lists, and says so.
    """
    content = as_json({"tool": tool, "data": data})
    for longest, most in ROOM:
        if len(content) <= LONGEST_RESULT:
            return ToolResult(call_id, content)
        less = shortened(data, longest, most)
        content = as_json({"tool": tool, "shortened": True, "data": less})
    if len(content) <= LONGEST_RESULT:
        return ToolResult(call_id, content)
    return refusal(call_id, tool, "there is too much of it")


def shortened(value: Any, longest: int, most: int) -> Any:
    """A JSON value with texts of ``longest`` characters and lists of ``most`` parts, first and last ones."""
    if isinstance(value, str):
        return value if len(value) <= longest else f"{value[:longest]}…"
    if isinstance(value, dict):
        return {key: shortened(part, longest, most) for key, part in value.items()}
    if not isinstance(value, list):
        return value
    first = most // 2
    kept = value if len(value) <= most else value[:first] + value[first - most :]
    return [shortened(part, longest, most) for part in kept]


def refusal(call_id: str, tool: str, why: str) -> ToolResult:
    """The answer to a call that was not carried out."""
    content = as_json({"tool": tool[:100], "error": why[:LONGEST_REFUSAL]})
    return ToolResult(call_id, content, is_error=True)


def ids_in(text: str) -> list[str]:
    """The UUIDs in a text, each once, in order, in lower case."""
    return list(dict.fromkeys(found.lower() for found in _UUID.findall(text)))


def citations(answer: str, read: Iterable[str]) -> tuple[list[str], list[str]]:
    """The ids that an answer names: those that stood in what was ``read``, and those that did not."""
    known = {found for content in read for found in ids_in(content)}
    named = ids_in(answer)
    return [each for each in named if each in known], [each for each in named if each not in known]


def tokens(text: str) -> int:
    """About how many tokens a text takes."""
    return int(len(text) / CHARACTERS_PER_TOKEN) + 1
