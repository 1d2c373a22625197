# SPDX-License-Identifier: Apache-2.0
"""Migrations go up, down and up again, and make exactly what the models say."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

import migrations
from app import admin
from app.domain import audit
from app.errors import Unavailable
from app.models import Base
from tests.domain.steps import push
from tests.factories import make_deployment
from tests.waiting import eventually

TABLES = {table.name for table in Base.metadata.sorted_tables}


@pytest.fixture
async def engine(database_url: str) -> Any:
    """A migrated database of the test's own."""
    engine = create_async_engine(
        make_url(database_url).set(drivername="postgresql+asyncpg"), poolclass=NullPool
    )
    yield engine
    await engine.dispose()


def alembic_config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(next(iter(migrations.__path__))))
    config.attributes["connection"] = connection
    return config


async def run(engine: AsyncEngine, step: Any, revision: str) -> None:
    async with engine.connect() as connection:
        await connection.run_sync(lambda sync: step(alembic_config(sync), revision))
        await connection.commit()


async def tables(engine: AsyncEngine) -> set[str]:
    query = text(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
    )
    async with engine.connect() as connection:
        return set(await connection.scalars(query))


async def types(engine: AsyncEngine) -> set[str]:
    async with engine.connect() as connection:
        return set(await connection.scalars(text("SELECT typname FROM pg_type WHERE typtype = 'e'")))


async def test_migrations_go_down_to_nothing_and_up_again(engine: AsyncEngine) -> None:
    assert await tables(engine) == TABLES

    await run(engine, command.downgrade, "base")
    assert (await tables(engine), await types(engine)) == (set(), set())

    await run(engine, command.upgrade, "head")
    assert await tables(engine) == TABLES


async def test_each_revision_can_be_taken_back_and_done_again(engine: AsyncEngine) -> None:
    script = ScriptDirectory(str(next(iter(migrations.__path__))))
    for revision in script.walk_revisions():
        await run(engine, command.downgrade, str(revision.down_revision or "base"))
        await run(engine, command.upgrade, revision.revision)
        await run(engine, command.downgrade, str(revision.down_revision or "base"))


async def differences(engine: AsyncEngine) -> list[Any]:
    """Between the database and the models."""

    def compared(connection: Connection) -> list[Any]:
        options = {"compare_type": True, "compare_server_default": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata))

    async with engine.connect() as connection:
        return await connection.run_sync(compared)


async def test_models_and_migrations_agree(engine: AsyncEngine) -> None:
    assert await differences(engine) == []


async def storage(engine: AsyncEngine) -> dict[str, set[str]]:
    """How the database keeps each table for which something was said."""
    query = text("SELECT relname, reloptions FROM pg_class WHERE relkind = 'r' AND reloptions IS NOT NULL")
    async with engine.connect() as connection:
        rows = await connection.execute(query)
        return {row.relname: set(row.reloptions) for row in rows if row.relname in TABLES}


def storage_of_models() -> dict[str, set[str]]:
    options = {
        table.name: table.dialect_options["postgresql"]["with"] for table in Base.metadata.sorted_tables
    }
    return {name: {f"{key}={value}" for key, value in said.items()} for name, said in options.items() if said}


async def test_models_and_migrations_agree_about_how_tables_are_kept(engine: AsyncEngine) -> None:
    said = storage_of_models()
    assert said
    assert await storage(engine) == said

    await run(engine, command.downgrade, "0013")
    assert await storage(engine) == {}


def constraints() -> Iterator[tuple[str, str | None]]:
    for table in Base.metadata.sorted_tables:
        names = [constraint.name for constraint in table.constraints] + [
            index.name for index in table.indexes
        ]
        yield from ((table.name, str(name) if name else None) for name in names)


def test_every_constraint_and_index_has_a_name() -> None:
    assert [table for table, name in constraints() if not name] == []


async def test_there_is_one_head() -> None:
    assert len(ScriptDirectory(str(next(iter(migrations.__path__)))).get_heads()) == 1


