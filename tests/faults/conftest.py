# SPDX-License-Identifier: Apache-2.0
"""What is broken here: workers with the tests' own jobs, workers of the product, and their servers."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis
from sqlalchemy import make_url

from app.embedded import Server
from app.settings import Settings
from tests.databases import connected
from tests.workers.conftest import Bench, Workers, bench, crew, valkey, workers

__all__ = ["Bench", "Workers", "bench", "crew", "valkey", "workers"]


@pytest.fixture
def own(settings: Settings, tmp_path: Path) -> Settings:
    """An installation of the test's own."""
    return settings.model_copy(update={"data_dir": tmp_path})


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """A connection past the product."""
    assert settings.database_url is not None
    async with connected(make_url(settings.database_url.get_secret_value())) as connection:
        yield connection


@pytest.fixture
async def redis(valkey: Server) -> AsyncIterator["Redis"]:
    """Its administrator."""
    async with Redis.from_url(valkey.url) as client:
        yield client
