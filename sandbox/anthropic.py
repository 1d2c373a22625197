# SPDX-License-Identifier: Apache-2.0
"""The scripted model behind Anthropic's messages, whole and streamed.

Source: Anthropic's API reference, "Messages", "Streaming messages", "Errors" and "Rate limits".
"""

import hmac
import json
import secrets
from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp

from sandbox import CLIENT_SECRET, scripted_model
from sandbox.anthropic_bodies import conversation_of, read_messages
from sandbox.models import Desk, Piece, at_once, in_parts, streamed, tokens, words_of
from sandbox.rest import Refused, application, guarded
from sandbox.scripted_conversation import Answer, Conversation, Json, Stop, Wish
from sandbox.scripted_model import MODEL
from sandbox.witness import instant

VERSIONS = frozenset({"2023-06-01", "2026-10-21"})
KINDS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
OVERLOADED = 529
WORDS = {
    401: "invalid x-api-key",
    429: "This request would exceed your organization's rate limit of 50 requests per minute.",
    500: "Internal server error",
    OVERLOADED: "Overloaded",
}
LIMITS = {"requests": (50, 49), "tokens": (48_000, 47_000), "input-tokens": (40_000, 39_000)} | {
    "output-tokens": (8_000, 8_000)
}
RESET_SECONDS = 60
STOPS = {
    Stop.END: "end_turn",
    Stop.LENGTH: "max_tokens",
    Stop.TOOLS: "tool_use",
    Stop.REFUSAL: "refusal",
}
MODEL_DOCUMENT = {
    "type": "model",
    "id": MODEL,
    "display_name": "Sandbox Scripted",
    "created_at": "2026-01-01T00:00:00Z",
    "lifecycle": "active",
}


class Anthropic:
    """The provider."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.overloaded_status = OVERLOADED
        self.overloaded = event(error_of(OVERLOADED, WORDS[OVERLOADED], request_id()))
        self.ping = event({"type": "ping"})
        routes = [
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{model}", self._model, methods=["GET"]),
            Route("/v1/messages", self._message, methods=["POST"]),
        ]
        inside = Router(routes, redirect_slashes=False)
        self.app: ASGIApp = application([Mount("/", app=guarded(inside, admitted))], answer)

    def error(self, status: int) -> Response:
        """Anthropic's error body."""
        return answer(status, WORDS.get(status, "The sandbox was asked to answer this."))

    def stamp(self) -> dict[str, str]:
        """The request's id and the rate limits."""
        reset = instant(self._desk.clock() + RESET_SECONDS)
        stamp = {"request-id": request_id()}
        for name, (limit, remaining) in LIMITS.items():
            family = f"anthropic-ratelimit-{name}"
            stamp |= {f"{family}-limit": str(limit), f"{family}-remaining": str(remaining)}
            stamp[f"{family}-reset"] = reset
        return stamp

    async def _models(self, _: Request) -> Response:
        page = {"data": [MODEL_DOCUMENT], "has_more": False, "first_id": MODEL, "last_id": MODEL}
        return JSONResponse(page)

    async def _model(self, request: Request) -> Response:
        require_model(request.path_params["model"])
        return JSONResponse(MODEL_DOCUMENT)

    async def _message(self, request: Request) -> Response:
        body = await read_messages(request)
        require_model(body.model)
        conversation = conversation_of(body)
        said = scripted_model.answer(conversation)
        message = Message(conversation, said)
        if body.stream:
            return streamed(request, message.pieces(), desk=self._desk, wire=self)
        return await at_once(request, message.whole(), said.text, desk=self._desk, wire=self)


