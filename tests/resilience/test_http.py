# SPDX-License-Identifier: Apache-2.0
"""The client against a real server that misbehaves."""

import asyncio
import gzip
import socket
import time
from contextlib import aclosing
from uuid import uuid4

import httpx
import pytest

from app.resilience import (
    NO_RETRY,
    BreakerOpen,
    RetryProfile,
    Safety,
    ServiceBreaker,
)
from app.resilience.errors import (
    AmbiguousError,
    AttemptTimeout,
    LocalSaturation,
    NotThere,
    PermanentError,
    Throttled,
    TransientError,
)
from app.telemetry import correlated, trace
from tests.resilience.conftest import Make
from tests.resilience.misbehaving import Misbehaving, answer, drip, hang, misbehaving, raw, reset, slowly
from tests.waiting import eventually

HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"


async def test_a_good_answer_comes_whole_and_carries_the_correlation_id(make: Make) -> None:
    async with misbehaving(answer(200, b'{"a": 1}', Content_Type="application/json")) as server:
        identity = uuid4()
        with correlated(identity):
            place = trace.get()
            response = await make(server).post("/things", json={"b": 2}, headers={"X-Effect-Key": "k"})

    assert response.json() == {"a": 1}
    assert server.received[0].headers["x-correlation-id"] == str(identity)
    assert place is not None
    assert place.trace_id in server.received[0].headers["traceparent"]
    assert server.received[0].headers["x-effect-key"] == "k"
    assert server.received[0].body == b'{"b":2}'


async def test_a_request_without_correlation_gets_one_and_keeps_its_own(make: Make) -> None:
    async with misbehaving() as server:
        client = make(server)
        await client.get("/")
        await client.get("/", headers={"X-Correlation-ID": "mine"})

    assert len(server.received[0].headers["x-correlation-id"]) == 36
    assert server.received[1].headers["x-correlation-id"] == "mine"


@pytest.mark.parametrize(
    "trouble",
    [
        answer(500),
        answer(502),
        answer(503),
        answer(504),
        answer(408),
        answer(429),
        reset,
        raw(HALF),
        raw(b""),
    ],
    ids=["500", "502", "503", "504", "408", "429", "reset", "half a body", "no answer"],
)
async def test_what_may_pass_is_tried_again_where_that_is_harmless(make: Make, trouble: object) -> None:
    async with misbehaving(trouble, trouble, answer(200, b"ok")) as server:  # type: ignore[arg-type]
        keyed = await make(server).post("/", extensions={"safety": "keyed"})

    assert keyed.content == b"ok"
    assert len(server.received) == 3


@pytest.mark.parametrize(
    "trouble",
    [answer(500), answer(502), answer(504), reset, raw(HALF), raw(b""), hang],
    ids=["500", "502", "504", "reset", "half a body", "no answer", "hangs"],
)
async def test_an_unsafe_write_whose_answer_is_lost_is_sent_once_and_ambiguous(
    make: Make, trouble: object
) -> None:
    async with misbehaving(trouble) as server:  # type: ignore[arg-type]
        with pytest.raises(AmbiguousError):
            await make(server).post("/", json={})

    assert len(server.received) == 1


async def test_an_unsafe_write_that_was_never_sent_is_merely_transient(make: Make) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = Misbehaving(url=f"http://127.0.0.1:{closed.getsockname()[1]}")

        with pytest.raises(TransientError) as raised:
            await make(nobody).post("/", json={})

    assert raised.value.code == "transient"


async def test_a_name_that_does_not_resolve_is_transient(make: Make) -> None:
    with pytest.raises(TransientError):
        await make(Misbehaving(url="http://nowhere.invalid")).get("/")


@pytest.mark.parametrize(
    ("status", "kind"), [(400, PermanentError), (404, NotThere), (422, PermanentError), (302, PermanentError)]
)
async def test_a_refusal_is_not_tried_again_and_proves_the_service_alive(
    make: Make, status: int, kind: type[Exception]
) -> None:
    async with misbehaving(answer(status, b"because")) as server:
        breaker = ServiceBreaker("intune")
        client = make(server, breaker=breaker)
        for _ in range(7):
            with pytest.raises(kind, match="because"):
                await client.get("/")

    assert len(server.received) == 7
    assert breaker.fail_counter == 0


