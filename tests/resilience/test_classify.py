# SPDX-License-Identifier: Apache-2.0
"""Each row of the classification table."""

import asyncio
import ssl

import aiohttp
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.resilience import errors
from app.resilience.classify import (
    Safety,
    classify_exception,
    classify_response,
    default_safety,
    retry_after,
    verdict,
)
from app.resilience.errors import Verdict

KEYED, UNSAFE, IDEMPOTENT = Safety.KEYED, Safety.UNSAFE, Safety.IDEMPOTENT


def answered(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("status", "safety", "kind", "says"),
    [
        (400, UNSAFE, errors.PermanentError, Verdict.SUCCESS),
        (401, IDEMPOTENT, errors.AuthError, Verdict.NEUTRAL),
        (403, IDEMPOTENT, errors.PolicyError, Verdict.NEUTRAL),
        (404, IDEMPOTENT, errors.NotThere, Verdict.SUCCESS),
        (408, IDEMPOTENT, errors.TransientError, Verdict.FAILURE),
        (409, UNSAFE, errors.ConflictError, Verdict.NEUTRAL),
        (410, IDEMPOTENT, errors.NotThere, Verdict.SUCCESS),
        (412, UNSAFE, errors.ConflictError, Verdict.NEUTRAL),
        (422, UNSAFE, errors.PermanentError, Verdict.SUCCESS),
        (425, KEYED, errors.TransientError, Verdict.FAILURE),
        (429, UNSAFE, errors.Throttled, Verdict.NEUTRAL),
        (500, IDEMPOTENT, errors.ServerError, Verdict.FAILURE),
        (500, KEYED, errors.ServerError, Verdict.FAILURE),
        (500, UNSAFE, errors.AmbiguousError, Verdict.FAILURE),
        (501, IDEMPOTENT, errors.PermanentError, Verdict.SUCCESS),
        (502, KEYED, errors.TransientError, Verdict.FAILURE),
        (502, UNSAFE, errors.AmbiguousError, Verdict.FAILURE),
        (503, UNSAFE, errors.TransientError, Verdict.FAILURE),
        (504, IDEMPOTENT, errors.TransientError, Verdict.FAILURE),
        (504, UNSAFE, errors.AmbiguousError, Verdict.FAILURE),
        (507, IDEMPOTENT, errors.ServerError, Verdict.FAILURE),
        (509, IDEMPOTENT, errors.Throttled, Verdict.NEUTRAL),
        (302, IDEMPOTENT, errors.PermanentError, Verdict.SUCCESS),
    ],
)
def test_a_status_has_one_class_and_one_verdict(
    status: int, safety: Safety, kind: type[errors.CallError], says: Verdict
) -> None:
    error = classify_response(answered(status), service="intune", safety=safety)

    assert type(error) is kind
    assert verdict(error, service="intune") is says
    assert error.status == status


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 304])
def test_what_worked_is_no_error(status: int) -> None:
    assert classify_response(answered(status), service="intune", safety=UNSAFE) is None


def test_503_with_retry_after_throttles_and_without_fails() -> None:
    told = classify_response(answered(503, retry_after="7"), service="intune", safety=IDEMPOTENT)
    silent = classify_response(answered(503), service="intune", safety=IDEMPOTENT)

    assert isinstance(told, errors.Throttled)
    assert told.retry_after == 7.0
    assert verdict(told, service="intune") is Verdict.NEUTRAL
    assert type(silent) is errors.TransientError


@given(st.integers(min_value=100, max_value=599), st.sampled_from(Safety))
def test_every_status_has_a_class(status: int, safety: Safety) -> None:
    error = classify_response(answered(status), service="jira", safety=safety)

    assert (error is None) == (200 <= status < 300 or status == 304)
    assert error is None or error.service == "jira"


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


