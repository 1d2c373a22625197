# SPDX-License-Identifier: Apache-2.0
"""The public API as the command line uses it: JSON in, JSON out, refusals as sentences."""

import asyncio
import json
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

import httpx

from app.errors import ControlPlaneError

Json = dict[str, Any]
MOST_CUTS, CUT_WAIT = 5, 0.5
"""How often a stream may break off in a row, and seconds until it is asked for again."""


class Refused(ControlPlaneError):
    """The API answered with a problem; ``status`` and ``code`` are its own."""

    def __init__(self, status: int, problem: Json) -> None:
        errors = [f"{error['pointer']}: {error['detail']}" for error in problem.get("errors") or []]
        super().__init__("; ".join([str(problem.get("detail") or problem.get("title") or status), *errors]))
        self.status = status
        self.problem_code = str(problem.get("code", "unknown"))


class Client:
    """One caller of one installation."""

    def __init__(self, url: str, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        self._http = httpx.AsyncClient(base_url=f"{url}/api/v1", headers=headers, timeout=30, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def get(self, path: str, **query: Any) -> Json:
        """The body of a GET.

        Raises:
            Refused: the API answered with a problem.
        """
        return _body(await self._http.get(path, params=query))

    async def post(self, path: str, body: Json | None = None) -> Json:
        """The body of a POST, sent under a key of its own.

        Raises:
            Refused: the API answered with a problem.
        """
        headers = {"Idempotency-Key": str(uuid4())}
        return _body(await self._http.post(path, json=body or {}, headers=headers))

    async def put(self, path: str, body: Json) -> Json:
        """The body of a PUT.

        Raises:
            Refused: the API answered with a problem.
        """
        return _body(await self._http.put(path, json=body))

    async def every(self, path: str, **query: Any) -> list[Json]:
        """All items of a list, page by page."""
        items: list[Json] = []
        cursor: str | None = None
        while True:
            page = await self.get(path, limit=200, **query, **({"cursor": cursor} if cursor else {}))
            items += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return items

    async def events(self, path: str, *, after: str | None = None) -> AsyncIterator[Json]:
        """The events of a live stream until it ends; one that is cut goes on where it was.

        Raises:
            Refused: the API answered with a problem.
            httpx.TransportError: it was cut too often, with nothing between.
        """
        cut = 0
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
            try:
                async with self._http.stream("GET", path, headers=headers) as answer:
                    if answer.is_error:
                        await answer.aread()
                        _body(answer)
                    async for place, event in _events(answer):
                        after, cut = place, 0
                        yield event
            except httpx.TransportError:
                cut += 1
                if cut > MOST_CUTS:
                    raise
                await asyncio.sleep(CUT_WAIT)
            else:
                return

    async def deployment(self, deployment_id: UUID | str) -> Json:
        """One deployment with its lanes."""
        return await self.get(f"/deployments/{deployment_id}")


async def _events(answer: httpx.Response) -> AsyncIterator[tuple[str, Json]]:
    """Each event of the API's streams, which have an id and one line of data, with its id."""
    place = ""
    async for line in answer.aiter_lines():
        if line.startswith("id: "):
            place = line.removeprefix("id: ")
        elif line.startswith("data: "):
            yield place, json.loads(line.removeprefix("data: "))


def _body(answer: httpx.Response) -> Json:
    body: Json = answer.json()
    if answer.is_error:
        raise Refused(answer.status_code, body)
    return body