async def test_an_accepted_status_is_an_answer(make: Make) -> None:
    async with misbehaving(answer(404)) as server:
        response = await make(server).delete("/", extensions={"accept": {404}})

    assert response.status_code == 404


@pytest.mark.parametrize(
    "trouble", [drip, hang, raw(HALF, hang=True)], ids=["drips", "hangs", "stops in the body"]
)
async def test_the_attempt_timeout_covers_all_phases_together(make: Make, trouble: object) -> None:
    profile = RetryProfile(attempts=1, shortest=0, longest=0, attempt_timeout=0.4, total=60.0)
    async with misbehaving(trouble) as server:  # type: ignore[arg-type]
        breaker = ServiceBreaker("intune")
        client = make(server, profile=profile, breaker=breaker)
        started = time.monotonic()

        with pytest.raises(AttemptTimeout):
            await client.get("/")

    assert 0.35 < time.monotonic() - started < 30
    assert breaker.fail_counter == 1


async def test_five_failures_open_and_the_sixth_caller_is_refused_without_a_request(make: Make) -> None:
    async with misbehaving(answer(503)) as server:
        client = make(server, profile=NO_RETRY)
        for _ in range(5):
            with pytest.raises(TransientError) as own:
                await client.get("/")
            assert own.value.status == 503
        with pytest.raises(BreakerOpen) as refused:
            client.get("/").send(None)  # at its first step: it waits for nothing

    assert refused.value.retry_after is not None
    assert 30 < refused.value.retry_after <= 60
    assert len(server.received) == 5


async def test_throttling_never_opens_and_a_long_wait_is_handed_to_the_caller(make: Make) -> None:
    async with misbehaving(answer(429, Retry_After="3600")) as server:
        breaker = ServiceBreaker("intune")
        client = make(server, breaker=breaker)
        for _ in range(6):
            with pytest.raises(Throttled) as raised:
                await client.get("/")
            assert raised.value.retry_after == pytest.approx(3600.0, abs=60.0)

    assert len(server.received) == 1  # whoever comes later is told without a request
    assert breaker.fail_counter == 0


async def test_a_short_retry_after_is_waited_for(make: Make) -> None:
    async with misbehaving(answer(429, Retry_After="1"), answer()) as server:
        started = time.monotonic()
        await make(server).get("/")

    assert time.monotonic() - started >= 1.0


async def test_cookies_are_never_sent_back(make: Make) -> None:
    async with misbehaving(answer(200, b"", Set_Cookie="session=secret")) as server:
        client = make(server)
        await client.get("/")
        await client.get("/")

    assert "cookie" not in server.received[1].headers
    assert not client.cookies


async def test_only_a_refusal_is_read_for_what_it_says(make: Make) -> None:
    read = list[int]()

    def describe(refusal: httpx.Response) -> str:
        read.append(refusal.status_code)
        return refusal.text

    async with misbehaving(answer(200, b"megabytes of devices"), answer(400, b"no")) as server:
        client = make(server, describe=describe)
        await client.get("/")
        with pytest.raises(PermanentError, match="answered 400: no"):
            await client.get("/")

    assert read == [400]


async def test_a_redirect_on_the_same_host_is_followed_to_another_host_not(make: Make) -> None:
    async with misbehaving(answer(200, b"elsewhere")) as other, misbehaving() as server:
        server.script = [answer(302, b"", Location="/there"), answer(200, b"here")]
        client = make(server)
        assert (await client.get("/")).content == b"here"
        server.script = [answer(302, b"", Location=other.url)]
        with pytest.raises(PermanentError, match="another host"):
            await client.get("/")

    assert [request.target for request in server.received] == ["/", "/there", "/"]
    assert other.received == []


async def test_an_answer_that_is_too_big_is_cut_decoded_bytes_counted(make: Make) -> None:
    bomb = gzip.compress(b"0" * 5_000_000)
    async with misbehaving(answer(200, bomb, Content_Encoding="gzip")) as server:
        client = make(server)
        assert len((await client.get("/")).content) == 5_000_000
        with pytest.raises(PermanentError, match="more than"):
            await client.get("/", extensions={"max_bytes": 1_000_000})

    assert len(bomb) < 10_000


