# SPDX-License-Identifier: Apache-2.0
"""Messages, as Anthropic and gateways to its models speak them.

Source: anthropic SDK 0.121.0 (``anthropic-version: 2023-06-01``) and 2.12.0 (``2026-10-21``): ``POST
/v1/messages``, its stream events, ``GET /v1/models``. What is used here is the same in both.
"""

from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import ClassVar

from pydantic import Field, JsonValue
from pydantic_core import to_json

from app.ai.contract import (
    Ask,
    Json,
    ModelTurn,
    Reply,
    StopReason,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
    Usage,
    UserTurn,
)
from app.ai.draft import CallDraft, Count, Counted, Draft, Wire, object_of, read, unreadable
from app.ai.exchange import Exchange
from app.ai.refusals import Vocabulary
from app.ai.settings import AiSettings
from app.ai.streams import Event
from app.resilience import ResilientClient
from app.resilience.errors import (
    AuthError,
    NotThere,
    PermanentError,
    PolicyError,
    ServerError,
    Throttled,
    TransientError,
)

MOST_MODELS = 1000
"""On one page of the list (anthropic SDK 0.121.0)."""
WORDS = Vocabulary(
    kinds={
        "overloaded_error": TransientError,
        "timeout_error": TransientError,
        "api_error": ServerError,
        "rate_limit_error": Throttled,
        "authentication_error": AuthError,
        "permission_error": PolicyError,
        "not_found_error": NotThere,
        "invalid_request_error": PermanentError,
        "request_too_large": PermanentError,
    },
    money=frozenset({"enforced_spend_limit_reached", "billing_error"}),
)
STOPS: Mapping[str, StopReason] = {
    "end_turn": StopReason.END,
    "stop_sequence": StopReason.END,
    "max_tokens": StopReason.LENGTH,
    "model_context_window_exceeded": StopReason.LENGTH,
    "tool_use": StopReason.TOOLS,
    "refusal": StopReason.REFUSAL,
}


class Tokens(Wire):
    """What is counted, up to now; tokens of a cache are input, too."""

    input_tokens: Count = None
    cache_creation_input_tokens: Count = None
    cache_read_input_tokens: Count = None
    output_tokens: Count = None


class Block(Wire):
    """A part of the answer: text, a call, or something that is skipped."""

    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, JsonValue] | None = None


class Delta(Wire):
    """What is new in a block, or in the message."""

    type: str | None = None
    text: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class Message(Wire):
    """The message at its beginning, and a whole one where nothing is streamed."""

    type: str | None = None
    model: str | None = None
    content: list[Block] = Field(default_factory=list)
    stop_reason: str | None = None
    usage: Counted[Tokens] = None
    error: JsonValue = None


class Piece(Wire):
    """Any event of a stream; which members it has depends on its type."""

    type: str
    index: int | None = None
    message: Message | None = None
    content_block: Block | None = None
    delta: Delta | None = None
    usage: Counted[Tokens] = None
    error: JsonValue = None


