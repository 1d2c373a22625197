# SPDX-License-Identifier: Apache-2.0
"""Every exchange with a plane, held against the vendor's contract where there is one."""

import json
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.connectors.contract import Plane

CONTRACTS = Path(
    os.environ.get(
        "EUCORA_TEST_CONTRACTS", Path(__file__).resolve().parents[2].parent / "shared" / "contracts"
    )
)
"""Where the vendors' own documents are; what they are asked about is skipped where they are not."""
ABSENT = f"the vendors' contracts are not in {CONTRACTS} (set EUCORA_TEST_CONTRACTS)"
ROOT = "urn:contract"
JSON = "application/json"
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


class Contract:
    """A vendor's OpenAPI document, whose root is served at ``below``.

    ``lookups``: query options that the vendor documents elsewhere; ``beyond``: paths, as patterns, that are
    real and not in the slice; ``closed``: whether types have no members but their own; ``shallow``: whether
    the document tells of paths and queries only.
    """

    def __init__(
        self,
        name: str,
        *,
        below: str,
        lookups: Collection[str] = (),
        beyond: Collection[str] = (),
        closed: bool = False,
        shallow: bool = False,
    ) -> None:
        self.name = name
        self._file = CONTRACTS / f"{name}.openapi.json"
        self._below = below
        self._lookups = frozenset(lookups)
        self._beyond = re.compile("|".join(beyond) or "(?!)")
        self._closed = closed
        self._shallow = shallow

    @property
    def is_at_hand(self) -> bool:
        return self._file.exists()

    @cached_property
    def document(self) -> Json:
        read: Json = modern(json.loads(self._file.read_text("utf-8")))
        return read

    @cached_property
    def _registry(self) -> Registry[Any]:
        resource = Resource.from_contents(self.document, default_specification=DRAFT202012)
        registry: Registry[Any] = Registry().with_resource(ROOT, resource)
        return registry

    def problems(self, exchange: Exchange) -> list[str]:
        """What the contract does not allow of an exchange; nothing of one that is none of its paths'."""
        ours = exchange.path.startswith(self._below) and "/_sandbox/" not in exchange.path
        if not exchange.status or not ours:
            return []
        path = exchange.path.removeprefix(self._below)
        if self._beyond.fullmatch(path):
            return []
        found = self._template(path)
        operation = self.document["paths"].get(found, {}).get(exchange.method.lower())
        if operation is None:
            return [f"{exchange.method} {exchange.path} is not in the contract"]
        place = f"#/paths/{_pointer(found)}/{exchange.method.lower()}"
        told = self._query(operation, exchange)
        if not self._shallow:
            told += self._request(operation, place, exchange)
        if not self._shallow and not exchange.staged:
            told += self._answer(operation, place, exchange)
        return [f"{exchange.method} {exchange.path} {exchange.status}: {problem}" for problem in told]

    def _template(self, path: str) -> str:
        exact = path if path in self.document["paths"] else None
        fits = (template for template in self.document["paths"] if _pattern(template).fullmatch(path))
        return exact or next(fits, path)

    def _query(self, operation: Json, exchange: Exchange) -> list[str]:
        known = [self._resolved(parameter) for parameter in operation.get("parameters", [])]
        allowed = {parameter["name"] for parameter in known if parameter["in"] == "query"} | self._lookups
        given = [name for name, _ in parse_qsl(exchange.query)]
        return [f"query option {name} is unknown" for name in given if name not in allowed]

    def _resolved(self, item: Json) -> Json:
        while "$ref" in item:
            found: Any = self.document
            for part in item["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            item = found
        return item

    def _request(self, operation: Json, place: str, exchange: Exchange) -> list[str]:
        content = self._resolved(operation.get("requestBody", {})).get("content")
        if content is None:
            return ["a body is not expected"] if exchange.request.strip(b"{}") else []
        if JSON not in content:
            return []  # a form, a file or XML, looked at by the tests of their own
        body = json.loads(exchange.request)
        told = self._errors(f"{place}/requestBody/content/application~1json/schema", body)
        return [*told, *self._invented(body)] if self._closed else told

    def _answer(self, operation: Json, place: str, exchange: Exchange) -> list[str]:
        exact, family = str(exchange.status), f"{exchange.status // 100}XX"
        status = next((key for key in (exact, family) if key in operation["responses"]), None)
        if status is None:
            return [] if exchange.status in UNDECLARED else [f"status {exchange.status} is not documented"]
        response, place = operation["responses"][status], f"{place}/responses/{status}"
        if "$ref" in response:
            place, response = response["$ref"], self._resolved(response)
        if JSON not in response.get("content", {}) or not exchange.answer:
            as_said = bool(exchange.answer) == bool(response.get("content")) or not self._closed
            return [] if as_said else ["a body, or none, was expected"]
        if "schema" not in response["content"][JSON]:
            return []
        return self._errors(f"{place}/content/application~1json/schema", json.loads(exchange.answer))

    def _errors(self, place: str, body: object) -> list[str]:
        validator = Draft202012Validator({"$ref": f"{ROOT}{place}"}, registry=self._registry)
        return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(body)]

    def _invented(self, body: object) -> list[str]:
        """Members that a type does not have: the contract's schemas are open, Graph is not."""
        if isinstance(body, list):
            return [problem for item in body for problem in self._invented(item)]
        if not isinstance(body, dict):
            return []
        inner = [problem for item in body.values() for problem in self._invented(item)]
        kind = str(body.get("@odata.type", "")).removeprefix("#")
        known = self._members(kind) if kind in self.document["components"]["schemas"] else set(body)
        return [*inner, *(f"{kind} has no {name}" for name in body if name not in known)]

    def _members(self, kind: str) -> set[str]:
        schema = self.document["components"]["schemas"][kind]
        names: set[str] = set(schema.get("properties", {}))
        for part in schema.get("allOf", []):
            names |= set(part.get("properties", {}))
            if "$ref" in part:
                names |= self._members(part["$ref"].rpartition("/")[2])
        return names


