# SPDX-License-Identifier: Apache-2.0
"""What an operator does to an installation itself: migrate, hand out tokens, check."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

import migrations
from app.database import database_url, sqlstate
from app.domain import accounts, audit
from app.embedded import with_running_servers
from app.errors import Invalid, NotFound, Unavailable
from app.models import ApiToken, Role
from app.settings import Settings

MIGRATION_LOCK = 0x6575636F7261  # "eucora"; any number that nothing else in the database locks
CONNECT_TIMEOUT = 10.0
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 30.0)
"""Seconds that others have to themselves before a revision that did not get its lock tries again."""
NOT_LOCKED = {"55P03", "40P01"}
"""What PostgreSQL says when a lock was not to be had in time, or a deadlock was broken up."""
OLDEST = text("""
    SELECT pid, coalesce(nullif(application_name, ''), usename, 'somebody') AS name FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
        AND backend_type = 'client backend'
    ORDER BY xact_start LIMIT 1
""")
CANNOT_CONNECT = (OSError, TimeoutError, DBAPIError, asyncpg.PostgresError)


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's settings without a file, so that it works from an installed wheel."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


async def migrate(url: URL, *, pauses: Sequence[float] = PAUSES) -> None:
    """Bring the database to the newest revision; one migrator at a time, a second one waits.

    A revision that does not get a lock at once gives way, and is tried again after each of the ``pauses``.

    Raises:
        Unavailable: one did not get its lock at last; those before it are done.
    """
    tries: Counter[str] = Counter()
    async with connection_to(url) as connection:
        await lock_migrations(connection)
        while error := await try_to_upgrade(connection):
            revision = (await connection.run_sync(pending_revisions))[0]
            if tries[revision] == len(pauses):
                raise Unavailable(await why_not_migrated(connection, revision, error)) from error
            await connection.rollback()
            await asyncio.sleep(pauses[tries[revision]])
            tries[revision] += 1


async def try_to_upgrade(connection: AsyncConnection) -> DBAPIError | None:
    """Run what is missing; the error, if a lock was not to be had."""
    try:
        await connection.run_sync(upgrade)
    except DBAPIError as error:
        await connection.rollback()
        if sqlstate(error) not in NOT_LOCKED:
            raise
        return error
    await connection.commit()
    return None


async def why_not_migrated(connection: AsyncConnection, revision: str, error: DBAPIError) -> str:
    """Which lock was not to be had, and whose transaction has been open for longest."""
    statement = " ".join((error.statement or "").split())[:200]
    oldest = (await connection.execute(OLDEST)).one_or_none()
    holder = "" if oldest is None else f"; the oldest open transaction is {oldest.name}'s, pid {oldest.pid}"
    return (
        f"revision {revision} does not get the lock for `{statement}`{holder}: migrate again once it is over"
    )


@asynccontextmanager
async def connection_to(url: URL) -> AsyncIterator[AsyncConnection]:
    """One connection.

    Raises:
        Unavailable: there is none to be had.
    """
    engine = create_async_engine(url, poolclass=NullPool, connect_args={"timeout": CONNECT_TIMEOUT})
    try:
        connection = await engine.connect()
    except CANNOT_CONNECT as error:
        raise Unavailable(f"the database does not answer: {reason(error)}") from error
    try:
        yield connection
    finally:
        await connection.close()
        await engine.dispose()


def reason(error: BaseException) -> str:
    """An error in one line; its kind, where it has no words."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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


async def migrate_installation(settings: Settings) -> None:
    """Migrate the database of the settings, or of the installation that runs in the data directory."""
    await migrate(database_url(with_running_servers(settings)))


@asynccontextmanager
async def session_of(settings: Settings) -> AsyncIterator[AsyncSession]:
    """A transaction on the installation's database."""
    url = database_url(with_running_servers(settings))
    async with (
        connection_to(url) as connection,
        AsyncSession(connection, expire_on_commit=False) as session,
        session.begin(),
    ):
        yield session


@asynccontextmanager
async def moment_of(settings: Settings) -> AsyncIterator[AsyncSession]:
    """A transaction that sees one moment of the installation's database, and writes nothing."""
    async with session_of(settings) as session:
        await session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        yield session


async def verify_history(settings: Settings, against: Path | None) -> audit.Report:
    """Check the history; ``against``: a file that ``export_history`` wrote.

    Raises:
        Invalid: the file is not one of that kind.
    """
    async with moment_of(settings) as session:
        return await audit.verify(session, None if against is None else exported_in(against))


async def exported_in(path: Path) -> AsyncIterator[Mapping[str, Any]]:
    """The checkpoints of a file, a line each.

    Raises:
        Invalid: naming the first line that is none.
    """
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                document = json.loads(line)
                yield {
                    "number": int(document["number"]),
                    "hash": document["hash"],
                    "heads": document["heads"],
                }
            except (ValueError, KeyError, TypeError) as error:
                raise Invalid(f"{path}, line {number}: this is no exported checkpoint") from error


async def export_history(settings: Settings, *, after: int) -> AsyncIterator[str]:
    """The checkpoints behind number ``after``, a line of JSON each; the last one tells of now."""
    async with session_of(settings) as session:
        while await audit.checkpoint(session, now=datetime.now(UTC)):
            pass
    async with moment_of(settings) as session:
        async for document in audit.export(session, after=after):
            yield json.dumps(document, separators=(",", ":"))


def states_text() -> str:
    """The tables of all state machines, as they are kept in ``docs/states.md``."""
    from app.domain import pictures

    return pictures.document()


async def create_token(settings: Settings, *, role: str, name: str, expires_days: int | None) -> str:
    """Store a new token; its text, which is nowhere else."""
    expires_at = None if expires_days is None else datetime.now(UTC) + timedelta(days=expires_days)
    async with session_of(settings) as session:
        _, text = await accounts.create_token(session, name=name, role=Role(role), expires_at=expires_at)
    return text


async def list_tokens(settings: Settings) -> list[str]:
    """A line for each token, oldest first."""
    async with session_of(settings) as session:
        tokens = (await session.scalars(select(ApiToken).order_by(ApiToken.created_at))).all()
    return [f"{token.id}  {token.role:<9}  {state(token):<22}  {token.name}" for token in tokens]


def state(token: ApiToken) -> str:
    """Whether a token may still be used."""
    if token.revoked_at is not None:
        return "revoked"
    if token.expires_at is None:
        return "valid"
    return (
        f"{'expired' if token.expires_at < datetime.now(UTC) else 'valid until'} {token.expires_at:%Y-%m-%d}"
    )


async def revoke_token(settings: Settings, token_id: UUID) -> None:
    """End a token; harmless when it has ended.

    Raises:
        NotFound: there is no such token.
    """
    async with session_of(settings) as session:
        token = await session.get(ApiToken, token_id)
        if token is None:
            raise NotFound(f"there is no token {token_id}: see `eucora token list`")
        token.revoked_at = token.revoked_at or datetime.now(UTC)
