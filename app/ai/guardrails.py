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
CHARACTERS_PER_TOKEN, BYTES_PER_TOKEN = 3.5, 3.0
"""Low estimates, so that budgets are kept rather than overrun: of ASCII, such as English and JSON, and of
what other characters take in UTF-8. One of Chinese or Japanese is a token."""
CUT = "[redacted]"
LINES, ESCAPED_LINES = {0x2028: "\n", 0x2029: "\n"}, {0x2028: "\\n", 0x2029: "\\n"}
"""Ends of lines by another name, in a text and in JSON."""
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]"
)
"""What shows nothing, has other characters shown elsewhere, or gives orders to a terminal."""
UNSPEAKABLE = re.compile(r"[^A-Za-z0-9_-]", re.ASCII)
"""In ids and names of calls, as vendors take them."""
UNSETTLED = "".join(map(chr, range(0x21, 0x7F)))
"""What the end of a growing text may be half a word of, or half a secret. Other scripts have no such ends."""
WINDOW, BACK, TRIES, APART = 8_192, 4_096, 8, 256
"""Of a growing text: the characters that are looked at again each time; how far before its end it may be
divided, for no secret but a private key is longer; at how many places that is tried, and how far apart."""
UNDIVIDED = 4 * WINDOW
"""More characters than that can only be private keys, one behind the other: they are looked at less often."""
_UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.IGNORECASE)
_W = "[A-Za-z0-9_-]"
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
    # From the beginning of its run of characters on, so that no run is looked at from each of its places.
    rf"(?<!{_W})(?={_W}++\.{_W}{{8,}}+\.){_W}*?eyJ{_W}{{8,}}+\.{_W}{{8,}}+\.{_W}*+",
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:.{0,20000}?-----END [A-Z ]{0,40}PRIVATE KEY-----|.{0,20000})",
)
LOOKS_SECRET = re.compile("|".join(_KEYS), re.DOTALL)
"""Keys and tokens by the forms their makers gave them, so that scanners find them."""
PRESENTED = re.compile(
    r"\b((?i:bearer|basic)\s{1,40})(?=[\w.~+/=-]{0,400}[0-9=+/]|[\w.~+/=-]{0,400}[a-z][A-Z]|\S{24})"
    r"[\w.~+/=-]{6,}",
    re.ASCII,
)
"""In a header: no such word as "basic installation" has."""
IN_ADDRESS = re.compile(r"\b(\w{1,20}(?:\+\w{1,20})?://[^\s:/@]*):(?!\[redacted\]@)[^\s@/]+@")
TELLING = (
    r"password|passwd|passphrase|pwd|secret|(?:api|access|account|private)[_ -]?key"
    r"|token|assertion|credentials?|(?<![A-Za-z])sig"
)
NAMED_SECRET = re.compile(
    rf"((?:{TELLING})[\"']?(?:\s{{0,200}}(?:\bis\s{{0,200}})?[:=]{{1,2}}+>?+\s{{0,200}}"
    r"|\s{1,200}is\s{1,200}(?=\S{0,400}\d)))"
    r"(?![\"']?\[redacted\]|0x[0-9a-f]{1,16}\b)"
    r"(?:\"[^\"\n]{4,1000}\"|'[^'\n]{4,1000}'|[\"']?[^\s\"',;&}\\]{4,})",
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


class Unfolding:
    """A growing text without secrets: each time only what is new, and what is near it, is looked at."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._done, self._from = "", 0
        self._shown, self._next = "", 0

    def text(self, grown: str) -> str:
        """The text as it is now, or was shortly before; it begins with what it was the time before."""
        if len(grown) < self._next:
            return self._shown
        done, part = self._done, grown[self._from :]
        cut = self._redactor.text(part)
        if len(part) > WINDOW:
            self._divide(part, cut)
        self._shown = done + cut
        self._next = len(grown) + max(0, len(grown) - self._from - UNDIVIDED) // 4
        return self._shown

    def _divide(self, part: str, cut: str) -> None:
        """Be done with all before a place that no secret stretches across, or will, if one is found."""
        for back in range(BACK, BACK + TRIES * APART, APART):
            end = len(settled(part[:-back]))
            rest = self._redactor.text(part[end:])
            if cut.endswith(rest):
                self._done += cut[: len(cut) - len(rest)]
                self._from += end
                return


def visible(text: str) -> str:
    """The text without what is not seen, or has something else seen; other ends of lines are plain ones."""
    return UNSEEN.sub("", text.translate(LINES))


def storable(text: str) -> str:
    """The text as PostgreSQL, the wire and a terminal take it; half a character is a question mark."""
    return visible(text).encode(errors="replace").decode()


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
    arguments = call.arguments[:LONGEST_CALL].translate(ESCAPED_LINES)
    return ToolCall(identity, name, storable(arguments))


def settled(text: str) -> str:
    """What may be shown of a text that still grows: all but a word that may not have ended."""
    return text.rstrip(UNSETTLED)


def as_json(value: Any) -> str:
    """As it is told to a model, its texts as people see them."""
    return json.dumps(_seen(value), ensure_ascii=False, separators=(",", ":"))


def _seen(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {storable(key): _seen(part) for key, part in value.items()}
    return [_seen(part) for part in value] if isinstance(value, list | tuple) else value


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
    size, plain = len(text.encode(errors="replace")), len(text.encode("ascii", errors="ignore"))
    return int(plain / CHARACTERS_PER_TOKEN + (size - plain) / BYTES_PER_TOKEN) + 1
