# SPDX-License-Identifier: Apache-2.0
"""what waits is found without reading what does not

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

from migrations import locks

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

UNSETTLED = sa.text("state IN ('PLANNED', 'SENT', 'UNKNOWN')")
MOVING = sa.text("status IN ('PUSHING', 'WAITING_PLANE', 'MEASURING', 'ROLLING_BACK')")


def upgrade() -> None:
    locks.build_index("ix_effects_unsettled", "effects", ["planned_at"], postgresql_where=UNSETTLED)
    locks.build_index("ix_ring_deployments_moving", "ring_deployments", ["status"], postgresql_where=MOVING)


def downgrade() -> None:
    op.drop_index("ix_ring_deployments_moving", table_name="ring_deployments", postgresql_where=MOVING)
    op.drop_index("ix_effects_unsettled", table_name="effects", postgresql_where=UNSETTLED)
