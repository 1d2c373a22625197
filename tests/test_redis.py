# SPDX-License-Identifier: Apache-2.0
import asyncio
import time
from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.errors import Invalid
from app.redis import RedisAddress, deserialize, open_redis, parse_redis_url, serialize

ODD_PASSWORDS = ["p@ss:w/rd#?&%40", "%2540", "日本 語", "a'b\"c\\d", "+plus+", "only:colon"]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://", RedisAddress(hosts=(("localhost", 6379),))),
        ("redis://cache:6380/3", RedisAddress(hosts=(("cache", 6380),), database=3)),
        ("redis://cache?db=4", RedisAddress(hosts=(("cache", 6379),), database=4)),
        ("redis://[::1]:7000", RedisAddress(hosts=(("::1", 7000),))),
        ("redis://:p%40ss@cache", RedisAddress(hosts=(("cache", 6379),), password="p@ss")),
        ("redis://:p@ss@cache", RedisAddress(hosts=(("cache", 6379),), password="p@ss")),
        ("redis://ann:x%3Ay@cache", RedisAddress(hosts=(("cache", 6379),), username="ann", password="x:y")),
        (
            "rediss://cache?ssl_cert_reqs=none&ssl_check_hostname=false",
            RedisAddress(
                hosts=(("cache", 6379),),
                tls=True,
                options={"ssl_cert_reqs": "none", "ssl_check_hostname": False},
            ),
        ),
        ("unix:///run/a%20b/redis.sock?db=2", RedisAddress(path="/run/a b/redis.sock", database=2)),
        ("unix://:geheim@/run/redis.sock", RedisAddress(path="/run/redis.sock", password="geheim")),
        (
            "redis+sentinel://:x@one:26380,two/main/5?sentinel_password=y",
            RedisAddress(
                hosts=(("one", 26380), ("two", 26379)),
                service="main",
                database=5,
                password="x",
                options={"sentinel_password": "y"},
            ),
        ),
    ],
)
def test_a_url_is_read_as_it_is_meant(url: str, address: RedisAddress) -> None:
    assert parse_redis_url(url) == address


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://geheim@cache", "must start with"),
        ("redis://:geheim@cache/x", "must be a number"),
        ("redis://:geheim@cache/1/2", "more after the host"),
        ("redis://:geheim@cache:port", "Port"),
        ("redis://:geheim@cache?socket_timeout=3", "socket_timeout"),
        ("redis://:geheim@cache?ssl_ca_certs=x", "ssl_ca_certs"),
        ("rediss://:geheim@cache?ssl_check_hostname=maybe", "true or false"),
        ("redis+sentinel://:geheim@cache", "must name the Sentinel service"),
    ],
)
def test_a_url_that_is_wrong_is_told_without_its_password(url: str, reason: str) -> None:
    with pytest.raises(Invalid, match=reason) as refused:
        parse_redis_url(url)

    assert "geheim" not in refused.value.detail


def test_an_address_shows_no_password() -> None:
    assert "geheim" not in repr(parse_redis_url("redis+sentinel://:geheim@h/s?sentinel_password=geheim"))


@pytest.mark.parametrize("password", ODD_PASSWORDS)
async def test_odd_passwords_open_the_real_server(redis_url: str, password: str) -> None:
    admin = Redis.from_url(redis_url)
    await admin.execute_command("ACL", "SETUSER", "odd", "on", f">{password}", "~*", "+@all")
    url = with_login(redis_url, "odd", password)

    client = open_redis(url)
    try:
        assert await client.execute_command("ACL", "WHOAMI") == b"odd"  # type: ignore[no-untyped-call]
    finally:
        await client.aclose()
        await admin.execute_command("ACL", "DELUSER", "odd")
        await admin.aclose()


def with_login(url: str, username: str, password: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{username}:{quote(password, safe='')}@{rest.rpartition('@')[2]}"


@pytest.fixture
async def silent() -> AsyncIterator[int]:
    """The port of a server that takes connections and answers nothing."""
    hold: list[asyncio.StreamWriter] = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hold.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in hold:
        writer.close()


async def test_a_silent_server_does_not_hold_a_caller_for_ever(silent: int) -> None:
    client = open_redis(f"redis://127.0.0.1:{silent}")
    began = time.monotonic()

    with pytest.raises((RedisError, TimeoutError)):
        await client.ping()

    assert time.monotonic() - began < 15
    await client.aclose()


async def test_a_refused_connection_is_tried_again(unused_tcp_port: int) -> None:
    client = open_redis(f"redis://127.0.0.1:{unused_tcp_port}")
    asking = asyncio.ensure_future(client.ping())

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            writer.write(b"+PONG\r\n")
        writer.close()

    await asyncio.sleep(0)  # let the first attempt be refused
    server = await asyncio.start_server(answer, "127.0.0.1", unused_tcp_port)
    try:
        assert await asking is True
    finally:
        await client.aclose()
        server.close()


def test_the_queue_speaks_json_and_nothing_else() -> None:
    assert deserialize(serialize({"f": "check_plane", "a": ["1"]})) == {"f": "check_plane", "a": ["1"]}
    with pytest.raises(ValueError, match="not ours"):
        deserialize(b"[" + b"1," * 40_000 + b"1]")
    with pytest.raises(ValueError, match="Expecting"):
        deserialize(b"cos\nsystem\n(S'true'\ntR.")
