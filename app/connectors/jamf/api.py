# SPDX-License-Identifier: Apache-2.0
"""Jamf Pro's two APIs: JSON under ``/api``; XML under ``/JSSResource``, which alone knows policies.

Sources: Jamf's document of the Pro API 11.30.1, its pages on client credentials and on clustered instances,
and for the Classic API its document and a client's models. Reads of the Classic API are asked for as JSON.
"""

import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import SecretStr

from app.connectors.jamf.wire import SERVICE
from app.connectors.rest import Headers, Json, Rest
from app.resilience import ResilientClient, Safety
from app.resilience.auth import DEFAULT_LIFETIME, Fixed, HeldToken
from app.resilience.errors import CallError

STICKY = frozenset({"APBALANCEID", "AWSALB", "AWSALBCORS", "jpro-ingress"})
"""Cookies by which a cluster sends us to the node that has what we wrote last."""
MADE = re.compile(r"<id>(\d+)</id>")
XML, JSON = "application/xml", "application/json"


class UserToken(HeldToken):
    """The session of a person's account: kept alive while it lasts, begun anew when it has ended."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        username: str,
        password: SecretStr,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(SERVICE, clock)
        self._http = http
        self._password = password
        self._basic = Fixed.basic(SERVICE, username, password)

    def _credentials(self) -> tuple[str, ...]:
        return (self._password.get_secret_value(), *self._basic.secrets())

    async def _fetch(self, held: SecretStr | None) -> tuple[SecretStr, float]:
        if held is not None:
            try:
                return await self._begin("keep-alive", f"Bearer {held.get_secret_value()}")
            except CallError as error:
                if error.status != HTTPStatus.UNAUTHORIZED:
                    raise  # it ended a moment ago: a new one will do
        return await self._begin("token", f"Basic {self._basic.value.get_secret_value()}")

    async def _begin(self, how: str, authorization: str) -> tuple[SecretStr, float]:
        extensions = {"safety": Safety.IDEMPOTENT}
        headers = {"Authorization": authorization}
        answer = await self._http.post(f"/api/v1/auth/{how}", headers=headers, extensions=extensions)
        token, _ = self._told(answer, "token", "expires_in")
        return token, _until(answer.json().get("expires"))


def _until(expires: Any) -> float:
    """Seconds until an instant; a short time where none is told."""
    try:
        return max(1.0, (datetime.fromisoformat(str(expires)) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return DEFAULT_LIFETIME


class Api:
    """Both APIs as the connector speaks them, on one client of five connections, as Jamf asks for."""

    def __init__(self, http: ResilientClient) -> None:
        self.http = http
        self._rest = Rest(http, "Jamf Pro", items="results", link="")
        self._cookies: dict[str, str] = {}

    async def get(
        self, path: str, params: Mapping[str, Any] | None = None, *, headers: Headers | None = None
    ) -> Json:
        """One object of the Pro API."""
        return self._rest.object_of(await self.send("GET", f"/api{path}", params=params, headers=headers))

    def items_of(self, page: Json) -> list[Json]:
        """The objects of a page."""
        return self._rest.items_of(page)

    async def every(
        self, path: str, params: Mapping[str, Any], *, headers: Headers | None = None
    ) -> list[Json]:
        """All of a collection that its filter keeps short."""
        found: list[Json] = []
        async for page in self.pages(path, params, headers=headers):
            found += page
        return found

    async def pages(
        self, path: str, params: Mapping[str, Any], *, headers: Headers | None = None
    ) -> AsyncIterator[Sequence[Json]]:
        """A collection of the Pro API, by the numbers of its pages."""
        number, seen = 0, 0
        while True:
            page = await self.get(path, {**params, "page": str(number)}, headers=headers)
            items = self.items_of(page)
            if items:
                yield items
            number, seen = number + 1, seen + len(items)
            if not items or seen >= int(page.get("totalCount") or 0):
                return

    async def create(self, path: str, body: Json, *, headers: Headers) -> str:
        """The id of what was made.

        Raises:
            AmbiguousError: it may have been made.
        """
        made = self._rest.made(await self.send("POST", f"/api{path}", json=body, headers=headers))
        if not made.get("id"):
            raise self._rest.lost("an object")
        return str(made["id"])

    async def classic(self, path: str, *, headers: Headers | None = None) -> Json | None:
        """One object of the Classic API; None if there is none."""
        asked = {**(headers or {}), "Accept": JSON}
        answer = await self.send("GET", f"/JSSResource{path}", headers=asked, accept={404})
        if answer.status_code == HTTPStatus.NOT_FOUND:
            return None
        return self._rest.object_of(answer)

    async def classic_write(self, method: str, path: str, xml: bytes, *, headers: Headers) -> str:
        """The id that the Classic API tells of what it made or changed."""
        told = {**headers, "Content-Type": XML, "Accept": XML}
        answer = await self.send(method, f"/JSSResource{path}", content=xml, headers=told)
        found = MADE.search(answer.text)
        if found is None:
            raise self._rest.lost("an object")
        return found[1]

    async def classic_delete(self, path: str, *, headers: Headers) -> None:
        """Remove; what is gone already is fine."""
        await self.send("DELETE", f"/JSSResource{path}", headers=headers, accept={404})

    async def send(
        self,
        method: str,
        path: str,
        *,
        headers: Headers | None = None,
        accept: Collection[int] = (),
        **rest: Any,
    ) -> httpx.Response:
        """One request, to the node that answered the last."""
        sent = dict(headers or {})
        if self._cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        answer = await self._rest.send(method, path, headers=sent or None, accept=accept, **rest)
        for cookie in answer.headers.get_list("set-cookie"):
            name, _, value = cookie.partition(";")[0].partition("=")
            if name.strip() in STICKY:
                self._cookies[name.strip()] = value
        return answer


def named(name: str) -> str:
    """A name as a part of a path."""
    return quote(name, safe="")


def describe(answer: httpx.Response) -> str:
    """What the Pro API says of each error, or an OAuth error's name; the text where it is neither."""
    try:
        body = answer.json()
        if "error" in body:
            return f"{body['error']}: {body.get('error_description', '')}"
        causes = [
            f"{cause.get('code')} {cause.get('field')} {cause.get('description')}" for cause in body["errors"]
        ]
        return "; ".join(causes)
    except (ValueError, KeyError, TypeError, AttributeError):
        return re.sub(r"<[^>]*>", " ", answer.text)
