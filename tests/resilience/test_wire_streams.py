# SPDX-License-Identifier: Apache-2.0
"""Bodies in pieces, connections that are used again, and calls that are stopped in the middle."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import httpx
import pytest

from app.resilience import ResilientClient
from tests.resilience.misbehaving import (
    HANG,
    Behaviour,
    Misbehaving,
    Received,
    answer,
    hang,
    misbehaving,
    raw,
)
from tests.resilience.parity import checked_out, ours, plain
from tests.waiting import eventually

HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"
MEGABYTE = b"m" * 2**20
Open = Callable[[], httpx.AsyncClient]
both_clients = pytest.mark.parametrize("opened", [plain, ours], ids=["httpx", "ours"])


def halves(second: asyncio.Event) -> Behaviour:
    """Five bytes, and five more when it is time."""

    async def behave(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        await second.wait()
        writer.write(b"after")

    return behave


@both_clients
async def test_a_piece_can_be_read_before_the_next_one_is_sent(opened: Open) -> None:
    second = asyncio.Event()
    async with (
        misbehaving(halves(second)) as server,
        opened() as client,
        client.stream("GET", server.url) as got,
    ):
        pieces = got.aiter_raw()
        first = await anext(pieces)
        second.set()
        rest = [piece async for piece in pieces]

    assert (first, rest) == (b"first", [b"after"])


@both_clients
async def test_a_service_is_held_back_while_nobody_reads(opened: Open) -> None:
    written = 0

    async def pour(_: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * len(MEGABYTE)))
        for _number in range(64):
            writer.write(MEGABYTE)
            await writer.drain()
            written += 1

    steps: list[int] = []

    def latest() -> list[int]:
        steps.append(written)
        return steps[-3:]

    async with misbehaving(pour) as server, opened() as client, client.stream("GET", server.url) as got:
        await eventually(latest, within=10, every=0.1, until=lambda last: last == [max(1, written)] * 3)
        held_back_at = written
        size = sum([len(piece) async for piece in got.aiter_raw()])

    assert held_back_at < 32
    assert size == 64 * len(MEGABYTE)


@both_clients
async def test_a_large_upload_arrives_whole(opened: Open) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield MEGABYTE

    async with misbehaving() as server, opened() as client:
        await client.put(server.url, content=pieces())

    assert len(server.received[0].body) == 8 * len(MEGABYTE)


@both_clients
@pytest.mark.parametrize("leave_after", [0, 1], ids=["unread", "half read"])
async def test_a_stream_that_is_left_early_spoils_nothing(opened: Open, leave_after: int) -> None:
    async with misbehaving(answer(200, 4 * MEGABYTE), answer(200, b"next")) as server, opened() as client:
        async with client.stream("GET", server.url) as got:
            pieces = got.aiter_raw()
            for _ in range(leave_after):
                await anext(pieces)
        following = await client.get(server.url)

    assert following.content == b"next"
    assert server.connections == 2


KEPT = {
    "a length": answer(200, b"hi"),
    "chunks": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", keep=True),
    "no body": raw(b"HTTP/1.1 204 No Content\r\n\r\n", keep=True),
    "a hint before": raw(
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", keep=True
    ),
}
NOT_KEPT = {
    "its wish": answer(200, b"hi", Connection="close"),
    "an old version": raw(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", keep=True),
}


@both_clients
@pytest.mark.parametrize("told", KEPT.values(), ids=KEPT.keys())
async def test_a_connection_is_used_again(opened: Open, told: Behaviour) -> None:
    async with misbehaving(told) as server, opened() as client:
        for _ in range(3):
            await client.get(server.url)

    assert (len(server.received), server.connections) == (3, 1)


@both_clients
@pytest.mark.parametrize("told", NOT_KEPT.values(), ids=NOT_KEPT.keys())
async def test_a_connection_is_not_used_again_if_the_service_says_so(opened: Open, told: Behaviour) -> None:
    async with misbehaving(told) as server, opened() as client:
        for _ in range(3):
            await client.get(server.url)

    assert (len(server.received), server.connections) == (3, 3)


async def test_a_refusal_and_a_body_that_is_too_big_leave_no_connection_in_use() -> None:
    async with (
        misbehaving(answer(200, MEGABYTE), answer(500), answer(404), answer()) as server,
        ours() as client,
    ):
        for _ in range(3):
            with suppress(Exception):
                await client.get(server.url, extensions={"max_bytes": 1000})
        in_use = checked_out(client)
        await client.get(server.url)

    assert in_use == 0


Begin = Callable[[ResilientClient, str], Coroutine[None, None, object]]
Serve = Callable[[], AbstractAsyncContextManager[Misbehaving]]


@asynccontextmanager
async def deaf(*, tls: bool) -> AsyncIterator[Misbehaving]:
    """Takes connections and never reads from them; with ``tls``, it never answers the greeting either."""
    server = Misbehaving(url="")

    async def ignore(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        server.busy += 1
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(HANG)
        writer.transport.abort()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        tasks: list[asyncio.Task[None]] = []
        async with await asyncio.start_server(
            lambda reader, writer: tasks.append(asyncio.ensure_future(ignore(reader, writer))), sock=listening
        ):
            server.url = f"http{'s' if tls else ''}://127.0.0.1:{listening.getsockname()[1]}"
            yield server
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks)


async def get(client: ResilientClient, url: str) -> object:
    return await client.get(url)


async def upload(client: ResilientClient, url: str) -> object:
    return await client.put(url, content=64 * MEGABYTE)


async def stream(client: ResilientClient, url: str) -> object:
    async with client.stream("GET", url) as got:
        return [piece async for piece in got.aiter_raw()]


PHASES: dict[str, tuple[Serve, Begin]] = {
    "connecting": (lambda: deaf(tls=True), get),
    "sending": (lambda: deaf(tls=False), upload),
    "waiting": (lambda: misbehaving(hang), get),
    "in the body": (lambda: misbehaving(raw(HALF, hang=True)), get),
    "in a stream": (lambda: misbehaving(raw(HALF, hang=True)), stream),
}


@pytest.mark.parametrize(("serve", "begin"), PHASES.values(), ids=PHASES.keys())
async def test_a_call_that_is_stopped_gives_everything_back(serve: Serve, begin: Begin) -> None:
    before = asyncio.all_tasks()
    async with misbehaving() as healthy, serve() as server, ours(max_concurrency=1) as client:
        for number in range(1, 4):
            call = asyncio.create_task(begin(client, server.url))
            await eventually(
                lambda: (server.connections, server.busy > 0), within=5, until=(number, True).__eq__
            )
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert (checked_out(client), client._guard.bulkhead.held) == (0, 0)
        following = await asyncio.wait_for(client.get(healthy.url), 20)

    assert following.status_code == 200
    await eventually(lambda: asyncio.all_tasks() - before, within=5, until=lambda left: not left)
