# SPDX-License-Identifier: Apache-2.0
"""What is sent, what is answered and what fails looks as it does to a caller of plain httpx."""

import asyncio
import gzip
import importlib
import socket
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.resilience.errors import AttemptTimeout, CallError, PermanentError, TransientError, Unexpected
from tests.resilience.misbehaving import (
    Behaviour,
    Received,
    answer,
    broken_off,
    hang,
    misbehaving,
    raw,
    reset,
)
from tests.resilience.parity import Seen, answered, asked, both, ours, plain, raised, sent

OK = b"HTTP/1.1 200 OK\r\n"
HI = b"Content-Length: 2\r\n\r\nhi"


async def pieces() -> AsyncIterator[bytes]:
    yield b"ab"
    yield b"c"


SENT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "nothing special": ("GET", "/", {}),
    "escapes, some broken": ("GET", "/a//b%2Fc/%41%7e%zz/é/~x/;p=1/a%20b/[x]", {}),
    "a query as it is": ("GET", "/?q=%20+&é=1&x[]=1&y=a%2Fb&$filter=a eq 'b'#part", {}),
    "parameters": ("GET", "/x", {"params": {"$filter": "a eq 'b'", "é": "ü&="}}),
    "an empty query": ("GET", "/a?", {}),
    "slashes": ("GET", "//x//", {}),
    "dots": ("GET", "/a/../b/./c", {}),
    "JSON": ("POST", "/", {"json": {"a": "é"}}),
    "bytes of no type": ("POST", "/", {"content": b"\x00\xff"}),
    "an empty POST": ("POST", "/", {}),
    "an empty PUT": ("PUT", "/", {}),
    "a form": ("POST", "/", {"data": {"a": "1 &", "b": ["2", "3"]}}),
    "a body to GET": ("GET", "/", {"content": b"x"}),
    "a body to DELETE": ("DELETE", "/", {"content": b"x"}),
    "pieces of a known length": ("PUT", "/", {"content": pieces, "headers": {"Content-Length": "3"}}),
    "HEAD": ("HEAD", "/", {}),
    "OPTIONS": ("OPTIONS", "/", {}),
    "PATCH": ("PATCH", "/", {"json": {}}),
    "another Host": ("GET", "/", {"headers": {"Host": "other.example"}}),
    "a cookie": ("GET", "/", {"headers": {"Cookie": 'a=b; c="d e"'}}),
    "several of one name": ("GET", "/", {"headers": [("X-Many", "1"), ("X-Many", "2"), ("X-None", "")]}),
    "UTF-8 in a header": ("GET", "/", {"headers": [(b"X-Name", "é".encode())]}),
    "its own Accept-Encoding": ("GET", "/", {"headers": {"Accept-Encoding": "identity"}}),
    "its own User-Agent": ("GET", "/", {"headers": {"User-Agent": "me", "Accept": "text/csv"}}),
}


@pytest.mark.parametrize(("method", "path", "request_"), SENT.values(), ids=SENT.keys())
async def test_the_service_receives_the_same_request(
    method: str, path: str, request_: dict[str, Any]
) -> None:
    async with misbehaving() as server:
        await both(method, server.url + path, **request_)

    first, second = (sent(request) for request in server.received)
    assert second == first


async def test_a_password_in_the_address_is_sent_as_basic_authorization_and_not_in_the_address() -> None:
    async with misbehaving() as server:
        await both("GET", server.url.replace("http://", "http://user:p%40%C3%A9@"))

    first, second = (sent(request) for request in server.received)
    assert second == first
    assert "authorization" in server.received[1].headers


async def test_a_body_that_comes_in_pieces_is_read_before_and_sent_with_its_length() -> None:
    async with misbehaving() as server:
        await both("POST", server.url, content=pieces)

    first, second = server.received
    assert first.headers["transfer-encoding"] == "chunked"
    assert second.headers["content-length"] == "3"  # it may have to be sent again
    assert "transfer-encoding" not in second.headers
    assert first.body == second.body == b"abc"


async def test_a_request_without_a_body_says_so_unless_it_never_has_one() -> None:
    async with misbehaving() as server:
        await both("DELETE", server.url)

    first, second = (sent(request) for request in server.received)
    assert sorted([*first[3], ("Content-Length", "0")]) == second[3]


async def test_headers_of_one_name_are_all_sent_even_if_spelled_differently() -> None:
    async with misbehaving() as server:
        await both("GET", server.url, headers=[("X-Many", "1"), ("x-many", "2")])

    first, second = (
        [(name.title(), value) for name, value in request.lines if name.lower() == "x-many"]
        for request in server.received
    )
    assert first == second == [("X-Many", "1"), ("X-Many", "2")]


