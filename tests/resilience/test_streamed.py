# SPDX-License-Identifier: Apache-2.0
"""Bodies that callers read themselves: how they end is how the call ended."""

import asyncio
import time
from contextlib import suppress

import httpx
import pytest

from app.resilience import NO_RETRY, BreakerOpen, ServiceBreaker
from app.resilience.errors import (
    AttemptTimeout,
    CallError,
    PermanentError,
    Throttled,
    TransientError,
    Unexpected,
)
from app.resilience.http import ResilientClient
from tests.resilience.conftest import Make
from tests.resilience.misbehaving import answer, misbehaving, raw, slowly

HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"


@pytest.fixture
def breaker() -> ServiceBreaker:
    return ServiceBreaker("intune")


async def read_all(client: ResilientClient) -> None:
    async with client.stream("GET", "/") as response:
        await response.aread()


async def read_and_find(client: ResilientClient, error: Exception) -> None:
    """A reader whom the content of a good answer displeases."""
    async with client.reading(client.build_request("GET", "/")) as response:
        await response.aread()
        raise error


async def test_bodies_that_break_off_one_after_another_open_the_breaker(
    make: Make, breaker: ServiceBreaker
) -> None:
    async with misbehaving(raw(HALF)) as server:
        client = make(server, breaker=breaker)
        for _ in range(5):
            with pytest.raises(TransientError):
                await read_all(client)
        with pytest.raises(BreakerOpen):
            await read_all(client)


async def test_a_body_read_to_its_end_or_left_early_proves_the_failures_before_it_wrong(
    make: Make, breaker: ServiceBreaker
) -> None:
    whole = answer(200, b"whole")
    async with misbehaving(raw(HALF), whole, raw(HALF), whole) as server:
        client = make(server, breaker=breaker)
        counts = []
        for read in (True, True, True, False):
            with suppress(TransientError):
                async with client.stream("GET", "/") as response:
                    await (response.aread() if read else asyncio.sleep(0))
            counts.append(breaker.fail_counter)

    assert counts == [1, 0, 1, 0]


async def test_a_stream_that_stays_silent_is_cut_at_the_limit_of_its_own_request(
    make: Make, breaker: ServiceBreaker
) -> None:
    async with misbehaving(raw(HALF, hang=True)) as server:
        client = make(server, breaker=breaker)
        with pytest.raises(AttemptTimeout):
            async with client.stream("GET", "/", timeout=httpx.Timeout(5.0, read=0.1)) as response:
                await response.aread()

    assert breaker.fail_counter == 1
    assert client._guard.bulkhead.held == 0


@pytest.mark.parametrize(
    ("found", "raised", "failures"),
    [
        (TransientError("no end", service="intune"), TransientError, 1),
        (TimeoutError(), AttemptTimeout, 1),
        (PermanentError("no JSON", service="intune"), PermanentError, 0),
        (KeyError("ours"), Unexpected, 0),
    ],
    ids=["it may pass", "nothing came", "no answer", "a bug of ours"],
)
async def test_what_a_reader_finds_in_a_good_answer_is_how_the_call_ended(
    make: Make, breaker: ServiceBreaker, found: Exception, raised: type[CallError], failures: int
) -> None:
    async with misbehaving() as server:
        client = make(server, breaker=breaker)
        with pytest.raises(raised):
            await read_and_find(client, found)

    assert breaker.fail_counter == failures
    assert client._guard.bulkhead.held == 0


async def test_answers_that_are_good_and_empty_of_sense_open_the_breaker(
    make: Make, breaker: ServiceBreaker
) -> None:
    async with misbehaving() as server:
        client = make(server, breaker=breaker)
        for _ in range(5):
            with pytest.raises(TransientError):
                await read_and_find(client, TransientError("no end", service="intune"))

    assert breaker.time_left() is not None
    assert len(server.received) == 5


async def test_a_body_that_breaks_is_counted_once(make: Make, breaker: ServiceBreaker) -> None:
    async with misbehaving(raw(HALF)) as server:
        client = make(server, breaker=breaker)
        with pytest.raises(TransientError):
            async with client.reading(client.build_request("GET", "/")) as response:
                await response.aread()

    assert breaker.fail_counter == 1


async def test_a_reader_who_is_stopped_says_nothing_of_the_service(
    make: Make, breaker: ServiceBreaker
) -> None:
    reading = asyncio.Event()

    async def read_on(client: ResilientClient) -> None:
        async with client.reading(client.build_request("GET", "/")) as response:
            reading.set()
            await response.aread()

    async with misbehaving(raw(HALF), raw(HALF, hang=True)) as server:
        client = make(server, breaker=breaker, profile=NO_RETRY)
        with pytest.raises(TransientError):
            await read_all(client)
        task = asyncio.create_task(read_on(client))
        await reading.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert breaker.fail_counter == 1
    assert client._guard.bulkhead.held == 0


async def test_a_reader_who_is_told_to_slow_down_closes_the_gate_for_all(
    make: Make, breaker: ServiceBreaker
) -> None:
    async with misbehaving() as server:
        client = make(server, breaker=breaker)
        with pytest.raises(Throttled):
            await read_and_find(client, Throttled("slower", service="intune", retry_after=120.0))
        with pytest.raises(Throttled):
            await client.get("/")

    assert 110 < breaker.gate.remaining() <= 120


async def test_a_body_of_the_probe_that_breaks_counts_against_the_service_again(
    make: Make, breaker: ServiceBreaker
) -> None:
    async with misbehaving(raw(HALF)) as server:
        client = make(server, breaker=breaker)
        breaker.half_open()
        with pytest.raises(TransientError):
            await read_all(client)

    assert breaker.fail_counter == 1


async def test_an_answer_tells_when_the_attempt_was_begun_that_it_answers(make: Make) -> None:
    async with misbehaving(answer(503), slowly(answer(), 0.2)) as server:
        asked = time.monotonic()
        async with make(server).stream("GET", "/") as response:
            began = response.extensions["began"]

    assert len(server.received) == 2
    assert asked < began <= time.monotonic() - 0.2


async def test_an_accepted_refusal_is_read_like_any_answer(make: Make) -> None:
    async with misbehaving(answer(404, b"none")) as server:
        client = make(server)
        request = client.build_request("GET", "/", extensions={"accept": {404}})
        async with client.reading(request) as response:
            assert await response.aread() == b"none"
