# SPDX-License-Identifier: Apache-2.0
"""What every plane of the sandbox has in common: memory, fleet, faults and witness, and their control."""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qs

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox.faults import FaultDocument, Faults, play
from sandbox.fleet import Clock, Fleet, Life
from sandbox.journal import Journal, Table
from sandbox.plan import RINGS, Device, FleetDocument, Ring
from sandbox.witness import Witness, exchange_of, instant, mark_applied


@dataclass
class Plane:
    """One plane's share of the process. ``scale`` multiplies delays; ``spool`` is a folder of its own."""

    name: str
    journal: Journal
    clock: Clock
    scale: float
    spool: Path
    fleet: Fleet = field(init=False)
    faults: Faults = field(init=False)
    secret: bytes = field(init=False)

    def __post_init__(self) -> None:
        orders, plans = self.table("orders"), self.table("plans")
        self.fleet = Fleet(plans=plans, orders=orders, clock=self.clock, scale=self.scale)
        self.faults = Faults(self.table("faults"))
        keys = self.table("secrets")
        key = keys.get("key") or keys.put("key", {"hex": secrets.token_hex(32)})
        self.secret = bytes.fromhex(key["hex"])

    def table(self, name: str) -> Table:
        """One of this plane's tables."""
        return self.journal.table(f"{self.name}/{name}")


class Vendor(Protocol):
    """What a plane brings: its wire format, and how it calls things.

    ``prefixes`` are path prefixes that name an API version; ``reads`` and ``writes`` are as in ``Witness``. A
    request that names its ``action`` in the query is known to faults and witness as ``/<action>``.
    """

    app: ASGIApp
    prefixes: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    def error(self, status: int) -> Response:
        """The vendor's own error body for a status."""
        ...

    def target(self, ring: Ring) -> Mapping[str, Any]:
        """How the plane calls a ring's devices: ``{"kind": …, "ref": …}``, as a target wants it."""
        ...

    def device(self, device: Device) -> Mapping[str, Any]:
        """The plane's ids of a device; ``device_id`` is the one that identifies it to the world."""
        ...

    def objects(self) -> list[dict[str, Any]]:
        """Every object a client made: type, id and effect_key."""
        ...

    def controls(self) -> Sequence[Route]:
        """Control endpoints of this plane only."""
        ...


MakeVendor = Callable[[Plane], Vendor]
Body = TypeVar("Body", bound=BaseModel)


