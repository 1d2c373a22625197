# SPDX-License-Identifier: Apache-2.0
"""What an answer or an exception means: the one function from both to the classes of ``errors``."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http import HTTPStatus
from typing import NamedTuple

import aiohttp
import httpx

from app.resilience.errors import (
    AmbiguousError,
    AttemptTimeout,
    AuthError,
    AuthExpired,
    CallError,
    Cancelled,
    ConflictError,
    DatabaseDown,
    DeadlineExceeded,
    LocalSaturation,
    NotThere,
    PermanentError,
    PolicyError,
    ServerError,
    Throttled,
    TransientError,
    Unexpected,
    Verdict,
)

LONGEST_RETRY_AFTER = 24 * 3600.0
BANDWIDTH_EXCEEDED = 509
NOT_SUPPORTED = {HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED}
GATEWAY_LOST = {HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT}
BROKEN = set(range(500, 600)) - NOT_SUPPORTED
TRY_AGAIN = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.SERVICE_UNAVAILABLE, *GATEWAY_LOST}
DATABASE = "database"
UNREACHED = ConnectionError, TimeoutError, socket.gaierror

Recogniser = Callable[[BaseException], CallError | None]
_recognisers: list[Recogniser] = []


class Safety(StrEnum):
    """Whether a request may be sent twice: by nature, by a key that the service honours, or not at all."""

    IDEMPOTENT = "idempotent"
    KEYED = "keyed"
    UNSAFE = "unsafe"


class Meaning(NamedTuple):
    """What a service's own words say of a refusal, where its status does not.

    ``kind`` stands in place of the status' class, ``wait`` (seconds) where ``Retry-After`` is missing.
    """

    kind: type[CallError] | None = None
    wait: float | None = None


Refine = Callable[[httpx.Response], Meaning]
AS_THE_STATUS_SAYS = Meaning()


def as_the_status_says(_: httpx.Response) -> Meaning:
    """A service whose statuses mean what HTTP says."""
    return AS_THE_STATUS_SAYS


def default_safety(method: str) -> Safety:
    """By HTTP's own rules: POST and PATCH may not be repeated, the others may."""
    return Safety.UNSAFE if method.upper() in {"POST", "PATCH"} else Safety.IDEMPOTENT


def classify(
    outcome: object,
    *,
    service: str,
    safety: Safety = Safety.IDEMPOTENT,
    sent: bool = True,
    refreshed: bool = True,
    excerpt: str = "",
) -> CallError | None:
    """The one class of anything a call can end in; None: it is what was asked for.

    ``sent``: some byte of the request may have reached the service. ``refreshed``: the token was renewed for
    this call already. ``excerpt``: the vendor's words, without secrets. Of a group of errors the worst: first
    what speaks against the service, then what is hardest to mend.
    """
    if isinstance(outcome, httpx.Response):
        return classify_response(
            outcome, service=service, safety=safety, refreshed=refreshed, excerpt=excerpt
        )
    if isinstance(outcome, BaseException):
        found = [
            classify_exception(leaf, service=service, safety=safety, sent=sent) for leaf in leaves(outcome)
        ]
        return max(found, key=_badness)
    return None


def _badness(error: CallError) -> tuple[bool, int, float]:
    return error.verdict is Verdict.FAILURE, error.action, error.retry_after or 0.0


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group, however deep; a plain error itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def classify_response(
    response: httpx.Response,
    *,
    service: str,
    safety: Safety,
    refreshed: bool = True,
    excerpt: str = "",
    transient: Collection[int] = (),
    meaning: Meaning = AS_THE_STATUS_SAYS,
) -> CallError | None:
    """The class of an answer; None for 2xx and 304. Parameters as of ``classify``.

    ``transient``: statuses by which this service says that it will do later; ``meaning`` goes before both.
    """
    status = response.status_code
    if response.is_success or status == HTTPStatus.NOT_MODIFIED:
        return None
    wait = retry_after(response)
    kind = status_class(status, unsafe=safety is Safety.UNSAFE, told_to_wait=wait is not None)
    kind = meaning.kind or (TransientError if status in transient else kind)
    if kind is AuthError and not refreshed:
        kind = AuthExpired
    detail = f"{service} answered {status}" + (f": {excerpt}" if excerpt else "")
    wait = meaning.wait if wait is None else wait
    error = kind(detail, service=service, status=status, retry_after=wait)
    error.words = excerpt
    return error


def status_class(status: int, *, unsafe: bool = False, told_to_wait: bool = False) -> type[CallError]:
    """The class of an error's status."""
    if status in {HTTPStatus.TOO_MANY_REQUESTS, BANDWIDTH_EXCEEDED}:
        return Throttled
    if status == HTTPStatus.SERVICE_UNAVAILABLE and told_to_wait:
        return Throttled
    if unsafe and (status == HTTPStatus.INTERNAL_SERVER_ERROR or status in GATEWAY_LOST):
        return AmbiguousError
    if status in TRY_AGAIN:
        return TransientError
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and status not in NOT_SUPPORTED:
        return ServerError
    return CLIENT_ERRORS.get(status, PermanentError)


CLIENT_ERRORS: dict[int, type[CallError]] = {
    HTTPStatus.UNAUTHORIZED: AuthError,
    HTTPStatus.FORBIDDEN: PolicyError,
    HTTPStatus.NOT_FOUND: NotThere,
    HTTPStatus.GONE: NotThere,
    HTTPStatus.CONFLICT: ConflictError,
    HTTPStatus.PRECONDITION_FAILED: ConflictError,
}


