# SPDX-License-Identifier: Apache-2.0
"""Landscape's REST v2 and, under the same address, its older API of actions: computers, packages, activities.

``PUT /_sandbox/archive`` sets which version of a package the archives offer, and whether activities wait for
somebody's approval.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp

from sandbox.fleet import Fleet
from sandbox.journal import Document
from sandbox.landscape_activities import Activities, Archive, rows_of
from sandbox.landscape_search import computer_id, computers, rings
from sandbox.plan import RINGS, Device, Ring
from sandbox.plane import Plane, parse
from sandbox.rest import (
    Refused,
    Tokens,
    application,
    documents,
    effect_of,
    guarded,
    is_secret,
    number,
    read,
    require_known,
)
from sandbox.witness import instant

ROWS = 1000
VERSION = "2011-08-01"
DOMAIN = "sandbox.example"
CHANGES = ("InstallPackages", "UpgradePackages", "RemovePackages")


class LoginBody(BaseModel):
    """Either way of logging in."""

    model_config = ConfigDict(extra="forbid", strict=True)

    email: str = ""
    password: str = ""
    access_key: str = ""
    secret_key: str = ""
    account: str | None = None
    expiry_minutes: int | None = None


class Landscape:
    """The plane."""

    prefixes: tuple[str, ...] = ("/api/v2", "/api")
    reads: tuple[str, ...] = ("POST /login*",)
    writes: tuple[str, ...] = tuple(
        f"GET /{action}" for action in (*CHANGES, "CancelActivities", "ApproveActivities")
    )

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._tokens = Tokens(plane)
        self._activities = Activities(plane)
        self.app: ASGIApp = self._assembled()

    def error(self, status: int) -> Response:
        """REST v2's error body."""
        return refusal(status, "The sandbox was asked to answer this.")

    def target(self, ring: Ring) -> Mapping[str, Any]:
        """The tag of the ring's computers."""
        return {"kind": "tag", "ref": ring.lower()}

    def device(self, device: Device) -> Mapping[str, Any]:
        """The computer's number."""
        return {"device_id": str(computer_id(device))}

    def objects(self) -> list[dict[str, Any]]:
        """Activities."""
        return documents(self._plane.table("activities"), "activity")

    def controls(self) -> Sequence[Route]:
        """What only this plane has."""
        return [Route("/_sandbox/archive", self._offer, methods=["PUT"])]

    async def _offer(self, request: Request) -> Response:
        archive = await parse(request, Archive)
        if isinstance(archive, Response):
            return archive
        self._activities.offer(archive)
        return JSONResponse(self._activities.archive.model_dump())

    def _assembled(self) -> ASGIApp:
        inside = Router(
            [
                Route("/v2/computers", self._computers, methods=["GET"]),
                Route("/v2/packages", self._packages, methods=["GET"]),
                Route("/v2/activities/parents", self._parents, methods=["GET"]),
                Route("/v2/activities/{id:int}", self._activity, methods=["GET"]),
                Route("/", self._act, methods=["GET"]),
            ],
            redirect_slashes=False,
        )
        routes = [
            Route("/api/v2/login", self._login, methods=["POST"]),
            Route("/api/v2/login/access-key", self._login_by_key, methods=["POST"]),
            Mount("/api", app=guarded(inside, self._authenticated)),
        ]
        return application(routes, refusal)

    def _authenticated(self, request: Request) -> None:
        if self._tokens.client_of(request) is None:
            raise Refused(401, "Invalid or expired token.")

    async def _login(self, request: Request) -> Response:
        body = await read(request, LoginBody)
        return self._session(body.email.partition("@")[0], body.password)

    async def _login_by_key(self, request: Request) -> Response:
        body = await read(request, LoginBody)
        return self._session(body.access_key, body.secret_key)

    def _session(self, client: str, secret: str) -> Response:
        if not is_secret(client, secret):
            raise Refused(401, "Invalid credentials.")
        told = {
            "accounts": [{"default": True, "name": "standalone", "title": "Sandbox"}],
            "current_account": "standalone",
            "email": f"{client}@{DOMAIN}",
            "name": "Rollout Service",
            "self_hosted": True,
            "token": self._tokens.issue(client),
        }
        return JSONResponse(told)

    async def _computers(self, request: Request) -> Response:
        require_known(request, ["query", "limit", "offset"])
        query, fleet = request.query_params.get("query", ""), self._plane.fleet
        whole = whole_rings(query, fleet)
        if whole is None:
            found = list(computers(query, fleet))
            return self._page(request, len(found), lambda skip, top: found[skip : skip + top])
        total = sum(fleet.plan.devices(ring) for ring in whole)
        return self._page(request, total, lambda skip, top: self._some(whole, skip, top))

    def _some(self, whole: Sequence[Ring], skip: int, top: int) -> list[Device]:
        """Only the computers of one page."""
        found: list[Device] = []
        for ring in whole:
            found += self._plane.fleet.devices(ring, skip=skip, top=top - len(found))
            skip = max(0, skip - self._plane.fleet.plan.devices(ring))
        return found

    def _page(self, request: Request, total: int, rows: Callable[[int, int], list[Device]]) -> Response:
        return page(request, total, lambda skip, top: [self._computer(each) for each in rows(skip, top)])

    def _computer(self, device: Device) -> Document:
        away = self._plane.fleet.is_offline(device)
        name = device.name.lower()
        return {
            "id": computer_id(device),
            "title": name,
            "hostname": name,
            "comment": "",
            "tags": [device.ring.lower(), "fleet"],
            "access_group": device.ring.lower(),
            "distribution": "24.04",
            "reboot_required_flag": False,
            "last_ping_time": instant(self._plane.clock() - (3600 if away else 0)),
            "last_exchange_time": None,
            "total_memory": 4096,
            "total_swap": 1024,
            "update_manager_prompt": "normal",
            "clone_id": None,
            "cloud_instance_metadata": {},
            "vm_info": None,
            "container_info": None,
            "ubuntu_pro_info": None,
            "is_wsl_instance": False,
            "children": [],
            "parent": None,
        }

    async def _packages(self, request: Request) -> Response:
        require_known(request, ["query", "names", "installed", "limit", "offset"])
        given = request.query_params
        found = self._activities.packages(given.get("names", "").split(","), given.get("query", ""))
        return page(request, len(found), lambda skip, top: found[skip : skip + top])

    async def _parents(self, request: Request) -> Response:
        require_known(request, ["limit", "offset"])
        rows = self._activities.parents()
        return page(
            request,
            len(rows),
            lambda skip, top: [self._activities.counted(row) for row in rows[skip : skip + top]],
        )

    async def _activity(self, request: Request) -> Response:
        return JSONResponse(self._activities.counted(self._activities.one(str(request.path_params["id"]))))

    async def _act(self, request: Request) -> Response:
        """The older API: what to do stands in the query, and errors are plain text."""
        given = request.query_params
        if given.get("version") != VERSION:
            return PlainTextResponse("MissingParameter: version", 400)
        try:
            return JSONResponse(self._answer(request, given.get("action", ""), given.get("query", "")))
        except Refused as error:
            return PlainTextResponse(error.words, error.status)

    def _answer(self, request: Request, action: str, query: str) -> Any:
        if action == "GetActivities":
            limit, offset = number(request, "limit", ROWS, least=1, most=ROWS), number(request, "offset", 0)
            return rows_of(self._activities.find(query), offset=offset, limit=limit)
        if action == "CancelActivities":
            return self._activities.cancel(query)
        if action == "ApproveActivities":
            numbers = [part["id"] for part in self._activities.find(query)]
            return [self._activities.approve(str(each))["id"] for each in numbers]
        if action not in CHANGES:
            raise Refused(400, f"InvalidAction: {action}")
        given = request.query_params
        names = [value for name, value in given.items() if name.startswith("packages.")]
        creator = f"{self._tokens.client_of(request)}@{DOMAIN}"
        row = self._activities.begin(action, names, query, creator, effect_of(request))
        return self._activities.shown(row)


def whole_rings(query: str, fleet: Fleet) -> tuple[Ring, ...] | None:
    """The rings, if a query names only whole ones."""
    try:
        found = rings(query, fleet) if query else dict.fromkeys(RINGS)
    except Refused:
        return None
    return tuple(found) if set(found.values()) == {None} else None


def page(request: Request, total: int, rows: Callable[[int, int], Sequence[Document]]) -> Response:
    """One page; the way to the next is a path without the host."""
    limit, offset = number(request, "limit", ROWS, least=1, most=ROWS), number(request, "offset", 0)
    more = offset + limit < total
    base = request.scope["sandbox.scope"]["path"]
    following = request.url.include_query_params(offset=offset + limit, limit=limit).query
    return JSONResponse(
        {
            "count": total,
            "results": rows(offset, limit),
            "next": f"{base}?{following}" if more else None,
            "previous": None,
        }
    )


def refusal(status: int, words: str) -> Response:
    """REST v2's error body, whose form is not documented."""
    return JSONResponse({"error": "Refused", "message": words}, status)
