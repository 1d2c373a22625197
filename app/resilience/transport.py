# SPDX-License-Identifier: Apache-2.0
"""httpx's transport over aiohttp, so that a caller sees what httpx's own would have shown.

httpx's own loses connections for ever when calls are cancelled, and slows down as calls grow many. What
``httpx_aiohttp`` leaves to aiohttp's habits is put right here: addresses and headers go out as they are,
nothing is added to them, errors get the names httpx has for them, and proxies are chosen by httpx's rules.
"""

import base64
import ipaddress
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from io import BytesIO
from typing import Protocol
from urllib.request import getproxies
from weakref import WeakSet

import aiohttp
import httpx
import yarl
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from httpx_aiohttp import AiohttpTransport
from httpx_aiohttp.transport import AiohttpResponseStream

from app import telemetry
from app.resilience import fence
from app.resilience.classify import Safety, default_safety
from app.resilience.file_body import FileBody

log = telemetry.logger(__name__)

MAX_HEADER_BYTES = 100 * 2**10
"""Of one line of an answer's head: as much as httpx takes for all of them."""
MAX_HEADERS = 1000
LARGE_BODY = 2**16
HIGHEST_PORT = 2**16 - 1
AUTOMATIC_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
BROKEN = httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError
NAMES: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (
    (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
    (aiohttp.ServerTimeoutError, httpx.ReadTimeout),
    (aiohttp.ClientConnectorError, httpx.ConnectError),
    (aiohttp.ClientHttpProxyError, httpx.ProxyError),
    (aiohttp.ClientConnectionResetError, httpx.WriteError),
    (aiohttp.ClientOSError, httpx.ReadError),
    (aiohttp.InvalidURL, httpx.UnsupportedProtocol),
    (aiohttp.NonHttpUrlClientError, httpx.UnsupportedProtocol),
    (aiohttp.ClientError, httpx.RemoteProtocolError),
)
"""What httpx calls aiohttp's errors; the first that fits."""


class Marked(Protocol):
    """What is told when the first byte of a request may have reached the service."""

    sent: bool


attempt: ContextVar[Marked | None] = ContextVar("attempt", default=None)


class Wire(httpx.AsyncBaseTransport):
    """One connection pool, and one per proxy that the environment names when it is made."""

    def __init__(self, limit: int, verify: ssl.SSLContext | None = None) -> None:
        self._certificates = verify or certificates()
        self._certificates.set_alpn_protocols(["http/1.1"])
        self._limit = limit
        self._proxies = Proxies(getproxies())
        self._pools: dict[httpx.Proxy | None, Pool] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One exchange of a request that was read, the answer's body still to be read.

        Raises:
            httpx.TransportError: as httpx's own transport would; httpx.InvalidURL: there is no such port.
        """
        proxy = self._proxies.of(request.url)
        if proxy not in self._pools:
            self._pools[proxy] = Pool(self._limit, self._certificates, proxy)
        return await self._pools[proxy].handle_async_request(request)

    async def aclose(self) -> None:
        """Close every connection."""
        for pool in self._pools.values():
            await pool.aclose()


class Exchange:
    """What is known of one: ``reused`` if its connection had served another before."""

    __slots__ = ("reused",)

    def __init__(self) -> None:
        self.reused = False


current: ContextVar[Exchange | None] = ContextVar("current", default=None)
served: WeakSet[ResponseHandler] = WeakSet()
"""Connections on which an exchange was begun."""


class Pool(AiohttpTransport):
    """Connections straight to the services, or through one proxy."""

    def __init__(self, limit: int, certificates: ssl.SSLContext, proxy: httpx.Proxy | None) -> None:
        super().__init__(verify=certificates, proxy=proxy)
        self._limit = limit
        self._proxy_url = None if proxy is None else yarl.URL(str(proxy.url))
        self._proxy_headers = {} if proxy is None else _credentials(proxy)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Exchange, and once more if the connection had been closed while it was idle and that is harmless.

        It comes to an end: each turn takes another connection out of the pool, until a new one is used.
        """
        while True:
            exchange = Exchange()
            current.set(exchange)
            try:
                return await self._exchange(request)
            except BROKEN:
                if not exchange.reused or _safety(request) is Safety.UNSAFE:
                    raise

    async def _exchange(self, request: httpx.Request) -> httpx.Response:
        limits = request.extensions.get("timeout", {})
        try:
            response = await self._session().request(
                request.method,
                _address(request.url),
                headers=self._headers(request),
                data=_body(request),
                allow_redirects=False,
                timeout=_timeouts(limits.get("pool"), limits.get("connect"), limits.get("read")),
                server_hostname=request.extensions.get("sni_hostname"),
                proxy=self._proxy_url,
                proxy_headers=self._proxy_headers,
            )
        except aiohttp.ClientError as error:
            raise _renamed(error) from error
        return _answer(request, response)

    def _headers(self, request: httpx.Request) -> list[tuple[str, str]]:
        """As they are, several of one name too; what frames the body is aiohttp's business."""
        spelled: dict[bytes, bytes] = {}  # aiohttp drops the first of two names that differ in case only
        headers = [
            (spelled.setdefault(name.lower(), name).decode("ascii"), value.decode())
            for name, value in request.headers.raw
            if name.lower() != b"transfer-encoding"
        ]
        if request.url.userinfo and "authorization" not in request.headers:
            headers.append(("Authorization", _basic(request.url.username, request.url.password)))
        if self._proxy_url is not None and request.url.scheme == "http":
            headers.extend(self._proxy_headers.items())
        return headers

    def _session(self) -> aiohttp.ClientSession:
        if not isinstance(self.client, aiohttp.ClientSession):
            self.client = self.get_client()
        return self.client

    def get_client(self) -> aiohttp.ClientSession:
        """A session of the running loop."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._limit, ssl=self.ssl_context),
            request_class=FencedRequest,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=AUTOMATIC_HEADERS,
            auto_decompress=False,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
            middlewares=[_once],
        )


class FencedRequest(aiohttp.ClientRequest):
    """Once its connection is there, nothing stands between the last look at the fence and the first byte.

    What aiohttp's traces would tell is noted here: they cost as much as the whole guard.
    """

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Send, if the work is still ours; aiohttp closes the connection otherwise."""
        fence.check()
        _note(conn.protocol)
        return await super().send(conn)


def _note(connection: ResponseHandler | None) -> None:
    """From here on the service may have seen the request; and whether it was the connection's first."""
    marked, exchange = attempt.get(), current.get()
    if marked is not None:
        marked.sent = True
    if exchange is not None and connection is not None:
        exchange.reused = connection in served
        served.add(connection)


class Body(AiohttpResponseStream):
    """What follows the head of an answer."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        super().__init__(response)
        self._connection = response.connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        protocol = None if self._connection is None else self._connection.protocol
        try:
            async for part in self._aiohttp_response.content.iter_chunked(self.CHUNK_SIZE):
                yield part
        except aiohttp.ClientError as error:
            raise _renamed(_lost(protocol) or error) from error
        lost = _lost(protocol)
        if lost is not None and _ends_with_its_connection(self._aiohttp_response):
            raise _renamed(lost) from lost  # aiohttp takes a reset for the end, too


def _lost(protocol: ResponseHandler | None) -> aiohttp.ClientOSError | None:
    """What broke the connection, unless the service closed it in good order."""
    error = None if protocol is None else protocol.exception()
    return error if isinstance(error, aiohttp.ClientOSError) else None


def _ends_with_its_connection(response: aiohttp.ClientResponse) -> bool:
    return not response.headers.keys() & {"Content-Length", "Transfer-Encoding"}


async def _once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Rename errors before aiohttp sees them: it would send again by itself, also on a new connection."""
    try:
        return await send(request)
    except aiohttp.ClientError as error:
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            _alert(request.host, error)
        raise _renamed(error) from error


def _alert(host: str, error: aiohttp.ClientConnectorCertificateError) -> None:
    """No retry and no breaker will make this better: somebody has to see to it."""
    log.error("certificate_not_trusted", host=host, reason=str(error.certificate_error))


def _renamed(error: Exception) -> httpx.TransportError:
    kind = next(ours for theirs, ours in NAMES if isinstance(error, theirs))
    # an answer's error repeats the whole address
    return kind(error.message if isinstance(error, aiohttp.ClientResponseError) else str(error))


@lru_cache(maxsize=64)
def _timeouts(pool: float | None, connect: float | None, read: float | None) -> aiohttp.ClientTimeout:
    """Those of httpx by aiohttp's names; there are few of them, and each takes a while to make."""
    return aiohttp.ClientTimeout(connect=pool, sock_connect=connect, sock_read=read)


def _safety(request: httpx.Request) -> Safety:
    return Safety(request.extensions.get("safety") or default_safety(request.method))


def _address(url: httpx.URL) -> yarl.URL:
    """The same, byte by byte: by itself aiohttp would rewrite escapes and drop an empty query."""
    if url.port is not None and url.port > HIGHEST_PORT:
        raise httpx.InvalidURL(f"there is no port {url.port}")
    return yarl.URL.build(
        scheme=url.scheme,
        authority=url.netloc.decode("ascii"),
        path=url.raw_path.decode("ascii"),
        encoded=True,
    )


def _body(request: httpx.Request) -> bytes | BytesIO | AsyncIterator[bytes] | None:
    """In pieces if it is large: all at once it would keep the event loop from everything else."""
    file: FileBody | None = request.extensions.get("body")
    if file is not None:
        return file.pieces()
    content = request.content
    return BytesIO(content) if len(content) > LARGE_BODY else content or None


def _answer(request: httpx.Request, response: aiohttp.ClientResponse) -> httpx.Response:
    version = response.version or aiohttp.HttpVersion11
    return httpx.Response(
        response.status,
        headers=response.raw_headers,
        stream=Body(response),
        request=request,
        extensions={
            "http_version": f"HTTP/{version.major}.{version.minor}".encode(),
            "reason_phrase": (response.reason or "").encode(errors="surrogateescape"),
        },
    )


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")


def _credentials(proxy: httpx.Proxy) -> dict[str, str]:
    return {"Proxy-Authorization": _basic(*proxy.auth)} if proxy.auth else {}


class Proxies:
    """The ways that ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` describe.

    ``found`` has the variables' values under ``http``, ``https``, ``all`` and ``no``.

    Raises:
        ValueError: a proxy speaks another protocol than HTTP.
    """

    def __init__(self, found: Mapping[str, str]) -> None:
        self._ways = {
            scheme: _proxy(place) for scheme in ("http", "https", "all") if (place := found.get(scheme))
        }
        names = [name.strip() for name in found.get("no", "").split(",")]
        if "*" in names:
            self._ways = {}
        self._exceptions = [_pattern(name) for name in names if name and name != "*"]

    def of(self, url: httpx.URL) -> httpx.Proxy | None:
        """The proxy on the way to an address; None: straight."""
        if not self._ways or any(_fits(url, pattern) for pattern in self._exceptions):
            return None
        return self._ways.get(url.scheme) or self._ways.get("all")


def _proxy(place: str) -> httpx.Proxy:
    proxy = httpx.Proxy(place if "://" in place else f"http://{place}")
    if proxy.url.scheme not in {"http", "https"}:
        raise ValueError(f"a proxy that speaks {proxy.url.scheme} cannot be used")
    return proxy


def _pattern(name: str) -> httpx.URL:
    """An entry of ``NO_PROXY`` as an address; a star before a name: the hosts below it, and itself."""
    if "://" in name:
        return httpx.URL(name)
    number = _number(name)
    if number is not None:
        return httpx.URL(f"all://[{number}]" if number.version == 6 else f"all://{number}")
    return httpx.URL(f"all://{name}" if name.lower() == "localhost" else f"all://*{name}")


def _number(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.split("/", maxsplit=1)[0])
    except ValueError:
        return None


def _fits(url: httpx.URL, pattern: httpx.URL) -> bool:
    if pattern.scheme not in {"all", url.scheme} or pattern.port not in {None, url.port}:
        return False
    host = pattern.host
    if host.startswith("*"):
        name = host.removeprefix("*")
        return url.host.endswith("." + name.removeprefix(".")) or url.host == name
    return host in {"", url.host}


def certificates() -> ssl.SSLContext:
    """What ``SSL_CERT_FILE`` or ``SSL_CERT_DIR`` names, or the certificates that come with httpx.

    Reading them takes 20 ms, so all clients share them.
    """
    return _certificates(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache(maxsize=4)
def _certificates(*_: str | None) -> ssl.SSLContext:
    return httpx.create_ssl_context()  # which reads the same two variables
