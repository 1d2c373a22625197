# SPDX-License-Identifier: Apache-2.0
"""One request through plain httpx and through our client, and what each caller sees."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any, TypeVar

import aiohttp
import httpx

from app.resilience import ResilientClient, RetryProfile, ServiceBreaker, create_resilient_client
from app.resilience.errors import CallError
from tests.resilience.misbehaving import Received

ONCE = RetryProfile(attempts=1, shortest=0, longest=0, attempt_timeout=5.0, total=10.0)
OURS = {"x-correlation-id", "traceparent"}
"""What our client adds to every request."""
TAKEN_OFF = {b"content-encoding", b"content-length", b"transfer-encoding"}
"""What no longer holds of a body that was read and decoded."""

Raised = TypeVar("Raised", bound=Exception)
Request = Mapping[str, Any]


@dataclass(frozen=True)
class Seen:
    """An answer, headers as the service spelled them."""

    status: int
    version: str
    reason: str
    headers: list[tuple[bytes, bytes]]
    body: bytes

    @classmethod
    def of(cls, response: httpx.Response) -> "Seen":
        return cls(
            response.status_code,
            response.http_version,
            response.reason_phrase,
            response.headers.raw,
            response.content,
        )

    def read_whole(self) -> "Seen":
        """As our client hands it over: headers that told of the body's transport are gone."""
        if not self.body:
            return self
        headers = [pair for pair in self.headers if pair[0].lower() not in TAKEN_OFF]
        length = (b"Content-Length", str(len(self.body)).encode())
        return Seen(self.status, self.version, self.reason, [*headers, length], self.body)


def plain(*, verify: SSLContext | bool = True) -> httpx.AsyncClient:
    """httpx with its own transport."""
    return httpx.AsyncClient(verify=verify, timeout=5.0)


def ours(*, verify: SSLContext | None = None, **options: Any) -> ResilientClient:
    """Our client, that tries once."""
    breaker = options.pop("breaker", None) or ServiceBreaker("intune")
    return create_resilient_client("intune", profile=ONCE, breaker=breaker, verify=verify, **options)


async def asked(
    client: AbstractAsyncContextManager[httpx.AsyncClient], method: str, url: str, **request: Any
) -> httpx.Response | Exception:
    """What comes of one request; ``content`` may be a function that makes it."""
    if callable(content := request.get("content")):
        request["content"] = content()
    async with client as open_client:
        try:
            return await open_client.request(method, url, **request)
        except (httpx.HTTPError, CallError) as error:
            return error


async def both(
    method: str, url: str, *, verify: SSLContext | None = None, **request: Any
) -> tuple[httpx.Response | Exception, httpx.Response | Exception]:
    """The same through plain httpx and through ours, in this order."""
    accept = range(100, 1000)  # which statuses are errors is not what is compared
    return (
        await asked(plain(verify=True if verify is None else verify), method, url, **request),
        await asked(ours(verify=verify), method, url, extensions={"accept": accept}, **request),
    )


def answered(outcome: httpx.Response | Exception) -> httpx.Response:
    """It came to an answer."""
    assert isinstance(outcome, httpx.Response), outcome
    return outcome


def raised(outcome: httpx.Response | Exception, kind: type[Raised]) -> Raised:
    """It came to an error."""
    assert isinstance(outcome, kind), outcome
    return outcome


def sent(request: Received) -> tuple[str, str, bytes, list[tuple[str, str]]]:
    """A request without what our client adds; in which order headers come means nothing."""
    lines = sorted(line for line in request.lines if line[0].lower() not in OURS)
    return request.method, request.target, request.body, lines


def checked_out(client: ResilientClient) -> int:
    """Connections that some call has, or waits for."""
    sessions = [pool.client for pool in client._wire._pools.values()]
    connectors = [session.connector for session in sessions if isinstance(session, aiohttp.ClientSession)]
    return sum(len(each._acquired) + len(each._waiters) for each in connectors if each is not None)
