# SPDX-License-Identifier: Apache-2.0
"""The product as it is installed: real processes on servers that wait for the disk, gone afterwards."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from pydantic import SecretStr

from app import admin, supervisor
from app.embedded import embedded_postgres, embedded_valkey
from app.settings import Settings
from app.supervisor import Installation
from tests.servers import scratch_data_folder, scratch_folder
from tests.waiting import eventually


def report(line: str) -> None:
    """Where what children say goes: beside the results."""
    sys.stderr.write(f"{line}\n")


@asynccontextmanager
async def installed(*, workers: int = 0, **changes: Any) -> AsyncIterator[Installation]:
    """PostgreSQL, Valkey, sandbox, API and so many workers; ``changes`` to the settings."""
    with scratch_folder() as folder:
        settings = Settings().model_copy(
            update={"data_dir": folder / "data", "database_url": None, "redis_url": None}
        )
        plan = supervisor.Plan(
            settings=settings.model_copy(update=changes), port=supervisor.free_port(), workers=workers
        )
        async with supervisor.running(plan, report=report) as installation:
            yield installation


@asynccontextmanager
async def servers(**changes: Any) -> AsyncIterator[Settings]:
    """Only PostgreSQL, migrated, and Valkey, with the settings that name them."""
    with scratch_data_folder() as place:
        async with (
            embedded_postgres(place, report=report) as postgres,
            embedded_valkey(place, report=report) as valkey,
        ):
            named = {"database_url": SecretStr(postgres.url), "redis_url": SecretStr(valkey.url)}
            settings = Settings().model_copy(update={"data_dir": place.path, **named, **changes})
            await admin.migrate_installation(settings)
            yield settings


@asynccontextmanager
async def answering_process(port: int, path: str, *command: str) -> AsyncIterator[str]:
    """A server in a process of its own, once it answers there; its address."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", *command)
    try:
        await eventually(partial(supervisor.http_answers, port, path), within=120)
        yield f"http://{supervisor.HOST}:{port}"
    finally:
        process.terminate()
        await process.wait()
