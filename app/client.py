# SPDX-License-Identifier: Apache-2.0
"""The public API as the command line uses it: JSON in, JSON out, refusals as sentences."""

from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

import httpx

from app.errors import ControlPlaneError

Json = dict[str, Any]


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

    async def deployment(self, deployment_id: UUID | str) -> Json:
        """One deployment with its lanes."""
        return await self.get(f"/deployments/{deployment_id}")


def _body(answer: httpx.Response) -> Json:
    body: Json = answer.json()
    if answer.is_error:
        raise Refused(answer.status_code, body)
    return body
