# SPDX-License-Identifier: Apache-2.0
"""An answer while it comes in, piece by piece or at once."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, JsonValue, TypeAdapter, ValidationError

from app.ai.contract import SERVICE, Json, Reply, StopReason, ToolCall, Usage
from app.ai.refusals import Vocabulary, read_error
from app.ai.streams import Event
from app.resilience.errors import PermanentError

OBJECT: TypeAdapter[Json] = TypeAdapter(dict[str, JsonValue])
MOST_TOKENS = 2**31 - 1
"""More than any answer has, and what a column of the database holds."""


class Wire(BaseModel):
    """What a provider sends, as far as it is used; what went wrong with it does not repeat it."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


W = TypeVar("W", bound=Wire)


def _number(told: object) -> int | None:
    if isinstance(told, float):
        return int(told) if math.isfinite(told) else None
    return told if isinstance(told, int) and not isinstance(told, bool) else None


Count = Annotated[int | None, BeforeValidator(_number)]
"""A number of tokens; None is anything else, for no answer is thrown away because it was counted badly."""
Counted = Annotated[W | None, BeforeValidator(lambda told: told if isinstance(told, dict) else None)]
"""What holds such numbers; None is anything else."""


def read(kind: type[W], text: str | bytes) -> W:
    """JSON of a provider.

    Raises:
        PermanentError: it is not JSON, or not of that kind.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise unreadable() from error


def unreadable() -> PermanentError:
    """The error for an answer that is none in its wire format."""
    return PermanentError(f"{SERVICE} sent something that is no answer in its wire format", service=SERVICE)


def object_of(arguments: str) -> Json | None:
    """The object that a model wrote as arguments; None if it wrote something else.

    So is one with NaN, or with a number too large for a float: they could be read, but not sent on.
    """
    try:
        found = OBJECT.validate_json(arguments)
        json.dumps(found, allow_nan=False)
    except ValueError:
        return None
    return found


@dataclass(slots=True)
class CallDraft:
    """A call while it comes in; of its id and name the first that is told holds.

    ``given``: its arguments, if they came with its beginning and not in pieces.
    """

    id: str = ""
    name: str = ""
    given: str = ""
    arguments: list[str] = field(default_factory=list)

    def add(self, *, id: str | None = None, name: str | None = None, arguments: str | None = None) -> None:  # noqa: A002 - the field's word
        """One more piece of it."""
        self.id = self.id or id or ""
        self.name = self.name or name or ""
        self.arguments.append(arguments or "")

    def finished(self, number: int) -> ToolCall:
        """The call; with an id of ours where the provider gave none, and no arguments as an empty object."""
        return ToolCall(self.id or f"call_{number}", self.name, "".join(self.arguments) or self.given or "{}")


class Draft(ABC):
    """What is known of an answer so far.

    ``ended``: the provider said that there is no more. ``stop``: why, once it has told. ``redacted`` takes
    secrets out of the provider's words.
    """

    stops: Mapping[str, StopReason]
    words: Vocabulary

    def __init__(self, model: str, redacted: Callable[[str], str]) -> None:
        self.model = model
        self.ended = False
        self.stop: StopReason | None = None
        self.usage: Usage | None = None
        self.calls: dict[int, CallDraft] = {}
        self._redacted = redacted
        self._text: list[str] = []

    @abstractmethod
    def take(self, event: Event) -> str | None:
        """One event more; its text, empty where it brings something else, None where it brings nothing.

        Raises:
            CallError: the provider tells of an error, or what it sends is no answer.
        """

    @abstractmethod
    def take_whole(self, body: bytes) -> str:
        """All of it at once, as a server answers that knows no streams; its text. Raises as ``take``."""

    def say(self, *parts: str | None) -> str:
        """Text that is part of the answer."""
        text = "".join(part for part in parts if part)
        self._text.append(text)
        return text

    def stopped(self, reason: str | None) -> None:
        """The provider's word for why it stopped, if it said one."""
        if reason:
            self.stop = self.stops.get(reason, StopReason.OTHER)

    def refuse(self, error: object) -> None:
        """Raise what the provider tells of itself in the middle of an answer."""
        told = read_error(error)
        detail = f"{SERVICE} broke off its answer: {self._redacted(told.message)}"
        raise self.words.kind(told)(detail, service=SERVICE)

    def decline(self, words: str) -> str:
        """There is no answer, for these reasons; they are its text."""
        self.stop = StopReason.REFUSAL
        return self.say(words)

    def reply(self) -> Reply:
        """The whole answer, once it has ended."""
        calls = tuple(self.calls[index].finished(number) for number, index in enumerate(sorted(self.calls)))
        stop = self.stop or StopReason.OTHER
        if calls and stop is StopReason.END:  # so do some servers of OpenAI's format
            stop = StopReason.TOOLS
        return Reply("".join(self._text), calls, stop, self.usage and _held(self.usage), self.model)


def _held(usage: Usage) -> Usage:
    """Within what can be counted."""
    return Usage(*(min(max(tokens, 0), MOST_TOKENS) for tokens in (usage.input_tokens, usage.output_tokens)))
