# SPDX-License-Identifier: Apache-2.0
"""What is true of every exchange, routed or not: correlation, limits, headers, one log line. Pure ASGI."""

import time
from http import HTTPStatus
from uuid import UUID

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import telemetry
from app.api.body import MAX_BODY
from app.api.problems import problem
from app.api.streams import HEAD_ONLY
from app.models import new_id

log = telemetry.logger(__name__)

HEADERS = [
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]
"""Answers are for the one who asked, are what their type says, and belong in nobody's frame."""


class Edge:
    """The outermost layer: what it catches was foreseen by nobody and becomes a 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one exchange; a lifespan passes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if len(scope["path"]) > 1:
            scope["path"] = scope["path"].removesuffix("/")  # served in place, never redirected
        await Exchange(self._app, scope, receive, send).run()


class Exchange:
    """One request and its response. HEAD is served as GET, and what would be the body is dropped here."""

    def __init__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        self._method: str = scope["method"]
        self._is_head = self._method == "HEAD"
        if self._is_head:
            scope = {**scope, "method": "GET", HEAD_ONLY: True}  # the server goes by its own: it stays HEAD
        self._app, self._scope = app, scope
        self._receive_raw, self._send_raw = receive, send
        self._received = self._status = 0
        self._length: int | None = None
        self._correlation_id = new_id()
        self._trace: telemetry.Trace | None = None
        self._read_headers()

    def _read_headers(self) -> None:
        for name, value in self._scope["headers"]:
            if name == b"content-length":
                self._length = int(value) if value.isdigit() else None
            elif name == b"x-correlation-id":
                self._correlation_id = _uuid(value) or self._correlation_id
            elif name == b"traceparent":
                self._trace = telemetry.Trace.parse(value.decode("latin-1"))
        self._scope["correlation_id"] = self._correlation_id

    async def run(self) -> None:
        """Serve it, whatever happens."""
        began = time.perf_counter()
        token = telemetry.trace.set(self._trace)
        try:
            with telemetry.correlated(self._correlation_id):
                await self._serve()
                self._log(time.perf_counter() - began)
        finally:
            telemetry.trace.reset(token)

    async def _serve(self) -> None:
        try:
            if self._length is not None and self._length > MAX_BODY:
                await self._refuse_body()
            else:
                await self._app(self._scope, self._receive, self._send)
        except Exception:
            # Nobody else catches what nobody foresaw; the answer lets the client tell us about it.
            log.exception("request_failed", method=self._method, path=self._scope["path"])
            if self._status:
                raise
            answer = problem(
                self._scope, HTTPStatus.INTERNAL_SERVER_ERROR, "this is our fault; it has been logged"
            )
            await answer(self._scope, self._receive_raw, self._send)

    async def _refuse_body(self) -> None:
        answer = problem(self._scope, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TOO_LARGE)
        await answer(self._scope, self._receive_raw, self._send)

    async def _receive(self) -> Message:
        message = await self._receive_raw()
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            if self._received > MAX_BODY:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TOO_LARGE)
        return message

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            own = (b"x-correlation-id", str(self._correlation_id).encode())
            message["headers"] = [*message.get("headers", ()), *HEADERS, own]
        elif self._is_head:
            message = {**message, "body": b""}
        await self._send_raw(message)

    def _log(self, seconds: float) -> None:
        telemetry.tell(
            "request",
            method=self._method,
            path=self._scope["path"],
            status=self._status,
            milliseconds=round(seconds * 1000, 1),
            actor=self._scope.get("actor"),
        )


TOO_LARGE = f"a body may have at most {MAX_BODY} bytes"


def _uuid(value: bytes) -> UUID | None:
    try:
        return UUID(value.decode("ascii"))
    except ValueError:
        return None
