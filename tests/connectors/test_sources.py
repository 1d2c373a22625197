# SPDX-License-Identifier: Apache-2.0
"""Downloads over https from a server that stops in the middle, and the sweep of what is left behind."""

import asyncio
import datetime as dt
import hashlib
import ipaddress
import os
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.connectors.sources import FileRules, Sources, make_private, sweep
from app.resilience import ResilientClient, RetryProfile, ServiceBreaker, create_resilient_client
from app.resilience.errors import NotThere, PermanentError, TransientError
from tests.resilience.misbehaving import HANG, Behaviour, Misbehaving, Received, answer, misbehaving, reset
from tests.waiting import eventually

BODY = os.urandom(1_000_003)
DIGEST = hashlib.sha256(BODY).hexdigest()
QUICK = RetryProfile(attempts=2, shortest=0.01, longest=0.02, attempt_timeout=2.0, total=10.0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    path.write_bytes(plain + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
async def client(certificate: Path) -> AsyncIterator[ResilientClient]:
    trusted = ssl.create_default_context(cafile=str(certificate))
    breaker = ServiceBreaker("external_api", fail_max=100)
    made = create_resilient_client("external_api", profile=QUICK, breaker=breaker, verify=trusted)
    yield made
    await made.aclose()


@pytest.fixture
def sources(client: ResilientClient, tmp_path: Path) -> Sources:
    spool = tmp_path / "spool"
    make_private(spool)
    return Sources("intune", client, spool, FileRules())


def from_offset(stop_after: int | None = None, *, ranges: bool = True) -> Behaviour:
    """The body from where it is asked for; optionally the connection breaks after so many bytes."""

    async def behave(request: Received, writer: asyncio.StreamWriter) -> None:
        asked = request.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-")
        start = int(asked) if ranges else 0
        rest = BODY[start:]
        status = b"206 Partial" if start else b"200 OK"
        if not rest:
            status = b"416 Too far"
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n" % (status, len(rest)) + rest[:stop_after])
        await writer.drain()
        if stop_after is not None:
            writer.close()

    return behave


def and_hang(stop_after: int) -> Behaviour:
    """So many bytes of the body, then silence."""

    async def behave(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY[:stop_after])
        await asyncio.sleep(HANG)

    return behave


async def fetched(sources: Sources, server: Misbehaving, sha256: str = DIGEST) -> Path:
    async with aclosing(sources.fetch(f"{server.url}/firefox.exe", sha256, "name")) as steps:
        async for _ in steps:
            pass
    return await sources.locate(f"{server.url}/firefox.exe", "name")


async def test_a_download_is_stored_and_checked(sources: Sources, tls: ssl.SSLContext) -> None:
    async with misbehaving(from_offset(), tls=tls) as server:
        path = await fetched(sources, server)

    assert path.read_bytes() == BODY
    assert sorted(item.suffix for item in sources.spool.iterdir()) == [".package"]
    assert (sources.spool.stat().st_mode & 0o077) == 0


async def test_a_broken_download_goes_on_where_it_stopped(sources: Sources, tls: ssl.SSLContext) -> None:
    async with misbehaving(
        from_offset(400_000), from_offset(300_000), reset, from_offset(), tls=tls
    ) as server:
        path = await fetched(sources, server)

    asked = [int(request.headers.get("range", "bytes=0-")[6:-1]) for request in server.received]
    assert path.read_bytes() == BODY
    assert asked[0] == 0
    assert asked == sorted(asked)
    assert asked[-1] == 700_000


async def test_a_download_goes_on_in_another_run(sources: Sources, tls: ssl.SSLContext) -> None:
    async with misbehaving(from_offset(500_000), reset, tls=tls) as server:
        with pytest.raises(TransientError):
            await fetched(sources, server)
        server.script = [from_offset()]
        server.received.clear()

        path = await fetched(sources, server)

    assert path.read_bytes() == BODY
    assert server.received[0].headers["range"] == "bytes=500000-"


async def test_a_download_that_is_cancelled_keeps_what_arrived(sources: Sources, tls: ssl.SSLContext) -> None:
    async with misbehaving(and_hang(500_000), from_offset(), tls=tls) as server:
        task = asyncio.create_task(fetched(sources, server))
        await eventually((sources.spool / "name.part").exists, within=5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        kept = (sources.spool / "name.part").stat().st_size

        path = await fetched(sources, server)

    assert path.read_bytes() == BODY
    assert server.received[-1].headers.get("range", "bytes=0-") == f"bytes={kept}-"


async def test_a_server_without_ranges_is_read_from_the_start(sources: Sources, tls: ssl.SSLContext) -> None:
    async with misbehaving(from_offset(500_000), from_offset(ranges=False), tls=tls) as server:
        path = await fetched(sources, server)

    assert path.read_bytes() == BODY


async def test_a_part_that_is_whole_already_needs_no_more(sources: Sources, tls: ssl.SSLContext) -> None:
    (sources.spool / "name.part").write_bytes(BODY)
    async with misbehaving(from_offset(), tls=tls) as server:
        path = await fetched(sources, server)

    assert path.read_bytes() == BODY


async def test_a_download_with_another_hash_is_thrown_away(sources: Sources, tls: ssl.SSLContext) -> None:
    async with misbehaving(from_offset(), tls=tls) as server:
        with pytest.raises(PermanentError, match="SHA-256"):
            await fetched(sources, server, "0" * 64)

        assert (await fetched(sources, server)).read_bytes() == BODY
    assert len(server.received) == 2


async def test_the_hash_may_be_written_in_capitals(sources: Sources, tls: ssl.SSLContext) -> None:
    async with misbehaving(from_offset(), tls=tls) as server:
        assert await fetched(sources, server, DIGEST.upper())


async def test_a_refusal_is_not_tried_for_ever(sources: Sources, tls: ssl.SSLContext) -> None:
    async with misbehaving(answer(404), tls=tls) as server:
        with pytest.raises(NotThere):
            await fetched(sources, server)

    assert len(server.received) == 1


async def test_a_certificate_that_is_not_trusted_is_no_passing_trouble(
    tmp_path: Path, tls: ssl.SSLContext
) -> None:
    stranger = create_resilient_client("external_api", profile=QUICK, breaker=ServiceBreaker("external_api"))
    sources = Sources("intune", stranger, tmp_path, FileRules())
    async with misbehaving(from_offset(), tls=tls) as server:
        with pytest.raises(PermanentError, match="certificate"):
            await fetched(sources, server)
    await stranger.aclose()

    assert server.received == []


def test_the_sweep_takes_only_what_is_old_and_ours(tmp_path: Path) -> None:
    names = ["a.part", "a.package", "a.content", "a.json", "a.making", "kept.txt", "new.content", "mine.part"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
        if name != "new.content":
            os.utime(tmp_path / name, (0, time.time() - 7200))

    sweep(tmp_path, "mine", older_than=3600)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.txt", "mine.part", "new.content"]
