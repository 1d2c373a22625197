# SPDX-License-Identifier: Apache-2.0
"""How migrations take their locks without keeping up those who work meanwhile.

Whoever waits for a table's strongest lock, behind a backup or a long transaction, has everybody else wait
behind itself: so a migration waits for a moment only, gives way, and is tried again.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Connection

WAIT = "3s"
WAIT_BESIDE = "10min"
"""How long a build that keeps nobody up waits for those that began before it."""

INVALID = sa.text("SELECT true FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid")


def wait_shortly(connection: Connection) -> None:
    """Let no statement of this connection wait longer for a lock. In a transaction of its own."""
    connection.execute(_waiting(WAIT))
    connection.commit()


def _waiting(time: str) -> sa.TextClause:
    return sa.text(f"SET lock_timeout = '{time}'")


def build_index(name: str, table: str, columns: Sequence[str], **options: Any) -> None:
    """Build an index while others go on writing; may be repeated after a failure.

    Ends the transaction of the migration: what stands before it must bear being done again.
    """
    with op.get_context().autocommit_block():
        op.execute(_waiting(WAIT_BESIDE))
        try:
            _drop_unfinished(name)
            op.create_index(name, table, columns, if_not_exists=True, postgresql_concurrently=True, **options)
        finally:
            op.execute(_waiting(WAIT))


def _drop_unfinished(name: str) -> None:
    """What a build that failed has left is kept up to date and used by nobody."""
    context = op.get_context()
    if not context.as_sql and op.get_bind().scalar(INVALID, {"name": name}):
        op.drop_index(name, postgresql_concurrently=True)
