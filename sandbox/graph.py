# SPDX-License-Identifier: Apache-2.0
"""Microsoft Graph's conventions: error bodies, OData query options and paging."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlencode
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer
from pydantic.alias_generators import to_camel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sandbox.witness import instant

MEDIA_TYPE = "application/json; odata.metadata=minimal; charset=utf-8"
CODES = {
    400: "BadRequest",
    401: "InvalidAuthenticationToken",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    429: "TooManyRequests",
    500: "InternalServerError",
    503: "ServiceUnavailable",
    504: "GatewayTimeout",
}
EQUALS = re.compile(r"^\(?\s*(\w+)\s+eq\s+'((?:[^']|'')*)'\s*\)?$")
Document = dict[str, Any]


class GraphError(Exception):
    """A refusal, as Graph words it."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code or CODES.get(status, "UnknownError")
        self.headers = dict(headers or {})


class GraphModel(BaseModel):
    """A request body: camelCase, no type taken for another, and no property that Graph does not have."""

    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel, populate_by_name=True)

    @model_serializer(mode="wrap")
    def without_unknown_type(self, dump: SerializerFunctionWrapHandler) -> Document:
        """A type that the client did not tell is left out; everything else that is null is told."""
        written: Document = dump(self)
        return {name: value for name, value in written.items() if name != "@odata.type" or value is not None}


class GraphResponse(JSONResponse):
    """A JSON answer with Graph's media type."""

    media_type = MEDIA_TYPE


def error_response(error: GraphError, *, at: float, client_request_id: str | None) -> Response:
    """Graph's error body."""
    request_id = str(uuid4())
    inner = {
        "date": instant(at),
        "request-id": request_id,
        "client-request-id": client_request_id or request_id,
    }
    body = {"error": {"code": error.code, "message": error.message, "innerError": inner}}
    return GraphResponse(body, status_code=error.status, headers=error.headers)


def as_graph_error(error: HTTPException) -> GraphError:
    """The web framework's refusals in Graph's words."""
    if error.status_code == 404:
        return GraphError(400, "Resource not found for the segment.")
    return GraphError(error.status_code, error.detail, headers=error.headers)


def not_found(what: str, key: str) -> NoReturn:
    """Refuse because there is no such object."""
    raise GraphError(404, f"Resource '{key}' ({what}) does not exist.", code="ResourceNotFound")


Model = TypeVar("Model", bound=BaseModel)


async def read(request: Request, model: type[Model]) -> Model:
    """The request's body, or Graph's 400 that tells what is wrong with it."""
    try:
        return model.model_validate(await read_json(request))
    except ValidationError as error:
        raise GraphError(400, explain(error)) from error


async def read_json(request: Request) -> Document:
    """The request's body as a JSON object."""
    try:
        body = json.loads(await request.body())
    except ValueError as error:
        raise GraphError(400, "Unable to read JSON request payload.") from error
    if not isinstance(body, dict):
        raise GraphError(400, "An object was expected as JSON request payload.")
    return body


def explain(error: ValidationError) -> str:
    """What is wrong, by property."""
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())


def options(request: Request, allowed: Sequence[str]) -> dict[str, str]:
    """The OData query options of a request; one that the sandbox does not do is refused, not ignored."""
    given = dict(request.query_params)
    for name in given:
        if name.startswith("$") and name not in allowed:
            raise GraphError(400, f"The query option '{name}' is not supported here.")
    return given


def select(given: Mapping[str, str], document: Document) -> Document:
    """Only the chosen properties; the type is always told."""
    chosen = [name.strip() for name in given.get("$select", "").split(",") if name.strip()]
    if not chosen:
        return document
    for name in chosen:
        if name not in document:
            raise GraphError(400, f"Could not find a property named '{name}'.")
    return {name: value for name, value in document.items() if name in chosen or name == "@odata.type"}


def equality(given: Mapping[str, str], allowed: Sequence[str]) -> tuple[str, str] | None:
    """The property and value of ``$filter=<property> eq '<value>'``; quotes inside the value are doubled."""
    if (expression := given.get("$filter")) is None:
        return None
    match = EQUALS.match(expression.strip())
    if match is None or match[1] not in allowed:
        raise GraphError(400, f"Invalid filter clause: {expression}")
    return match[1], match[2].replace("''", "'")


def bounds(given: Mapping[str, str], *, page: int, most: int) -> tuple[int, int]:
    """Where a page starts, and how many objects it may have."""
    try:
        top = int(given.get("$top", page))
        skip = int(given.get("$skiptoken", "0").removeprefix("p"))
    except ValueError as error:
        raise GraphError(400, "Invalid paging option.") from error
    if not 1 <= top <= most or skip < 0:
        raise GraphError(
            400, f"Invalid page size specified: '{top}'. Must be between 1 and {most} inclusive."
        )
    return skip, top


def collection(
    request: Request,
    total: int,
    rows: Callable[[int, int], Sequence[Document]],
    *,
    filters: bool = True,
    page: int = 100,
    most: int = 1000,
) -> Response:
    """One page of ``total`` objects; ``rows(skip, top)`` makes only those that are asked for."""
    given = options(request, ["$top", "$select", "$skiptoken", "$count", *(["$filter"] if filters else [])])
    skip, top = bounds(given, page=page, most=most)
    body: Document = {"@odata.context": f"{root_url(request)}/$metadata"}
    if given.get("$count") == "true":
        body["@odata.count"] = total
    if skip + top < total:
        body["@odata.nextLink"] = next_link(request, given, skip + top)
    body["value"] = [select(given, row) for row in rows(skip, top)]
    return GraphResponse(body)


def next_link(request: Request, given: Mapping[str, str], skip: int) -> str:
    """Where the next page is; to be followed unchanged."""
    query = urlencode({**given, "$skiptoken": f"p{skip}"}, safe="$,")
    return str(request.url.replace(query=query, fragment=""))


def root_url(request: Request) -> str:
    """The base of this API version as the client calls it."""
    version = request.scope["sandbox.path"].split("/")[1]
    path = f"{request.scope['sandbox.scope']['root_path']}/{version}"
    return str(request.url.replace(path=path, query="", fragment=""))
