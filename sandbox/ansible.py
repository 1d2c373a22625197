# SPDX-License-Identifier: Apache-2.0
"""AWX's API v2: hosts in groups of one inventory, job templates, and jobs that run by the fleet.

Two templates are there from the start, so that a first rollout needs no preparation. A template whose
playbook is named ``rollback…`` uninstalls, every other installs what the launch's variables name.
"""

import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp

import sandbox
from sandbox.ansible_jobs import Jobs
from sandbox.ansible_pages import API_PREFIXES, page, stamp
from sandbox.journal import Document
from sandbox.plan import RINGS, Device, Ring
from sandbox.plane import Plane
from sandbox.rest import (
    Body,
    Refused,
    application,
    basic_client,
    documents,
    effect_of,
    guarded,
    read,
    row_or_404,
)

INVENTORY = 1
GROUPS: dict[Ring, int] = {ring: 11 + place for place, ring in enumerate(RINGS)}
HOSTS_PER_RING = 1_000_000
INSTALL, ROLL_BACK = "Install application", "Roll back application"


class NewTemplate(Body):
    """What a job template is made of, or changed by."""

    name: str | None = None
    description: str = ""
    job_type: str = "run"
    inventory: int = INVENTORY
    project: int = 1
    playbook: str = "install.yml"
    limit: str = ""
    ask_limit_on_launch: bool = False
    ask_variables_on_launch: bool = False
    ask_inventory_on_launch: bool = False
    survey_enabled: bool = False
    variables_needed_to_start: list[str] = Field(default_factory=list)
    passwords_needed_to_start: list[str] = Field(default_factory=list)
    job_slice_count: int = 1