async def test_at_most_so_many_at_once_and_the_queue_is_bounded(make: Make) -> None:
    async with misbehaving(slowly(answer(), 0.05)) as server:
        client = make(server, max_concurrency=2, profile=NO_RETRY)

        outcomes = await asyncio.gather(*(client.get("/") for _ in range(60)), return_exceptions=True)

    refused = [outcome for outcome in outcomes if isinstance(outcome, LocalSaturation)]
    assert server.most_at_once == 2
    assert len(refused) == 60 - 2 - 32
    assert all(isinstance(outcome, httpx.Response | LocalSaturation) for outcome in outcomes)


async def test_cancelled_calls_lose_no_slot(make: Make) -> None:
    async with misbehaving(slowly(answer(), 0.03)) as server:
        client = make(server, max_concurrency=3)
        for _ in range(30):
            tasks = [asyncio.create_task(client.get("/")) for _ in range(6)]
            await eventually(lambda: server.busy > 0, within=5)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        good = await asyncio.gather(*(client.get("/") for _ in range(6)))

    assert [response.status_code for response in good] == [200] * 6


async def test_a_stream_is_read_in_pieces_and_its_end_is_classified(make: Make) -> None:
    body = b"x" * 300_000
    async with misbehaving(answer(200, body), raw(HALF)) as server:
        client = make(server)
        async with client.stream("GET", "/big") as response:
            sizes = [len(piece) async for piece in response.aiter_raw()]
        with pytest.raises(TransientError):
            async with client.stream("GET", "/big") as response:
                await response.aread()

    assert sum(sizes) == len(body)
    assert max(sizes) < len(body)


async def test_a_stream_holds_its_place_until_it_is_closed_or_read_to_its_end(make: Make) -> None:
    async with misbehaving(answer(200, b"y" * 100_000)) as server:
        breaker = ServiceBreaker("intune")
        client = make(server, max_concurrency=1, breaker=breaker, profile=NO_RETRY)
        async with client.stream("GET", "/") as response:
            waiting = asyncio.create_task(client.get("/"))
            await eventually(lambda: client._guard.bulkhead.waiting == 1, within=5)
            assert len(await response.aread()) == 100_000
            assert (await waiting).status_code == 200
        async with client.stream("GET", "/"):
            waiting = asyncio.create_task(client.get("/"))
            await eventually(lambda: client._guard.bulkhead.waiting == 1, within=5)
        assert (await waiting).status_code == 200

    assert client._guard.bulkhead.held == 0
    assert breaker.fail_counter == 0


async def test_an_idle_connection_that_was_closed_is_not_seen_by_the_caller(make: Make) -> None:
    async def then_close(request: object, writer: asyncio.StreamWriter) -> None:
        await answer()(request, writer)  # type: ignore[arg-type]
        writer.close()

    async with misbehaving(then_close) as server:
        client = make(server)
        for _ in range(5):
            assert (await client.get("/")).status_code == 200


async def test_a_closed_client_says_so(make: Make) -> None:
    async with misbehaving() as server:
        client = make(server)
        await client.aclose()
        with pytest.raises(RuntimeError):
            await client.get("/")


async def test_safety_is_taken_from_the_request_as_text_or_value(make: Make) -> None:
    async with misbehaving(answer(500), answer()) as server:
        assert (await make(server).post("/", extensions={"safety": Safety.IDEMPOTENT})).status_code == 200
    async with misbehaving(answer(500), answer()) as server:
        with pytest.raises(ValueError, match="perhaps"):
            await make(server).post("/", extensions={"safety": "perhaps"})


async def test_a_generator_of_pages_may_be_left_early(make: Make) -> None:
    async with misbehaving(answer(200, b"y" * 100_000)) as server:
        client = make(server, max_concurrency=1)
        for _ in range(3):
            async with client.stream("GET", "/") as response, aclosing(response.aiter_raw()) as pieces:  # type: ignore[type-var]
                async for _piece in pieces:
                    break
        assert (await client.get("/")).status_code == 200
