# SPDX-License-Identifier: Apache-2.0
"""work that is read page by page keeps how far it has come

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("operations", sa.Column("checkpoint", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("operations", "checkpoint")