class Message:
    """One answer in Anthropic's words. A refusal has no content: that is for the client to word."""

    def __init__(self, conversation: Conversation, said: Answer) -> None:
        self._said = said
        self._refused = said.stop is Stop.REFUSAL
        self._text = "" if self._refused else said.text
        self._asked, self._told = tokens(conversation.size), tokens(said.size)
        self._head = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": MODEL,
        }

    def whole(self) -> Json:
        """The answer in one document."""
        text = [{"type": "text", "text": self._text, "citations": None}] if self._text else []
        content = [*text, *(called(wish, arguments_of(wish)) for wish in self._said.wishes)]
        return {**self._head, "content": content, **self._end(), "usage": self._usage(self._told)}

    def pieces(self) -> Iterator[Piece]:
        """The answer as a stream of events."""
        begun: Json = {**self._head, "content": [], "usage": self._usage(1)}
        begun |= {"stop_reason": None, "stop_sequence": None}
        yield Piece(event({"type": "message_start", "message": begun}))
        yield Piece(event({"type": "ping"}))
        yield from self._blocks()
        usage = {"output_tokens": self._told}
        yield Piece(event({"type": "message_delta", "delta": self._end(), "usage": usage}))
        yield Piece(event({"type": "message_stop"}))

    def _blocks(self) -> Iterator[Piece]:
        index = 0
        if self._text:
            deltas = [{"type": "text_delta", "text": word} for word in words_of(self._text)]
            yield from block(index, {"type": "text", "text": ""}, deltas, are_words=True)
            index += 1
        for number, wish in enumerate(self._said.wishes, index):
            parts = ["", *in_parts(wish.arguments)]
            deltas = [{"type": "input_json_delta", "partial_json": part} for part in parts]
            yield from block(number, called(wish, {}), deltas, are_words=False)

    def _end(self) -> Json:
        end: Json = {"stop_reason": STOPS[self._said.stop], "stop_sequence": None}
        details = {"type": "refusal", "category": None, "explanation": self._said.text}
        return {**end, "stop_details": details} if self._refused else end

    def _usage(self, told: int) -> Json:
        cached = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        return {"input_tokens": self._asked, **cached, "output_tokens": told, "service_tier": "standard"}


def block(index: int, begun: Json, deltas: list[dict[str, str]], *, are_words: bool) -> Iterator[Piece]:
    """One block of a stream."""
    yield Piece(event({"type": "content_block_start", "index": index, "content_block": begun}))
    for delta in deltas:
        told = {"type": "content_block_delta", "index": index, "delta": delta}
        yield Piece(event(told), is_word=are_words)
    yield Piece(event({"type": "content_block_stop", "index": index}))


def called(wish: Wish, arguments: Json) -> Json:
    """A call with an id of its own."""
    return {
        "type": "tool_use",
        "id": f"toolu_{secrets.token_hex(12)}",
        "name": wish.tool,
        "input": arguments,
    }


def arguments_of(wish: Wish) -> Json:
    """The arguments as an object; a whole answer has no place for what is no JSON."""
    try:
        read = json.loads(wish.arguments)
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def event(document: Json) -> bytes:
    """One event of the stream, named after its type."""
    return f"event: {document['type']}\ndata: {json.dumps(document)}\n\n".encode()


def request_id() -> str:
    """An id for a request."""
    return f"req_{secrets.token_hex(12)}"


def error_of(status: int, words: str, request: str) -> Json:
    """What is wrong, as Anthropic says it."""
    usual = "api_error" if status >= 500 else "invalid_request_error"
    error = {"type": KINDS.get(status, usual), "message": words}
    return {"type": "error", "error": error, "request_id": request}


def answer(status: int, words: str) -> Response:
    """An error body; its request's id is also in the headers."""
    request = request_id()
    return JSONResponse(error_of(status, words, request), status, {"request-id": request})


def admitted(request: Request) -> None:
    """Let in who has the key, and says which version of the API is meant."""
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    key = request.headers.get("x-api-key") or (bearer if scheme.lower() == "bearer" else "")
    if key == "":
        raise Refused(401, "x-api-key header is required")
    if not hmac.compare_digest(key.encode(), CLIENT_SECRET.encode()):
        raise Refused(401, WORDS[401])
    version = request.headers.get("anthropic-version")
    if version is None:
        raise Refused(400, "anthropic-version: header is required")
    if version not in VERSIONS:
        raise Refused(400, f'anthropic-version: "{version}" is not a valid version')


def require_model(name: str) -> None:
    """There is one model."""
    if name != MODEL:
        raise Refused(404, f"model: {name}")
