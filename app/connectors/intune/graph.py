# SPDX-License-Identifier: Apache-2.0
"""Microsoft Graph's conventions: JSON in and out, pages by ``@odata.nextLink``, one header set per effect."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx

from app.resilience import ResilientClient, Safety
from app.resilience.errors import AmbiguousError, PermanentError
from app.telemetry import correlation_id

SERVICE = "intune"
MAX_PAGE_BYTES = 50 * 2**20

Json = dict[str, Any]
Headers = Mapping[str, str]


def effect_headers(key: str, identity: UUID) -> Headers:
    """What every request made for an effect carries."""
    return {"X-Effect-Key": key, **_correlation(str(identity))}


def _correlation(value: str) -> Headers:
    return {"X-Correlation-ID": value, "client-request-id": value}


def describe(answer: httpx.Response) -> str:
    """Code and message of Graph's error body; the body itself where it is none."""
    try:
        error = answer.json()["error"]
        return f"{error['code']}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return answer.text


@dataclass(frozen=True, slots=True)
class Graph:
    """Graph as the connector sees it."""

    http: ResilientClient

    async def get(
        self, path: str, *, params: Mapping[str, str] | None = None, headers: Headers | None = None
    ) -> Json:
        """One object."""
        return _object(await self._send("GET", path, params=params, headers=headers))

    async def post(
        self, path: str, body: Json, *, headers: Headers | None = None, safety: Safety = Safety.UNSAFE
    ) -> Json:
        """Create or act; the answer's object, empty where there is none.

        Raises:
            AmbiguousError: an unsafe request was carried out, perhaps; its answer is lost or unreadable.
        """
        answer = await self._send("POST", path, json=body, headers=headers, safety=safety)
        try:
            return _object(answer)
        except PermanentError as error:
            if safety is Safety.UNSAFE:
                raise AmbiguousError(error.detail, service=SERVICE, status=answer.status_code) from error
            raise

    async def patch(self, path: str, body: Json, *, headers: Headers) -> None:
        """Set members; a repeat changes nothing more."""
        await self._send("PATCH", path, json=body, headers=headers, safety=Safety.IDEMPOTENT)

    async def delete(self, path: str, *, headers: Headers) -> None:
        """Remove; what is gone already is fine."""
        await self._send("DELETE", path, headers=headers, accept={404})

    async def pages(
        self, path: str, *, params: Mapping[str, str] | None = None, headers: Headers | None = None
    ) -> AsyncIterator[list[Json]]:
        """The collection page by page; only one page is held."""
        link: str | None = path
        seen: set[str] = set()
        while link is not None:
            page = await self.get(link, params=params, headers=headers)
            yield _items(page)
            link, params = page.get("@odata.nextLink"), None  # the link carries the query itself
            if link is not None:
                self._check_link(link, seen)

    def _check_link(self, link: str, seen: set[str]) -> None:
        if link in seen or not httpx.URL(link).host == self.http.base_url.host:
            raise PermanentError("a page leads to itself or to another host", service=SERVICE)
        seen.add(link)

    async def _send(
        self,
        method: str,
        path: str,
        *,
        headers: Headers | None = None,
        safety: Safety | None = None,
        accept: Any = (),
        **rest: Any,
    ) -> httpx.Response:
        sent = dict(headers or _correlation(str(correlation_id.get() or uuid4())))
        extensions = {"safety": safety, "accept": accept, "max_bytes": MAX_PAGE_BYTES}
        return await self.http.request(method, path, headers=sent, extensions=extensions, **rest)


def _object(answer: httpx.Response) -> Json:
    if not answer.content:
        return {}
    try:
        body = answer.json()
    except ValueError as error:
        raise PermanentError("Graph answered with something that is not JSON", service=SERVICE) from error
    if not isinstance(body, dict):
        raise PermanentError("Graph answered with something that is not an object", service=SERVICE)
    return body


def _items(page: Json) -> list[Json]:
    items = page.get("value")
    if not isinstance(items, list):
        raise PermanentError("Graph answered with a page that has no value", service=SERVICE)
    return items
