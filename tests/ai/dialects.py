# SPDX-License-Identifier: Apache-2.0
"""The two wire formats as a provider writes them: events, whole answers and errors."""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from app.ai.contract import Ask, ModelTurn, Tool, ToolCall, ToolResult, ToolTurn, UserTurn
from tests.connectors.contract_check import Contract
from tests.resilience.misbehaving import HANG, Behaviour, Received, answer

Json = dict[str, Any]
Headers = Mapping[str, str]
NONE: Headers = MappingProxyType({})
EVENTS = "text/event-stream"
BEAT = 0.02
OPENAI_CONTRACT = Contract("openai", below="")
ANTHROPIC_CONTRACT = Contract("anthropic", below="")
NEWER_ANTHROPIC_CONTRACT = Contract("anthropic-2026-10-21", below="")

LOOK = Tool("look", "Look at a deployment", {"type": "object", "properties": {"id": {"type": "string"}}})
ASK = Ask("Be brief.", (UserTurn("Which ring?"),), (LOOK,), max_output_tokens=100)
LONG_ASK = Ask(
    "Be brief.",
    (
        UserTurn("Which ring?"),
        ModelTurn("I look.", (ToolCall("c1", "look", '{"id":"7"}'), ToolCall("c2", "look", "not json"))),
        ToolTurn((ToolResult("c1", "canary"), ToolResult("c2", "no such", is_error=True))),
        UserTurn("And now?"),
        UserTurn(""),
        ModelTurn(""),
        UserTurn("Please."),
    ),
    (LOOK,),
)


@dataclass(frozen=True)
class Said:
    """What a model says: text by pieces, and calls with their arguments by pieces."""

    text: Sequence[str] = ("Ca", "nary", ".")
    calls: Sequence[tuple[str, str, Sequence[str]]] = ()
    stop: str = "end"
    tokens: tuple[int, int] = field(default=(12, 5))


CALLING = Said(
    ("Let me see.",),
    (("id-a", "look", ('{"i', 'd": "7"}')), ("id-b", "look", ("{}",))),
    stop="tools",
)


def sse(name: str, data: object) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {text}\n\n".encode()


def pouring(
    *pieces: bytes | float,
    then: str = "end",
    forever: bytes = b"",
    kind: str = EVENTS,
    headers: Headers = NONE,
) -> Behaviour:
    """A stream of these pieces; ``then``: its end, silence, or ``forever`` again and again.

    A number among the pieces: so many seconds with ``forever``, or with nothing.
    """

    async def behave(_: Received, writer: asyncio.StreamWriter) -> None:
        told = {"Content-Type": kind, "Transfer-Encoding": "chunked", **headers}
        lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in told.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        for piece in pieces:
            if isinstance(piece, bytes):
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await writer.drain()
                continue
            for _beat in range(round(piece / BEAT)):
                if forever:
                    writer.write(b"%x\r\n%s\r\n" % (len(forever), forever))
                await asyncio.sleep(BEAT)
        while then == "forever":
            writer.write(b"%x\r\n%s\r\n" % (len(forever), forever))
            await writer.drain()
            await asyncio.sleep(BEAT)
        if then == "silence":
            await asyncio.sleep(HANG)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    return behave


def whole(body: object, status: int = 200, headers: Headers = NONE) -> Behaviour:
    text = body if isinstance(body, str) else json.dumps(body)
    return answer(status, text.encode(), **{"Content-Type": "application/json", **headers})


class Dialect(ABC):
    """How one format says things."""

    name: str
    path: str
    ping: bytes
    contract: Contract

    @abstractmethod
    def events(self, said: Said) -> list[bytes]:
        """The events of a stream."""

    @abstractmethod
    def message(self, said: Said) -> Json:
        """The same in one piece."""

    @abstractmethod
    def error(self, name: str, message: str = "trouble", **more: object) -> Json:
        """An error's body."""

    def broken_off(self, error: Json) -> bytes:
        """An error in the middle of a stream."""
        return sse("error" if self.name == "anthropic" else "", error)