def classify_exception(error: BaseException, *, service: str, safety: Safety, sent: bool) -> CallError:
    """The class of a failed attempt. Parameters as of ``classify``."""
    if isinstance(error, CallError):
        return error
    if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
        return Cancelled(f"the call to {service} was stopped", service=service)
    if isinstance(error, httpx.HTTPStatusError):
        refused = classify_response(error.response, service=service, safety=safety)
        return refused or Unexpected(f"{service} answered {error.response.status_code}", service=service)
    if isinstance(error, httpx.PoolTimeout):
        return LocalSaturation(f"no free connection to {service}", service=service, retry_after=1.0)
    return _recognised(error, service) or _of_network(error, service, safety, sent=sent)


def recognise(recogniser: Recogniser) -> Recogniser:
    """Have ``classify`` ask this first: what a library's own errors mean is known where it is used."""
    _recognisers.append(recogniser)
    return recogniser


def _recognised(error: BaseException, service: str) -> CallError | None:
    found = (recogniser(error) for recogniser in _recognisers)
    known = next((each for each in found if each is not None), None)
    if known is None and service == DATABASE and isinstance(error, UNREACHED):
        return DatabaseDown("the database cannot be reached", service=DATABASE)
    return known


def _of_network(error: BaseException, service: str, safety: Safety, *, sent: bool) -> CallError:
    if not _is_network(error):
        return _local(error, service)
    if _is_bad_certificate(error):
        return PermanentError(f"{service} shows a certificate that is not trusted: {error}", service=service)
    kind = AmbiguousError if sent and safety is Safety.UNSAFE else _lost(error)
    return kind(f"{service} did not answer ({_name(error)})", service=service)


def out_of_time(service: str, *, safety: Safety, sent: bool) -> CallError:
    """The class of a call that its own deadline ended: our limit, not the service's slowness."""
    if sent and safety is Safety.UNSAFE:
        return AmbiguousError(f"the time was over before {service} answered", service=service)
    return DeadlineExceeded(f"the time for the call to {service} was over", service=service)


def _lost(error: BaseException) -> type[TransientError]:
    timed_out = isinstance(error, TimeoutError | httpx.TimeoutException) and not _is_lost_connection(error)
    return AttemptTimeout if timed_out else TransientError


def _local(error: BaseException, service: str) -> CallError:
    if isinstance(error, httpx.DecodingError):
        return PermanentError(f"{service} sent a body that cannot be decoded", service=service)
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        # the text repeats the address, which may hold a password or a signature
        return PermanentError(f"the address of {service} cannot be used ({_name(error)})", service=service)
    return Unexpected(f"unexpected {_name(error)} while calling {service}", service=service)


def _is_network(error: BaseException) -> bool:
    if isinstance(error, httpx.UnsupportedProtocol):
        return False
    return isinstance(
        error,
        httpx.TransportError
        | aiohttp.ClientConnectionError
        | aiohttp.ClientPayloadError
        | ConnectionError
        | TimeoutError
        | socket.gaierror
        | asyncio.IncompleteReadError
        | ssl.SSLError,
    )


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what caused it: the transport renames errors, only the cause tells what happened."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _is_bad_certificate(error: BaseException) -> bool:
    kinds = (
        ssl.SSLCertVerificationError,
        aiohttp.ClientConnectorCertificateError,
        aiohttp.ServerFingerprintMismatch,
    )
    return any(isinstance(link, kinds) for link in _chain(error))


def _is_lost_connection(error: BaseException) -> bool:
    return any(
        isinstance(link, aiohttp.ClientConnectionError) and not isinstance(link, asyncio.TimeoutError)
        for link in _chain(error)
    )


def _name(error: BaseException) -> str:
    return type(error.__cause__ or error).__name__


def verdict(error: CallError | None, *, service: str) -> Verdict:
    """What the outcome says of ``service``: a refusal proves it alive, our own troubles prove nothing.

    Nor does a failure of the service that it says is for good.
    """
    if error is None:
        return Verdict.SUCCESS
    if error.service != service:
        return Verdict.NEUTRAL
    answered = isinstance(error, PermanentError) and error.status is not None
    refused = answered and error.status not in BROKEN
    return Verdict.SUCCESS if refused else error.verdict


def retry_after(response: httpx.Response) -> float | None:
    """Seconds the service asks to wait, between 0 and a day; dates count from the server's own ``Date``.

    ``Retry-After-Ms`` goes before ``Retry-After``: who sends both means the same, more exactly (OpenAI and
    Azure do). None where both are absent or unreadable.
    """
    milliseconds = _seconds(response.headers.get("retry-after-ms", "").strip())
    value = response.headers.get("retry-after", "").strip()
    seconds = _seconds(value) if milliseconds is None else milliseconds / 1000
    if seconds is None:
        seconds = _seconds_until(value, response.headers.get("date", ""))
    return None if seconds is None else min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def _seconds(value: str) -> float | None:
    return float(value) if value.replace(".", "", 1).isdecimal() and value.isascii() else None


def _seconds_until(value: str, served_at: str) -> float | None:
    try:
        return (_instant(value) - _instant(served_at)).total_seconds()
    except (TypeError, ValueError):
        return None


def _instant(value: str) -> datetime:
    """One of the three forms of an HTTP date; all are in UTC, though the oldest does not say so."""
    return parsedate_to_datetime(value).replace(tzinfo=UTC)
