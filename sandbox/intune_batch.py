# SPDX-License-Identifier: Apache-2.0
"""Graph's ``$batch``: up to twenty requests in one, each counted, faulted and answered by itself."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Scope

from sandbox.faults import Answer
from sandbox.graph import Document, GraphError, GraphModel, GraphResponse, read


class BatchItem(GraphModel):
    """One request; ``url`` is relative to the API version."""

    id: Annotated[str, Field(min_length=1)]
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    url: Annotated[str, Field(pattern=r"^/?[^/]")]
    headers: dict[str, str] = Field(default_factory=dict)
    body: Any = None
    depends_on: list[str] = Field(default_factory=list)


class BatchBody(GraphModel):
    """The body of ``$batch``."""

    requests: Annotated[list[BatchItem], Field(min_length=1, max_length=20)]


def routes() -> list[Route]:
    """The route of the batch."""
    return [Route("/$batch", batch, methods=["POST"])]


async def batch(request: Request) -> Response:
    """Answer each request in turn; one whose forerunner failed gets 424."""
    items = (await read(request, BatchBody)).requests
    if len({item.id for item in items}) < len(items):
        raise GraphError(400, "The ids of a batch must differ.")
    answers: dict[str, Document] = {}
    for item in items:
        if any(answers.get(key, {"status": 404})["status"] >= 400 for key in item.depends_on):
            answers[item.id] = {"id": item.id, "status": 424, "headers": {}, "body": None}
        else:
            answers[item.id] = await answer(request, item)
    return GraphResponse({"responses": list(answers.values())})


async def answer(request: Request, item: BatchItem) -> Document:
    """Send one request through the whole plane."""
    body = b"" if item.body is None else json.dumps(item.body).encode()
    caught = Answer()

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    await request.scope["sandbox.entry"](sub_scope(request, item), receive, caught.take)
    headers = {name.decode(): value.decode() for name, value in caught.headers}
    return {
        "id": item.id,
        "status": caught.status,
        "headers": headers,
        "body": json_or_none(caught.body, headers.get("content-type", "")),
    }


def sub_scope(request: Request, item: BatchItem) -> Scope:
    """The scope of one request: the batch's own, with another method, path and headers."""
    outer: Scope = request.scope["sandbox.scope"]
    version = "/" + request.scope["sandbox.path"].split("/")[1]
    path, _, query = item.url.partition("?")
    inherited = {"authorization", "client-request-id", "x-correlation-id", "x-effect-key", "host"}
    headers = {name: value for name, value in request.headers.items() if name in inherited}
    headers |= {name.lower(): value for name, value in item.headers.items()}
    full = f"{outer['root_path']}{version}/{path.lstrip('/')}"
    return {
        **outer,
        "method": item.method,
        "path": full,
        "raw_path": full.encode(),
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }


def json_or_none(body: bytes, media_type: str) -> object:
    """A body that is JSON, also where its stream does not say so."""
    if not body:
        return None
    known = media_type.startswith(("application/json", "application/octet-stream"))
    return json.loads(body) if known else body.decode()
