# SPDX-License-Identifier: Apache-2.0
"""What one service means by its refusals, how it wants its key, and the pauses it tells of beside them."""

import httpx
import pytest
from pydantic import SecretStr

from app.resilience import ServiceBreaker
from app.resilience.auth import Fixed
from app.resilience.classify import Meaning, Safety, classify_response, retry_after, verdict
from app.resilience.errors import (
    AuthError,
    CallError,
    PermanentError,
    ServerError,
    Throttled,
    TransientError,
    Verdict,
)
from tests.resilience.conftest import Make
from tests.resilience.misbehaving import answer, misbehaving

KEY = "k-4711-very-secret"


def refused(status: int, meaning: Meaning, **headers: str) -> CallError:
    error = classify_response(
        httpx.Response(status, headers=headers), service="intune", safety=Safety.IDEMPOTENT, meaning=meaning
    )
    assert error is not None
    return error


@pytest.mark.parametrize(
    ("status", "meaning", "kind"),
    [
        (429, Meaning(), Throttled),
        (429, Meaning(PermanentError), PermanentError),
        (400, Meaning(TransientError), TransientError),
        (500, Meaning(), ServerError),
        (500, Meaning(PermanentError), PermanentError),
    ],
)
def test_what_a_service_means_goes_before_its_status(
    status: int, meaning: Meaning, kind: type[CallError]
) -> None:
    assert type(refused(status, meaning)) is kind


def test_a_good_answer_means_what_it_is() -> None:
    good = httpx.Response(200)

    assert classify_response(good, service="x", safety=Safety.UNSAFE, meaning=Meaning(PermanentError)) is None


def test_a_wait_that_the_service_tells_otherwise_holds_where_there_is_no_retry_after() -> None:
    assert refused(429, Meaning(wait=7.0)).retry_after == 7.0
    assert refused(429, Meaning(wait=7.0), **{"retry-after": "3"}).retry_after == 3.0
    assert refused(429, Meaning(wait=7.0), **{"retry-after": "0"}).retry_after == 0.0


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(400, Verdict.SUCCESS), (501, Verdict.SUCCESS), (500, Verdict.NEUTRAL), (529, Verdict.NEUTRAL)],
)
def test_a_broken_service_is_not_proved_alive_by_saying_that_it_is_for_good(
    status: int, outcome: Verdict
) -> None:
    error = PermanentError("for good", service="intune", status=status)

    assert verdict(error, service="intune") is outcome


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2.0),
        ({"retry-after-ms": ""}, None),
        ({"retry-after-ms": "999999999999"}, 86400.0),
    ],
    ids=["alone", "both", "unreadable", "empty", "more than a day"],
)
def test_milliseconds_go_before_seconds(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(httpx.Response(429, headers=headers)) == seconds


async def test_a_client_asks_what_its_service_means(make: Make) -> None:
    def refine(found: httpx.Response) -> Meaning:
        return Meaning(PermanentError if found.headers.get("x-money") == "none" else None)

    async with misbehaving(answer(429, X_Money="none"), answer(429), answer()) as server:
        client = make(server, refine=refine)
        with pytest.raises(PermanentError):
            await client.get("/")
        assert (await client.get("/")).status_code == 200

    assert len(server.received) == 3


async def test_a_pause_that_is_not_an_error_keeps_everybody_away(make: Make) -> None:
    told: list[float] = []
    async with misbehaving() as server:
        breaker = ServiceBreaker("intune")
        breaker.gate.connect(told.append)
        client = make(server, breaker=breaker)
        client.pause(60.0)
        with pytest.raises(Throttled):
            await client.get("/")

    assert server.received == []
    assert told == [60.0]


async def test_a_key_goes_alone_into_a_header_of_its_own(make: Make) -> None:
    async with misbehaving() as server:
        await make(server, auth=Fixed.key("intune", "x-api-key", SecretStr(KEY))).get("/")

    headers = server.received[0].headers
    assert headers["x-api-key"] == KEY
    assert "authorization" not in headers


async def test_a_key_goes_to_its_own_service_only(make: Make) -> None:
    async with misbehaving() as server, misbehaving() as stranger:
        client = make(server, auth=Fixed.key("intune", "x-api-key", SecretStr(KEY)))
        await client.get(stranger.url)

    assert "x-api-key" not in stranger.received[0].headers


async def test_what_a_refusal_says_is_one_line_of_what_can_be_seen_and_stored(make: Make) -> None:
    async with misbehaving(answer(400, b"no \x00such\x1b[2J\r\n\tapp")) as server:
        with pytest.raises(PermanentError) as raised:
            await make(server).get("/")

    assert raised.value.words == "no such [2J app"


async def test_a_key_that_a_refusal_repeats_is_cut_out(make: Make) -> None:
    key = Fixed.key("intune", "x-api-key", SecretStr(KEY))
    async with misbehaving(answer(400, f"no such key {KEY}".encode()), answer(401)) as server:
        client = make(server, auth=key)
        with pytest.raises(PermanentError) as raised:
            await client.get("/")
        with pytest.raises(AuthError):
            await client.get("/")

    assert KEY not in str(raised.value)
    assert "no such key ***" in str(raised.value)
    assert raised.value.words == "no such key ***"
    assert KEY not in repr(key)
    assert KEY not in client.redacted(f"it was {KEY}")
