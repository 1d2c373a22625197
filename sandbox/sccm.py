# SPDX-License-Identifier: Apache-2.0
"""The AdminService of Configuration Manager: the provider's classes as OData, behind Windows authentication.

``PUT /_sandbox/applications`` sets what the operator has packaged, and where its content is;
``PUT /_sandbox/deployments/<number>`` switches a deployment on or off, as the operator's console does.
"""

import base64
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import spnego
from spnego.exceptions import SpnegoError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp

import sandbox
from sandbox.connections import connection_of
from sandbox.journal import Document
from sandbox.odata import Condition, chosen, conditions, equal, least
from sandbox.plan import RINGS, Device, Ring
from sandbox.plane import Plane, parse
from sandbox.rest import (
    Refused,
    application,
    basic_client,
    documents,
    effect_of,
    guarded,
    read,
    require_known,
)
from sandbox.sccm_deployments import (
    COLLECTIONS,
    FIRST_MACHINE,
    MACHINES_PER_RING,
    SITE,
    Applications,
    Deployments,
    NewDeployment,
    Switch,
    machine_id,
    ring_of,
)

DOMAIN = "SANDBOX"
OPTIONS = ("$filter", "$select", "$orderby", "$top")


class Sccm:
    """The plane."""

    prefixes: tuple[str, ...] = ("/AdminService/wmi",)
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._deployments = Deployments(plane)
        self._handshakes = Handshakes(plane)
        self.app: ASGIApp = self._assembled()

    def error(self, status: int) -> Response:
        """An OData error."""
        return refusal(status, "The sandbox was asked to answer this.")

    def target(self, ring: Ring) -> Mapping[str, Any]:
        """The collection that holds the ring's machines."""
        return {"kind": "collection", "ref": COLLECTIONS[ring]}

    def device(self, device: Device) -> Mapping[str, Any]:
        """The machine's number."""
        return {"device_id": str(machine_id(device))}

    def objects(self) -> list[dict[str, Any]]:
        """Deployments."""
        return documents(self._plane.table("deployments"), "deployment")

    def controls(self) -> Sequence[Route]:
        """What only this plane has."""
        return [
            Route("/_sandbox/applications", self._package, methods=["PUT"]),
            Route("/_sandbox/deployments/{id:int}", self._switch, methods=["PUT"]),
        ]

    async def _package(self, request: Request) -> Response:
        applications = await parse(request, Applications)
        if isinstance(applications, Response):
            return applications
        self._deployments.package(applications)
        return JSONResponse(applications.model_dump())

    async def _switch(self, request: Request) -> Response:
        wanted = await parse(request, Switch)
        if isinstance(wanted, Response):
            return wanted
        found = self._deployments.switch(str(request.path_params["id"]), enabled=wanted.enabled)
        return JSONResponse(wanted.model_dump(), 200 if found else 404)

    def _assembled(self) -> ASGIApp:
        deployments = "/SMS_ApplicationAssignment"
        routes = [
            Route(deployments, self._deploy, methods=["POST"]),
            Route(deployments + "({id:int})", self._withdraw, methods=["DELETE"]),
            Route("/{of_class}", self._list, methods=["GET"]),
        ]
        inside = guarded(Router(routes, redirect_slashes=False), self._handshakes.require)
        return application([Mount("/AdminService/wmi", app=inside)], refusal)

    async def _list(self, request: Request) -> Response:
        require_known(request, OPTIONS)
        of_class, options = request.path_params["of_class"], dict(request.query_params)
        wanted = conditions(options.get("$filter"))
        source = self._sources().get(of_class.lower())
        if source is None:
            raise Refused(404, "No HTTP resource was found that matches the request URI")
        base = str(request.base_url)
        context = f"{base}AdminService/wmi/$metadata#{of_class}"
        return JSONResponse({"@odata.context": context, "value": chosen(source(wanted), wanted, options)})

    def _sources(self) -> Mapping[str, Callable[[list[Condition]], Iterator[Document]]]:
        """The classes by their names in lower case: the route has not minded case since 2006."""
        deployments = self._deployments
        return {
            "sms_site": lambda _: iter([site_row()]),
            "sms_application": lambda _: deployments.application_rows(),
            "sms_objectcontentextrainfo": lambda _: deployments.content_rows(),
            "sms_collection": lambda _: self._collections(),
            "sms_fullcollectionmembership": self._members,
            "sms_applicationassignment": lambda _: deployments.rows(),
            "sms_appdeploymentassetdetails": lambda wanted: deployments.details(wanted, errors=False),
            "sms_appdeploymenterrorassetdetails": lambda wanted: deployments.details(wanted, errors=True),
        }

    def _collections(self) -> Iterator[Document]:
        for ring in RINGS:
            count = self._plane.fleet.plan.devices(ring)
            told = {"CollectionID": COLLECTIONS[ring], "Name": f"Ring {ring}", "CollectionType": 2}
            yield {"__LAZYPROPERTIES": ["CollectionRules"], **told, "MemberCount": count}

    def _members(self, wanted: list[Condition]) -> Iterator[Document]:
        """Only of the collection that the filter names, and only from the machine on that it names."""
        ring = ring_of(equal(wanted, "CollectionID"))
        first = FIRST_MACHINE + RINGS.index(ring) * MACHINES_PER_RING
        for device in self._plane.fleet.devices(ring, skip=max(0, least(wanted, "ResourceID") - first)):
            told = {"CollectionID": COLLECTIONS[ring], "ResourceID": machine_id(device), "ResourceType": 5}
            yield {**told, "Name": device.name, "IsClient": True, "SiteCode": SITE}

    async def _deploy(self, request: Request) -> Response:
        row = self._deployments.create(await read(request, NewDeployment), effect_of(request))
        context = f"{request.base_url}AdminService/wmi/$metadata#SMS_ApplicationAssignment/$entity"
        told = {"@odata.context": context, "@odata.etag": "FC1", **self._deployments.shown(row)}
        return JSONResponse(told, 201)

    async def _withdraw(self, request: Request) -> Response:
        self._deployments.delete(str(request.path_params["id"]))
        return Response(status_code=204)


