# SPDX-License-Identifier: Apache-2.0
"""What a service and the way to it can do wrong: its class, the breaker's verdict, and what is left of it."""

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager

import pytest

from app.resilience import BreakerOpen, ResilientClient, RetryProfile, Safety, ServiceBreaker
from app.resilience.errors import AmbiguousError, AttemptTimeout, PermanentError, TransientError, Verdict
from tests.logs import captured_lines
from tests.resilience.certificates import Authority, make_authority
from tests.resilience.conftest import Make
from tests.resilience.misbehaving import (
    Behaviour,
    Misbehaving,
    answer,
    broken_off,
    dripping,
    hang,
    misbehaving,
)
from tests.resilience.parity import checked_out

HALF_A_SECOND = RetryProfile(attempts=1, shortest=0, longest=0, attempt_timeout=0.5, total=10.0)
ONCE = RetryProfile(attempts=1, shortest=0, longest=0, attempt_timeout=5.0, total=10.0)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"


@pytest.mark.parametrize(
    "slow",
    [dripping(HEAD, every=0.1), dripping(b"x" * 100, every=1.0, after=HEAD), hang],
    ids=["a head in drops", "a body at a byte per second", "nothing at all"],
)
async def test_a_slow_answer_is_cut_at_the_limit_of_the_attempt_and_frees_its_slot(
    make: Make, slow: Behaviour
) -> None:
    breaker = ServiceBreaker("intune")
    async with misbehaving(slow) as server, misbehaving() as healthy:
        client = make(server, profile=HALF_A_SECOND, breaker=breaker, max_concurrency=1)
        took = []
        for _ in range(3):  # the quickest counts: a machine that is busy elsewhere delays whom it likes
            began = time.monotonic()
            with pytest.raises(AttemptTimeout) as raised:
                await client.get("/")
            took.append(time.monotonic() - began)
        left = checked_out(client), client._guard.bulkhead.held, breaker.fail_counter
        await asyncio.wait_for(client.get(healthy.url), 20)

    assert 0.45 < min(took) < 2
    assert raised.value.verdict is Verdict.FAILURE
    assert left == (0, 0, 3)


async def test_a_reset_in_the_body_of_a_read_is_made_good(make: Make) -> None:
    async with misbehaving(broken_off(HEAD + b"half"), answer(200, b"whole")) as server:
        response = await make(server).get("/")

    assert response.content == b"whole"
    assert len(server.received) == 2


async def test_a_reset_in_the_answer_to_a_change_is_never_answered_by_sending_it_again(make: Make) -> None:
    async with misbehaving(broken_off(HEAD + b"half"), answer()) as server:
        with pytest.raises(AmbiguousError) as raised:
            await make(server).post("/", json={"create": "this"})

    assert raised.value.verdict is Verdict.FAILURE
    assert len(server.received) == 1


async def test_a_reset_in_the_answer_to_a_change_with_a_key_is_made_good_under_the_same_key(
    make: Make,
) -> None:
    async with misbehaving(broken_off(HEAD + b"half"), answer(200, b"whole")) as server:
        response = await make(server).post(
            "/", json={"create": "this"}, headers={"X-Key": "k"}, extensions={"safety": Safety.KEYED}
        )

    assert response.content == b"whole"
    assert [request.headers["x-key"] for request in server.received] == ["k", "k"]


