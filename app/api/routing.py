# SPDX-License-Identifier: Apache-2.0
"""What every route does around its handler: admission, strict input, safe repeats; and its document."""

import hashlib
import re
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import params
from fastapi.dependencies.utils import get_flat_params
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app import security
from app.api.body import StrictRequest, read_json
from app.api.dependencies import Call, Replayed
from app.api.problems import MEDIA_TYPE, Problem
from app.domain import idempotency
from app.domain.accounts import Actor
from app.domain.idempotency import RequestKey, StoredAnswer
from app.errors import (
    FieldError,
    Forbidden,
    IdempotencyKeyRequired,
    IdempotencyKeyReused,
    Invalid,
    Unauthenticated,
)
from app.security import Permission

V1 = "/api/v1"
KEY = re.compile(r"[\x21-\x7e]{1,255}")
BEARER = re.compile(r"bearer +([\x21-\x7e]{1,500}) *", re.IGNORECASE)
KEPT_HEADERS = ("location", "etag")
"""Response headers that belong to an answer and are stored with it."""

ALWAYS = HTTPStatus.INTERNAL_SERVER_ERROR
"""What any route can answer."""

BODIES: tuple[set[str], ...] = ({"POST"}, {"PUT"})

Handler = TypeVar("Handler", bound=Callable[..., Any])
Answering = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True, slots=True)
class Rules:
    """What a handler declares: who may call it, and whether it must carry an ``Idempotency-Key``."""

    permission: Permission
    key_required: bool = False


DECLARED: dict[Callable[..., Any], Rules] = {}
"""The rules of every handler; a route whose handler declares none is not built."""


def requires(permission: Permission, *, key_required: bool = False) -> Callable[[Handler], Handler]:
    """Declare the one permission of a route; stands below the route's decorator."""

    def declare(handler: Handler) -> Handler:
        DECLARED[handler] = Rules(permission, key_required)
        return handler

    return declare


class Route(APIRoute):
    """A route under the conventions of this API; its ``operationId`` is the handler's name."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self.rules = DECLARED[endpoint]
        options["operation_id"] = endpoint.__name__
        options["responses"] = {ALWAYS: described(ALWAYS), **(options.get("responses") or {})}
        super().__init__(path, endpoint, **options)
        for status in self.refusals():
            self.responses.setdefault(status, described(status))
            self.response_fields.setdefault(status, self.response_fields[ALWAYS])
        self.openapi_extra = {**self._extra_document(), **(self.openapi_extra or {})}

    def get_route_handler(self) -> Answering:
        """The framework's handler with what comes before and after it."""
        return self.admitting(super().get_route_handler())

    def admitting(self, handler: Answering) -> Answering:
        """``handler`` with what comes before and after it."""
        rules, query = self.rules, self.parameters(params.Query)
        has_body, is_post = self.methods in BODIES, self.methods == {"POST"}

        async def handle(given: Request) -> Response:
            request = StrictRequest(given.scope, given.receive)
            call = None if rules.permission is Permission.PUBLIC else await admit(request, rules.permission)
            if given.scope["query_string"]:
                check_query(request, query)
            if call is None:
                return await handler(request)
            raw = await read_json(request) if has_body else b""
            call.key = request_key(request, call.actor, raw, rules) if is_post else None
            request.scope["call"] = call
            return await answer_once(handler, request, call)

        return handle

    def parameters(self, kind: type[params.Param]) -> frozenset[str]:
        """The names of the query or header parameters the route knows."""
        known = get_flat_params(self.dependant)
        return frozenset(str(field.alias) for field in known if isinstance(field.field_info, kind))

    def refusals(self) -> list[int]:
        """The error statuses this route can give, whatever its handler does."""
        found = {HTTPStatus.UNPROCESSABLE_ENTITY, ALWAYS}
        if self.rules.permission is not Permission.PUBLIC:
            found |= {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.SERVICE_UNAVAILABLE}
        if self.param_convertors:
            found |= {HTTPStatus.NOT_FOUND}
        if self.methods in BODIES:
            found |= {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE}
            found |= {HTTPStatus.UNSUPPORTED_MEDIA_TYPE}
        if self.methods == {"POST"}:
            found |= {HTTPStatus.CONFLICT}
        if self.rules.permission is Permission.AI_ASK:
            found |= {HTTPStatus.TOO_MANY_REQUESTS}
        if "If-Match" in self.parameters(params.Header):
            found |= {HTTPStatus.PRECONDITION_FAILED}
        return sorted(found)

    def _extra_document(self) -> dict[str, Any]:
        extra: dict[str, Any] = {
            "x-permission": self.rules.permission.value,
            "parameters": [CORRELATION_HEADER],
        }
        if self.rules.permission is not Permission.PUBLIC:
            extra["security"] = [{"bearer": []}]
        if self.methods == {"POST"}:
            extra["parameters"] = [{**KEY_HEADER, "required": self.rules.key_required}, CORRELATION_HEADER]
        return extra