class Ansible:
    """The plane."""

    prefixes: tuple[str, ...] = API_PREFIXES
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._templates = plane.table("templates")
        self._jobs = Jobs(plane, self._templates, host_id=host_id)
        if not self._templates:
            self._seed()
        self.app: ASGIApp = self._assembled()

    def _seed(self) -> None:
        for name, playbook in ((INSTALL, "install.yml"), (ROLL_BACK, "rollback.yml")):
            asks = {"ask_limit_on_launch": True, "ask_variables_on_launch": True}
            self._store(NewTemplate.model_validate({"name": name, "playbook": playbook} | asks), None)

    def error(self, status: int) -> Response:
        """AWX's ``detail``."""
        return refusal(status, "The sandbox was asked to answer this.")

    def target(self, ring: Ring) -> Mapping[str, Any]:
        """The group that holds the ring's hosts."""
        return {"kind": "group", "ref": str(GROUPS[ring])}

    def device(self, device: Device) -> Mapping[str, Any]:
        """The host's id."""
        return {"device_id": str(host_id(device))}

    def objects(self) -> list[dict[str, Any]]:
        """Templates and jobs."""
        return [
            *documents(self._templates, "job_template"),
            *documents(self._plane.table("jobs"), "job"),
        ]

    def controls(self) -> Sequence[Route]:
        """Nothing beyond what every plane has."""
        return ()

    def _assembled(self) -> ASGIApp:
        open_to_all = [Route("/ping/", self._ping, methods=["GET"])]
        inside = Router(
            [
                Route("/me/", self._me, methods=["GET"]),
                Route("/job_templates/", self._list_templates, methods=["GET"]),
                Route("/job_templates/", self._create_template, methods=["POST"]),
                Route("/job_templates/{id:int}/", self._read_template, methods=["GET"]),
                Route("/job_templates/{id:int}/", self._change_template, methods=["PATCH"]),
                Route("/inventories/", self._inventories, methods=["GET"]),
                Route("/inventories/{id:int}/", self._inventory, methods=["GET"]),
                Route("/inventories/{id:int}/hosts/", self._inventory_hosts, methods=["GET"]),
                Route("/inventories/{id:int}/groups/", self._groups, methods=["GET"]),
                Route("/groups/", self._groups, methods=["GET"]),
                Route("/groups/{id:int}/", self._group, methods=["GET"]),
                Route("/groups/{id:int}/hosts/", self._group_hosts, methods=["GET"]),
                Route("/groups/{id:int}/all_hosts/", self._group_hosts, methods=["GET"]),
                *self._jobs.routes(),
            ],
            redirect_slashes=False,
        )
        routes = [
            Mount(prefix, app=Router([*open_to_all, Mount("", app=guarded(inside, authenticated))]))
            for prefix in API_PREFIXES
        ]
        return application(routes, refusal)

    async def _ping(self, _: Request) -> Response:
        told = {"ha": False, "version": "24.6.1", "active_node": "sandbox", "install_uuid": "sandbox"}
        return JSONResponse({**told, "instances": [], "instance_groups": []})

    async def _me(self, request: Request) -> Response:
        user = {"id": 1, "type": "user", "username": client_of(request), "is_superuser": False}
        return page(request, 1, lambda skip, top: [user][skip : skip + top])

    async def _list_templates(self, request: Request) -> Response:
        name = request.query_params.get("name")
        found = [self._shown(row) for row in self._templates.values() if name in {None, row["name"]}]
        return page(request, len(found), lambda skip, top: found[skip : skip + top], filters=["name"])

    async def _create_template(self, request: Request) -> Response:
        body = await read(request, NewTemplate)
        if not body.name:
            raise Refused(400, "name", body={"name": ["This field is required."]})
        if any(row["name"] == body.name for row in self._templates.values()):
            taken = "Job template with this Organization and Name already exists."
            raise Refused(400, taken, body={"__all__": [taken]})
        return JSONResponse(self._shown(self._store(body, effect_of(request))), 201)

    def _store(self, body: NewTemplate, effect_key: str | None) -> Document:
        key = str(len(self._templates) + 1)
        row = {"id": int(key), "created": self._plane.clock(), "effect_key": effect_key, **body.model_dump()}
        return self._templates.put(key, row)

    async def _read_template(self, request: Request) -> Response:
        return JSONResponse(self._shown(row_or_404(self._templates, request)))

    async def _change_template(self, request: Request) -> Response:
        row, body = row_or_404(self._templates, request), await read(request, NewTemplate)
        changed = row | body.model_dump(include=body.model_fields_set)
        return JSONResponse(self._shown(self._templates.put(str(row["id"]), changed)))

    def _shown(self, row: Document) -> Document:
        hidden = {"effect_key", "created", "variables_needed_to_start", "passwords_needed_to_start"}
        told = {name: value for name, value in row.items() if name not in hidden}
        return {**told, "type": "job_template", "created": stamp(row["created"]), "extra_vars": "---"}

    async def _inventories(self, request: Request) -> Response:
        rows = [self._inventory_row()]
        return page(request, 1, lambda skip, top: rows[skip : skip + top])

    async def _inventory(self, request: Request) -> Response:
        self._require_inventory(request)
        return JSONResponse(self._inventory_row())

    def _inventory_row(self) -> Document:
        total = sum(self._plane.fleet.plan.devices(ring) for ring in RINGS)
        return {
            "id": INVENTORY,
            "type": "inventory",
            "name": "Fleet",
            "organization": 1,
            "total_hosts": total,
        }

    def _require_inventory(self, request: Request) -> None:
        if request.path_params["id"] != INVENTORY:
            raise Refused(404, "Not found.")

    async def _groups(self, request: Request) -> Response:
        name = request.query_params.get("name")
        rows = [group_row(ring) for ring in RINGS if name in {None, ring}]
        return page(request, len(rows), lambda skip, top: rows[skip : skip + top], filters=["name"])

    async def _group(self, request: Request) -> Response:
        return JSONResponse(group_row(ring_of(request)))

    async def _group_hosts(self, request: Request) -> Response:
        ring = ring_of(request)
        return self._hosts(
            request,
            self._plane.fleet.plan.devices(ring),
            lambda skip, top: list(self._plane.fleet.devices(ring, skip=skip, top=top)),
        )

    async def _inventory_hosts(self, request: Request) -> Response:
        self._require_inventory(request)
        every = [device for ring in RINGS for device in self._plane.fleet.devices(ring)]
        return self._hosts(request, len(every), lambda skip, top: every[skip : skip + top])

    def _hosts(self, request: Request, total: int, devices: Callable[[int, int], list[Device]]) -> Response:
        return page(
            request,
            total,
            lambda skip, top: [host_row(device) for device in devices(skip, top)],
            filters=["enabled"],
        )


def host_id(device: Device) -> int:
    """The number of a host, from which its ring can be told."""
    return (RINGS.index(device.ring) + 1) * HOSTS_PER_RING + device.index + 1


def host_row(device: Device) -> Document:
    """A host as AWX lists it."""
    return {
        "id": host_id(device),
        "type": "host",
        "name": device.name.lower(),
        "inventory": INVENTORY,
        "enabled": True,
        "description": "",
        "variables": "",
    }


def group_row(ring: Ring) -> Document:
    """A group as AWX tells it."""
    return {"id": GROUPS[ring], "type": "group", "name": ring, "inventory": INVENTORY, "variables": ""}


def ring_of(request: Request) -> Ring:
    """The ring whose group the path names."""
    wanted = request.path_params["id"]
    ring = next((ring for ring, number in GROUPS.items() if number == wanted), None)
    if ring is None:
        raise Refused(404, "Not found.")
    return ring


def refusal(status: int, words: str) -> Response:
    """AWX's error body."""
    return JSONResponse({"detail": words}, status)


def authenticated(request: Request) -> None:
    """Refuse who has neither a token nor a password."""
    if client_of(request) is None:
        words = (
            "Authentication credentials were not provided. To establish a login session, visit /api/login/."
        )
        raise Refused(401, words, headers={"www-authenticate": 'Bearer realm="api"'})


def client_of(request: Request) -> str | None:
    """Who asks: by a token, which here is the client's secret, or by HTTP Basic."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        known = sandbox.CLIENTS.items()
        return next((name for name, secret in known if hmac.compare_digest(secret, token)), None)
    return basic_client(request)