@contextmanager
def refusing() -> Iterator[str]:
    """An address where nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{closed.getsockname()[1]}"


@contextmanager
def nameless() -> Iterator[str]:
    """A name that does not resolve."""
    yield "http://nowhere.invalid"


@pytest.mark.parametrize("place", [refusing, nameless], ids=["refused", "no such name"])
async def test_a_service_that_cannot_be_reached_is_transient_and_opens_the_breaker(
    make: Make, place: Callable[[], AbstractContextManager[str]]
) -> None:
    breaker = ServiceBreaker("intune")
    with place() as url:
        client = make(Misbehaving(url=url), profile=ONCE, breaker=breaker)
        for failures in range(1, 6):
            with pytest.raises(TransientError) as raised:
                await client.post("/")  # nothing was sent, so not even this is ambiguous
            assert (raised.value.code, raised.value.verdict) == ("transient", Verdict.FAILURE)
            assert breaker.fail_counter == failures
        with pytest.raises(BreakerOpen):
            await client.post("/")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("tls") / "root")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("tls") / "strange", "somebody else")


@pytest.mark.parametrize("wrong", ["time", "root", "name"])
async def test_a_certificate_that_is_not_trusted_is_permanent_says_nothing_of_the_service_and_is_reported(
    make: Make, authority: Authority, stranger: Authority, wrong: str
) -> None:
    tls = {
        "time": authority.shows(ended=True),
        "root": stranger.shows(),
        "name": authority.shows("elsewhere.example"),
    }
    breaker = ServiceBreaker("intune")
    async with misbehaving(answer(503)) as failing, misbehaving(tls=tls[wrong]) as server:
        client = make(server, breaker=breaker, verify=authority.trusted())
        with pytest.raises(TransientError):
            await client.get(failing.url)
        before = breaker.fail_counter
        with captured_lines() as lines:
            for _ in range(6):
                with pytest.raises(PermanentError, match="certificate") as raised:
                    await client.get("/")
            told = [line for line in lines() if line["level"] == "error"]

    assert raised.value.verdict is Verdict.NEUTRAL
    assert breaker.fail_counter == before > 0
    assert [(line["event"], line["host"]) for line in told] == [
        ("certificate_not_trusted", "localhost")
    ] * 6  # once per call: nothing is tried again


class Fading:
    """Answers one request per connection and keeps it open, until all idle ones are closed at one moment.

    It runs in a thread of its own, so the client has had no chance to see the end when it sends again.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.idle: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            received = b""
            while not received.endswith(b"\r\n\r\n"):
                received += connection.recv(65536)
            self.requests += 1
            self.idle.append(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    def fade(self, end: str) -> None:
        """Close what is idle, in good order or by a "reset"."""
        while self.idle:
            connection = self.idle.pop()
            if end == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.fade("closed")


async def warm(client: ResilientClient, connections: int) -> None:
    """So many idle connections."""
    await asyncio.gather(*(client.get("/") for _ in range(connections)))


@pytest.mark.parametrize("end", ["closed", "reset"])
@pytest.mark.parametrize(
    ("method", "safety"), [("GET", None), ("PUT", None), ("DELETE", None), ("POST", Safety.KEYED)]
)
async def test_an_idle_connection_that_fades_away_is_seen_by_nobody(
    make: Make, method: str, safety: Safety | None, end: str
) -> None:
    breaker = ServiceBreaker("intune")
    with closing(Fading()) as server:
        client = make(Misbehaving(url=server.url), profile=ONCE, breaker=breaker, max_concurrency=3)
        await warm(client, 3)
        server.fade(end)
        response = await client.request(method, "/", extensions={"safety": safety})

    assert response.content == b"hi"
    assert breaker.fail_counter == 0
    assert server.requests == 4


async def test_a_change_without_a_key_that_meets_one_is_ambiguous_and_not_sent_again(make: Make) -> None:
    with closing(Fading()) as server:
        client = make(Misbehaving(url=server.url))
        await warm(client, 1)
        server.fade("closed")
        with pytest.raises(AmbiguousError):
            await client.post("/")

    assert server.requests == 1


async def test_a_service_that_always_breaks_off_gets_one_request_per_attempt(make: Make) -> None:
    async with misbehaving(answer(), broken_off(b"")) as server:
        client = make(server, profile=ONCE)
        await client.get("/")
        for _ in range(3):
            with pytest.raises(TransientError):
                await client.get("/")

    assert len(server.received) == 1 + 3 + 1  # the first of the three met a connection that was used before