class Handshakes:
    """Who a connection belongs to: NTLM and Negotiate authenticate it, not the request."""

    def __init__(self, plane: Plane) -> None:
        self._running: WeakKeyDictionary[Any, spnego.ContextProxy] = WeakKeyDictionary()
        self._known: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        self._users = plane.spool / "users"

    def require(self, request: Request) -> None:
        """Refuse who has not shown who he is, on this connection or by HTTP Basic."""
        connection = connection_of(request.scope)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() in {"ntlm", "negotiate"} and connection is not None:
            self._step(connection, scheme, token)
        elif basic_client(request) is None and self._known.get(connection) is None:
            raise refused()

    def _tell_users(self) -> None:
        """Where the library looks for passwords."""
        if not self._users.exists():
            known = (f"{DOMAIN}:{name}:{secret}\n" for name, secret in sandbox.CLIENTS.items())
            self._users.parent.mkdir(parents=True, exist_ok=True)
            self._users.write_text("".join(known))
        os.environ["NTLM_USER_FILE"] = str(self._users)

    def _step(self, connection: Any, scheme: str, token: str) -> None:
        """One leg; the first of a handshake makes the connection a stranger's again."""
        self._known.pop(connection, None)
        context = self._running.get(connection)
        if context is None:
            self._tell_users()
            context = spnego.server(protocol=scheme.lower(), service="HTTP", hostname="sandbox")
            self._running[connection] = context
        try:
            answer = context.step(base64.b64decode(token))
        except (SpnegoError, ValueError, struct.error) as error:
            self._running.pop(connection, None)
            raise refused() from error
        if not context.complete:
            told = base64.b64encode(answer or b"").decode("ascii")
            raise Refused(401, "Unauthorized", headers={"www-authenticate": f"{scheme} {told}"})
        self._running.pop(connection, None)
        self._known[connection] = str(context.client_principal)


def refused() -> Refused:
    """The first answer to everybody: how to authenticate."""
    return Refused(
        401, "Unauthorized", headers={"www-authenticate": 'Negotiate, NTLM, Basic realm="sandbox"'}
    )


def site_row() -> Document:
    """``SMS_Site``."""
    told = {"SiteCode": SITE, "SiteName": "Sandbox primary", "Version": "5.00.9128.1000", "Status": 1}
    return {"__LAZYPROPERTIES": [], **told, "ServerName": "SMS.SANDBOX.EXAMPLE"}


def refusal(status: int, words: str) -> Response:
    """An OData error; its form is not documented."""
    return JSONResponse({"error": {"code": "", "message": words}}, status)
