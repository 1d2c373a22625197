# SPDX-License-Identifier: Apache-2.0
"""httpx's transport over aiohttp: proxies and certificates from the environment, as httpx itself has them.

httpx's own transport loses connections for ever when calls are cancelled, and slows down as calls grow many.
"""

import ssl
from collections.abc import Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Protocol
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport


class Marked(Protocol):
    """What is told when the first byte of a request may have reached the service."""

    sent: bool


attempt: ContextVar[Marked | None] = ContextVar("attempt", default=None)


class Wire(httpx.AsyncBaseTransport):
    """One connection pool, and one per proxy that the environment names."""

    def __init__(self, limit: int, verify: ssl.SSLContext | None = None) -> None:
        self._certificates = verify or certificates()
        self._limit = limit
        self._pools: dict[str | None, AiohttpTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One exchange, the body still to be read."""
        proxy = _proxy_of(request.url)
        if proxy not in self._pools:
            self._pools[proxy] = AiohttpTransport(
                verify=self._certificates,
                client=self._session,
                proxy=httpx.Proxy(proxy) if proxy else None,
            )
        return await self._pools[proxy].handle_async_request(request)

    def _session(self) -> aiohttp.ClientSession:
        traces = aiohttp.TraceConfig()
        traces.on_request_headers_sent.append(_mark_sent)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._limit, ssl=self._certificates),
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[traces],
        )

    async def aclose(self) -> None:
        """Close every connection."""
        for pool in self._pools.values():
            await pool.aclose()


async def _mark_sent(*_: object) -> None:
    """Note that from here on the service may have seen the request."""
    current = attempt.get()
    if current is not None:
        current.sent = True


def _proxy_of(url: httpx.URL) -> str | None:
    proxies: Mapping[str, str] = _proxies()
    if not proxies or proxy_bypass(url.host):
        return None
    return proxies.get(url.scheme) or proxies.get("all")


@lru_cache(maxsize=1)
def _proxies() -> dict[str, str]:
    return getproxies()


@lru_cache(maxsize=1)
def certificates() -> ssl.SSLContext:
    """Reading the trusted certificates takes 20 ms, so all clients share them."""
    return httpx.create_ssl_context()
