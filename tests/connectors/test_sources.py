# SPDX-License-Identifier: Apache-2.0
"""Downloads over https from a server that stops in the middle, and the sweep of what is left behind."""

import asyncio
import datetime as dt
import hashlib
import ipaddress
import os
import socket
import ssl
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.connectors.contract import App
from app.connectors.services import Services
from app.connectors.sources import PIECE, FileRules, Sources, make_private, sweep
from app.resilience import RetryProfile
from app.resilience.errors import (
    CallError,
    LocalSaturation,
    NotThere,
    PermanentError,
    PolicyError,
    TransientError,
)
from tests.connectors.conftest import Make, MakeApp, upload
from tests.resilience.misbehaving import (
    HANG,
    Behaviour,
    Misbehaving,
    Received,
    answer,
    hang,
    misbehaving,
    reset,
)
from tests.waiting import eventually

BODY = os.urandom(2_000_003)
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
def services(certificate: Path, tmp_path: Path) -> Services:
    trusted = ssl.create_default_context(cafile=str(certificate))
    return Services(spool=tmp_path / "spool", profile=QUICK, certificates=trusted)


@pytest.fixture
def sources(services: Services) -> Sources:
    make_private(services.spool)
    return Sources(services.download_client, services.spool, FileRules())


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


async def fetched(sources: Sources, server: Misbehaving, sha256: str = DIGEST, *, name: str = "name") -> Path:
    async with aclosing(sources.fetch(f"{server.url}/firefox.exe", sha256, name)) as steps:
        async for _ in steps:
            pass
    return await sources.locate(f"{server.url}/firefox.exe", name)


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
    part = sources.spool / "name.part"
    async with misbehaving(and_hang(PIECE + 500_000), from_offset(), tls=tls) as server:
        task = asyncio.create_task(fetched(sources, server))
        await eventually(lambda: part.exists() and part.stat().st_size >= PIECE, within=5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        kept = part.stat().st_size

        path = await fetched(sources, server)

    assert path.read_bytes() == BODY
    assert kept >= PIECE
    assert server.received[-1].headers["range"] == f"bytes={kept}-"


async def test_a_server_without_ranges_is_read_from_the_start(sources: Sources, tls: ssl.SSLContext) -> None:
    async with misbehaving(from_offset(500_000), from_offset(ranges=False), tls=tls) as server:
        path = await fetched(sources, server)

    assert path.read_bytes() == BODY


async def test_a_part_that_is_whole_already_needs_no_more(sources: Sources, tls: ssl.SSLContext) -> None:
    (sources.spool / "name.part").write_bytes(BODY)
    async with misbehaving(from_offset(), tls=tls) as server:
        path = await fetched(sources, server)

    assert path.read_bytes() == BODY
    assert [request.headers["range"] for request in server.received] == [f"bytes={len(BODY)}-"]


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
    stranger = Services(spool=tmp_path, profile=QUICK)
    sources = Sources(stranger.download_client, tmp_path, FileRules())
    async with misbehaving(from_offset(), tls=tls) as server:
        with pytest.raises(PermanentError, match="certificate"):
            await fetched(sources, server)

    assert server.received == []


async def test_a_dead_host_costs_attempts_says_which_it_is_and_holds_nobody_up(
    make: Make, make_app: MakeApp, certificate: Path, tls: ssl.SSLContext
) -> None:
    intune = make(services={"certificates": ssl.create_default_context(cafile=str(certificate))})
    app, living = make_app(), make_app()
    app_id = await intune.publish(app)
    dead = moved(app, f"https://user:pw@127.0.0.1:{unused_port()}/x.exe?sig=SECRET")
    told: list[TransientError] = []
    for _ in range(4):
        with pytest.raises(TransientError) as raised:
            await upload(intune, dead, app_id)
        told.append(raised.value)

    async with misbehaving(from_offset(), tls=tls) as server:
        here = moved(living, f"{server.url}/firefox.exe", DIGEST)
        steps = await upload(intune, here, await intune.publish(here))

    assert steps
    assert {(error.service, error.error_class) for error in told} == {("external_api", "transient")}
    assert all("127.0.0.1" in error.detail for error in told)
    assert not any(secret in error.detail for error in told for secret in ("SECRET", "pw", "user"))


def moved(app: App, uri: str, sha256: str = DIGEST) -> App:
    return replace(app, package=app.package.model_copy(update={"uri": uri, "sha256": sha256}))


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("uri", "told", "kind"),
    [
        ("https://user:pw@host.invalid/x.exe?sig=SECRET", "https://host.invalid/x.exe", TransientError),
        ("https://user:pw@host.invalid/x.exe#SECRET", "https://host.invalid/x.exe", TransientError),
        ("https://user:pw@host:99999/x.exe?sig=SECRET", "https:…", PermanentError),
        ("https://user:p/w@host/x.exe?sig=SECRET", "https:…", PermanentError),
        ("https://user:pw@[::1/x.exe?sig=SECRET", "https:…", PermanentError),
        ("https://user:pw@/x.exe?sig=SECRET", "https:///x.exe", PermanentError),
        ("https://user:pw@a..b/x.exe?sig=SECRET", "https://a..b/x.exe", PermanentError),
        ("https://user:pw@999.1.1.1/x.exe?sig=SECRET", "https://999.1.1.1/x.exe", PermanentError),
        ("file:///x?sig=SECRET", "file:///x", PolicyError),
        ("file://user:pw@host/x?sig=SECRET", "file://host/x", PermanentError),
        ("file://[/x?sig=SECRET", "file:…", PermanentError),
    ],
)
async def test_no_error_tells_a_uris_query_user_or_password(
    sources: Sources, uri: str, told: str, kind: type[CallError]
) -> None:
    with pytest.raises(kind) as raised:
        async with aclosing(sources.fetch(uri, DIGEST, "name")) as steps:
            _ = [size async for size in steps]

    assert told in raised.value.detail
    assert raised.value.service == "external_api"
    assert not [secret for secret in ("SECRET", "user", "pw", "p/w") if secret in raised.value.detail]


