# SPDX-License-Identifier: Apache-2.0
"""What an operator does to an installation itself: migrate, hand out tokens, check."""

import asyncio
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

import migrations

MIGRATION_LOCK = 0x6575636F7261  # "eucora"; any number that nothing else in the database locks


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's settings without a file, so that it works from an installed wheel."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


async def migrate(url: URL) -> None:
    """Bring the database to the newest revision; one migrator at a time, a second one waits."""
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await lock_migrations(connection)
            await connection.run_sync(upgrade)
            await connection.commit()
    finally:
        await engine.dispose()


async def lock_migrations(connection: AsyncConnection) -> None:
    """Take the lock for as long as the connection lives.

    Tried again and again: a statement that waits would itself hold up a concurrent index build of the
    lock's holder.
    """
    statement = text("SELECT pg_try_advisory_lock(:key)")
    while not await connection.scalar(statement, {"key": MIGRATION_LOCK}):
        await connection.commit()
        await asyncio.sleep(0.2)
    await connection.commit()


def upgrade(connection: Connection) -> None:
    """Run what is missing."""
    command.upgrade(alembic_config(connection), "head")


def pending_revisions(connection: Connection) -> list[str]:
    """The revisions that the database lacks, oldest first."""
    current = MigrationContext.configure(connection).get_current_heads()
    script = ScriptDirectory.from_config(alembic_config())
    missing = [revision.revision for revision in script.iterate_revisions("heads", current)]
    return missing[::-1]
