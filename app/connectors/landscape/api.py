# SPDX-License-Identifier: Apache-2.0
"""Landscape's two APIs: REST v2, and the older one of actions, which alone installs, removes and cancels.

Source: Canonical's documentation of both (docs/reference/api, 2026). The token of a login serves both.
"""

import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any

import httpx
from pydantic import SecretStr

from app.connectors.rest import Headers, Json, Params, Rest
from app.resilience import ResilientClient, Safety
from app.resilience.auth import DEFAULT_LIFETIME, HeldToken

SERVICE = "landscape"
VERSION = "2011-08-01"
"""Of the API of actions; it must be named in each of its calls."""
ROWS = 1000
"""The most rows asked for at once: the documented default."""


class Login(HeldToken):
    """A session got with an access key, or with a person's email and password.

    ``me`` is who the plane says we are, once somebody has logged in.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        path: str,
        body: Mapping[str, str | SecretStr],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(SERVICE, clock)
        self._http = http
        self._path = path
        self._body = body
        self.me: str | None = None

    def _credentials(self) -> tuple[str, ...]:
        return tuple(
            value.get_secret_value() for value in self._body.values() if isinstance(value, SecretStr)
        )

    async def _fetch(self, held: SecretStr | None) -> tuple[SecretStr, float]:
        del held
        plain = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in self._body.items()
        }
        answer = await self._http.post(self._path, json=plain, extensions={"safety": Safety.IDEMPOTENT})
        token, _ = self._told(answer, "token", "expires_in")
        self.me = answer.json().get("email")
        return token, lifetime(token)


def lifetime(token: SecretStr) -> float:
    """Seconds until a JWT ends by its own word; a short time for one that does not say.

    The signature is the plane's business: a wrong word costs one renewal too many or too few.
    """
    try:
        _, claims, _ = token.get_secret_value().split(".")
        told = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        return max(1.0, float(told["exp"]) - time.time())
    except (ValueError, KeyError, TypeError):
        return DEFAULT_LIFETIME


class Api:
    """Both APIs as the connector speaks them."""

    def __init__(self, http: ResilientClient) -> None:
        self._rest = Rest(http, "Landscape", items="results", link="next")

    async def get(self, path: str, params: Params, *, headers: Headers | None = None) -> Json:
        """One object of REST v2."""
        return await self._rest.get(f"/v2{path}", params=params, headers=headers)

    def items_of(self, page: Json) -> list[Json]:
        """The objects of a page."""
        return self._rest.items_of(page)

    def pages(
        self, path: str, params: Params, *, headers: Headers | None = None
    ) -> AsyncIterator[list[Json]]:
        """A collection of REST v2, page by page."""
        return self._rest.pages(f"/v2{path}", params=params, headers=headers)

    async def queue(self, action: str, params: Params, *, headers: Headers) -> Json:
        """Have something done by an action; the activity it became.

        Raises:
            AmbiguousError: it may have been queued.
        """
        answer = await self._action(action, params, headers=headers, safety=Safety.UNSAFE)
        return self._rest.made(answer)

    async def activities(
        self, query: str, *, headers: Headers | None = None, rows: int = ROWS, offset: int = 0
    ) -> AsyncIterator[Sequence[Json]]:
        """What the older API finds, in pages; its answers are lists without an end that is told."""
        while True:
            params = {"query": query, "limit": str(rows), "offset": str(offset)}
            page = self._listed(await self._action("GetActivities", params, headers=headers))
            if page:
                yield page
            if len(page) < rows:
                return
            offset += rows

    async def cancel(self, query: str, *, headers: Headers) -> str:
        """Cancel activities, all of them or none; why not, empty if they were. May be repeated."""
        answer = await self._action("CancelActivities", {"query": query}, headers=headers, accept={400})
        return "" if answer.is_success else answer.text.strip()

    async def _action(
        self,
        action: str,
        params: Params,
        *,
        headers: Headers | None = None,
        safety: Safety = Safety.IDEMPOTENT,
        accept: Collection[int] = (),
    ) -> httpx.Response:
        """A GET whatever it does, so that its safety has to be said."""
        named = {"action": action, "version": VERSION, **params}
        return await self._rest.send("GET", "/", params=named, headers=headers, safety=safety, accept=accept)

    def _listed(self, answer: httpx.Response) -> list[Json]:
        try:
            rows: Any = answer.json()
        except ValueError as error:
            raise self._rest.wrong("something that is not JSON") from error
        if not isinstance(rows, list):
            raise self._rest.wrong("something that is not a list")
        return rows


def numbered(name: str, values: Sequence[str]) -> Params:
    """A list as the older API wants it, counted from 1 even if it has one member."""
    return {f"{name}.{place}": value for place, value in enumerate(values, 1)}


def describe(answer: httpx.Response) -> str:
    """The message of an error body, or the text."""
    try:
        body = answer.json()
        return f"{body.get('error', '')} {body.get('message', '')}".strip()
    except (ValueError, AttributeError):
        return answer.text
