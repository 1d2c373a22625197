# SPDX-License-Identifier: Apache-2.0
"""Microsoft Graph as Intune needs it: token, limits, and its nouns under ``/v1.0`` and ``/beta``."""

import base64
import hmac
import json
import math
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import sandbox
from sandbox import intune_batch
from sandbox.graph import CODES, GraphError, as_graph_error, error_response
from sandbox.intune_apps import Apps
from sandbox.intune_assignments import Assignments
from sandbox.intune_blob import Blobs
from sandbox.intune_content import Contents
from sandbox.intune_directory import TENANT_ID, Directory, device_id, group_id
from sandbox.intune_relationships import Relationships
from sandbox.intune_reports import Reports
from sandbox.plan import Device, Ring
from sandbox.plane import Plane
from sandbox.witness import MUTATING, instant

WINDOW = 20.0
APP_LIMITS = {"write": 100, "read": 1000}
TENANT_LIMITS = {"write": 200, "read": 2000}
OBJECT_TABLES = {
    "apps": "mobileApp",
    "contents": "mobileAppContent",
    "files": "mobileAppContentFile",
    "assignments": "mobileAppAssignment",
    "relationships": "mobileAppRelationship",
}


class Intune:
    """The Intune plane."""

    prefixes: tuple[str, ...] = ("/v1.0", "/beta")
    reads: tuple[str, ...] = ("POST /oauth2/*", "POST /deviceManagement/reports/*", "POST /$batch")
    writes: tuple[str, ...] = ()

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._limits = Limits(plane)
        self._apps = Apps(plane)
        self._blobs = Blobs(
            files=plane.table("files"), spool=plane.spool, secret=plane.secret, clock=plane.clock
        )
        self.app: ASGIApp = self._assembled()

    def error(self, status: int) -> Response:
        """Graph's error body for a status."""
        error = GraphError(
            status, "The sandbox was asked to answer this.", code=CODES.get(status, "UnknownError")
        )
        return error_response(error, at=self._plane.clock(), client_request_id=None)

    def target(self, ring: Ring) -> Mapping[str, Any]:
        """The group that holds the ring's devices."""
        return {"kind": "group", "ref": group_id(self._plane.name, ring)}

    def device(self, device: Device) -> Mapping[str, Any]:
        """The three ids; the one that reports give is Intune's."""
        name = self._plane.name
        return {
            "device_id": device_id(name, "intune", device),
            "entra_device_id": device_id(name, "entra", device),
            "entra_object_id": device_id(name, "object", device),
        }

    def objects(self) -> list[dict[str, Any]]:
        """Apps, content versions, files and assignments."""
        return [
            {"type": kind, "id": key, "effect_key": row["effect_key"]}
            for table, kind in OBJECT_TABLES.items()
            for key, row in self._plane.table(table).items()
        ]

    def controls(self) -> Sequence[Route]:
        """Nothing beyond what every plane has."""
        return ()

    def _assembled(self) -> ASGIApp:
        reports = Reports(self._plane)
        common: list[BaseRoute] = [
            *intune_batch.routes(),
            *self._apps.routes(),
            *Contents(self._plane, self._apps, self._blobs).routes(),
            *Assignments(self._plane, self._apps).routes(),
            *Directory(self._plane).routes(),
            *reports.routes(),
        ]
        beta = [*reports.beta_routes(), *Relationships(self._plane, self._apps).routes()]
        routes: list[BaseRoute] = [
            Route("/oauth2/v2.0/token", self._token, methods=["POST"]),
            *self._blobs.routes(),
            Mount("/v1.0", app=self._guarded(Router(common, redirect_slashes=False))),
            Mount("/beta", app=self._guarded(Router([*beta, *common], redirect_slashes=False))),
        ]
        app = Starlette(
            routes=routes, exception_handlers={GraphError: self._refuse, HTTPException: self._refuse}
        )
        app.router.redirect_slashes = False
        return app

    async def _refuse(self, request: Request, error: Exception) -> Response:
        known = as_graph_error(error) if isinstance(error, HTTPException) else error
        if not isinstance(known, GraphError):
            raise error
        client_request_id = request.headers.get("client-request-id")
        return error_response(known, at=self._plane.clock(), client_request_id=client_request_id)

    def _guarded(self, app: ASGIApp) -> ASGIApp:
        """Nothing below an API version without a token, nor beyond the limits."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope)
            client_id = self._client_of(request)
            if "/deviceAppManagement/" in request.url.path and self._plane.faults.document.throttle:
                self._limits.spend(client_id, "write" if request.method in MUTATING else "read")
            request_id = str(uuid4())
            told = request.headers.get("client-request-id", request_id)

            async def named(message: Message) -> None:
                if message["type"] == "http.response.start":
                    ids = [(b"request-id", request_id.encode()), (b"client-request-id", told.encode())]
                    message = {**message, "headers": [*message.get("headers", []), *ids]}
                await send(message)

            await app(scope, receive, named)

        return guarded

    async def _token(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        refusal = token_refusal(form)
        if refusal is not None:
            status, error, number, message = refusal
            return self._token_error(status, error, number, message)
        lifetime = int(self._plane.faults.document.token_lifetime)
        token = self._signed({"appid": form["client_id"], "iat": self._plane.clock(), "jti": uuid4().hex})
        body = {
            "token_type": "Bearer",
            "expires_in": lifetime,
            "ext_expires_in": lifetime,
            "access_token": token,
        }
        return JSONResponse(body, headers={"cache-control": "no-store"})

    def _token_error(self, status: int, error: str, number: int, message: str) -> Response:
        now, trace = instant(self._plane.clock()), str(uuid4())
        described = f"AADSTS{number}: {message} Trace ID: {trace} Timestamp: {now}"
        body = {
            "error": error,
            "error_description": described,
            "error_codes": [number],
            "timestamp": now,
            "trace_id": trace,
            "correlation_id": str(uuid4()),
        }
        return JSONResponse(body, status_code=status)

    def _signed(self, claims: dict[str, Any]) -> str:
        payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
        return f"{payload}.{hmac.digest(self._plane.secret, payload.encode(), 'sha256').hex()}"

    def _client_of(self, request: Request) -> str:
        """The client that a token was given to; a token lasts as long as the control now says."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise GraphError(401, "Access token is empty.", headers=challenge())
        payload, _, signature = token.partition(".")
        good = hmac.digest(self._plane.secret, payload.encode(), "sha256").hex()
        if not hmac.compare_digest(signature.encode(), good.encode()):
            raise GraphError(401, "Access token validation failure.", headers=challenge())
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        if self._plane.clock() >= claims["iat"] + self._plane.faults.document.token_lifetime:
            raise GraphError(401, "Lifetime validation failed, the token is expired.", headers=challenge())
        return str(claims["appid"])


