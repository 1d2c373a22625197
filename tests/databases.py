# SPDX-License-Identifier: Apache-2.0
"""Databases for tests: copies of one that the migrations built, lent again once they are as empty as it was.

To make a copy costs some three hundred files, which on many a machine take longer than most tests.
"""

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
from sqlalchemy import URL, make_url

from app import admin

numbers = itertools.count()
MOST_LOANS, MOST_ROWS = 50, 5000
"""Of one copy, and left in it by one test: what was deleted still takes room."""
CATALOGS = [
    "pg_class",
    "pg_attribute",
    "pg_attrdef",
    "pg_index",
    "pg_constraint",
    "pg_trigger",
    "pg_proc",
    "pg_type",
    "pg_enum",
    "pg_namespace",
    "pg_policy",
    "pg_rewrite",
    "pg_statistic",
    "pg_db_role_setting",
]
SCHEMA = f"""
SELECT concat_ws(' ', (SELECT string_agg(version_num, ' ') FROM alembic_version),
    {", ".join(f"(SELECT count(*) || ':' || max(xmin::text::bigint) FROM {name})" for name in CATALOGS)})
"""
"""Anything that changes what a database is like, and not what is in it, changes this."""
TABLES = """
SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
    AND relname <> 'alembic_version'
"""
END_OTHERS = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@dataclass(slots=True)
class Copy:
    """One database that is lent: how it was when it was made, its tables, and how often it was lent."""

    url: URL
    schema: str
    tables: frozenset[str]
    loans: int = 0


@dataclass(frozen=True, slots=True)
class Template:
    """An empty database at the newest revision, from which others are copied."""

    server: URL
    name: str
    clone: str
    free: list[Copy] = field(default_factory=list)

    @asynccontextmanager
    async def cloned(self) -> AsyncIterator[str]:
        """The URL of a fresh copy; dropped at the end, whoever is still connected."""
        url = await self._copy()
        try:
            yield as_text(url)
        finally:
            await self._drop(url)

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[str]:
        """The URL of a copy that is as good as fresh, until the end; then nobody is connected any more."""
        copy = self.free.pop() if self.free else await described(await self._copy())
        copy.loans += 1
        try:
            yield as_text(copy.url)
        finally:
            if copy.loans < MOST_LOANS and await is_empty_again(copy):
                self.free.append(copy)
            else:
                await self._drop(copy.url)

    async def close(self) -> None:
        """Drop what is not lent any more, and the template."""
        for url in [*(copy.url for copy in self.free), self.server.set(database=self.name)]:
            await self._drop(url)

    async def _copy(self) -> URL:
        name = f"{self.name}_{next(numbers)}"
        await execute(self.server, self.clone.format(name=name))
        return self.server.set(database=name)

    async def _drop(self, url: URL) -> None:
        await execute(self.server, f'DROP DATABASE "{url.database}" WITH (FORCE)')


@asynccontextmanager
async def open_template(server_url: str) -> AsyncIterator[Template]:
    """Build the template through the migrations."""
    server, name = make_url(server_url), f"eucora_test_{os.getpid()}"
    template = Template(server, name, await clone_statement(server, name))
    await execute(server, f'CREATE DATABASE "{name}"')
    try:
        await admin.migrate(server.set(drivername="postgresql+asyncpg", database=name))
        yield template
    finally:
        await template.close()


async def described(url: URL) -> Copy:
    """A fresh copy, to be lent."""
    async with connected(url) as connection:
        schema = await connection.fetchval(SCHEMA)
        return Copy(url, schema, frozenset(row["relname"] for row in await connection.fetch(TABLES)))


async def is_empty_again(copy: Copy) -> bool:
    """End whoever is connected, and delete what a test has left.

    False: the copy would not be as a fresh one is, or may not be emptied by this account.
    """
    try:
        async with connected(copy.url) as connection:
            await connection.execute(END_OTHERS)
            await connection.execute("SET session_replication_role = replica")  # no trigger refuses it
            rows = await emptied(connection, copy.tables)
            return rows <= MOST_ROWS and await connection.fetchval(SCHEMA) == copy.schema
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        return False


async def emptied(connection: asyncpg.Connection, tables: frozenset[str]) -> int:
    """Delete all rows of these tables, and drop all others; how many rows were deleted."""
    for row in await connection.fetch(TABLES):
        if row["relname"] not in tables:
            await connection.execute(f'DROP TABLE "{row["relname"]}"')
    looks = (f"SELECT '{name}' AS name WHERE EXISTS (SELECT 1 FROM {name})" for name in tables)
    used = [row["name"] for row in await connection.fetch(" UNION ALL ".join(looks))]
    return sum([deleted(await connection.execute(f"DELETE FROM {name}")) for name in used])


def deleted(status: str) -> int:
    """What a DELETE says of itself."""
    return int(status.removeprefix("DELETE "))


async def clone_statement(server: URL, template: str) -> str:
    """The fastest way to copy on this server."""
    async with connected(server) as connection:
        major = connection.get_server_version().major
    strategy = " STRATEGY WAL_LOG" if major >= 15 else ""
    return f'CREATE DATABASE "{{name}}" TEMPLATE "{template}"{strategy}'


async def execute(server: URL, statement: str) -> None:
    """Run one statement on the server's own database."""
    async with connected(server) as connection:
        await connection.execute(statement)


@asynccontextmanager
async def connected(url: URL) -> AsyncIterator[asyncpg.Connection]:
    """A plain connection."""
    connection = await asyncpg.connect(as_text(url.set(drivername="postgresql")))
    try:
        yield connection
    finally:
        await connection.close()


def as_text(url: URL) -> str:
    """The URL with its password."""
    return url.render_as_string(hide_password=False)
