# SPDX-License-Identifier: Apache-2.0
"""A database that was lent before is as good as a fresh one, or is not lent again."""

from contextlib import AsyncExitStack

import asyncpg
import pytest
from sqlalchemy import make_url

from tests.databases import MOST_ROWS, Template, connected

FREEZES = """
INSERT INTO freezes (id, starts_at, ends_at, rings, planes, reason, created_by)
SELECT gen_random_uuid(), now(), now() + interval '1 h', '{}', '{}', 'x', 'y' FROM generate_series(1, %d)
"""


async def lend(template: Template, *statements: str) -> str:
    """A copy in which these were run; its name."""
    async with template.lent() as text:
        url = make_url(text)
        async with connected(url) as connection:
            assert await connection.fetchval("SELECT count(*) FROM freezes") == 0
            for statement in statements:
                await connection.execute(statement)
    return str(url.database)


async def test_what_a_test_has_left_is_gone_for_the_next(template: Template) -> None:
    first = await lend(template, FREEZES % 1, "CREATE TABLE notes (said text)")

    second = await lend(template, "CREATE TABLE notes (said text)")

    assert first == second


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE freezes DROP COLUMN reason",
        "ALTER TABLE events DISABLE TRIGGER ALL",
        "CREATE INDEX ON freezes (reason)",
        "CREATE FUNCTION nothing() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "UPDATE alembic_version SET version_num = 'other'",
        "DROP TABLE freezes",
        f"{FREEZES % 1}; ANALYZE freezes",
        FREEZES % (MOST_ROWS + 1),
    ],
)
async def test_one_that_is_another_than_before_is_not_lent_again(template: Template, statement: str) -> None:
    changed = await lend(template, statement)

    assert await lend(template) != changed


async def test_whoever_is_still_connected_is_ended(template: Template) -> None:
    async with AsyncExitStack() as stack:
        async with template.lent() as text:
            left = await stack.enter_async_context(connected(make_url(text)))

        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await left.execute(FREEZES % 1)
