# SPDX-License-Identifier: Apache-2.0
import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import URL, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from app.doorbell import CHANNEL, Doorbell, connect
from tests.waiting import eventually


@pytest.fixture
def url(database_url: str) -> URL:
    return make_url(database_url).set(drivername="postgresql+asyncpg")


@pytest.fixture
async def heard(url: URL) -> AsyncIterator[list[float]]:
    """When the doorbell was heard, as a relay hears it."""
    times: list[float] = []

    def hear(*_: Any) -> None:
        times.append(time.monotonic())

    connection = await connect(url, application_name="eucora relay")
    await connection.add_listener(CHANNEL, hear)
    yield times
    await connection.close()


async def test_a_ring_is_heard_at_once(url: URL, heard: list[float]) -> None:
    async with Doorbell(url) as doorbell:
        doorbell.ring()

        await eventually(lambda: len(heard), within=5)


async def test_many_rings_are_few_wake_ups(url: URL, heard: list[float]) -> None:
    async with Doorbell(url) as doorbell:
        doorbell.ring()
        await eventually(lambda: len(heard), within=5)
        began = time.monotonic()
        while time.monotonic() - began < 0.5:
            doorbell.ring()
            await asyncio.sleep(0.001)
        took = time.monotonic() - began

    assert 2 <= len(heard) <= took / 0.02 + 3


async def test_a_ring_while_the_database_drops_its_sessions_is_told_later(
    url: URL, heard: list[float]
) -> None:
    async with Doorbell(url) as doorbell:
        doorbell.ring()
        await eventually(lambda: len(heard), within=5)
        await drop_sessions(url, "eucora doorbell")

        doorbell.ring()

        await eventually(lambda: len(heard), until=lambda number: number >= 2, within=5)


async def drop_sessions(url: URL, application: str) -> None:
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        statement = text(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = :application AND datname = current_database()"
        )
        await connection.execute(statement, {"application": application})
    await engine.dispose()


async def test_a_doorbell_without_a_database_raises_nothing_and_closes_at_once(unused_tcp_port: int) -> None:
    nowhere = URL.create("postgresql+asyncpg", host="127.0.0.1", port=unused_tcp_port, database="x")

    async with asyncio.timeout(20):
        async with Doorbell(nowhere) as doorbell:
            for _ in range(10):
                doorbell.ring()
                await asyncio.sleep(0)


async def test_nothing_is_left_open(url: URL, heard: list[float]) -> None:
    async with Doorbell(url) as doorbell:
        doorbell.ring()
        await eventually(lambda: len(heard), within=5)

    async def open_doorbells() -> int:
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            query = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'eucora doorbell'")
            number = int(await connection.scalar(query) or 0)
        await engine.dispose()
        return number

    await eventually(open_doorbells, until=lambda number: number == 0, within=5)