class MessageDraft(Draft):
    """A message while it comes in."""

    stops = STOPS
    words = WORDS
    _counted = Tokens()

    def take(self, event: Event) -> str | None:
        """An event more; of an unknown type it is nothing, for new ones may come at any time."""
        piece = read(Piece, event.data)
        if piece.type == "error":
            self.refuse(piece.error)
        self._count(piece.usage)
        if piece.type == "message_start":
            self._begun(piece.message)
            return None
        if piece.type == "content_block_start":
            return self._opened(piece.index, piece.content_block)
        if piece.type in {"content_block_delta", "message_delta"}:
            return self._added(piece.index, piece.delta)
        self.ended = piece.type == "message_stop"
        return "" if self.ended or piece.type == "content_block_stop" else None

    def take_whole(self, body: bytes) -> str:
        """A message that was not streamed."""
        message = read(Message, body)
        if message.type == "error":
            self.refuse(message.error)
        self.ended = True
        self._begun(message)
        self.stopped(message.stop_reason)
        return "".join(self._opened(index, block) or "" for index, block in enumerate(message.content))

    def _begun(self, message: Message | None) -> None:
        if message is None:
            raise unreadable()
        self.model = message.model or self.model
        self._count(message.usage)

    def _opened(self, index: int | None, block: Block | None) -> str | None:
        if index is None or block is None:
            raise unreadable()
        if block.type == "tool_use":
            given = to_json(block.input).decode() if block.input else ""
            self.calls[index] = CallDraft(block.id or "", block.name or "", given)
            return ""
        return self.say(block.text) if block.type == "text" else None

    def _added(self, index: int | None, delta: Delta | None) -> str:
        if delta is None:
            raise unreadable()
        self.stopped(delta.stop_reason)
        if delta.type == "input_json_delta" and index in self.calls:  # the provider's own tools have it, too
            self.calls[index].add(arguments=delta.partial_json)
        return self.say(delta.text) if delta.type == "text_delta" else ""

    def _count(self, usage: Tokens | None) -> None:
        """What is told later goes before what was told earlier."""
        told = usage.model_dump(exclude_none=True) if usage else {}
        if not told:
            return
        self._counted = self._counted.model_copy(update=told)
        known = self._counted
        asked = known.input_tokens, known.cache_creation_input_tokens, known.cache_read_input_tokens
        self.usage = Usage(sum(tokens or 0 for tokens in asked), known.output_tokens or 0)


class Anthropic:
    """A provider that speaks messages."""

    name: ClassVar[str] = "anthropic"
    key_header: ClassVar[str] = "x-api-key"
    words: ClassVar[Vocabulary] = WORDS

    def __init__(self, settings: AiSettings, http: ResilientClient) -> None:
        self.model = settings.model
        self._http = http
        headers = {"anthropic-version": settings.anthropic_version}
        self._exchange = Exchange(http, settings.first_timeout, settings.idle_timeout, headers)

    def answer(self, ask: Ask) -> AsyncGenerator[str | Reply, None]:
        """As the contract says."""
        draft = MessageDraft(self.model, self._http.redacted)
        return self._exchange.answer("/v1/messages", self._body(ask), draft)

    async def check(self) -> str:
        """As the contract says; an alias works though only what it stands for is on the list."""
        return await self._exchange.has(f"/v1/models?limit={MOST_MODELS}", self.model)

    def _body(self, ask: Ask) -> Json:
        body: Json = {
            "model": self.model,
            "max_tokens": ask.max_output_tokens,
            "messages": messages(ask),
            "stream": True,
        }
        if ask.system.strip():
            body["system"] = ask.system
        if ask.tools:
            body["tools"] = [_tool(tool) for tool in ask.tools]
        return body


def messages(ask: Ask) -> list[Json]:
    """A question's messages in their order; what one side says in a row is one message."""
    told: list[Json] = []
    for turn in ask.turns:
        role, blocks = "assistant" if isinstance(turn, ModelTurn) else "user", list(_blocks(turn))
        if told and told[-1]["role"] == role:
            told[-1]["content"] += blocks
        elif blocks:
            told.append({"role": role, "content": blocks})
    return told


def _blocks(turn: Turn) -> Iterator[Json]:
    """A turn's parts; a text of nothing but space would be refused."""
    if isinstance(turn, UserTurn | ModelTurn):
        if turn.text.strip():
            yield {"type": "text", "text": turn.text}
        if isinstance(turn, ModelTurn):
            yield from map(_call, turn.calls)
    else:
        yield from map(_result, turn.results)


def _call(call: ToolCall) -> Json:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": object_of(call.arguments) or {}}


def _result(result: ToolResult) -> Json:
    block = {"type": "tool_result", "tool_use_id": result.call_id, "content": result.content}
    return block | {"is_error": True} if result.is_error else block


def _tool(tool: Tool) -> Json:
    return {"name": tool.name, "description": tool.description, "input_schema": dict(tool.parameters)}
