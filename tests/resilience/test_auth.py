# SPDX-License-Identifier: Apache-2.0
"""Logging in, and what is never told, against a real server that misbehaves."""

import asyncio
import logging
import time
from collections.abc import Callable

import pytest
from pydantic import SecretStr

from app.resilience import BreakerOpen, BreakerState, ServiceBreaker
from app.resilience.auth import ClientCredentials, Grant
from app.resilience.errors import (
    AuthError,
    PermanentError,
    TransientError,
)
from tests.resilience.conftest import Make
from tests.resilience.misbehaving import Misbehaving, answer, misbehaving, slowly

SECRET = "very-secret-value"


def login(server: Misbehaving, make: Make, clock: Callable[[], float] = time.monotonic) -> ClientCredentials:
    client = make(server, base_url="")
    return ClientCredentials(client, "intune", Grant(f"{server.url}/token", "me", SecretStr(SECRET)), clock)


def token(value: str, lifetime: int = 3600) -> object:
    return answer(200, f'{{"access_token": "{value}", "expires_in": {lifetime}}}'.encode())


def guarded_by(valid: str) -> object:
    """A service that lets one token in."""

    async def behave(request: object, writer: asyncio.StreamWriter) -> None:
        headers = request.headers  # type: ignore[attr-defined]
        status = 200 if headers.get("authorization") == f"Bearer {valid}" else 401
        await answer(status, f"saw {headers.get('authorization')}".encode())(request, writer)  # type: ignore[arg-type]

    return behave


async def test_fifty_callers_with_an_expired_token_cause_one_renewal(make: Make) -> None:
    async with misbehaving(token("old"), token("new")) as issuer, misbehaving(guarded_by("old")) as server:  # type: ignore[arg-type]
        breaker = ServiceBreaker("intune")
        client = make(server, auth=login(issuer, make), max_concurrency=50, breaker=breaker)
        await client.get("/")
        server.script = [guarded_by("new")]  # type: ignore[list-item]

        answers = await asyncio.gather(*(client.get("/") for _ in range(50)))

    assert {answer.status_code for answer in answers} == {200}
    assert len(issuer.received) == 2
    assert breaker.fail_counter == 0


async def test_callers_wait_for_one_first_token(make: Make) -> None:
    async with misbehaving(slowly(token("t"), 0.1)) as issuer, misbehaving(guarded_by("t")) as server:  # type: ignore[arg-type]
        client = make(server, auth=login(issuer, make))
        await asyncio.gather(*(client.get("/") for _ in range(10)))

    assert len(issuer.received) == 1


async def test_a_token_is_renewed_before_it_ends(make: Make) -> None:
    now = 0.0
    async with misbehaving(token("a", 100), token("b", 100)) as issuer:  # type: ignore[arg-type]
        credentials = login(issuer, make, clock=lambda: now)
        first = await credentials.token()
        now = 79.0
        assert await credentials.token() is first
        now = 81.0
        assert (await credentials.token()).get_secret_value() == "b"


async def test_a_service_that_refuses_every_token_is_asked_twice(make: Make) -> None:
    async with misbehaving(token("a"), token("b")) as issuer, misbehaving(guarded_by("none")) as server:  # type: ignore[arg-type]
        client = make(server, auth=login(issuer, make))
        with pytest.raises(AuthError):
            await client.post("/", json={})

    assert len(server.received) == 2
    assert len(issuer.received) == 2


async def test_refused_credentials_are_told_from_an_outage(make: Make) -> None:
    async with misbehaving(answer(401, b'{"error": "invalid_client"}')) as issuer, misbehaving() as server:
        client = make(server, auth=login(issuer, make))
        with pytest.raises(AuthError, match="invalid_client"):
            await client.get("/")
        issuer.script = [answer(503)]
        with pytest.raises(TransientError):
            await client.get("/")
        issuer.script = [answer(200, b"<html>")]
        with pytest.raises(PermanentError):
            await client.get("/")

    assert server.received == []


async def test_the_token_goes_to_its_own_origin_only(make: Make) -> None:
    async with misbehaving(token("t")) as issuer, misbehaving() as server, misbehaving() as other:  # type: ignore[arg-type]
        client = make(server, auth=login(issuer, make))
        await client.get("/")
        await client.get(f"{other.url}/blob?sig=abc")

    assert server.received[0].headers["authorization"] == "Bearer t"
    assert "transfer-encoding" not in server.received[0].headers
    assert "authorization" not in other.received[0].headers


async def test_no_secret_stands_in_a_log_an_error_or_a_repr(
    make: Make, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = answer(
        400, f'{{"client_secret": "{SECRET}", "sig": "abc123", "Authorization": "Bearer tttt"}}'.encode()
    )
    async with misbehaving(token("tttt")) as issuer, misbehaving(echo) as server:  # type: ignore[arg-type]
        credentials = login(issuer, make)
        client = make(server, auth=credentials)
        with pytest.raises(PermanentError) as raised:
            await client.put("/blob?sig=abc123", content=b"x")

    told = capfd.readouterr()
    seen = [
        caplog.text,
        str(raised.value),
        repr(raised.value),
        repr(client),
        repr(credentials),
        told.out,
        told.err,
    ]
    assert not [text for text in seen if SECRET in text or "tttt" in text or "abc123" in text]
    assert "client_secret" in str(raised.value)


async def test_no_token_is_asked_for_while_the_service_is_kept_away_from(make: Make) -> None:
    async with misbehaving(token("t")) as issuer, misbehaving() as server:  # type: ignore[arg-type]
        breaker = ServiceBreaker("intune")
        client = make(server, auth=login(issuer, make), breaker=breaker)
        breaker.order(BreakerState.ISOLATED, actor="alice", reason=None, seconds=0)

        with pytest.raises(BreakerOpen):
            await client.get("/")

    assert issuer.received == server.received == []