class PlaneApp:
    """The application of one plane: witness and faults around the vendor's wire format, control beside it."""

    def __init__(self, plane: Plane, vendor: Vendor) -> None:
        counts, mutations = plane.table("counts"), plane.table("mutations")
        self._plane = plane
        self._vendor = vendor
        self._witness = Witness(
            counts=counts, mutations=mutations, clock=plane.clock, reads=vendor.reads, writes=vendor.writes
        )
        self._control = Starlette(routes=[*self._control_routes(), *vendor.controls()])
        self._inner = mark_applied(vendor.app)
        self._watched = self._witness.wrap(self._faulty)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request to the plane."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path.startswith("/_sandbox/"):
            await self._control(scope, receive, send)
            return
        exchange = exchange_of(scope, action_of(scope) or self._unversioned(path))
        inside = {
            "sandbox.exchange": exchange,
            "sandbox.path": path,
            "sandbox.entry": self,
            "sandbox.scope": scope,
        }
        await self._watched({**scope, **inside}, receive, send)

    async def _faulty(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = scope["sandbox.exchange"]
        fault = self._plane.faults.choose(exchange.method, (exchange.path, scope["sandbox.path"]))
        if fault is None:
            await self._inner(scope, receive, send)
        else:
            error = self._vendor.error
            await play(fault, app=self._inner, error=error, scope=scope, receive=receive, send=send)

    def _unversioned(self, path: str) -> str:
        for prefix in self._vendor.prefixes:
            if path.startswith(prefix + "/"):
                return path.removeprefix(prefix)
        return path

    def _control_routes(self) -> list[Route]:
        return [
            Route("/_sandbox/faults", self._read_faults, methods=["GET"]),
            Route("/_sandbox/faults", self._write_faults, methods=["PUT"]),
            Route("/_sandbox/fleet", self._read_fleet, methods=["GET"]),
            Route("/_sandbox/fleet", self._write_fleet, methods=["PUT"]),
            Route("/_sandbox/requests", self._read_requests, methods=["GET"]),
            Route("/_sandbox/objects", self._read_objects, methods=["GET"]),
            Route("/_sandbox/devices", self._read_devices, methods=["GET"]),
        ]

    async def _read_faults(self, _: Request) -> Response:
        return JSONResponse(self._plane.faults.document.model_dump())

    async def _write_faults(self, request: Request) -> Response:
        document = await parse(request, FaultDocument)
        if isinstance(document, Response):
            return document
        self._plane.faults.replace(document)
        return await self._read_faults(request)

    async def _read_fleet(self, _: Request) -> Response:
        plan = self._plane.fleet.plan
        rings = {ring: {**plan.rings[ring].model_dump(), **self._vendor.target(ring)} for ring in RINGS}
        apps = {
            name: {ring: odds.model_dump() for ring, odds in own.items()} for name, own in plan.apps.items()
        }
        return JSONResponse({"seed": plan.seed, "rings": rings, "apps": apps})

    async def _write_fleet(self, request: Request) -> Response:
        document = await parse(request, FleetDocument)
        if isinstance(document, Response):
            return document
        self._plane.fleet.replan(document)
        return await self._read_fleet(request)

    async def _read_requests(self, _: Request) -> Response:
        return JSONResponse(self._witness.report())

    async def _read_objects(self, _: Request) -> Response:
        return JSONResponse(self._vendor.objects())

    async def _read_devices(self, request: Request) -> Response:
        """Devices on which something happened; with ``app``, or ``product`` and ``version``, to that only."""
        given = request.query_params
        product, version, app_id = given.get("product"), given.get("version"), given.get("app")
        items = []
        for ring in RINGS:
            for device, lives in self._lives(ring, product):
                told = [life for life in lives if has_step(life, version=version, app_id=app_id)]
                if told:
                    items.append(self._device(device, told))
        return JSONResponse({"items": items})

    def _lives(self, ring: Ring, product: str | None) -> list[tuple[Device, list[Life]]]:
        fleet = self._plane.fleet
        products = [name for name in fleet.products(ring) if product in {None, name}]
        devices = list(fleet.devices(ring))
        columns = [fleet.lives(name, ring, devices) for name in products]
        return [(device, list(lives)) for device, *lives in zip(devices, *columns, strict=True)]

    def _device(self, device: Device, lives: list[Life]) -> dict[str, Any]:
        steps = sorted((step for life in lives for step in life.steps), key=lambda step: step.at)
        installed = [life.installed for life in lives if life.installed is not None]
        return {
            **self._vendor.device(device),
            "name": device.name,
            "ring": device.ring,
            "installed": [{"app_id": software.app_id, "version": software.version} for software in installed],
            "history": [
                {
                    "app_id": step.app_id,
                    "version": step.version,
                    "action": step.action,
                    "at": instant(step.at),
                }
                for step in steps
            ],
        }


def has_step(life: Life, *, version: str | None, app_id: str | None) -> bool:
    """Whether something happened to a product in that version and of that application."""
    return any(version in {None, step.version} and app_id in {None, step.app_id} for step in life.steps)


def action_of(scope: Scope) -> str | None:
    """The action that a request names in its query, as a path."""
    named = parse_qs(scope["query_string"].decode("ascii", "replace")).get("action")
    return f"/{named[0]}" if named else None


async def parse(request: Request, model: type[Body]) -> Body | Response:
    """A control document, or the 422 that tells what is wrong with it."""
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        detail = json.loads(error.json(include_url=False, include_context=False, include_input=False))
        return JSONResponse({"error": "invalid", "detail": detail}, status_code=422)
