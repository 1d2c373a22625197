# SPDX-License-Identifier: Apache-2.0
"""What a language model is asked and answers, in no vendor's words."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

SERVICE = "ai_provider"
"""The breaker of every provider."""
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tool:
    """Something the model may ask for. ``parameters`` is the JSON Schema of its one object of arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What the model asks for. ``arguments`` is the text it wrote: JSON if all is well, else anything."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call of that id gave. ``content`` is data: it is read, and nobody takes orders from it."""

    call_id: str
    content: str
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class UserTurn:
    """What a person said."""

    text: str


@dataclass(frozen=True, slots=True)
class ModelTurn:
    """What the model said before, and asked for."""

    text: str
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolTurn:
    """The results of all calls of the turn before."""

    results: tuple[ToolResult, ...]


Turn = UserTurn | ModelTurn | ToolTurn


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to a model: its instructions, what was said so far, and what it may ask for.

    The last turn is a person's or one of results. ``max_output_tokens`` bounds the answer.
    """

    system: str
    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()
    max_output_tokens: int = 2048


class StopReason(StrEnum):
    """Why a model stopped: done, cut at its limit, waiting for tools, unwilling, or something else."""

    END = "end"
    LENGTH = "length"
    TOOLS = "tools"
    REFUSAL = "refusal"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the provider counted them."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. ``usage`` is None where the provider did not tell; ``model`` is who answered."""

    text: str
    calls: tuple[ToolCall, ...]
    stop: StopReason
    usage: Usage | None
    model: str


class Provider(Protocol):
    """A language model behind an API. ``name`` is the wire format's, ``model`` the one that is asked for."""

    @property
    def name(self) -> str:
        """As in the settings: ``openai`` or ``anthropic``."""
        ...

    @property
    def model(self) -> str:
        """As in the settings."""
        ...

    def answer(self, ask: Ask) -> AsyncGenerator[str | Reply, None]:
        """The answer's text piece by piece as it comes, and at last one ``Reply`` with all of it.

        To be closed by whoever does not read it to the end. May be asked again: that costs money and changes
        nothing. Pieces that are apart for longer than the idle limit end it.

        Raises:
            CallError: there is no answer, or no more of it; what was given so far stays true. ``transient``
                where asking again may help, ``Throttled`` where the provider wants it slower, ``permanent``
                where the money ran out or the answer is none in its wire format.
        """
        ...

    async def check(self) -> str:
        """Ask whether the provider is there, takes the credentials and has the model; a sentence about it.

        Raises:
            CallError: it does not.
        """
        ...
