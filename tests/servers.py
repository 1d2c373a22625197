# SPDX-License-Identifier: Apache-2.0
"""The servers of a test run."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from app import admin
from app.data_folder import DataFolder, open_data_folder, short_base
from app.embedded import Server, embedded_postgres, embedded_valkey
from app.settings import BreakerSettings, Settings


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the run's servers are: a PostgreSQL URL whose user may create databases, and a Redis URL."""

    database_url: str
    redis_url: str


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for servers, through which their account may pass; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="eucora-tests-", dir=short_base()))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        for note in folder.glob("*/sockets-at"):  # of a server that a test killed
            shutil.rmtree(note.read_text().strip(), ignore_errors=True)
        shutil.rmtree(folder)


@contextmanager
def scratch_data_folder() -> Iterator[DataFolder]:
    """A data directory that leaves nothing behind."""
    with scratch_folder() as folder, open_data_folder(folder / "data", report=print) as place:
        try:
            yield place
        finally:
            if place.home != place.path:
                shutil.rmtree(place.home)


@asynccontextmanager
async def open_servers() -> AsyncIterator[Servers]:
    """Embedded servers, or those that ``EUCORA_TEST_DATABASE_URL`` and ``EUCORA_TEST_REDIS_URL`` name."""
    database_url = os.environ.get("EUCORA_TEST_DATABASE_URL")
    redis_url = own_database(os.environ.get("EUCORA_TEST_REDIS_URL"))
    if database_url and redis_url:
        yield Servers(database_url, redis_url)
        return
    with scratch_data_folder() as place:
        async with (
            embedded_postgres(place, report=print, durable=False) as postgres,
            embedded_valkey(place, report=print, durable=False) as valkey,
        ):
            yield Servers(database_url or postgres.url, redis_url or valkey.url)


def own_database(redis_url: str | None) -> str | None:
    """The given server's database of this test process's own: several run side by side and empty it."""
    if redis_url is None:
        return None
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    parts = urlsplit(redis_url)
    first = int(parts.path.strip("/") or 0)
    return parts._replace(path=f"/{first + int(worker.removeprefix('gw'))}").geturl()


@asynccontextmanager
async def own_server(settings: Settings) -> AsyncIterator[tuple[Server, Settings]]:
    """A PostgreSQL of the test's own, migrated, with a breaker that looks again soon."""
    with scratch_data_folder() as place:
        async with embedded_postgres(place, report=print, durable=False) as server:
            own = settings.model_copy(
                update={
                    "database_url": SecretStr(server.url),
                    "breakers": {"database": BreakerSettings(reset_timeout=1.0)},
                }
            )
            await admin.migrate_installation(own)
            yield server, own
