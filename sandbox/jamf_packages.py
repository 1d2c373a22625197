# SPDX-License-Identifier: Apache-2.0
"""Jamf Pro's packages: records, and content that takes a moment until computers can get it."""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.journal import Document
from sandbox.plan import Software
from sandbox.plane import Plane
from sandbox.rest import Refused, effect_of, number, read, require_known, row_or_404

TRANSFER_SECONDS = 0.4
PAGE, LARGEST_PAGE = 100, 2000
EQUALS = re.compile(r'^(\w+)=="((?:[^"\\]|\\.)*)"$')
VERSION = re.compile(r"\bversion:([^\s\"',;}]+)")


class NewPackage(BaseModel):
    """A record, with the members that a client may set."""

    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)

    package_name: str = Field(min_length=1)
    file_name: str = Field(min_length=1)
    category_id: str
    priority: int
    fill_user_template: bool
    reboot_required: bool
    os_install: bool
    suppress_updates: bool
    suppress_from_dock: bool
    suppress_eula: bool
    suppress_registration: bool
    info: str | None = None
    notes: str | None = None


def bundle_of(product: str) -> str:
    """The bundle id of an application in this fleet: its name, in lower case."""
    return "com.example." + re.sub(r"[^a-z0-9]+", "-", product.lower()).strip("-")


class Packages:
    """The packages of the instance."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._table = plane.table("packages")

    def routes(self) -> list[Route]:
        """The routes of this noun."""
        return [
            Route("/v1/packages", self._list, methods=["GET"]),
            Route("/v1/packages", self._create, methods=["POST"]),
            Route("/v1/packages/{id:int}", self._read, methods=["GET"]),
            Route("/v1/packages/{id:int}", self._delete, methods=["DELETE"]),
            Route("/v1/packages/{id:int}/upload", self._upload, methods=["POST"]),
        ]

    def get(self, number: str) -> Document | None:
        """A package, if there is one."""
        return self._table.get(number)

    def rows(self) -> Iterator[Document]:
        """All of them."""
        return iter(list(self._table.values()))

    def software(self, package: Document) -> Software:
        """What the fleet knows of a package: its version stands in the notes, its name before that."""
        noted = VERSION.search(package["body"].get("notes") or "")
        version = noted[1] if noted else ""
        described = str(package["body"].get("info") or package["body"]["packageName"])
        product = described.removesuffix(version).strip() or described
        return Software(str(package["id"]), product, version)

    async def _list(self, request: Request) -> Response:
        require_known(request, ["page", "page-size", "sort", "filter"])
        found = [
            self._shown(row) for row in self._table.values() if fits(row, request.query_params.get("filter"))
        ]
        return page(request, found)

    async def _create(self, request: Request) -> Response:
        body = await read(request, NewPackage)
        if any(row["body"]["packageName"] == body.package_name for row in self._table.values()):
            raise Refused(400, "packageName: DUPLICATE_FIELD")
        key = str(len(self._table) + 41)
        row = {
            "id": int(key),
            "effect_key": effect_of(request),
            "body": body.model_dump(by_alias=True),
            "sha256": None,
            "ready": 0.0,
        }
        self._table.put(key, {**row, "created": self._plane.clock()})
        return JSONResponse({"id": key, "href": f"/api/v1/packages/{key}"}, 201)

    async def _read(self, request: Request) -> Response:
        return JSONResponse(self._shown(self._one(request)))

    async def _delete(self, request: Request) -> Response:
        self._table.drop(str(self._one(request)["id"]))
        return Response(status_code=204)

    def _one(self, request: Request) -> Document:
        return row_or_404(self._table, request, "INVALID_ID")

    async def _upload(self, request: Request) -> Response:
        """Take the content of the form's one file; it replaces what was there."""
        row = self._one(request)
        boundary = request.headers.get("content-type", "").partition("boundary=")[2]
        if not boundary:
            raise Refused(415, "UNSUPPORTED_MEDIA_TYPE")
        body = await request.body()
        head, _, rest = body.partition(b"\r\n\r\n")
        content, closed, _ = rest.rpartition(f"\r\n--{boundary}--".encode())
        if b'name="file"' not in head or not closed:
            raise Refused(400, "file: REQUIRED")
        ready = self._plane.clock() + TRANSFER_SECONDS * self._plane.scale
        self._table.put(str(row["id"]), row | {"sha256": hashlib.sha256(content).hexdigest(), "ready": ready})
        return JSONResponse({"id": str(row["id"]), "href": f"/api/v1/packages/{row['id']}"}, 201)

    def _shown(self, row: Document) -> Document:
        told = {name: value for name, value in row["body"].items() if value is not None}
        sent = row["sha256"] is not None
        status = "READY" if sent and self._plane.clock() >= row["ready"] else "PENDING"
        known = {"sha256": row["sha256"], "cloudTransferStatus": status} if sent else {}
        return {"id": str(row["id"]), **told, **known, "indexed": False}


def fits(row: Document, expression: str | None) -> bool:
    """Whether a package satisfies one RSQL comparison, whose stars stand for anything."""
    if not expression:
        return True
    match = EQUALS.match(expression)
    if match is None or match[1] not in {"packageName", "fileName", "notes", "info"}:
        raise Refused(400, f"filter: INVALID {expression}")
    wanted = re.sub(r"\\(.)", r"\1", match[2])
    form = ".*".join(re.escape(part) for part in wanted.split("*"))
    return re.fullmatch(form, str(row["body"].get(match[1]) or ""), re.DOTALL) is not None


def page(request: Request, found: list[Any]) -> Response:
    """One page, by its number from 0."""
    size = number(request, "page-size", PAGE, least=1, most=LARGEST_PAGE)
    start = number(request, "page", 0) * size
    return JSONResponse({"totalCount": len(found), "results": found[start : start + size]})
