# SPDX-License-Identifier: Apache-2.0
"""Jamf Pro: the Pro API under ``/api``, the Classic one under ``/JSSResource``, on a cluster of two nodes.

A node shows what the other one wrote only a moment later, so who does not send back the cluster's cookie may
miss what he has just made.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandbox.fleet import Life
from sandbox.jamf_packages import Packages, bundle_of, page
from sandbox.jamf_policies import GROUPS, STATIC, Policies, computer_id, device_of, html, ring_of_group
from sandbox.journal import Document
from sandbox.plan import Device, Ring
from sandbox.plane import Plane
from sandbox.rest import (
    Refused,
    Tokens,
    application,
    basic_client,
    documents,
    guarded,
    is_secret,
    require_known,
)
from sandbox.witness import instant

STALE_SECONDS = 0.5
COOKIE = "APBALANCEID"
AMONG = re.compile(r"^id=in=\(([\d,]+)\)$")
SECTIONS = {"GENERAL", "APPLICATIONS", "PACKAGE_RECEIPTS"}


class Jamf:
    """The plane."""

    prefixes: tuple[str, ...] = ("/api", "/JSSResource")
    reads: tuple[str, ...] = ("POST /v1/oauth/*", "POST /v1/auth/*")
    writes: tuple[str, ...] = ()

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._tokens = Tokens(plane)
        self._packages = Packages(plane)
        self._policies = Policies(plane, self._packages)
        self.app: ASGIApp = self._assembled()

    def error(self, status: int) -> Response:
        """The Pro API's error body."""
        return refusal(status, "The sandbox was asked to answer this.")

    def target(self, ring: Ring) -> Mapping[str, Any]:
        """The group that holds the ring's computers: some are static, some smart."""
        return {"kind": "group", "ref": str(GROUPS[ring])}

    def device(self, device: Device) -> Mapping[str, Any]:
        """The computer's number."""
        return {"device_id": str(computer_id(device))}

    def objects(self) -> list[dict[str, Any]]:
        """Packages and policies."""
        return [
            *documents(self._plane.table("packages"), "package"),
            *documents(self._plane.table("policies"), "policy"),
        ]

    def controls(self) -> Sequence[Route]:
        """Nothing beyond what every plane has."""
        return ()

    def _assembled(self) -> ASGIApp:
        entrances = [
            Route("/v1/oauth/token", self._grant, methods=["POST"]),
            Route("/v1/auth/token", self._session, methods=["POST"]),
        ]
        pro = Router(
            [
                Route("/v1/auth/keep-alive", self._keep_alive, methods=["POST"]),
                Route("/v1/jamf-pro-version", self._version, methods=["GET"]),
                Route("/v4/computers-inventory", self._inventory, methods=["GET"]),
                Route("/v3/computer-groups/smart-group-membership/{id:int}", self._smart, methods=["GET"]),
                *self._packages.routes(),
            ],
            redirect_slashes=False,
        )
        classic = Router(self._policies.routes(), redirect_slashes=False)
        inside = application([Mount("", app=guarded(pro, self._authenticated))], refusal)
        older = application([Mount("", app=guarded(classic, self._authenticated))], html)
        routes = [
            Mount("/api", app=Router([*entrances, Mount("", app=inside)], redirect_slashes=False)),
            Mount("/JSSResource", app=older),
        ]
        return self._clustered(application(routes, refusal))

    def _clustered(self, app: ASGIApp) -> ASGIApp:
        """Answer for one of two nodes; who names none gets the one that has not heard the news."""

        async def on_a_node(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope)
            stranger = COOKIE not in request.cookies
            if stranger and request.method == "GET" and self._is_news(request.url.path):
                await refusal(404, "INVALID_ID")(scope, receive, send)
                return

            async def with_cookie(message: Message) -> None:
                if message["type"] == "http.response.start":
                    cookie = (b"set-cookie", f"{COOKIE}=node-1; Path=/; HttpOnly".encode())
                    message = {**message, "headers": [*message.get("headers", []), cookie]}
                await send(message)

            await app(scope, receive, with_cookie)

        return on_a_node

    def _is_news(self, path: str) -> bool:
        """Whether a path names a package that was made a moment ago."""
        row = self._packages.get(path.rpartition("/")[2]) if "/v1/packages/" in path else None
        age = 1e9 if row is None else self._plane.clock() - row["created"]
        return age < STALE_SECONDS * self._plane.scale

    def _authenticated(self, request: Request) -> None:
        if self._tokens.client_of(request) is None:
            raise Refused(401, "INVALID_TOKEN")

    async def _grant(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        client = form.get("client_id", "")
        if form.get("grant_type") != "client_credentials":
            return JSONResponse({"error": "unsupported_grant_type"}, 400)
        if not is_secret(client, form.get("client_secret", "")):
            return JSONResponse({"error": "invalid_client"}, 401)
        told = {"access_token": self._tokens.issue(client), "token_type": "Bearer", "scope": "api-role:1"}
        return JSONResponse({**told, "expires_in": int(self._tokens.lifetime)})

    async def _session(self, request: Request) -> Response:
        client = basic_client(request)
        return refusal(401, "INVALID_CREDENTIALS") if client is None else self._token(client)

    async def _keep_alive(self, request: Request) -> Response:
        return self._token(str(self._tokens.client_of(request)))

    def _token(self, client: str) -> Response:
        ends = instant(self._plane.clock() + self._tokens.lifetime)
        return JSONResponse({"token": self._tokens.issue(client), "expires": ends})

    async def _version(self, _: Request) -> Response:
        return JSONResponse({"version": "11.30.1-t1784555528405"})

    async def _smart(self, request: Request) -> Response:
        ring = ring_of_group(request.path_params["id"])
        if ring in STATIC:
            raise Refused(404, "INVALID_ID")
        return JSONResponse({"members": [computer_id(device) for device in self._plane.fleet.devices(ring)]})

    async def _inventory(self, request: Request) -> Response:
        require_known(request, ["section", "page", "page-size", "sort", "filter"])
        sections = set(request.query_params.getlist("section")) or {"GENERAL"}
        match = AMONG.match(request.query_params.get("filter", ""))
        if match is None or not sections <= SECTIONS:
            raise Refused(400, "the sandbox knows filters of the form id=in=(…), and few sections")
        known = (device_of(int(number), self._plane) for number in match[1].split(","))
        devices = [device for device in known if device is not None]
        lives = self._lives(devices)
        return page(request, [self._computer(device, lives[device], sections) for device in devices])

    def _lives(self, devices: list[Device]) -> dict[Device, list[Life]]:
        """What became of every product on each of them."""
        fleet, found = self._plane.fleet, dict[Device, list[Life]]((device, []) for device in devices)
        for ring in {device.ring for device in devices}:
            some = [device for device in devices if device.ring == ring]
            for name in fleet.products(ring):
                for device, life in zip(some, fleet.lives(name, ring, some), strict=True):
                    found[device].append(life)
        return found

    def _computer(self, device: Device, lives: list[Life], sections: set[str]) -> Document:
        told: Document = {"id": str(computer_id(device)), "udid": f"udid-{computer_id(device)}"}
        if "GENERAL" in sections:
            told["general"] = self._general(device, lives)
        if "APPLICATIONS" in sections:
            told["applications"] = [found for life in lives for found in applications(life)]
        if "PACKAGE_RECEIPTS" in sections:
            told["packageReceipts"] = {"installedByJamfPro": [], "installedByInstallerSwu": [], "cached": []}
        return told

    def _general(self, device: Device, lives: list[Life]) -> Document:
        now = self._plane.clock()
        seen = max((at for life in lives for at in life.seen.values()), default=now - 900)
        heard = instant(now - 3600 if self._plane.fleet.is_offline(device) else seen)
        told = {"name": device.name, "platform": "Mac", "supervised": True}
        return {**told, "lastCheckIn": heard, "lastContact": heard, "reportDate": heard}


def applications(life: Life) -> list[Document]:
    """What the inventory lists of one product."""
    if life.installed is None:
        return []
    name, version = life.installed.product, life.installed.version
    return [
        {
            "name": f"{name}.app",
            "path": f"/Applications/{name}.app",
            "version": version,
            "cfBundleShortVersionString": version,
            "cfBundleVersion": version,
            "bundleId": bundle_of(name),
            "macAppStore": False,
        }
    ]


def refusal(status: int, words: str) -> Response:
    """The Pro API's error body."""
    cause = {"code": words, "field": "", "description": words, "id": None}
    return JSONResponse({"httpStatus": status, "errors": [cause]}, status)
