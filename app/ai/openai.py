# SPDX-License-Identifier: Apache-2.0
"""Chat completions: OpenAI, and the many servers that speak like it (Azure, vLLM, Ollama).

Source: openai/openai-openapi @f85dbe22, ``POST /chat/completions``, ``CreateChatCompletionStreamResponse``,
``GET /models``. Where servers differ from it, the more tolerant reading is taken.
"""

from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import ClassVar

from pydantic import AliasChoices, ConfigDict, Field, JsonValue

from app.ai.contract import Ask, Json, ModelTurn, Reply, StopReason, Tool, ToolCall, Turn, Usage, UserTurn
from app.ai.draft import CallDraft, Count, Counted, Draft, Wire, object_of, read, unreadable
from app.ai.exchange import Exchange
from app.ai.refusals import Vocabulary
from app.ai.settings import AiSettings
from app.ai.streams import Event
from app.resilience import ResilientClient
from app.resilience.errors import AuthError, NotThere, PermanentError, ServerError, Throttled

END = "[DONE]"
WORDS = Vocabulary(
    kinds={
        "rate_limit_exceeded": Throttled,
        "server_error": ServerError,
        "invalid_api_key": AuthError,
        "model_not_found": NotThere,
        "invalid_request_error": PermanentError,
    },
    money=frozenset(
        {
            "insufficient_quota",
            "credit_balance_exhausted",
            "billing_hard_limit_reached",
            "billing_not_active",
        }
    ),
    unwilling=frozenset({"content_filter"}),
)
STOPS: Mapping[str, StopReason] = {
    "stop": StopReason.END,
    "length": StopReason.LENGTH,
    "tool_calls": StopReason.TOOLS,
    "content_filter": StopReason.REFUSAL,
}


class Function(Wire):
    """What is called, as far as this piece tells."""

    name: str | None = None
    arguments: str | None = None


class CallPiece(Wire):
    """A piece of a call; ``index`` says of which, and some servers leave it out."""

    index: int | None = None
    id: str | None = None
    function: Function = Function()


class Delta(Wire):
    """What is new in a message. Servers send more, such as a model's thoughts: those count as life only."""

    model_config = ConfigDict(extra="allow")

    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[CallPiece] | None = None

    @property
    def brings_something(self) -> bool:
        """Whether it is more than a sign of life."""
        return any((self.content, self.refusal, self.tool_calls, *(self.model_extra or {}).values()))


class Choice(Wire):
    """One of the answers; one is asked for. What a filter found comes without a delta (Azure)."""

    index: int = 0
    delta: Delta | None = Field(default=None, validation_alias=AliasChoices("delta", "message"))
    finish_reason: str | None = None


class Tokens(Wire):
    """What is counted."""

    prompt_tokens: Count = None
    completion_tokens: Count = None

    @property
    def usage(self) -> Usage | None:
        """What is told of it."""
        if self.prompt_tokens is None and self.completion_tokens is None:
            return None
        return Usage(self.prompt_tokens or 0, self.completion_tokens or 0)


class Chunk(Wire):
    """A piece of a streamed answer, or a whole one: they differ in a name."""

    model: str | None = None
    choices: list[Choice] | None = None
    usage: Counted[Tokens] = None
    error: JsonValue = None


class ChatDraft(Draft):
    """A chat completion while it comes in."""

    stops = STOPS
    words = WORDS
    _has_refused = False

    def take(self, event: Event) -> str | None:
        """A chunk more, or the end."""
        if event.data.strip() == END:
            self.ended = True
            return ""
        return self._heard(read(Chunk, event.data))

    def take_whole(self, body: bytes) -> str:
        """A completion that was not streamed."""
        self.ended = True
        return self._heard(read(Chunk, body)) or ""

    def _heard(self, chunk: Chunk) -> str | None:
        if chunk.error:
            self.refuse(chunk.error)
        if chunk.choices is None:
            raise unreadable()
        self.model = chunk.model or self.model
        usage = chunk.usage and chunk.usage.usage
        self.usage = usage or self.usage
        pieces = [self._chosen(choice) for choice in chunk.choices if choice.index == 0]
        heard = [piece for piece in pieces if piece is not None]
        return "".join(heard) if heard or (usage and not chunk.choices) else None

    def _chosen(self, choice: Choice) -> str | None:
        delta = choice.delta or Delta()
        for piece in delta.tool_calls or ():
            call = self.calls.setdefault(self._index(piece), CallDraft())
            call.add(id=piece.id, name=piece.function.name, arguments=piece.function.arguments)
        self._has_refused = self._has_refused or bool(delta.refusal)
        self.stopped(choice.finish_reason)
        if self._has_refused and self.stop is not None:
            self.stop = StopReason.REFUSAL
        brings = delta.brings_something or choice.finish_reason
        return self.say(delta.content, delta.refusal) if brings else None

    def _index(self, piece: CallPiece) -> int:
        """Of which call it is a piece; without an index one with an id or a name begins the next."""
        if piece.index is not None:
            return piece.index
        latest = max(self.calls, default=-1)
        return latest + 1 if piece.id or piece.function.name or latest < 0 else latest


class OpenAi:
    """A provider that speaks chat completions."""

    name: ClassVar[str] = "openai"
    key_header: ClassVar[str] = "authorization"
    words: ClassVar[Vocabulary] = WORDS

    def __init__(self, settings: AiSettings, http: ResilientClient) -> None:
        self.model = settings.model
        self._limit_field = settings.output_limit_field
        self._http = http
        self._exchange = Exchange(http, settings.first_timeout, settings.idle_timeout, {})

    def answer(self, ask: Ask) -> AsyncGenerator[str | Reply, None]:
        """As the contract says."""
        draft = ChatDraft(self.model, self._http.redacted)
        return self._exchange.answer("/chat/completions", self._body(ask), draft)

    async def check(self) -> str:
        """As the contract says; a model that is not on the list may be there, under another name."""
        return await self._exchange.has("/models", self.model)

    def _body(self, ask: Ask) -> Json:
        body: Json = {
            "model": self.model,
            "messages": list(messages(ask)),
            self._limit_field: ask.max_output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return body | {"tools": [_tool(tool) for tool in ask.tools]} if ask.tools else body


def messages(ask: Ask) -> Iterator[Json]:
    """A question's messages in their order."""
    if ask.system:
        yield {"role": "system", "content": ask.system}
    for turn in ask.turns:
        yield from _of(turn)


def _of(turn: Turn) -> Iterator[Json]:
    if isinstance(turn, UserTurn):
        yield {"role": "user", "content": turn.text}
    elif isinstance(turn, ModelTurn):
        yield from _said(turn)
    else:
        for result in turn.results:
            yield {"role": "tool", "tool_call_id": result.call_id, "content": result.content}


def _said(turn: ModelTurn) -> Iterator[Json]:
    if turn.calls:
        calls = [_call(call) for call in turn.calls]
        yield {"role": "assistant", "content": turn.text or None, "tool_calls": calls}
    elif turn.text:
        yield {"role": "assistant", "content": turn.text}


def _call(call: ToolCall) -> Json:
    arguments = "{}" if object_of(call.arguments) is None else call.arguments
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _tool(tool: Tool) -> Json:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}