class DirectRoute(Route):
    """A route whose handler is called with its body and the request, in that order, and needs nothing else.

    For what is called most: the framework's own way to a handler (exit stacks, dependencies, a second look at
    the content type) costs more than everything the handler decides. The document is made as for any route.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.answer = self.admitting(self.call)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; what is raised becomes a problem further out, as everywhere."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        response = await self.answer(Request(scope, receive))
        await response(scope, receive, send)

    async def call(self, request: Request) -> Response:
        """The handler's answer to a body that keeps to its schema.

        Raises:
            RequestValidationError: it does not.
        """
        assert self.body_field is not None  # the handler takes a body
        content = await request.json()
        if content is None:
            raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required"}])
        body, errors = self.body_field.validate(content, loc=("body",))
        if errors:
            raise RequestValidationError(errors, body=content)
        response: Response = await self.endpoint(body, request)
        return response


async def admit(request: Request, permission: Permission) -> Call:
    """Who calls, if they may.

    Raises:
        Unauthenticated: no token, or a bad one.
        Forbidden: their role does not have the permission.
    """
    actor = await authenticate(request)
    request.scope["actor"] = actor.name
    if not security.allows(actor.role, permission):
        raise Forbidden(
            f"the role {actor.role.value} does not have the permission {permission.value}",
            permission=permission,
        )
    return Call(actor, request.scope["correlation_id"])


async def authenticate(request: Request) -> Actor:
    """The bearer of the request's token.

    Raises:
        Unauthenticated: no token, or one that is unknown, expired or revoked.
    """
    header = request.headers.get("authorization")
    if header is None:
        raise Unauthenticated("a bearer token is required")
    token = BEARER.fullmatch(header)
    actor: Actor | None = None
    if token is not None:
        actor = await request.app.state.service.actors.get(security.hash_token(token[1]))
    if actor is None:
        raise Unauthenticated("this token is not valid")
    return actor


def check_query(request: Request, known: frozenset[str]) -> None:
    """Refuse query parameters the route does not know, knows twice, or cannot store.

    Raises:
        Invalid: with a pointer for each.
    """
    wrong, seen = [], set()
    for name, value in request.query_params.multi_items():
        pointer = f"/query/{name}"
        if name not in known:
            wrong.append(FieldError(pointer, "there is no such query parameter"))
        elif name in seen:
            wrong.append(FieldError(pointer, "is there twice"))
        elif "\x00" in value:
            wrong.append(FieldError(pointer, "must not contain NUL"))
        seen.add(name)
    if wrong:
        raise Invalid("the query breaks a rule", *wrong)


def request_key(request: Request, actor: Actor, raw: bytes, rules: Rules) -> RequestKey | None:
    """What makes a repeat of this request harmless; None if it carries no key.

    Raises:
        IdempotencyKeyRequired: it must carry one.
        Invalid: the key is not one of the form that is allowed.
    """
    key = request.headers.get("idempotency-key")
    if key is None:
        if rules.key_required:
            missing = FieldError("/header/Idempotency-Key", "this header is required")
            raise IdempotencyKeyRequired("this call must carry an Idempotency-Key", missing)
        return None
    if KEY.fullmatch(key) is None:
        wrong = FieldError("/header/Idempotency-Key", "must be 1 to 255 visible ASCII characters")
        raise Invalid("the Idempotency-Key is malformed", wrong)
    asked = f"{request.method} {request.scope['path']}\n".encode() + raw
    return RequestKey(str(actor.id), key, hashlib.sha256(asked).digest())


async def answer_once(
    handler: Callable[[Request], Awaitable[Response]], request: Request, call: Call
) -> Response:
    """The handler's answer, stored in its transaction if the request has a key; or the one stored before."""
    try:
        response = await handler(request)
    except Replayed as replayed:
        return replay(replayed.answer)
    if (
        call.key is not None
        and call.session is not None
        and response.status_code < HTTPStatus.MULTIPLE_CHOICES
    ):
        headers = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
        answer = StoredAnswer(response.status_code, headers, bytes(response.body))
        if not await idempotency.keep(call.session, call.key, answer):
            raise IdempotencyKeyReused("this Idempotency-Key was used with another request", key=call.key.key)
    return response


def replay(answer: StoredAnswer) -> Response:
    """A stored answer, as it left the first time, and marked."""
    headers = {**answer.headers, "Idempotency-Replayed": "true"}
    return Response(answer.body, answer.status, headers, "application/json")


PROBLEM: dict[str, Any] = {
    "model": Problem,
    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


def described(status: int) -> dict[str, Any]:
    """How the document tells of a problem with this status."""
    return {**PROBLEM, "description": HTTPStatus(status).phrase}


CORRELATION_HEADER: dict[str, Any] = {
    "name": "X-Correlation-ID",
    "in": "header",
    "required": False,
    "description": "Taken if it is a UUID, otherwise made; always returned.",
    "schema": {"type": "string"},
}
KEY_HEADER: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key, caller and body get the stored answer, with `Idempotency-Replayed: true`.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[\\x21-\\x7e]+$"},
    "example": "firefox-143.0.1-pilot",
}