LOST = caused(httpx.ConnectTimeout("renamed by the transport"), aiohttp.ServerDisconnectedError())
SLOW_CONNECT = caused(httpx.ConnectTimeout("slow"), aiohttp.ConnectionTimeoutError())


@pytest.mark.parametrize(
    ("error", "safety", "sent", "kind", "says"),
    [
        (httpx.ConnectError("refused"), UNSAFE, False, errors.TransientError, Verdict.FAILURE),
        (SLOW_CONNECT, UNSAFE, False, errors.AttemptTimeout, Verdict.FAILURE),
        (LOST, IDEMPOTENT, True, errors.TransientError, Verdict.FAILURE),
        (LOST, UNSAFE, True, errors.AmbiguousError, Verdict.FAILURE),
        (httpx.ReadError("half a body"), KEYED, True, errors.TransientError, Verdict.FAILURE),
        (httpx.ReadError("half a body"), UNSAFE, True, errors.AmbiguousError, Verdict.FAILURE),
        (TimeoutError(), IDEMPOTENT, True, errors.AttemptTimeout, Verdict.FAILURE),
        (TimeoutError(), UNSAFE, True, errors.AmbiguousError, Verdict.FAILURE),
        (ConnectionResetError(), IDEMPOTENT, True, errors.TransientError, Verdict.FAILURE),
        (httpx.PoolTimeout("full"), IDEMPOTENT, False, errors.LocalSaturation, Verdict.NEUTRAL),
        (ssl.SSLCertVerificationError("name"), IDEMPOTENT, False, errors.PermanentError, Verdict.NEUTRAL),
        (httpx.DecodingError("gzip"), IDEMPOTENT, True, errors.PermanentError, Verdict.NEUTRAL),
        (httpx.UnsupportedProtocol("ftp"), IDEMPOTENT, False, errors.PermanentError, Verdict.NEUTRAL),
        (KeyError("a bug"), IDEMPOTENT, True, errors.Unexpected, Verdict.NEUTRAL),
        (FileNotFoundError("ours"), UNSAFE, True, errors.Unexpected, Verdict.NEUTRAL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_exception_has_one_class_and_one_verdict(
    error: Exception,
    safety: Safety,
    sent: bool,  # noqa: FBT001 - pytest passes parameters by name
    kind: type[errors.CallError],
    says: Verdict,
) -> None:
    seen = classify_exception(error, service="intune", safety=safety, sent=sent)

    assert type(seen) is kind
    assert verdict(seen, service="intune") is says


def test_an_error_of_another_service_says_nothing_of_this_one() -> None:
    error = errors.TransientError("the token endpoint is down", service="entra_id")

    assert classify_exception(error, service="intune", safety=IDEMPOTENT, sent=True) is error
    assert verdict(error, service="intune") is Verdict.NEUTRAL


def test_only_post_and_patch_are_unsafe_by_themselves() -> None:
    unsafe = {
        method
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "POST", "patch"]
        if default_safety(method) is UNSAFE
    }

    assert unsafe == {"POST", "patch"}


DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("1.5", 1.5),
        (" 30 ", 30.0),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
        ("Sunday, 06-Nov-94 08:49:47 GMT", 10.0),
        ("Sun Nov  6 08:49:47 1994", 10.0),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
        ("9999999", 86_400.0),
        ("Sun, 06 Nov 2094 08:49:47 GMT", 86_400.0),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("1e3", None),
        ("٣", None),
    ],
)
def test_retry_after_is_measured_by_the_servers_clock(value: str, seconds: float | None) -> None:
    response = httpx.Response(429, headers=[(b"Retry-After", value.encode()), (b"Date", DATE.encode())])

    assert retry_after(response) == seconds


def test_a_date_without_the_servers_own_is_no_wait() -> None:
    assert retry_after(answered(429, retry_after=DATE)) is None


def test_cancellation_is_not_an_exception_to_classify() -> None:
    assert not issubclass(asyncio.CancelledError, Exception)
