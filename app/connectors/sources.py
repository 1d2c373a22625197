# SPDX-License-Identifier: Apache-2.0
"""Where packages come from: a file below the allowed folders, or https; not trusted before it is hashed."""

import asyncio
import hashlib
import os
import stat
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx

from app.resilience import ResilientClient
from app.resilience.errors import CallError, LocalSaturation, PermanentError, PolicyError, TransientError

PACKAGE_SOURCE = "external_api"
PIECE = 2**20
REPORT_EVERY = 1.0
FRUITLESS_DOWNLOADS = 3
SPOOL_KEPT = 86_400.0
"""Seconds after which what an upload left in the spool is taken for given up."""


def redacted(uri: str) -> str:
    """A URI as it may be told: without user, password, query and fragment, which may be secrets."""
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError:  # what is the user and what the host cannot be told apart
        return f"{uri.partition(':')[0]}:…"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@dataclass(frozen=True, slots=True)
class FileRules:
    """Which local files may leave this machine: those below ``allowed_roots``, symbolic links followed first.

    ``allowed_roots`` None means none, unless ``allow_any_file``: every plane is a sandbox then.
    """

    allowed_roots: tuple[Path, ...] | None = None
    allow_any_file: bool = False

    def resolve(self, uri: str) -> Path:
        """The real path of a ``file:`` URI. Blocks.

        Raises:
            PolicyError: it lies outside of the allowed folders.
            PermanentError: no such file.
        """
        if _machine(uri) not in {"", "localhost"}:
            raise PermanentError(f"{redacted(uri)} names another machine", service=PACKAGE_SOURCE)
        try:
            path = Path(url2pathname(urlsplit(uri).path)).resolve(strict=True)
            is_file = stat.S_ISREG(path.stat().st_mode) and os.access(path, os.R_OK)
        except (OSError, RuntimeError, ValueError) as error:
            raise self._refusal(uri) if not self._is_open() else _no_file(uri) from error
        if not self._allows(path):
            raise self._refusal(uri)
        if not is_file:
            raise _no_file(uri)
        return path

    def _is_open(self) -> bool:
        return self.allowed_roots is None and self.allow_any_file

    def _allows(self, path: Path) -> bool:
        if self.allowed_roots is None:
            return self.allow_any_file
        return any(path.is_relative_to(root.resolve()) for root in self.allowed_roots)

    def _refusal(self, uri: str) -> PolicyError:
        return PolicyError(
            f"{redacted(uri)} is not a file below EUCORA_PACKAGE_ROOTS", service=PACKAGE_SOURCE
        )


def _machine(uri: str) -> str:
    try:
        return urlsplit(uri).netloc
    except ValueError as error:
        raise _no_address(uri) from error


def _check_address(uri: str) -> None:
    """What the client below would not tell from a mistake of its own."""
    try:
        httpx.URL(uri).raw_host.decode("ascii").encode("idna")
    except (httpx.InvalidURL, UnicodeError) as error:
        raise _no_address(uri) from error


def _no_address(uri: str) -> PermanentError:
    return PermanentError(f"{redacted(uri)} is not an address that can be used", service=PACKAGE_SOURCE)


def _no_file(uri: str) -> PermanentError:
    return PermanentError(f"{redacted(uri)} is not a file", service=PACKAGE_SOURCE)


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells whether a file is still the one that was hashed."""

    inode: int
    size: int
    changed_at: int

    @classmethod
    def of(cls, path: Path) -> "Identity":
        """Of the file as it is now. Blocks."""
        status = path.stat()
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


class Sources:
    """Brings packages to this machine. Downloads lie in ``spool`` and go on where they stopped."""

    def __init__(self, connect: Callable[[], ResilientClient], spool: Path, rules: FileRules) -> None:
        """``connect`` makes a client for one download, so that no host's troubles reach another's."""
        self.spool = spool
        self._connect = connect
        self._rules = rules

    @asynccontextmanager
    async def spooling(self, name: str, *, service: str) -> AsyncIterator[None]:
        """Have the spool private, and rid of what other uploads gave up, while the block fills it.

        Raises:
            LocalSaturation: it cannot be used; ``service`` is not to blame, but waits.
        """
        try:
            await asyncio.to_thread(make_private, self.spool)
            await asyncio.to_thread(sweep, self.spool, name, older_than=SPOOL_KEPT)
            yield
        except OSError as error:
            detail = f"the spool cannot be used: {error.strerror}"
            raise LocalSaturation(detail, service=service, retry_after=60.0) from error

    async def locate(self, uri: str, name: str) -> Path:
        """Where the package is, or will be after ``fetch``; ``name`` belongs to one upload alone."""
        if uri.startswith("file:"):
            return await asyncio.to_thread(self._rules.resolve, uri)
        return self.spool / f"{name}.package"

    async def fetch(self, uri: str, sha256: str, name: str) -> AsyncGenerator[int, None]:
        """Download if it must be, then hash; yields bytes so far at least every few seconds.

        Raises:
            PolicyError, PermanentError: the file may not be read, is not there, or has another hash.
        """
        path = await self.locate(uri, name)
        if not uri.startswith("file:") and not path.exists():
            async with aclosing(self._download(uri, path)) as steps:
                async for size in steps:
                    yield size
        digest = hashlib.sha256()
        async with aclosing(paced(_hash(path, digest))) as steps:
            async for size in steps:
                yield size
        if digest.hexdigest() != sha256.lower():
            if not uri.startswith("file:"):
                path.unlink(missing_ok=True)
            raise PermanentError(
                f"the SHA-256 of {redacted(uri)} is {digest.hexdigest()}, not the promised one",
                service=PACKAGE_SOURCE,
            )

    async def _download(self, uri: str, path: Path) -> AsyncGenerator[int, None]:
        """Into ``path``, by a client of its own; an error's detail says where from."""
        _check_address(uri)
        try:
            async with aclosing(self._connect()) as http, aclosing(_whole(http, uri, path)) as steps:
                async for size in steps:
                    yield size
        except CallError as error:
            raise type(error)(
                f"{redacted(uri)}: {error.detail}",
                service=PACKAGE_SOURCE,
                status=error.status,
                retry_after=error.retry_after,
            ) from error


