# SPDX-License-Identifier: Apache-2.0
"""Fixtures that everybody may use. Servers live as long as the run; what a test writes is its own."""

import os
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from app.settings import Settings
from sandbox.main import serving
from tests.sandbox.stage import Stage
from tests.servers import Servers, Template, open_servers, open_template

if TYPE_CHECKING:
    from app.runtime import Runtime
    from tests.installation import World

# A developer's own settings must not decide what the tests see.
for name in [name for name in os.environ if name.startswith("EUCORA_")]:
    if not name.startswith("EUCORA_TEST_"):
        del os.environ[name]


LONGEST = (
    "test_processes.py",
    "test_journeys.py",
    "test_conformance.py",
    "test_fleet_processes.py",
    "test_embedded.py",
    "test_five_planes.py",
    "test_decisions.py",
    "test_calls_out.py",
    "test_survival.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest begin first, so that nobody waits for one alone at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
async def servers() -> AsyncIterator[Servers]:
    """One PostgreSQL and one Valkey (or Redis) per run."""
    async with open_servers() as servers:
        yield servers


@pytest.fixture(scope="session")
async def template(servers: Servers) -> AsyncIterator[Template]:
    """The migrated database that others are copies of."""
    async with open_template(servers.database_url) as template:
        yield template


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    """The socket on which tests serve sandboxes of their own, one at a time."""
    stage = Stage()
    with serving(stage) as stage.url:
        yield stage


@pytest.fixture
async def database_url(template: Template) -> AsyncIterator[str]:
    """A database of the test's own, empty and migrated: for locks, races, several processes."""
    async with template.cloned() as url:
        yield url


@pytest.fixture
async def redis_url(servers: Servers) -> str:
    """The run's Redis, emptied."""
    client = Redis.from_url(servers.redis_url)
    await client.flushdb()
    await client.aclose()
    return servers.redis_url


@pytest.fixture
def settings(database_url: str, redis_url: str) -> Settings:
    """Settings of an installation of the test's own, with no plane configured; vary with ``model_copy``."""
    return Settings(database_url=SecretStr(database_url), redis_url=SecretStr(redis_url), gate_policy="demo")


@pytest.fixture
async def runtime(settings: Settings) -> AsyncIterator["Runtime"]:
    """What a request or a job works with, on a database of the test's own."""
    from app.runtime import open_runtime

    async with open_runtime(settings, process="test") as runtime:
        yield runtime


@pytest.fixture(scope="module")
async def world(
    servers: Servers, template: Template, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator["World"]:
    """One installation of real processes for all stories of a file."""
    from tests.installation import open_world

    folder = tmp_path_factory.mktemp("world")
    async with template.cloned() as url:
        settings = Settings(database_url=SecretStr(url), redis_url=SecretStr(servers.redis_url))
        async with open_world(settings, folder) as world:
            yield world


@pytest.fixture(scope="session")
async def shared_engine(template: Template) -> AsyncIterator[AsyncEngine]:
    """Connections to one database that all tests share; only for what is rolled back."""
    async with template.cloned() as url:
        engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"), poolclass=NullPool)
        yield engine
        await engine.dispose()


@pytest.fixture
async def session(shared_engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    """A session on the shared database; whatever it commits is rolled back at the end of the test."""
    async with shared_engine.connect() as connection:
        transaction = await connection.begin()
        async with AsyncSession(
            connection, expire_on_commit=False, join_transaction_mode="create_savepoint"
        ) as session:
            yield session
        await transaction.rollback()
