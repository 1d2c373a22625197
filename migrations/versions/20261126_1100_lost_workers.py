# SPDX-License-Identifier: Apache-2.0
"""a run that had worked before its worker was lost is told from one that had not

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("operations", sa.Column("lived", sa.Boolean(), server_default="false", nullable=False))


def downgrade() -> None:
    op.drop_column("operations", "lived")