async def _whole(http: ResilientClient, uri: str, path: Path) -> AsyncGenerator[int, None]:
    """Continuing a part that is there; gives up after attempts in a row that bring nothing."""
    part = path.with_suffix(".part")
    fruitless, before = 0, _size(part)
    while True:
        try:
            async with aclosing(_continue(http, uri, part)) as steps:
                async for size in steps:
                    yield size
            break
        except TransientError:
            reached = _size(part)
            fruitless = 0 if reached > before else fruitless + 1
            before = reached
            if fruitless >= FRUITLESS_DOWNLOADS:
                raise
    part.replace(path)


async def _continue(http: ResilientClient, uri: str, part: Path) -> AsyncGenerator[int, None]:
    start = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    extensions = {"accept": {HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}}
    async with http.stream("GET", uri, headers=headers, extensions=extensions) as answer:
        if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing after what is there: the hash decides whether it is the whole
        resumed = answer.status_code == HTTPStatus.PARTIAL_CONTENT
        with part.open("ab" if resumed else "wb") as file:
            async with aclosing(_store(answer, file)) as sizes:
                async for size in sizes:
                    yield size


async def _store(answer: httpx.Response, file: IO[bytes]) -> AsyncGenerator[int, None]:
    pending, last = bytearray(), time.monotonic()
    try:
        async for chunk in answer.aiter_raw():
            pending += chunk
            if len(pending) >= PIECE:
                piece, pending = bytes(pending), bytearray()  # a cancelled write is still carried out
                await asyncio.to_thread(file.write, piece)
                if time.monotonic() - last >= REPORT_EVERY:
                    last = time.monotonic()
                    yield file.tell()
    finally:
        file.write(pending)  # what has arrived is kept for the next attempt, whatever ended this one
    yield file.tell()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _hash(path: Path, digest: "hashlib._Hash") -> Iterator[int]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            yield file.tell()


async def paced(steps: Iterator[int]) -> AsyncGenerator[int, None]:
    """Run blocking steps in threads; yields the latest value about once a second and the last one."""
    last, value, reported = time.monotonic(), 0, None
    while True:
        latest = await asyncio.to_thread(next, steps, None)
        if latest is None:
            break
        value = latest
        if time.monotonic() - last >= REPORT_EVERY:
            last, reported = time.monotonic(), value
            yield value
    if value != reported:
        yield value


def kept_for(spool: Path, name: str) -> list[Path]:
    """What an upload has in the spool, if there is one. Blocks.

    Not by a pattern: Python would keep each upload's, compiled, in place of those that are used again.
    """
    return [path for path in spool.iterdir() if path.name.startswith(f"{name}.")] if spool.is_dir() else []


def sweep(spool: Path, name: str, *, older_than: float) -> None:
    """Remove what other uploads left behind that were given up; ``older_than`` in seconds. Blocks."""
    limit = time.time() - older_than
    for path in kept_for(spool, name):
        path.touch()
    for path in spool.iterdir():
        if (
            path.suffix in {".package", ".part", ".content", ".json", ".making"}
            and path.stat().st_mtime < limit
        ):
            path.unlink(missing_ok=True)


def make_private(folder: Path) -> None:
    """A folder only this user can look into. Blocks."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
