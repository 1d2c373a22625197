# SPDX-License-Identifier: Apache-2.0
"""What the vendors other than Graph have in common: refusals with a body of their own, JSON in, pages out."""

import base64
import binascii
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

import sandbox
from sandbox.journal import Document
from sandbox.plane import Plane

Answer = Callable[[int, str], Response]
"""A vendor's error body for a status and some words."""


class Refused(Exception):
    """A request that the vendor refuses; ``body`` in place of the usual error body, where one is given."""

    def __init__(
        self, status: int, words: str, *, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(words)
        self.status = status
        self.words = words
        self.body = body
        self.headers = dict(headers or {})


class Body(BaseModel):
    """A request's body: strict about types and names, so that a typo is found and not ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)


def application(routes: Sequence[BaseRoute], answer: Answer) -> Starlette:
    """The routes, with the vendor's own words for whatever is refused."""

    async def refuse(_: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            return answer(error.status_code, error.detail)
        if not isinstance(error, Refused):
            raise error
        if error.body is not None:
            return JSONResponse(error.body, error.status, error.headers)
        response = answer(error.status, error.words)
        response.headers.update(error.headers)
        return response

    app = Starlette(routes=list(routes), exception_handlers={Refused: refuse, HTTPException: refuse})
    app.router.redirect_slashes = False
    return app


Check = Callable[[Request], Awaitable[None] | None]


def guarded(app: ASGIApp, check: Check) -> ASGIApp:
    """An application that lets in only what ``check`` does not refuse."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        verdict = check(Request(scope, receive))
        if verdict is not None:
            await verdict
        await app(scope, receive, send)

    return checked


Model = TypeVar("Model", bound=BaseModel)


async def read(request: Request, model: type[Model]) -> Model:
    """The request's body; a wrong one is a 400 that names the fields."""
    try:
        return model.model_validate_json(await request.body() or b"{}")
    except ValidationError as error:
        wrong = {".".join(map(str, item["loc"])): [item["msg"]] for item in error.errors()}
        raise Refused(400, json.dumps(wrong), body=wrong) from error


def number(request: Request, name: str, default: int, *, least: int = 0, most: int = 1_000_000) -> int:
    """A number in the query."""
    try:
        value = int(request.query_params.get(name, default))
    except ValueError as error:
        raise Refused(400, f"{name} is no number") from error
    if value < least:
        raise Refused(400, f"{name} must be at least {least}")
    return min(value, most)


def require_known(request: Request, allowed: Sequence[str]) -> None:
    """Refuse a query parameter that the sandbox does not do: a vendor that ignores one hides a mistake."""
    unknown = sorted(set(request.query_params) - set(allowed))
    if unknown:
        raise Refused(400, f"the sandbox does not know the parameters {', '.join(unknown)}")


def basic_client(request: Request) -> str | None:
    """The client whose credentials come with HTTP Basic; None if they are missing or wrong."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        client, _, secret = base64.b64decode(value).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return client if is_secret(client, secret) else None


def is_secret(client: str, secret: str) -> bool:
    """Whether that is the client's secret."""
    known = sandbox.CLIENTS.get(client)
    return known is not None and hmac.compare_digest(known.encode(), secret.encode())


def row_or_404(table: Mapping[str, Document], request: Request, words: str = "Not found.") -> Document:
    """The row that the path's ``id`` names; the refusal is in the vendor's words."""
    row = table.get(str(request.path_params["id"]))
    if row is None:
        raise Refused(404, words)
    return row


def effect_of(request: Request) -> str | None:
    """The effect a request belongs to, as its sender says."""
    return request.headers.get("x-effect-key")


def documents(table: Mapping[str, Document], kind: str) -> list[dict[str, Any]]:
    """A table's rows as the witness tells them."""
    return [{"type": kind, "id": key, "effect_key": row["effect_key"]} for key, row in table.items()]


class Tokens:
    """Signed tokens in the form of a JWT; they last as long as the plane's control now says."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    @property
    def lifetime(self) -> float:
        """Seconds that a token lasts."""
        return self._plane.faults.document.token_lifetime

    def issue(self, client: str) -> str:
        """A token for a client."""
        now = self._plane.clock()
        claims = {"sub": client, "iat": now, "exp": now + self.lifetime, "jti": secrets.token_hex(8)}
        signed = f"{_coded({'alg': 'HS256', 'typ': 'JWT'})}.{_coded(claims)}"
        return f"{signed}.{self._signature(signed)}"

    def client_of(self, request: Request) -> str | None:
        """The client a request's bearer token was given to; None if it is missing, forged or over."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        signed, _, signature = token.rpartition(".")
        if scheme.lower() != "bearer" or not hmac.compare_digest(signature, self._signature(signed)):
            return None
        coded = signed.rpartition(".")[2]
        claims = json.loads(base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4)))
        over = self._plane.clock() >= claims["iat"] + self.lifetime
        return None if over else str(claims["sub"])

    def _signature(self, signed: str) -> str:
        return hmac.digest(self._plane.secret, signed.encode(), "sha256").hex()


def _coded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