@pytest.mark.parametrize("value", ["é".encode("latin-1"), b"a\r\nX-Other: b"], ids=["latin-1", "a line end"])
async def test_a_header_that_cannot_be_sent_is_our_own_mistake(value: bytes) -> None:
    async with misbehaving() as server:
        outcome = await asked(ours(), "POST", server.url, headers=[(b"X-Name", value)])

    raised(outcome, Unexpected)
    assert server.received == []


async def test_cookies_are_not_kept_however_many_come() -> None:
    cookies = b"Set-Cookie: a=1; Path=/\r\nSet-Cookie: b=2\r\nSet-Cookie: broken\r\n"
    async with misbehaving(raw(OK + cookies + HI, keep=True)) as server, ours() as client, plain() as other:
        for _ in range(2):
            answers = [await client.get(server.url), await other.get(server.url)]

    assert answers[0].headers.get_list("set-cookie") == ["a=1; Path=/", "b=2", "broken"]
    assert answers[1].headers.get_list("set-cookie") == ["a=1; Path=/", "b=2", "broken"]
    assert not client.cookies
    assert ["cookie" in request.headers for request in server.received] == [False, False, False, True]


def compressed(coding: str, body: bytes) -> bytes:
    """In any coding that httpx may know, with the library that it knows it by."""
    if coding == "gzip":
        return gzip.compress(body)
    if coding == "deflate":
        return zlib.compress(body)
    library = importlib.import_module({"br": "brotli", "zstd": "zstandard"}[coding])
    result: bytes = library.compress(body)
    return result


async def test_every_coding_that_is_asked_for_is_decoded_once() -> None:
    body = gzip.compress(b"a package that happens to be compressed itself")

    async def as_asked(request: Received, writer: asyncio.StreamWriter) -> None:
        coding = request.headers["x-coding"]
        await answer(200, compressed(coding, body), Content_Encoding=coding)(request, writer)

    async with misbehaving(as_asked) as server, ours() as client:
        asked_for = client.headers["accept-encoding"].split(", ")
        bodies = [(await client.get(server.url, headers={"X-Coding": name})).content for name in asked_for]

    assert {"gzip", "deflate"} <= set(asked_for)
    assert {request.headers["accept-encoding"] for request in server.received} == {", ".join(asked_for)}
    assert bodies == [body] * len(asked_for)


ANSWERS = {
    "plain": OK + b"X-A: 1\r\nx-a: 2\r\nX-EMPTY:\r\n" + HI,
    "latin-1": b"HTTP/1.1 200 Tr\xe8s bien\r\nX-A: caf\xe9\r\n" + HI,
    "no reason": b"HTTP/1.1 200\r\n" + HI,
    "an unknown status": b"HTTP/1.1 799 Odd\r\n" + HI,
    "until the end": b"HTTP/1.0 200 OK\r\n\r\nhi",
    "empty": OK + b"Content-Length: 0\r\n\r\n",
    "204": b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
    "304": b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\nContent-Length: 20\r\n\r\n',
    "a redirect": b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
    "a refusal": b"HTTP/1.1 422 No\r\n" + HI,
    "100 first": b"HTTP/1.1 100 Continue\r\n\r\n" + OK + HI,
    "103 twice first": b"HTTP/1.1 103 Early Hints\r\nLink: </s>\r\n\r\n" * 2 + OK + HI,
    "chunks": OK + b"Transfer-Encoding: chunked\r\n\r\n2;a=b\r\nhi\r\n3\r\nabc\r\n0\r\n\r\n",
    "trailers": OK + b"Transfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n2\r\nhi\r\n0\r\nX-T: 1\r\n\r\n",
    "a long header": OK + b"X-A: " + b"a" * 60_000 + b"\r\n" + HI,
    "many headers": OK + b"X-A: 1\r\n" * 300 + HI,
    "a folded header": OK + b"X-A: a\r\n b\r\n" + HI,
    "bare line feeds": (OK + HI).replace(b"\r", b""),
    "gzip": OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"hello"),
    "gzip twice": OK + b"Content-Encoding: gzip, gzip\r\n\r\n" + gzip.compress(gzip.compress(b"hello")),
    "gzip that is cut": OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"hello")[:-9],
    "gzip of nothing": OK + b"Content-Encoding: gzip\r\nContent-Length: 0\r\n\r\n",
    "gzip in chunks": OK
    + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n19\r\n"
    + gzip.compress(b"hello", mtime=0)
    + b"\r\n0\r\n\r\n",
    "deflate": OK + b"Content-Encoding: deflate\r\n\r\n" + zlib.compress(b"hello"),
    "deflate without its frame": OK + b"Content-Encoding: deflate\r\n\r\n" + zlib.compress(b"hello")[2:-4],
    "identity": OK + b"Content-Encoding: identity\r\n" + HI,
    "a coding nobody knows": OK + b"Content-Encoding: rot13\r\n" + HI,
}


