# SPDX-License-Identifier: Apache-2.0
"""Certificates, and proxies of the environment, as httpx has them."""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast
from urllib.request import getproxies

import httpx
import pytest

from app.resilience.errors import PermanentError, TransientError
from app.resilience.transport import Proxies
from tests.resilience.certificates import Authority, make_authority
from tests.resilience.misbehaving import Received, answer, misbehaving
from tests.resilience.parity import answered, asked, both, ours, plain, raised, sent
from tests.resilience.proxy import forward_proxy

VARIABLES = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"]
LOGIN = "user:p%40ss%C3%A9@"
CREDENTIALS = "Basic dXNlcjpwQHNzw6k="


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*VARIABLES, *map(str.lower, VARIABLES), "SSL_CERT_FILE", "SSL_CERT_DIR"]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("tls") / "root")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("tls") / "strange", "somebody else")


async def test_a_root_that_is_given_is_trusted(authority: Authority) -> None:
    async with misbehaving(answer(200, b"hi"), tls=authority.shows()) as server:
        first, second = await both("GET", server.url, verify=authority.trusted())

    assert answered(first).content == answered(second).content == b"hi"


async def test_the_service_is_told_which_protocol_is_spoken(authority: Authority) -> None:
    chosen: list[str | None] = []

    async def note(request: Received, writer: asyncio.StreamWriter) -> None:
        chosen.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await answer()(request, writer)

    async with misbehaving(note, tls=authority.shows()) as server:
        await asked(plain(verify=authority.trusted()), "GET", server.url)
        await asked(ours(verify=authority.trusted()), "GET", server.url)

    assert chosen == ["http/1.1", "http/1.1"]


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
async def test_the_environment_names_the_roots_each_time_a_client_is_made(
    variable: str, authority: Authority, stranger: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with misbehaving(tls=authority.shows()) as server:
        for root, is_trusted in ((stranger, False), (authority, True), (stranger, False)):
            monkeypatch.setenv(variable, str(root.file if variable == "SSL_CERT_FILE" else root.folder))
            first, second = await both("GET", server.url)

            assert isinstance(first, httpx.Response) is is_trusted
            assert isinstance(second, httpx.Response) is is_trusted


async def test_without_any_of_this_only_public_roots_are_trusted(authority: Authority) -> None:
    async with misbehaving(tls=authority.shows()) as server:
        first, second = await both("GET", server.url)

    raised(first, httpx.ConnectError)
    raised(second, PermanentError)


Shows = Callable[[Authority, Authority], ssl.SSLContext]
NOT_TRUSTED: dict[str, tuple[Shows, str]] = {
    "has ended": (lambda known, _: known.shows(ended=True), "certificate has expired"),
    "has an unknown root": (lambda _, unknown: unknown.shows(), "unable to get local issuer certificate"),
    "is for another name": (lambda known, _: known.shows("elsewhere.example"), "Hostname mismatch"),
    "signs itself": (lambda _, unknown: unknown.shows_itself(), "self-signed certificate"),
}


@pytest.mark.parametrize(("shows", "reason"), NOT_TRUSTED.values(), ids=NOT_TRUSTED.keys())
async def test_a_certificate_that_is_not_trusted_is_named_as_httpx_names_it(
    shows: Shows, reason: str, authority: Authority, stranger: Authority
) -> None:
    async with misbehaving(tls=shows(authority, stranger)) as server:
        first, second = await both("GET", server.url, verify=authority.trusted())

    error = raised(second, PermanentError)
    assert reason in str(raised(first, httpx.ConnectError))
    assert reason in str(error)
    assert isinstance(error.__cause__, httpx.ConnectError)
    assert server.received == []


async def test_a_service_that_does_not_speak_tls_is_transient() -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        first, second = await both("GET", f"https://127.0.0.1:{port}")

    assert type(raised(second, TransientError).__cause__) is type(raised(first, httpx.ConnectError))


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY", "http_proxy"])
@pytest.mark.parametrize("form", ["http://{}", "{}", f"http://{LOGIN}{{}}"], ids=["whole", "bare", "login"])
async def test_plain_http_is_asked_of_the_proxy_with_the_whole_address(
    variable: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with misbehaving() as server, forward_proxy(server.url) as proxy:
        monkeypatch.setenv(variable, form.format(proxy.address))
        first, second = await both("GET", "http://vendor.example:8080/a%2Fb?q=%20#x")

    assert answered(first).status_code == answered(second).status_code == 200
    assert [target for _, target, _ in proxy.asked] == ["http://vendor.example:8080/a%2Fb?q=%20"] * 2
    assert sent(server.received[1]) == sent(server.received[0])
    for _, _, headers in proxy.asked:
        assert headers["host"] == "vendor.example:8080"
        assert headers.get("proxy-authorization") == (CREDENTIALS if "user" in form else None)


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("form", ["http://{}", f"{LOGIN}{{}}"], ids=["whole", "login"])
async def test_https_goes_through_a_tunnel_that_sees_neither_request_nor_secrets(
    variable: str, form: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = authority.shows("vendor.example")
    async with misbehaving(tls=tls) as server, forward_proxy(server.url) as proxy:
        monkeypatch.setenv(variable, form.format(proxy.address))
        first, second = await both("GET", "https://vendor.example/x", verify=authority.trusted())

    assert answered(first).status_code == answered(second).status_code == 200
    assert [(method, target) for method, target, _ in proxy.asked] == [("CONNECT", "vendor.example:443")] * 2
    for _, _, headers in proxy.asked:
        assert headers.get("proxy-authorization") == (CREDENTIALS if "user" in form else None)
        assert not {"authorization", "x-correlation-id", "cookie"} & headers.keys()
    assert sent(server.received[1]) == sent(server.received[0])
    assert "proxy-authorization" not in server.received[1].headers


async def test_the_name_on_the_certificate_is_checked_through_a_tunnel_too(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with misbehaving(tls=authority.shows()) as server, forward_proxy(server.url) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.address)
        first, second = await both("GET", "https://vendor.example/", verify=authority.trusted())

    raised(first, httpx.ConnectError)
    raised(second, PermanentError)


async def test_tunnels_are_kept_and_used_again(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    async with misbehaving(tls=authority.shows()) as server, forward_proxy(server.url) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"{LOGIN}{proxy.address}")
        async with ours(verify=authority.trusted()) as client:
            for _ in range(3):
                await client.get(server.url)

    assert (len(server.received), len(proxy.asked)) == (3, 1)


async def test_a_proxy_that_refuses_is_told_from_a_service_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    async with misbehaving() as server, forward_proxy(server.url, refuses=True) as proxy:
        monkeypatch.setenv("ALL_PROXY", proxy.address)
        tunnel = await both("POST", "https://vendor.example/")
        forward = await both("GET", "http://vendor.example/")

    raised(tunnel[0], httpx.ProxyError)
    error = raised(tunnel[1], TransientError)  # nothing was sent to the service, so it is not ambiguous
    assert isinstance(error.__cause__, httpx.ProxyError)
    assert answered(forward[0]).status_code == answered(forward[1]).status_code == 407


async def test_a_proxy_that_is_not_there_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    async with misbehaving() as server:
        gone = server.url
    monkeypatch.setenv("ALL_PROXY", gone)
    for url in ("http://vendor.example/", "https://vendor.example/"):
        first, second = await both("POST", url)

        assert type(raised(second, TransientError).__cause__) is type(raised(first, httpx.ConnectError))


async def test_two_proxies_at_one_address_keep_their_own_logins(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        misbehaving(tls=authority.shows("vendor.example")) as server,
        forward_proxy(server.url) as proxy,
    ):
        monkeypatch.setenv("HTTP_PROXY", f"{LOGIN}{proxy.address}")
        monkeypatch.setenv("HTTPS_PROXY", f"other:one@{proxy.address}")
        async with ours(verify=authority.trusted()) as client:
            with suppress(TransientError):  # the server speaks TLS only
                await client.get("http://vendor.example/")
            await client.get("https://vendor.example/")

    assert [headers["proxy-authorization"] for _, _, headers in proxy.asked] == [
        CREDENTIALS,
        "Basic b3RoZXI6b25l",
    ]


ADDRESSES = [
    "http://vendor.example/",
    "http://vendor.example:8080/",
    "https://vendor.example/",
    "https://api.vendor.example/",
    "https://api.vendor.example:8443/",
    "https://notvendor.example/",
    "http://localhost:1/",
    "http://127.0.0.1:1/",
    "http://10.1.2.3/",
    "http://[::1]:1/",
    "http://[fe80::1]/",
    "https://VENDOR.example/",
]
NO_PROXY = [
    "",
    "*",
    "other.example, *",
    "vendor.example",
    ".vendor.example",
    "*.vendor.example",
    "VENDOR.EXAMPLE",
    "vendor.example:8080",
    "vendor.example:443",
    "api.vendor.example:8443,localhost",
    "http://vendor.example",
    "https://vendor.example,127.0.0.1",
    "all://api.vendor.example",
    "https://",
    "LOCALHOST",
    "127.0.0.1:1",
    "10.0.0.0/8",
    "10.1.2.3/32",
    "::1",
    "fe80::1,::1",
    " , ,vendor.example , ",
]
SETTINGS: list[Mapping[str, str]] = [
    {"HTTP_PROXY": "one:1", "HTTPS_PROXY": "http://two:2", "ALL_PROXY": "http://three:3"},
    {"HTTPS_PROXY": "http://two:2", "all_proxy": "http://three:3"},
    {"HTTP_PROXY": "http://one:1", "https_proxy": ""},
    {},
]


@pytest.mark.parametrize("no_proxy", NO_PROXY)
@pytest.mark.parametrize("settings", SETTINGS, ids=["each", "all but one", "http only", "none"])
def test_addresses_go_the_way_that_httpx_chooses(
    no_proxy: str, settings: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**settings, "NO_PROXY": no_proxy}.items():
        monkeypatch.setenv(name, value)
    client, proxies = httpx.AsyncClient(), Proxies(getproxies())

    for url in map(httpx.URL, ADDRESSES):
        pool = cast("Any", client._transport_for_url(url))._pool
        wanted = httpx.URL(bytes(pool._proxy_url).decode()) if hasattr(pool, "_proxy_url") else None
        found = proxies.of(url)
        assert (found and found.url.join("/")) == wanted, url


def test_a_proxy_that_speaks_something_else_is_refused_when_the_client_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")

    with pytest.raises(ValueError, match="socks5"):
        ours()
