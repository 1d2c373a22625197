# SPDX-License-Identifier: Apache-2.0
"""Run migrations: on the connection handed over in ``config.attributes``, or on ``EUCORA_DATABASE_URL``."""

import asyncio

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.database import database_url
from app.models import Base
from app.settings import Settings
from migrations import locks


def run(connection: Connection) -> None:
    """Migrate on an open connection, a transaction per revision: a concurrent index may end its own.

    Nothing waits for a lock but a moment (``migrations.locks``); ``app.admin.migrate`` then tries again.
    """
    locks.wait_shortly(connection)
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        compare_server_default=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_run() -> None:
    """Migrate the database of the settings."""
    engine = create_async_engine(database_url(Settings()), poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run)
        await connection.commit()
    await engine.dispose()


def run_offline() -> None:
    """Print the SQL instead of running it."""
    context.configure(dialect_name="postgresql", target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
elif (connection := context.config.attributes.get("connection")) is not None:
    run(connection)
else:
    asyncio.run(connect_and_run())