@pytest.mark.parametrize("told", ANSWERS.values(), ids=ANSWERS.keys())
async def test_the_caller_sees_the_same_answer(told: bytes) -> None:
    async with misbehaving(raw(told)) as server:
        first, second = await both("GET", server.url)

    assert Seen.of(answered(second)) == Seen.of(answered(first)).read_whole()


async def test_the_answer_to_head_has_no_body_but_tells_of_it() -> None:
    head = OK + b"Content-Length: 5000\r\nContent-Encoding: gzip\r\n\r\n"
    async with misbehaving(raw(head, keep=True)) as server:
        first, second = await both("HEAD", server.url)

    assert Seen.of(answered(second)) == Seen.of(answered(first))
    assert answered(second).headers["content-length"] == "5000"


TROUBLES: dict[str, Behaviour] = {
    "a reset": reset,
    "no answer": raw(b""),
    "half a head": raw(OK + b"Conte"),
    "not HTTP": raw(b"\x00\x01\x02 what\r\n\r\n"),
    "half a body": raw(OK + b"Content-Length: 100\r\n\r\nhi"),
    "a reset in the body": broken_off(OK + b"Content-Length: 100\r\n\r\nhi"),
    "a reset in a body that ends with the connection": broken_off(OK + b"\r\nhi"),
    "half a chunk": raw(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhi"),
    "no last chunk": raw(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n"),
    "a chunk of no size": raw(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhi\r\n"),
    "two lengths": raw(OK + b"Content-Length: 3\r\n" + HI),
    "a length that is no number": raw(OK + b"Content-Length: x\r\n\r\nhi"),
    "a space before the colon": raw(OK + b"X-A : 1\r\n" + HI),
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES.keys())
async def test_a_broken_exchange_is_transient_and_caused_by_the_error_that_httpx_raises(
    trouble: Behaviour,
) -> None:
    async with misbehaving(trouble) as server:
        first, second = await both("GET", server.url)

    error = raised(second, TransientError)
    assert type(error) is TransientError
    assert type(error.__cause__) is type(raised(first, httpx.TransportError))
    assert len(server.received) == 2


async def test_so_is_a_connection_that_is_refused_and_a_name_that_does_not_resolve() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for url in (f"http://127.0.0.1:{closed.getsockname()[1]}", "http://nowhere.invalid"):
            first, second = await both("GET", url)

            assert type(raised(first, httpx.ConnectError)) is type(raised(second, TransientError).__cause__)


async def test_a_service_that_says_nothing_runs_into_the_request_s_own_limit() -> None:
    async with misbehaving(hang) as server:
        first, second = await both("GET", server.url, timeout=httpx.Timeout(5.0, read=0.1))

    raised(first, httpx.ReadTimeout)
    assert isinstance(raised(second, AttemptTimeout).__cause__, httpx.ReadTimeout)


@pytest.mark.parametrize(
    ("url", "trouble", "kind"),
    [
        ("", raw(OK + b"Content-Encoding: gzip\r\n\r\nnot gzip"), httpx.DecodingError),
        ("ftp://localhost/", answer(), httpx.UnsupportedProtocol),
    ],
    ids=["a body that cannot be decoded", "another protocol"],
)
async def test_what_no_repetition_can_help_is_permanent(
    url: str, trouble: Behaviour, kind: type[httpx.HTTPError]
) -> None:
    async with misbehaving(trouble) as server:
        first, second = await both("GET", url or server.url)

    raised(first, kind)
    assert isinstance(raised(second, PermanentError).__cause__, kind)


async def test_an_address_with_a_port_that_cannot_be_is_permanent_and_not_repeated_in_the_error() -> None:
    error = raised(await asked(ours(), "GET", "http://user:pw@localhost:99999/?sig=secret"), PermanentError)

    assert not any(part in str(error) for part in ("pw", "99999", "secret"))


STRICTER = {
    "its length twice": OK + b"Content-Length: 2\r\n" + HI,
    "a length and chunks": OK
    + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "a body to 204": b"HTTP/1.1 204 No Content\r\n" + HI,
    "bytes after its end": OK + HI + b"hi",
}


@pytest.mark.parametrize("told", STRICTER.values(), ids=STRICTER.keys())
async def test_an_answer_that_contradicts_itself_is_refused_though_httpx_lets_it_pass(told: bytes) -> None:
    async with misbehaving(raw(told)) as server:
        first, second = await both("GET", server.url)

    answered(first)
    raised(second, TransientError)


async def test_a_change_of_protocols_that_nobody_asked_for_is_an_error() -> None:
    switch = b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
    async with misbehaving(raw(switch)) as server:
        first = await asked(plain(), "GET", server.url)
        second = await asked(ours(), "GET", server.url)

    raised(first, httpx.RemoteProtocolError)
    assert raised(second, CallError).status == 101