async def test_neither_a_missing_file_nor_a_wrong_hash_tells_the_query(
    services: Services, tmp_path: Path, tls: ssl.SSLContext
) -> None:
    make_private(services.spool)
    sources = Sources(services.download_client, services.spool, FileRules(allow_any_file=True))
    (tmp_path / "x.exe").write_bytes(BODY)
    details = []
    async with misbehaving(from_offset(), tls=tls) as server:
        for uri in (
            f"file://{tmp_path}/nothing?sig=SECRET",
            f"file://{tmp_path}/x.exe?sig=SECRET",
            f"{server.url.replace('//', '//user:pw@')}/x.exe?sig=SECRET",
        ):
            with pytest.raises(PermanentError) as raised:
                _ = [size async for size in sources.fetch(uri, "0" * 64, "name")]
            details.append(raised.value.detail)

    assert [detail.count("x.exe") for detail in details] == [0, 1, 1]
    assert not [detail for detail in details if "SECRET" in detail or "pw" in detail]


async def test_a_refusal_does_not_repeat_what_the_host_says_of_the_address(
    sources: Sources, tls: ssl.SSLContext
) -> None:
    async with misbehaving(answer(403, b"no /x?token-id=SECRET for user:pw"), tls=tls) as server:
        with pytest.raises(PolicyError) as raised:
            await fetched(sources, server)

    assert raised.value.detail == f"{server.url}/firefox.exe: external_api answered 403: Told"


async def test_a_host_that_never_answers_takes_no_turn_from_others(
    services: Services, tls: ssl.SSLContext
) -> None:
    patient = replace(services, profile=RetryProfile(attempts=1, shortest=0.0, longest=0.0, total=60.0))
    make_private(services.spool)
    sources = Sources(patient.download_client, services.spool, FileRules())
    async with misbehaving(hang, tls=tls) as silent, misbehaving(from_offset(), tls=tls) as server:
        waiting = [asyncio.create_task(fetched(sources, silent, name=f"w{number}")) for number in range(30)]
        await eventually(lambda: len(silent.received) >= 10, within=10)

        async with asyncio.timeout(10):
            path = await fetched(sources, server)

        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert path.read_bytes() == BODY


def test_the_sweep_takes_only_what_is_old_and_ours(tmp_path: Path) -> None:
    names = ["a.part", "a.package", "a.content", "a.json", "a.making", "kept.txt", "new.content", "mine.part"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
        if name != "new.content":
            os.utime(tmp_path / name, (0, time.time() - 7200))

    sweep(tmp_path, "mine", older_than=3600)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.txt", "mine.part", "new.content"]


async def test_a_spool_that_cannot_be_made_puts_the_upload_off(
    make: Make, make_app: MakeApp, tmp_path: Path
) -> None:
    (tmp_path / "spool-0").write_text("a file where the folder should be")
    intune, app = make(), make_app()
    app_id = await intune.publish(app)

    with pytest.raises(LocalSaturation, match="the spool cannot be used"):
        await upload(intune, app, app_id)