class Limits:
    """Intune's limits on ``deviceAppManagement``: per client and per tenant, within 20 s."""

    def __init__(self, plane: Plane) -> None:
        self._clock = plane.clock
        self._spent: dict[tuple[str, str], deque[float]] = defaultdict(deque)

    def spend(self, client_id: str, kind: str) -> None:
        """Count one request, or refuse it and say when to come again."""
        now = self._clock()
        purses = [
            (self._spent[client_id, kind], APP_LIMITS[kind]),
            (self._spent["", kind], TENANT_LIMITS[kind]),
        ]
        for spent, limit in purses:
            while spent and spent[0] <= now - WINDOW:
                spent.popleft()
            if len(spent) >= limit:
                wait = math.ceil(spent[0] + WINDOW - now)
                raise GraphError(429, "Too many requests.", headers={"retry-after": str(max(1, wait))})
        for spent, _ in purses:
            spent.append(now)


def token_refusal(form: Mapping[str, str]) -> tuple[int, str, int, str] | None:
    """Status, error, AADSTS number and message; None if the form is in order."""
    if form.get("grant_type") != "client_credentials":
        return 400, "unsupported_grant_type", 70003, "The app requested an unsupported grant type."
    if not form.get("scope", "").endswith("/.default"):
        return 400, "invalid_scope", 1002012, "The provided value for scope is not valid."
    secret = sandbox.CLIENTS.get(form.get("client_id", ""))
    if secret is None:
        return 400, "unauthorized_client", 700016, f"The application was not found in tenant {TENANT_ID}."
    if not hmac.compare_digest(form.get("client_secret", "").encode(), secret.encode()):
        return 401, "invalid_client", 7000215, "Invalid client secret provided."
    return None


def challenge() -> dict[str, str]:
    """What a 401 tells of how to authenticate."""
    return {"www-authenticate": f'Bearer realm="", authorization_uri="/{TENANT_ID}/oauth2/v2.0/authorize"'}
