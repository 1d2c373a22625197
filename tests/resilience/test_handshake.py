# SPDX-License-Identifier: Apache-2.0
"""Authentication that belongs to a connection, and bodies read from disk, against real servers."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.resilience import (
    DEFAULT_RETRY,
    BreakerPolicy,
    FileBody,
    Safety,
    ServiceBreaker,
    create_resilient_client,
)
from app.resilience.auth import Fixed
from app.resilience.errors import AuthError, CallError, TransientError
from app.resilience.http import ResilientClient
from app.resilience.windows import WindowsAuth, challenge
from sandbox.main import create_app, serving
from tests.resilience.conftest import Make
from tests.resilience.misbehaving import answer, hang, misbehaving
from tests.waiting import eventually

WMI = "/sccm/AdminService/wmi/SMS_Site"
PASSWORD = "sandbox-secret"
LAST_LEG = b"NTLM TlRMTVNTUAAD"
"""How NTLM's third message begins."""


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """A service that authenticates connections."""
    with serving(create_app(scale=0.05)) as url:
        yield url


def client_of(
    url: str, *, password: str = PASSWORD, protocol: str = "negotiate", attempts: int = 3
) -> ResilientClient:
    auth = WindowsAuth("sccm", r"SANDBOX\sandbox", SecretStr(password), protocol)  # type: ignore[arg-type]
    profile = replace(DEFAULT_RETRY, attempts=attempts)
    never = ServiceBreaker("sccm", BreakerPolicy(fail_max=10_000, minimum_calls=10_000))
    return create_resilient_client(
        "sccm", base_url=url, auth=auth, max_concurrency=4, breaker=never, profile=profile
    )


@pytest.mark.parametrize("protocol", ["negotiate", "ntlm"])
async def test_many_calls_share_few_authenticated_connections(service: str, protocol: str) -> None:
    async with client_of(service, protocol=protocol) as client:
        answers = await asyncio.gather(*(client.get(WMI) for _ in range(20)))

        assert {answer.status_code for answer in answers} == {200}
        assert client._handshakes is not None
        assert 1 <= len(client._handshakes._all) <= 4


@pytest.mark.parametrize("protocol", ["negotiate", "ntlm"])
async def test_a_wrong_password_is_refused_and_never_told(service: str, protocol: str) -> None:
    async with client_of(service, password="top-secret", protocol=protocol) as client:
        with pytest.raises(AuthError) as raised:
            await client.get(WMI)

    assert "top-secret" not in str(raised.value)
    assert "top-secret" not in repr(vars(client))


async def test_what_repeats_the_password_has_it_cut_out() -> None:
    async with (
        misbehaving(answer(400, b"you said top-secret")) as server,
        client_of(server.url, password="top-secret") as client,
    ):
        with pytest.raises(CallError) as raised:
            await client.get("/")

    assert str(raised.value).endswith("you said ***")


async def test_a_service_that_asks_for_something_else_refuses() -> None:
    refusal = answer(401, b"", WWW_Authenticate="Digest realm=x")
    async with misbehaving(refusal) as server, client_of(server.url) as client:
        with pytest.raises(AuthError):
            await client.get("/")

    assert len(server.received) == 1


async def test_a_challenge_that_makes_no_sense_is_a_refusal() -> None:
    refusal = answer(401, b"", WWW_Authenticate="NTLM bm9uc2Vuc2U=")
    async with misbehaving(refusal) as server, client_of(server.url) as client:
        with pytest.raises(AuthError, match="Windows authentication failed"):
            await client.get("/")


async def test_a_connection_that_broke_in_a_handshake_is_not_used_again() -> None:
    refusal = answer(401, b"", WWW_Authenticate="NTLM")
    async with misbehaving(refusal, hang) as server, client_of(server.url, protocol="ntlm") as client:
        calling = asyncio.create_task(client.get("/"))
        await eventually(lambda: len(server.received) == 2, within=5)  # the first leg is on its way
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling

        assert client._handshakes is not None
        assert client._handshakes._all == client._handshakes._idle == []


class Stumbling:
    """Answers the last leg of the first NTLM handshake with 503, before the service has seen it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.stumbles = 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        last = dict(scope.get("headers", ())).get(b"authorization", b"").startswith(LAST_LEG)
        if last and self.stumbles:
            self.stumbles -= 1
            await Response("later", 503)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


async def test_a_handshake_that_was_cut_short_spoils_no_later_call() -> None:
    with serving(Stumbling(create_app(scale=0.05))) as url:
        async with client_of(url, protocol="ntlm", attempts=1) as client:
            with pytest.raises(TransientError):
                await client.get(WMI)

            assert (await client.get(WMI)).status_code == 200


def test_a_challenge_is_found_among_others() -> None:
    told = httpx.Response(
        401, headers=[("www-authenticate", "Basic realm=x"), ("www-authenticate", "NTLM YWJj")]
    )

    assert challenge(told, "NTLM") == b"abc"
    assert challenge(told, "Negotiate") is None


async def test_a_fixed_credential_is_sent_and_refused_once(make: Make) -> None:
    basic = Fixed.basic("intune", "me", SecretStr("hidden"))
    async with misbehaving(answer(200, b"ok"), answer(401, b"no")) as server:
        client = make(server, auth=basic)
        await client.get("/")
        with pytest.raises(AuthError, match="refused the credentials"):
            await client.get("/")

    assert [seen.headers["authorization"] for seen in server.received] == ["Basic bWU6aGlkZGVu"] * 2
    assert "hidden" not in repr(basic)


async def test_a_body_is_read_from_disk_each_time_it_is_sent(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"0123456789" * 100_000)
    body = FileBody(b"head", file, b"tail", content_type="application/x-thing")
    async with misbehaving(answer(503, b"later"), answer(200, b"ok")) as server:
        client = make(server)
        extensions = {"body": body, "safety": Safety.IDEMPOTENT}
        done = await client.post("/", headers=body.headers, extensions=extensions)

    assert done.status_code == 200
    assert [seen.body for seen in server.received] == [b"head" + file.read_bytes() + b"tail"] * 2
    assert server.received[0].headers["content-length"] == str(1_000_008)
    assert server.received[0].headers["content-type"] == "application/x-thing"
