# SPDX-License-Identifier: Apache-2.0
"""The scripted model behind OpenAI's chat completions, whole and streamed.

Source: OpenAI's API reference, "Chat completions" and its OpenAPI document 2.3.0.
"""

import hmac
import json
import secrets
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp

from sandbox import CLIENT_SECRET, scripted_model
from sandbox.models import Desk, Piece, at_once, in_parts, streamed, tokens, words_of
from sandbox.openai_bodies import ChatBody, conversation_of, read_chat, refusal
from sandbox.rest import Refused, application, guarded
from sandbox.scripted_conversation import Answer, Conversation, Json, Stop, Wish
from sandbox.scripted_model import MODEL

MADE = 1_700_000_000
KINDS = {401: ("invalid_request_error", "invalid_api_key"), 429: ("requests", "rate_limit_exceeded")}
OVERLOADED = 503
WORDS = {
    401: "Incorrect API key provided.",
    429: f"Rate limit reached for {MODEL} on requests per min (RPM): Limit 500, Used 500, Requested 1.",
    500: "The server had an error while processing your request. Sorry about that!",
    503: "The engine is currently overloaded, please try again later",
}
LIMITS = {
    "x-ratelimit-limit-requests": "500",
    "x-ratelimit-limit-tokens": "200000",
    "x-ratelimit-remaining-requests": "499",
    "x-ratelimit-remaining-tokens": "199900",
    "x-ratelimit-reset-requests": "120ms",
    "x-ratelimit-reset-tokens": "1m0.03s",
}


class OpenAi:
    """The provider."""

    ping = b": keep-alive\n\n"  # OpenAI's stream has no event for it; a comment is what servers send

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.overloaded_status = OVERLOADED
        self.overloaded = event({"error": error_of(OVERLOADED, WORDS[OVERLOADED])})
        routes = [
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{model}", self._model, methods=["GET"]),
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
        ]
        inside = Router(routes, redirect_slashes=False)
        self.app: ASGIApp = application([Mount("/", app=guarded(inside, authenticated))], answer)

    def error(self, status: int) -> Response:
        """OpenAI's error body."""
        return answer(status, WORDS.get(status, "The sandbox was asked to answer this."))

    def stamp(self) -> dict[str, str]:
        """The request's id and the rate limits."""
        return {"x-request-id": f"req_{secrets.token_hex(16)}", "openai-version": "2020-10-01", **LIMITS}

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [MODEL_DOCUMENT]})

    async def _model(self, request: Request) -> Response:
        require_model(request.path_params["model"])
        return JSONResponse(MODEL_DOCUMENT)

    async def _complete(self, request: Request) -> Response:
        body = await read_chat(request)
        require_model(body.model)
        conversation = conversation_of(body)
        said = scripted_model.answer(conversation)
        completion = Completion(conversation, said, int(self._desk.clock()))
        if body.stream:
            return streamed(request, completion.pieces(body), desk=self._desk, wire=self)
        return await at_once(request, completion.whole(), said.text, desk=self._desk, wire=self)


MODEL_DOCUMENT = {"id": MODEL, "object": "model", "created": MADE, "owned_by": "sandbox"}


class Completion:
    """One answer in OpenAI's words."""

    def __init__(self, conversation: Conversation, said: Answer, created: int) -> None:
        self._said = said
        self._calls = [called(wish) for wish in said.wishes]
        self._usage = usage_of(conversation, said)
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(14)}",
            "created": created,
            "model": MODEL,
            "service_tier": "default",
            "system_fingerprint": "fp_sandbox",
        }

    def whole(self) -> Json:
        """The answer in one document."""
        choice = {"index": 0, "message": self._message(), "logprobs": None, "finish_reason": self._reason}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage}

    def pieces(self, body: ChatBody) -> Iterator[Piece]:
        """The answer as a stream of chunks; with a usage in each if that was asked for."""
        counted = body.stream_options is not None and body.stream_options.include_usage
        usage = {"usage": None} if counted else {}
        begun: Json = {"role": "assistant", "content": None if self._calls else "", "refusal": None}
        yield Piece(event(self._chunk(begun, **usage)))
        for delta, is_word in self._deltas():
            yield Piece(event(self._chunk(delta, **usage)), is_word=is_word)
        yield Piece(event(self._chunk({}, self._reason, **usage)))
        if counted:
            yield Piece(event({**self._chunk({}), "choices": [], "usage": self._usage}))
        yield Piece(b"data: [DONE]\n\n")

    @property
    def _reason(self) -> str:
        return {Stop.LENGTH: "length", Stop.TOOLS: "tool_calls"}.get(self._said.stop, "stop")

    def _message(self) -> Json:
        refused = self._said.stop is Stop.REFUSAL
        text = self._said.text or None
        message: Json = {"role": "assistant", "annotations": []}
        message |= {"content": None if refused else text, "refusal": text if refused else None}
        return {**message, "tool_calls": self._calls} if self._calls else message

    def _deltas(self) -> Iterator[tuple[Json, bool]]:
        member = "refusal" if self._said.stop is Stop.REFUSAL else "content"
        for word in words_of(self._said.text):
            yield {member: word}, True
        for index, call in enumerate(self._calls):
            named = {**call, "function": {**call["function"], "arguments": ""}}
            yield {"tool_calls": [{"index": index, **named}]}, False
            for part in in_parts(call["function"]["arguments"]):
                yield {"tool_calls": [{"index": index, "function": {"arguments": part}}]}, False

    def _chunk(self, delta: Json, reason: str | None = None, **usage: None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice], **usage}


def called(wish: Wish) -> Json:
    """A call with an id of its own."""
    function = {"name": wish.tool, "arguments": wish.arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def usage_of(conversation: Conversation, said: Answer) -> Json:
    """What the answer counts for."""
    asked, told = tokens(conversation.size), tokens(said.size)
    return {
        "prompt_tokens": asked,
        "completion_tokens": told,
        "total_tokens": asked + told,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def event(document: Any) -> bytes:
    """One event of the stream."""
    return f"data: {json.dumps(document, separators=(',', ':'))}\n\n".encode()


def error_of(status: int, words: str) -> Json:
    """What is wrong, as OpenAI says it."""
    usual = "server_error" if status >= 500 else "invalid_request_error"
    kind, code = KINDS.get(status, (usual, None))
    return {"message": words, "type": kind, "param": None, "code": code}


def answer(status: int, words: str) -> Response:
    """An error body for words that name no parameter."""
    return JSONResponse({"error": error_of(status, words)}, status)


def authenticated(request: Request) -> None:
    """Let in who has the key, as a bearer or in Azure's way."""
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    key = bearer if scheme.lower() == "bearer" else request.headers.get("api-key", "")
    if key == "":
        words = "You didn't provide an API key. You need to provide it in an Authorization header."
        raise refusal(401, words)
    if not hmac.compare_digest(key.encode(), CLIENT_SECRET.encode()):
        raise Refused(401, WORDS[401])


def require_model(name: str) -> None:
    """There is one model."""
    if name != MODEL:
        words = f"The model `{name}` does not exist or you do not have access to it."
        raise refusal(404, words, code="model_not_found")