class Examples:
    """Example bodies of a vendor without a document: what both sides say must have their shape.

    Our requests have no member that no example has; the sandbox's answers have each member of the example's,
    of the same type.
    """

    def __init__(self, name: str, *, below: str) -> None:
        self.name = name
        self._file = CONTRACTS / f"{name}.examples.json"
        self._below = below

    @property
    def is_at_hand(self) -> bool:
        return self._file.exists()

    @cached_property
    def document(self) -> Json:
        read: Json = json.loads(self._file.read_text("utf-8"))
        return {name: example for name, example in read.items() if not name.startswith("_")}

    def problems(self, exchange: Exchange) -> list[str]:
        """What is not as in the example of the same call; nothing of a call without one."""
        if exchange.staged or not exchange.path.startswith(self._below) or "/_sandbox/" in exchange.path:
            return []
        fits = [example for example in self.document.values() if self._is_of(example, exchange)]
        told = [problem for example in fits[:1] for problem in self._compared(example, exchange)]
        return [f"{exchange.method} {exchange.path}?{exchange.query}: {problem}" for problem in told]

    def _is_of(self, example: Json, exchange: Exchange) -> bool:
        asked, given = example["request"], dict(parse_qsl(exchange.query))
        action = asked.get("query", {}).get("action")
        same = asked["path"] == exchange.path.removeprefix(self._below) and asked["method"] == exchange.method
        as_answered = bool(example["response"]["status"] == exchange.status)
        return same and given.get("action") == action and as_answered

    def _compared(self, example: Json, exchange: Exchange) -> list[str]:
        known = example["request"].get("body")
        sent = json.loads(exchange.request) if known and exchange.request else {}
        told = [f"no example sends {name}" for name in sent if name not in (known or {})]
        if not isinstance(example["response"]["body"], dict | list):
            return told
        return [*told, *unlike(example["response"]["body"], json.loads(exchange.answer), "$")]


def unlike(example: Any, answer: Any, place: str) -> list[str]:
    """Where an answer lacks a member of the example, or has another type; null stands for any type."""
    if isinstance(example, dict) and isinstance(answer, dict):
        told = [f"{place} has no {name}" for name in example if name not in answer]
        inner = [unlike(example[name], answer[name], f"{place}.{name}") for name in example if name in answer]
        return [*told, *(problem for found in inner for problem in found)]
    if isinstance(example, list) and isinstance(answer, list):
        first = example[:1]
        return [problem for one in first for each in answer for problem in unlike(one, each, f"{place}[]")]
    free = example is None or answer is None or "None" in (example, answer)
    return [] if free or type(example) is type(answer) else [f"{place} is {answer!r}, as {example!r}"]


UNDECLARED = {401, 429, 503}
"""What any service may answer, whether its document says so or not."""


def modern(value: Any) -> Any:
    """OpenAPI 3.0's ``nullable`` in the words of JSON Schema, and types that are open really open.

    The generator of the beta's document writes ``{"type": "object"}`` for "anything".
    """
    if isinstance(value, list):
        return [modern(item) for item in value]
    if not isinstance(value, dict):
        return value
    left_out = {"nullable"} | ({"additionalProperties"} if is_open(value) else set())
    told = {name: modern(item) for name, item in value.items() if name not in left_out}
    return {"anyOf": [told, {"type": "null"}]} if value.get("nullable") is True else told


def is_open(schema: Json) -> bool:
    """Whether a schema takes further members of any kind."""
    return bool(schema.get("additionalProperties") == {"type": "object"})


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile("[^/]+".join(re.escape(part) for part in re.split(r"\{[^}]*\}", template)))


def _pointer(path: str) -> str:
    return (
        path.replace("~", "~0").replace("/", "~1").replace("{", "%7B").replace("}", "%7D").replace("$", "%24")
    )


GRAPH = Contract("microsoft-graph", below="/intune/v1.0", closed=True)
GRAPH_BETA = Contract("microsoft-graph-beta", below="/intune/beta", beyond=(r".*/relationships/[^/]+",))
AWX = Contract(
    "awx",
    below="/ansible",
    # AWX's guide "Filtering": any field, with lookups; serializers: all_hosts is hosts with groups below
    lookups=("name", "job_template", "order_by", "page", "page_size", "enabled", "event__in", "host__in"),
    beyond=(r"/api/v2/groups/[0-9]+/all_hosts/", r"/api/controller/v2/.*"),
)
JAMF = Contract("jamf-pro", below="/jamf/api")
JAMF_CLASSIC = Contract("jamf-classic", below="/jamf/JSSResource", shallow=True)
SCCM = Examples("sccm", below="/sccm")
LANDSCAPE = Examples("landscape", below="/landscape")
CONTRACTS_OF: dict[Plane, Sequence[Contract | Examples]] = {
    Plane.INTUNE: (GRAPH, GRAPH_BETA),
    Plane.JAMF: (JAMF, JAMF_CLASSIC),
    Plane.SCCM: (SCCM,),
    Plane.LANDSCAPE: (LANDSCAPE,),
    Plane.ANSIBLE: (AWX,),
}