OLD_EVENTS = """
INSERT INTO deployments (id, correlation_id, app_name, app_version, planes, target_ring, promotion,
    privileged, criticality, risk_factors, risk_score, risk_model, risk_breakdown, requires_cab_approval,
    gates, gate_policy, submitted_by, event_sequence)
SELECT id, id, 'app ' || id, '1', '{intune}', 'LAB', 'automatic', false, 'standard', '{}', 1, '1.0', '[]',
    false, '{}', 'demo/1', 'alice', 3
FROM (SELECT gen_random_uuid() AS id FROM generate_series(1, 2)) AS made;
INSERT INTO events (deployment_id, sequence, type, actor, after, correlation_id)
SELECT id, sequence, 'told', 'alice', '{"number": 1.50}', id
FROM deployments, generate_series(1, 3) AS sequence ORDER BY sequence DESC;
"""


async def test_events_from_before_the_chain_get_their_place_in_it(engine: AsyncEngine) -> None:
    await run(engine, command.downgrade, "0003")
    async with engine.connect() as connection:
        for statement in OLD_EVENTS.split(";")[:2]:
            await connection.exec_driver_sql(statement)
        await connection.commit()

    await run(engine, command.upgrade, "head")

    async with AsyncSession(engine) as session:
        report = await audit.verify(session)
        assert (report.deployments, report.events) == (2, 6)
        assert {broken.reason for broken in report.broken} == {
            "the stored state is another: status is PENDING, the events tell None"
        }


@asynccontextmanager
async def locked(engine: AsyncEngine, table: str, mode: str) -> AsyncIterator[None]:
    """A transaction of somebody else's that is not over."""
    async with engine.begin() as connection:
        await connection.execute(text(f"LOCK TABLE {table} IN {mode} MODE"))
        yield


async def written(engine: AsyncEngine, table: str) -> None:
    """Somebody who writes has the table, soon."""
    async with engine.begin() as connection:
        await connection.execute(text("SET LOCAL lock_timeout = '10s'"))
        await connection.execute(text(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE"))


async def waits_for_lock(engine: AsyncEngine) -> bool:
    query = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    async with engine.connect() as connection:
        return bool(await connection.scalar(query))


A_BACKUP, A_WRITER = "ACCESS SHARE", "ROW EXCLUSIVE"


@pytest.mark.parametrize(
    ("revision", "table", "mode"),
    [
        ("0009", "operations", A_BACKUP),
        ("0010", "operations", A_WRITER),
        ("0008", "effects", A_WRITER),
        ("0008", "ring_deployments", A_WRITER),
    ],
)
async def test_a_migration_that_waits_for_somebody_keeps_nobody_else_up(
    engine: AsyncEngine, revision: str, table: str, mode: str
) -> None:
    await run(engine, command.downgrade, revision)

    async with locked(engine, table, mode):
        migrating = asyncio.create_task(admin.migrate(engine.url, pauses=[1.0] * 9))
        await eventually(lambda: waits_for_lock(engine), within=10)
        await written(engine, table)
        assert not migrating.done()
    await migrating

    assert await differences(engine) == []


async def test_a_migration_that_does_not_get_its_lock_says_which(engine: AsyncEngine) -> None:
    await run(engine, command.downgrade, "0009")

    async with locked(engine, "operations", A_BACKUP):
        with pytest.raises(
            Unavailable, match=r"revision 0010 .* lock for `ALTER TABLE operations ADD COLUMN"
        ):
            await admin.migrate(engine.url, pauses=[])

    await admin.migrate(engine.url)
    assert await differences(engine) == []


BUILD = "CREATE INDEX CONCURRENTLY ix_effects_unsettled ON effects (planned_at)"


async def test_what_a_failed_build_has_left_is_built_again(engine: AsyncEngine) -> None:
    await run(engine, command.downgrade, "0008")
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with locked(engine, "effects", A_WRITER), alone.connect() as connection:
        await connection.execute(text("SET lock_timeout = '50ms'"))
        with pytest.raises(DBAPIError, match="lock timeout"):
            await connection.execute(text(BUILD))

    await admin.migrate(engine.url)

    async with engine.connect() as connection:
        unfinished = text("SELECT count(*) FROM pg_index WHERE NOT indisvalid")
        assert await connection.scalar(unfinished) == 0
    assert await differences(engine) == []


async def test_a_revision_that_would_forget_what_was_sent_is_not_taken_back(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        deployment = await make_deployment(session)
        await push(session, deployment.lanes[0], "pc-1")
        await session.execute(text("DELETE FROM operations"))
        effects = await session.scalar(text("SELECT count(*) FROM effects"))

    with pytest.raises(DBAPIError, match="what was sent to planes would be forgotten"):
        await run(engine, command.downgrade, "0006")

    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM effects")) == effects != 0
