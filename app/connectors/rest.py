# SPDX-License-Identifier: Apache-2.0
"""JSON over HTTP as every vendor's connector speaks it: objects checked, pages followed, effects named."""

from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

import httpx
from pydantic import BaseModel

from app.connectors.contract import App, Assignment
from app.resilience import ResilientClient, Safety
from app.resilience.errors import AmbiguousError, PermanentError
from app.telemetry import correlation_id

MAX_PAGE_BYTES = 50 * 2**20
CORRELATION = ("X-Correlation-ID",)

Json = dict[str, Any]
Headers = Mapping[str, str]
Params = Mapping[str, str]
P = TypeVar("P", bound=BaseModel)


def effect_headers(effect: App | Assignment, *, names: Collection[str] = CORRELATION) -> Headers:
    """What every request made for an effect carries; ``effect`` has its key."""
    return {"X-Effect-Key": effect.key, **dict.fromkeys(names, str(effect.correlation_id))}


def package_of(app: App, *kinds: type[P], refusal: str, service: str) -> P:
    """The application's package, which must be of one of these kinds.

    Raises:
        PermanentError: it is of another; ``refusal`` is how the sentence begins.
    """
    if isinstance(app.package, kinds):
        return app.package
    raise PermanentError(f"{refusal} packages of kind {app.package.kind}", service=service)


@dataclass(frozen=True, slots=True)
class Rest:
    """A vendor's API: its ``name`` for messages, where a page has its items and the link to the next.

    ``correlation``: the headers by which the vendor, too, may know a request.
    """

    http: ResilientClient
    name: str
    items: str
    link: str
    correlation: tuple[str, ...] = CORRELATION

    async def get(self, path: str, *, params: Params | None = None, headers: Headers | None = None) -> Json:
        """One object."""
        return self.object_of(await self.send("GET", path, params=params, headers=headers))

    async def post(
        self,
        path: str,
        body: Json,
        *,
        headers: Headers | None = None,
        safety: Safety = Safety.UNSAFE,
        accept: Collection[int] = (),
    ) -> Json:
        """Create or act; the answer's object, empty where there is none.

        Raises:
            AmbiguousError: an unsafe request was carried out, perhaps; its answer is lost or unreadable.
        """
        answer = await self.send("POST", path, json=body, headers=headers, safety=safety, accept=accept)
        return self.made(answer, safety=safety)

    def made(self, answer: httpx.Response, *, safety: Safety = Safety.UNSAFE) -> Json:
        """The object that an action answered with; unreadable, nobody knows what it did.

        Raises:
            AmbiguousError: of an unsafe request; PermanentError: of another.
        """
        try:
            return self.object_of(answer)
        except PermanentError as error:
            if safety is Safety.UNSAFE:
                service, status = self.http.service, answer.status_code
                raise AmbiguousError(error.detail, service=service, status=status) from error
            raise

    def object_of(self, answer: httpx.Response) -> Json:
        """The answer's object, empty where there is none.

        Raises:
            PermanentError: it is something else.
        """
        if not answer.content:
            return {}
        try:
            body = answer.json()
        except ValueError as error:
            raise self.wrong("something that is not JSON") from error
        if not isinstance(body, dict):
            raise self.wrong("something that is not an object")
        return body

    async def put(self, path: str, body: Json, *, headers: Headers) -> Json:
        """Replace an object; a repeat changes nothing more."""
        return self.object_of(await self.send("PUT", path, json=body, headers=headers))

    async def patch(self, path: str, body: Json, *, headers: Headers) -> None:
        """Set members; a repeat changes nothing more."""
        await self.send("PATCH", path, json=body, headers=headers, safety=Safety.IDEMPOTENT)

    async def delete(self, path: str, *, headers: Headers) -> None:
        """Remove; what is gone already is fine."""
        await self.send("DELETE", path, headers=headers, accept={404})

    async def pages(
        self, path: str, *, params: Params | None = None, headers: Headers | None = None
    ) -> AsyncIterator[list[Json]]:
        """The collection page by page; only one page is held."""
        async for items, _ in self.linked_pages(path, params=params, headers=headers):
            yield items

    async def linked_pages(
        self,
        path: str,
        *,
        params: Params | None = None,
        headers: Headers | None = None,
        link: str | None = None,
    ) -> AsyncIterator[tuple[list[Json], str | None]]:
        """Each page with the link to the next, None at the end; from such a ``link`` on, if it is given."""
        seen: set[str] = set()
        following: str | None = path
        if link is not None:
            following, params = self._checked(link, seen), None
        while following is not None:
            page = await self.get(following, params=params, headers=headers)
            link, params = page.get(self.link), None  # the link carries the query itself
            following = None if link is None else self._checked(link, seen)
            yield self.items_of(page), link

    async def every(
        self, path: str, *, params: Params | None = None, headers: Headers | None = None
    ) -> list[Json]:
        """All of a collection that is known to be short."""
        return [found async for page in self.pages(path, params=params, headers=headers) for found in page]

    async def send(
        self,
        method: str,
        path: str,
        *,
        headers: Headers | None = None,
        safety: Safety | None = None,
        accept: Collection[int] = (),
        **rest: Any,
    ) -> httpx.Response:
        """One request on its way through all that guards it."""
        default = dict.fromkeys(self.correlation, str(correlation_id.get() or uuid4()))
        extensions = {"safety": safety, "accept": accept, "max_bytes": MAX_PAGE_BYTES}
        return await self.http.request(
            method, path, headers=dict(headers or default), extensions=extensions, **rest
        )

    def items_of(self, page: Json) -> list[Json]:
        """The objects of a page.

        Raises:
            PermanentError: it is no page.
        """
        items = page.get(self.items)
        if not isinstance(items, list):
            raise self.wrong(f"a page that has no {self.items}")
        return items

    def wrong(self, what: str) -> PermanentError:
        """The error for an answer that is not what this vendor's answers are."""
        return PermanentError(f"{self.name} answered with {what}", service=self.http.service)

    def lost(self, what: str) -> AmbiguousError:
        """The error for a success that does not tell what was made."""
        return AmbiguousError(
            f"{self.name} created {what} and did not say which", service=self.http.service, status=201
        )

    def _checked(self, link: str, seen: set[str]) -> str:
        """The link's whole address: it may be a path only, and must lead on, to the same host."""
        address = self.http.base_url.join(link)
        if str(address) in seen or address.host != self.http.base_url.host:
            detail = "a page leads to itself or to another host"
            raise PermanentError(detail, service=self.http.service)
        seen.add(str(address))
        return str(address)
