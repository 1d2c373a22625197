# SPDX-License-Identifier: Apache-2.0
"""work that was lost together with other work, none of which had lived, is told from what was lost alone

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op

from migrations import locks

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

LOST = sa.text("lost_with IS NOT NULL")


def upgrade() -> None:
    op.add_column("operations", sa.Column("lost_with", sa.Text(), nullable=True), if_not_exists=True)
    locks.build_index("ix_operations_lost_with", "operations", ["lost_with"], postgresql_where=LOST)


def downgrade() -> None:
    op.drop_index("ix_operations_lost_with", table_name="operations", postgresql_where=LOST)
    op.drop_column("operations", "lost_with")
