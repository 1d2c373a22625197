# SPDX-License-Identifier: Apache-2.0
"""What leaves for the model, and what comes back: secrets cut out, data kept data, ids checked. Pure."""

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from app import telemetry
from app.ai.contract import Ask, Json, ModelTurn, ToolResult, ToolTurn, Turn, UserTurn

LONGEST_RESULT = 16_000
"""Characters of one tool's answer."""
CHARACTERS_PER_TOKEN = 3.5
"""A low estimate for English and JSON, so that budgets are kept rather than overrun."""
CUT = "[redacted]"
_UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.IGNORECASE)
_KEYS = (
    r"\bsk-[A-Za-z0-9_-]{16,}",
    r"\beucora_[A-Za-z0-9_-]{20,}",
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    r"\bgh[pousr]_[A-Za-z0-9]{30,}",
    r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
)
LOOKS_SECRET = re.compile("|".join(_KEYS), re.DOTALL)
"""Keys and tokens by the forms their makers gave them, so that scanners find them."""
NAMED_SECRET = re.compile(
    r"(?i)(\b(?:password|passwd|passphrase|pwd|secret|client[_ -]?secret|api[_ -]?key|access[_ -]?key"
    r"|token|credentials?)[\"']?\s*(?:[:=]|\bis\b(?=\s+\S*\d))\s*[\"']?)(?!\[redacted\])([^\s\"',;}]{4,})"
)


class Redactor:
    """Cuts secrets out of text: those that are known, those that look like one, those that are named so."""

    def __init__(self, known: Collection[str] = ()) -> None:
        longest_first = sorted(known, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first))) if known else None

    def text(self, text: str) -> str:
        """The text without them."""
        if self._known is not None:
            text = self._known.sub(CUT, text)
        text = LOOKS_SECRET.sub(CUT, telemetry.redact_text(text))
        return NAMED_SECRET.sub(rf"\1{CUT}", text)

    def data(self, value: Any) -> Any:
        """The same for everything in a JSON value; keys stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {name: self.data(part) for name, part in value.items()}
        return [self.data(part) for part in value] if isinstance(value, list) else value

    def ask(self, ask: Ask) -> Ask:
        """A question whose every text was looked at; what leaves for a model has come through here."""
        return replace(ask, system=self.text(ask.system), turns=tuple(map(self._turn, ask.turns)))

    def _turn(self, turn: Turn) -> Turn:
        if isinstance(turn, UserTurn):
            return UserTurn(self.text(turn.text))
        if isinstance(turn, ModelTurn):
            calls = tuple(replace(call, arguments=self.text(call.arguments)) for call in turn.calls)
            return ModelTurn(self.text(turn.text), calls)
        return ToolTurn(tuple(replace(result, content=self.text(result.content)) for result in turn.results))


def envelope(call_id: str, tool: str, data: Json) -> ToolResult:
    """A tool's answer as data: JSON, named, so that nothing in it can look like a turn of its own."""
    content = json.dumps({"tool": tool, "data": data}, ensure_ascii=False, separators=(",", ":"))
    if len(content) > LONGEST_RESULT:
        return refusal(call_id, tool, "there is too much of it: ask for less")
    return ToolResult(call_id, content)


def refusal(call_id: str, tool: str, why: str) -> ToolResult:
    """The answer to a call that was not carried out."""
    content = json.dumps({"tool": tool[:100], "error": why}, ensure_ascii=False, separators=(",", ":"))
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
