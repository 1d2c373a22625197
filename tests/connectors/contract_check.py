# SPDX-License-Identifier: Apache-2.0
"""Every exchange with a plane, held against the vendor's contract where there is one."""

import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTRACTS = Path(__file__).parents[2].parent / "shared" / "contracts"
GRAPH = CONTRACTS / "microsoft-graph.openapi.json"
ROOT = "urn:contract"
Json = dict[str, Any]


@dataclass
class Exchange:
    """One request and its answer; ``staged`` answers may be anything, for somebody asked for a fault."""

    method: str
    path: str
    query: str
    request: bytes = b""
    status: int = 0
    answer: bytes = b""
    staged: bool = False


@dataclass
class Recorder:
    """Around an application: what went in and out, bodies included."""

    app: ASGIApp
    exchanges: list[Exchange] = field(default_factory=list)
    staged: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(
            scope["method"], scope["path"], scope["query_string"].decode(), staged=self.staged
        )
        self.exchanges.append(exchange)

        first = await _whole(receive)
        exchange.request, unread = first.get("body", b""), [first]

        async def receiving() -> Message:
            return unread.pop() if unread else await receive()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
            exchange.answer += message.get("body", b"")
            await send(message)

        await self.app(scope, receiving, sending)


async def _whole(receive: Receive) -> Message:
    """A request's body in one message: an application that refuses early does not read it."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return message
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return {"type": "http.request", "body": body, "more_body": False}


@cache
def contract() -> Json:
    """Graph's contract."""
    document: Json = json.loads(GRAPH.read_text("utf-8"))
    return document


def problems(exchange: Exchange, *, below: str) -> list[str]:
    """What the contract does not allow of an exchange; ``below`` is where the contract's root is served."""
    found = _template(exchange.path.removeprefix(below))
    operation = contract()["paths"].get(found, {}).get(exchange.method.lower())
    if operation is None:
        return [f"{exchange.method} {exchange.path} is not in the contract"]
    place = f"#/paths/{_pointer(found)}/{exchange.method.lower()}"
    told = [*_query(operation, exchange), *_request(operation, place, exchange)]
    if not exchange.staged:
        told += _answer(operation, place, exchange)
    return [f"{exchange.method} {exchange.path} {exchange.status}: {problem}" for problem in told]


def _template(path: str) -> str:
    for template in contract()["paths"]:
        if re.fullmatch(
            re.sub(r"\{[^}]+\}", "[^/]+", re.escape(template).replace(r"\{", "{").replace(r"\}", "}")), path
        ):
            return str(template)
    return path


def _pointer(path: str) -> str:
    return (
        path.replace("~", "~0").replace("/", "~1").replace("{", "%7B").replace("}", "%7D").replace("$", "%24")
    )


def _query(operation: Json, exchange: Exchange) -> list[str]:
    allowed = {
        parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "query"
    }
    return [f"query option {name} is unknown" for name, _ in parse_qsl(exchange.query) if name not in allowed]


def _request(operation: Json, place: str, exchange: Exchange) -> list[str]:
    if "requestBody" not in operation:
        return ["a body is not expected"] if exchange.request.strip(b"{}") else []
    body = json.loads(exchange.request)
    return [*_errors(f"{place}/requestBody/content/application~1json/schema", body), *_invented(body)]


def _answer(operation: Json, place: str, exchange: Exchange) -> list[str]:
    exact, family = str(exchange.status), f"{exchange.status // 100}XX"
    status = next((key for key in (exact, family) if key in operation["responses"]), None)
    if status is None:
        return [f"status {exchange.status} is not documented"]
    response = operation["responses"][status]
    place = f"{place}/responses/{status}"
    if "$ref" in response:
        place = response["$ref"]
        response = contract()["components"]["responses"][place.rpartition("/")[2]]
    if "application/json" not in response.get("content", {}) or not exchange.answer:
        return (
            []
            if bool(exchange.answer) == bool(response.get("content"))
            else ["a body, or none, was expected"]
        )
    return _errors(f"{place}/content/application~1json/schema", json.loads(exchange.answer))


@cache
def _registry() -> Registry[Any]:
    resource = Resource.from_contents(contract(), default_specification=DRAFT202012)
    registry: Registry[Any] = Registry().with_resource(ROOT, resource)
    return registry


def _errors(place: str, body: object) -> list[str]:
    validator = Draft202012Validator({"$ref": f"{ROOT}{place}"}, registry=_registry())
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(body)]


def _invented(body: object) -> list[str]:
    """Members that a type does not have: the contract's schemas are open, Graph is not."""
    if isinstance(body, list):
        return [problem for item in body for problem in _invented(item)]
    if not isinstance(body, dict):
        return []
    inner = [problem for item in body.values() for problem in _invented(item)]
    kind = str(body.get("@odata.type", "")).removeprefix("#")
    known = _members(kind) if kind in contract()["components"]["schemas"] else set(body)
    return [*inner, *(f"{kind} has no {name}" for name in body if name not in known)]


def _members(kind: str) -> set[str]:
    schema = contract()["components"]["schemas"][kind]
    names: set[str] = set(schema.get("properties", {}))
    for part in schema.get("allOf", []):
        names |= set(part.get("properties", {}))
        if "$ref" in part:
            names |= _members(part["$ref"].rpartition("/")[2])
    return names
