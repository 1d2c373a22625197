# SPDX-License-Identifier: Apache-2.0
"""Fixtures that everybody may use. Servers live as long as the run; what a test writes is its own."""

import os
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from app.settings import Settings
from app.storable import storable_json
from sandbox.main import serving
from tests.databases import Template, open_template
from tests.sandbox.stage import Stage
from tests.servers import Servers, open_servers

if TYPE_CHECKING:
    from app.runtime import Runtime
    from tests.installation import World

# A developer's own settings must not decide what the tests see.
for name in [name for name in os.environ if name.startswith("EUCORA_")]:
    if not name.startswith("EUCORA_TEST_"):
        del os.environ[name]

# How long an example takes says what else the machine has to do.
hypothesis.settings.register_profile(
    "any-pace", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any-pace")

LONGEST = (
    *("test_schemathesis.py", "test_processes.py", "test_fleet_processes.py", "test_conformance.py"),
    *("test_embedded.py", "test_journeys.py", "test_reconciling.py", "test_ai_tasks.py"),
    *("test_supervisor.py", "test_server_loss.py", "test_decisions.py", "test_five_planes.py"),
    *("test_calls_out.py", "test_cli.py"),
    *("test_launcher.py", "test_deployments_command.py", "test_survival.py", "test_conversation_faults.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest begin first, so that nobody waits for one alone at the end."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_collection_finish() -> None:
    """What is loaded by now stays until the end of the run, and need not be looked at for garbage again."""
    from app.runtime import collect_less

    collect_less()


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
async def database_url(template: Template, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """A database of the test's own, empty and migrated: for locks, races, several processes."""
    fresh = request.node.get_closest_marker("fresh_database") is not None
    async with template.cloned() if fresh else template.lent() as url:
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
        own = make_url(url).set(drivername="postgresql+asyncpg")
        engine = create_async_engine(own, poolclass=NullPool, json_serializer=storable_json)
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