class OpenAiDialect(Dialect):
    name = "openai"
    path = "/chat/completions"
    ping = b": ping\n\n"
    contract = OPENAI_CONTRACT
    stops = {"end": "stop", "tools": "tool_calls", "length": "length", "refusal": "content_filter"}  # noqa: RUF012

    def chunk(self, delta: Json | None, *, stop: str | None = None, usage: Json | None = None) -> Json:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": stop}]
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_790_000_000}
        return head | {"model": "m-1-2026", "choices": choices, "usage": usage}

    def chunks(self, said: Said) -> list[Json]:
        told = [self.chunk({"role": "assistant", "content": ""})]
        told += [self.chunk({"content": text}) for text in said.text]
        for index, (identity, name, pieces) in enumerate(said.calls):
            begun = {"index": index, "id": identity, "type": "function"}
            told.append(self.chunk({"tool_calls": [begun | {"function": {"name": name, "arguments": ""}}]}))
            told += [
                self.chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
                for piece in pieces
            ]
        told.append(self.chunk({}, stop=self.stops.get(said.stop, said.stop)))
        return [*told, self.chunk(None, usage=self.usage(said))]

    def usage(self, said: Said) -> Json:
        asked, answered = said.tokens
        return {
            "prompt_tokens": asked,
            "completion_tokens": answered,
            "total_tokens": asked + answered,
        }

    def events(self, said: Said) -> list[bytes]:
        return [*(sse("", chunk) for chunk in self.chunks(said)), sse("", "[DONE]")]

    def message(self, said: Said) -> Json:
        calls = [
            {"id": identity, "type": "function", "function": {"name": name, "arguments": "".join(pieces)}}
            for identity, name, pieces in said.calls
        ]
        message = {"role": "assistant", "content": "".join(said.text), "refusal": None}
        told = {
            "index": 0,
            "message": message | ({"tool_calls": calls} if calls else {}),
            "logprobs": None,
            "finish_reason": self.stops.get(said.stop, said.stop),
        }
        head = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1_790_000_000,
            "model": "m-1-2026",
        }
        return head | {"choices": [told], "usage": self.usage(said)}

    def error(self, name: str, message: str = "trouble", **more: object) -> Json:
        return {"error": {"message": message, "type": name, "param": None, "code": None} | more}


class AnthropicDialect(Dialect):
    name = "anthropic"
    path = "/v1/messages"
    ping = sse("ping", {"type": "ping"})
    contract = ANTHROPIC_CONTRACT
    stops = {"end": "end_turn", "tools": "tool_use", "length": "max_tokens", "refusal": "refusal"}  # noqa: RUF012

    def typed(self, kind: str, **members: object) -> bytes:
        return sse(kind, {"type": kind, **members})

    def start(self) -> bytes:
        return self.typed("message_start", message=self.message(Said(())) | {"stop_reason": None})

    def block(self, index: int, block: Json, *deltas: Json) -> list[bytes]:
        return [
            self.typed("content_block_start", index=index, content_block=block),
            *(self.typed("content_block_delta", index=index, delta=delta) for delta in deltas),
            self.typed("content_block_stop", index=index),
        ]

    def finish(self, said: Said) -> list[bytes]:
        stop = {"stop_reason": self.stops.get(said.stop, said.stop), "stop_sequence": None}
        usage = {"output_tokens": said.tokens[1]}
        return [self.typed("message_delta", delta=stop, usage=usage), self.typed("message_stop")]

    def events(self, said: Said) -> list[bytes]:
        texts = [{"type": "text_delta", "text": text} for text in said.text]
        told = [
            self.start(),
            self.ping,
            *(self.block(0, {"type": "text", "text": ""}, *texts) if texts else []),
        ]
        for index, (identity, name, pieces) in enumerate(said.calls, 1):
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", *pieces)]
            told += self.block(
                index, {"type": "tool_use", "id": identity, "name": name, "input": {}}, *deltas
            )
        return [*told, *self.finish(said)]

    def message(self, said: Said) -> Json:
        blocks: list[Json] = [{"type": "text", "text": "".join(said.text), "citations": None}]
        blocks = blocks if said.text else []
        for identity, name, pieces in said.calls:
            blocks.append(
                {"type": "tool_use", "id": identity, "name": name, "input": json.loads("".join(pieces))}
            )
        usage = {"input_tokens": said.tokens[0], "output_tokens": said.tokens[1] if said.text else 1}
        head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m-1-2026"}
        stop = {"stop_reason": self.stops.get(said.stop, said.stop), "stop_sequence": None}
        return head | {"content": blocks, "usage": usage} | stop

    def error(self, name: str, message: str = "trouble", **more: object) -> Json:
        return {"type": "error", "error": {"type": name, "message": message} | more, "request_id": "r1"}


OPENAI, ANTHROPIC = OpenAiDialect(), AnthropicDialect()
DIALECTS: dict[str, Dialect] = {"openai": OPENAI, "anthropic": ANTHROPIC}
