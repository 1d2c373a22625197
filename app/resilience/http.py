# SPDX-License-Identifier: Apache-2.0
"""The client for every HTTP call out.

An answer is returned only if it is one the caller can work with (2xx, 304, or a status named in ``accept``);
everything else is raised as its class of ``errors``.
"""

import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from uuid import uuid4

import httpx
from pydantic import SecretStr

from app import telemetry
from app.resilience import registry, transport
from app.resilience.auth import Authenticator
from app.resilience.breaker import ServiceBreaker
from app.resilience.bulkhead import Bulkhead
from app.resilience.classify import (
    Refine,
    Safety,
    as_the_status_says,
    classify_response,
    default_safety,
)
from app.resilience.errors import AuthExpired, CallError, PermanentError
from app.resilience.guard import Attempt, Guard
from app.resilience.handshake import Handshakes
from app.resilience.registry import Breakers
from app.resilience.retry import DEFAULT_RETRY, RetryProfile
from app.resilience.streamed import StreamedBody, judged
from app.resilience.transport import Wire

MAX_ANSWER_BYTES = 10 * 2**20
MAX_EXCERPT_CHARACTERS = 400
MAX_REDIRECTS = 5
CONNECT_TIMEOUT = 5.0
CONSUMED_HEADERS = {b"content-encoding", b"content-length", b"transfer-encoding"}
"""What no longer holds of a body that was read and decoded."""
LOOKS_SECRET = re.compile(
    r"(?i)(bearer\s+|\b(?:sig|token|secret|password|client_secret|access_token|api_?key)\b[\"']?\s*[=:]\s*[\"']?)"
    r"[^\s&\"',;}]+"
)


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What a request may say about itself in ``extensions``.

    ``safety``: whether it may be repeated (by default the method's); ``accept``: error statuses that are
    answers; ``profile``: other patience; ``max_bytes``: another limit of the decoded body. And ``body``, a
    ``FileBody`` in place of content.
    """

    safety: Safety
    accept: frozenset[int]
    profile: RetryProfile
    max_bytes: int

    @classmethod
    def of(cls, request: httpx.Request, default: RetryProfile) -> "CallOptions":
        """Read the options of a request."""
        wish = request.extensions
        return cls(
            safety=Safety(wish.get("safety") or default_safety(request.method)),
            accept=frozenset(wish.get("accept", ())),
            profile=wish.get("profile") or default,
            max_bytes=wish.get("max_bytes", MAX_ANSWER_BYTES),
        )


def text_of(answer: httpx.Response) -> str:
    """The body as it is."""
    return answer.text


def create_resilient_client(
    service: str,
    *,
    base_url: str = "",
    auth: Authenticator | httpx.Auth | None = None,
    max_concurrency: int = 10,
    profile: RetryProfile = DEFAULT_RETRY,
    breakers: Breakers | None = None,
    breaker: ServiceBreaker | None = None,
    verify: ssl.SSLContext | None = None,
    describe: Callable[[httpx.Response], str] = text_of,
    transient: Collection[int] = (),
    refine: Refine = as_the_status_says,
) -> "ResilientClient":
    """A client of one service, to be shared by all callers of this process and closed at the end.

    ``auth`` is used for addresses of ``base_url``'s origin only; one of httpx's own kind has a connection
    for each call's handshake. ``transient``: statuses by which the service says that it will do later.
    ``breakers``: where the service's breaker is, by default this process's; ``breaker``: one of its own.
    ``describe`` finds the vendor's words in a refusal; ``refine`` what they mean, where the status does not
    tell.

    Raises:
        UnknownService: the message lists the known ones.
    """
    known = breakers or registry.current()
    guard = Guard(service, breaker or known.get(service), Bulkhead(service, max_concurrency))
    if breaker is None:
        known.serves(service, guard.policy(profile))
    return ResilientClient(
        guard,
        Wire(max_concurrency, verify),
        base_url=base_url,
        token_source=None if isinstance(auth, httpx.Auth) else auth,
        handshakes=Handshakes(auth, verify) if isinstance(auth, httpx.Auth) else None,
        profile=profile,
        describe=describe,
        transient=frozenset(transient),
        refine=refine,
    )


class ResilientClient(httpx.AsyncClient):
    """An ``httpx.AsyncClient`` whose ``send`` is guarded; no cookies, no redirects to other hosts."""

    def __init__(
        self,
        guard: Guard,
        wire: Wire,
        *,
        base_url: str,
        token_source: Authenticator | None,
        handshakes: Handshakes | None,
        profile: RetryProfile,
        describe: Callable[[httpx.Response], str],
        transient: frozenset[int],
        refine: Refine,
    ) -> None:
        timeout = httpx.Timeout(profile.attempt_timeout, connect=CONNECT_TIMEOUT, pool=None)
        super().__init__(base_url=base_url, transport=wire, timeout=timeout, trust_env=False)
        self.service = guard.service
        self._guard = guard
        self._wire = wire
        self._token_source = token_source
        self._handshakes = handshakes
        self._transient = transient
        self._profile = profile
        self._describe = describe
        self._refine = refine

    async def send(
        self, request: httpx.Request, *, stream: bool = False, auth: Any = None, follow_redirects: Any = None
    ) -> httpx.Response:
        """Send through deadline, retry, bulkhead, breaker and attempt timeout.

        With ``stream`` the body is left to the caller, who closes the answer; its errors are classified too.
        The extension ``began`` of the answer: when its attempt was begun, on ``time.monotonic()``.

        Raises:
            CallError: no answer that the caller can work with.
        """
        del auth, follow_redirects  # httpx's own ways of doing both are not used
        if self.is_closed:
            raise RuntimeError(f"the client of {self.service} is closed")
        options = CallOptions.of(request, self._profile)
        await request.aread()  # it may have to be sent again
        _correlate(request.headers)
        if self._token_source is not None and self._is_at_home(request.url):
            self._guard.check()  # no token is asked for that could not be used
            await self._token_source.token()  # outside the guard: its troubles are not this service's

        async def exchange(attempt: Attempt) -> httpx.Response:
            began = time.monotonic()
            transport.attempt.set(attempt)
            response = await self._exchange(request, options, stream=stream)
            response.extensions["began"] = began
            if isinstance(response.stream, StreamedBody):
                response.stream.attempt, attempt.goes_on = attempt, True
            return response

        return await self._guard.run(exchange, safety=options.safety, profile=options.profile)

    @asynccontextmanager
    async def reading(self, request: httpx.Request) -> AsyncIterator[httpx.Response]:
        """The answer to a request, whose worth shows as it is read: as the block ends, so did the call.

        For streams in which an error may come after a good status. Whoever is stopped has seen nothing.

        Raises:
            CallError: as of ``send``; or the class of what the block raised.
        """
        async with judged(await self.send(request, stream=True)) as response:
            yield response

    def pause(self, seconds: float) -> None:
        """Nobody of the fleet calls the service for so long: it told that no more is allowed."""
        self._guard.pause(seconds)

    async def _exchange(
        self, request: httpx.Request, options: CallOptions, *, stream: bool
    ) -> httpx.Response:
        response = await self._authenticated(request)
        try:
            if response.is_success and stream:
                return self._handed_over(response, options)
            answer = await self._read(response, options.max_bytes)
        except BaseException:
            await response.aclose()
            raise
        if answer.status_code not in options.accept:
            self._raise_unless_ok(answer, options)
        return answer

    async def _authenticated(self, request: httpx.Request) -> httpx.Response:
        at_home = self._is_at_home(request.url)
        if self._handshakes is not None and at_home:
            return await self._handshakes.exchange(request, self._follow)
        if self._token_source is None or not at_home:
            return await self._follow(self._wire, request)
        source = self._token_source
        token = await source.token()
        response = await self._follow(self._wire, _with_token(request, source, token))
        refused = classify_response(response, service=self.service, safety=Safety.IDEMPOTENT, refreshed=False)
        if not isinstance(refused, AuthExpired):
            return response
        await response.aclose()
        token = await source.renew(token)
        return await self._follow(self._wire, _with_token(request, source, token))

    async def _follow(self, wire: Wire, request: httpx.Request) -> httpx.Response:
        for _ in range(MAX_REDIRECTS):
            response = await wire.handle_async_request(request)
            response.request = request
            if request.method not in {"GET", "HEAD"} or not response.has_redirect_location:
                return response
            await response.aclose()
            request = self._redirected(request, request.url.join(response.headers["location"]))
        raise PermanentError(
            f"{self.service} redirects more than {MAX_REDIRECTS} times", service=self.service
        )

    async def aclose(self) -> None:
        """Close every connection."""
        self._guard.bulkhead.end_ramp()
        if self._handshakes is not None:
            await self._handshakes.aclose()
        await super().aclose()

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        """The same: httpx closes its transport only."""
        self._guard.bulkhead.end_ramp()
        if self._handshakes is not None:
            await self._handshakes.aclose()
        await super().__aexit__(kind, error, trace)

    def _redirected(self, request: httpx.Request, target: httpx.URL) -> httpx.Request:
        if _origin(target) != _origin(request.url):
            raise PermanentError(
                f"{self.service} redirects to another host, {target.host}", service=self.service
            )
        headers = {name: value for name, value in request.headers.items() if name != "host"}
        return httpx.Request(request.method, target, headers=headers, extensions=request.extensions)

    def _is_at_home(self, url: httpx.URL) -> bool:
        return _origin(url) == _origin(self.base_url)

    def _handed_over(self, response: httpx.Response, options: CallOptions) -> httpx.Response:
        response.stream = StreamedBody(response.stream, self._guard, options.safety)
        return response

    async def _read(self, response: httpx.Response, limit: int) -> httpx.Response:
        """The whole answer, decoded, at most ``limit`` bytes."""
        assert isinstance(response.stream, httpx.AsyncByteStream)
        by_httpx = response.is_stream_consumed or "content-encoding" in response.headers
        parts, size = [], 0
        async for part in response.aiter_bytes() if by_httpx else response.stream:
            size += len(part)
            if size > limit:
                raise PermanentError(f"{self.service} sent more than {limit} bytes", service=self.service)
            parts.append(part)
        await response.aclose()
        headers = response.headers.raw  # bytes: they may be in any coding
        if size > 0:
            headers = [pair for pair in headers if pair[0].lower() not in CONSUMED_HEADERS]
        return httpx.Response(
            response.status_code,
            headers=headers,
            content=b"".join(parts),
            request=response.request,
            extensions=response.extensions,
        )

    def _raise_unless_ok(self, answer: httpx.Response, options: CallOptions) -> None:
        if answer.is_success:  # it may be large, and only a refusal is read for what it says
            return
        error = classify_response(
            answer,
            service=self.service,
            safety=options.safety,
            excerpt=self.excerpt(answer),
            transient=self._transient,
            meaning=self._refine(answer),
        )
        if error is not None:
            raise error

    def excerpt(self, answer: httpx.Response) -> str:
        """What a refusal says, in one line, with everything that is or looks like a secret cut out."""
        return self.redacted(self._describe(answer))

    def redacted(self, words: str) -> str:
        """A vendor's words, treated in the same way."""
        text = " ".join("".join(each if each.isprintable() else " " for each in words).split())
        source = self._token_source or self._handshakes
        for secret in () if source is None else source.secrets():
            text = text.replace(secret, "***")
        return LOOKS_SECRET.sub(r"\1***", text)[:MAX_EXCERPT_CHARACTERS]


def _correlate(headers: httpx.Headers) -> None:
    """Say on whose behalf we call: the correlation id of the work, and its place in the trace."""
    if "X-Correlation-ID" not in headers:
        headers["X-Correlation-ID"] = str(telemetry.correlation_id.get() or uuid4())
    if "traceparent" not in headers:
        place = telemetry.trace.get()
        headers["traceparent"] = (place.child() if place else telemetry.Trace.begin()).header


def _with_token(request: httpx.Request, source: Authenticator, token: SecretStr) -> httpx.Request:
    headers = httpx.Headers(request.headers)
    headers[source.header] = f"{source.scheme} {token.get_secret_value()}".lstrip()
    return httpx.Request(
        request.method, request.url, headers=headers, content=request.content, extensions=request.extensions
    )


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


__all__ = ["CallError", "CallOptions", "ResilientClient", "create_resilient_client"]
