# SPDX-License-Identifier: Apache-2.0
"""repeated work, and a ledger that outlives the operations that wrote it

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)
NOW = sa.text("now()")

REFUSE = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM effects AS effect
        WHERE NOT EXISTS (SELECT FROM operations AS work WHERE work.id = effect.operation_id))
    THEN
        RAISE EXCEPTION 'effects outlive the operations that wrote them: this revision cannot be taken back,'
            ' for what was sent to planes would be forgotten';
    END IF;
END $$
"""


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("every", sa.Interval(), nullable=False),
        sa.Column("catch_up", sa.Text(), nullable=False),
        sa.Column("next_tick", INSTANT, nullable=False),
        sa.CheckConstraint("every > interval '0'", name=op.f("ck_schedules_every")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_schedules")),
    )
    op.create_table(
        "schedule_ticks",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("tick", INSTANT, nullable=False),
        sa.Column("operation_id", sa.Uuid(), nullable=True),
        sa.Column("missed", sa.Integer(), nullable=False),
        sa.Column("created_at", INSTANT, server_default=NOW, nullable=False),
        sa.CheckConstraint("missed >= 0", name=op.f("ck_schedule_ticks_missed")),
        sa.PrimaryKeyConstraint("name", "tick", name=op.f("pk_schedule_ticks")),
    )
    op.create_index("ix_schedule_ticks_created", "schedule_ticks", ["created_at"])
    # Finished operations go after their time, the ledger stays: the id tells who wrote it, and no more.
    op.drop_constraint(op.f("fk_effects_operation_id"), "effects", type_="foreignkey")


def downgrade() -> None:
    op.execute(REFUSE)
    op.create_foreign_key(
        op.f("fk_effects_operation_id"), "effects", "operations", ["operation_id"], ["id"], ondelete="CASCADE"
    )
    op.drop_table("schedule_ticks")
    op.drop_table("schedules")
