# SPDX-License-Identifier: Apache-2.0
"""Every error as problem+json (RFC 9457): the only place that pairs errors and HTTP."""

import json
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any
from uuid import UUID

import asyncpg
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Scope

from app import errors, telemetry
from app.api.words import place, words
from app.errors import AiLimitReached, ControlPlaneError, FieldError, Invalid, Unavailable
from app.resilience.classify import DATABASE, classify
from app.resilience.errors import CallError, DatabaseConflict, Deferral, FleetUnreachable, TransientError

log = telemetry.logger(__name__)

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 100
MAX_POINTER = 500
RETRY_AFTER = 5

STATUSES: Mapping[type[ControlPlaneError], HTTPStatus] = {
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.VersionMismatch: HTTPStatus.PRECONDITION_FAILED,
    errors.Invalid: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.AiLimitReached: HTTPStatus.TOO_MANY_REQUESTS,
    ControlPlaneError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
CODES: Mapping[int, str] = {
    HTTPStatus.BAD_REQUEST: "malformed_request",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "body_too_large",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "unsupported_media_type",
    HTTPStatus.INTERNAL_SERVER_ERROR: "internal",
}
"""Codes of the answers that no error kind stands for: what HTTP itself refuses."""


class ProblemField(BaseModel):
    """One thing that is wrong with the input."""

    pointer: Annotated[str, Field(max_length=MAX_POINTER)]
    """RFC 6901, into the body; parameters stand under ``/query``, ``/path`` and ``/header``."""
    detail: Annotated[str, Field(max_length=2000)]


class Problem(BaseModel):
    """What went wrong (RFC 9457). ``code`` is stable; ``errors`` names each field of an invalid input."""

    type: Annotated[str, Field(max_length=200)]
    title: Annotated[str, Field(max_length=200)]
    status: Annotated[int, Field(ge=400, le=599)]
    detail: Annotated[str, Field(max_length=4000)]
    instance: Annotated[str, Field(max_length=8000)]
    code: Annotated[str, Field(max_length=100)]
    correlation_id: UUID
    errors: Annotated[list[ProblemField], Field(max_length=MAX_ERRORS)] = []


def problem(
    scope: Scope,
    status: int,
    detail: str,
    *,
    code: str | None = None,
    errors: Iterable[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """One problem as a response; ``code`` defaults to the status's own."""
    code = code or CODES.get(status, HTTPStatus(status).name.lower())
    fields = [{"pointer": wrong.pointer[:MAX_POINTER], "detail": wrong.detail[:2000]} for wrong in errors]
    body: dict[str, Any] = {
        "type": f"urn:eucora:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail[:4000],
        "instance": scope["path"][:8000],
        "code": code,
        "correlation_id": str(scope["correlation_id"]),
    }
    if fields:
        body["errors"] = fields[:MAX_ERRORS]
    return Response(json.dumps(body).encode(), int(status), dict(headers or {}), MEDIA_TYPE)


async def domain_problem(request: Request, error: ControlPlaneError) -> Response:
    """An error kind of ours under the status of the nearest kind in the table."""
    status = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    headers: dict[str, str] = {}
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="eucora"'
    if isinstance(error, Unavailable | AiLimitReached):
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    wrong = error.errors if isinstance(error, Invalid) else ()
    return problem(request.scope, status, error.detail, code=error.code, errors=wrong, headers=headers)


async def http_problem(request: Request, error: HTTPException) -> Response:
    """What the framework refuses: no such route, no such method."""
    headers = dict(error.headers or {})
    detail = error.detail
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"there is nothing at {request.scope['path']}"
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(allowed_methods(request)))
        detail = f"this resource allows {headers['Allow']}"
    return problem(request.scope, error.status_code, detail, headers=headers)


def allowed_methods(request: Request) -> set[str]:
    """The methods of all routes at this path; the framework knows only those of the first that matched."""
    found = {
        method
        for route in iter_route_contexts(request.app.routes)
        if route.path and route.methods and compile_path(route.path)[0].match(request.scope["path"])
        for method in route.methods
    }
    return found | {"HEAD"} if "GET" in found else found


async def invalid_input(request: Request, error: RequestValidationError) -> Response:
    """Parameters or a body that break their schema."""
    if any(each["loc"][0] == "path" for each in error.errors()):
        detail = f"there is nothing at {request.scope['path']}"  # nothing has such an id or name
        return problem(request.scope, HTTPStatus.NOT_FOUND, detail)
    wrong = [
        FieldError(pointer(place(each), error.body), words(each)) for each in error.errors()[:MAX_ERRORS]
    ]
    detail = "the request breaks a rule" if len(wrong) == 1 else "the request breaks some rules"
    return problem(request.scope, HTTPStatus.UNPROCESSABLE_ENTITY, detail, code=Invalid.code, errors=wrong)


def pointer(location: Sequence[str | int], body: Any) -> str:
    """Where in the request Pydantic's ``location`` is.

    Pydantic puts the tag of a union and ``[key]`` into a location; neither is in the body: left out.
    """
    source, *steps = location
    if source != "body":
        return join_pointer(location)
    found: list[str | int] = []
    for index, step in enumerate(steps):
        last = index == len(steps) - 1
        if isinstance(body, dict) and step not in body and (not last or step == "[key]"):
            continue
        found.append(step)
        body = _inside(body, step)
    return join_pointer(found)


def _inside(value: Any, step: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(step)
    if isinstance(value, list) and isinstance(step, int) and step < len(value):
        return value[step]
    return None


def join_pointer(steps: Iterable[str | int]) -> str:
    """An RFC 6901 pointer through these steps."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


async def outage(request: Request, error: Exception) -> Response:
    """What may work later is a 503; anything else is our own fault."""
    found = passing(error)
    if found is None:
        raise error
    log.warning("out_of_service", service=found.service, code=found.code, error=repr(error))
    silent = "Redis" if isinstance(found, FleetUnreachable) else "the database"
    return problem(
        request.scope,
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"{silent} does not answer; try again, with the same Idempotency-Key if there was one",
        code=Unavailable.code,
        headers={"Retry-After": str(max(1, math.ceil(found.retry_after or RETRY_AFTER)))},
    )


def passing(error: Exception) -> CallError | None:
    """The class of what may work later: a database that is down, busy or kept away from, a silent Redis."""
    found = classify(error, service=DATABASE)
    later = isinstance(found, TransientError | Deferral | DatabaseConflict | FleetUnreachable)
    return found if later else None


HANDLERS: Mapping[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    ControlPlaneError: domain_problem,
    HTTPException: http_problem,
    RequestValidationError: invalid_input,
    DBAPIError: outage,
    PoolTimeout: outage,
    asyncpg.PostgresError: outage,
    asyncpg.InterfaceError: outage,
    OSError: outage,
    CallError: outage,
}
