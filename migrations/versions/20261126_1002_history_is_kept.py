# SPDX-License-Identifier: Apache-2.0
"""events are only ever added, and checkpoints tell where they stood

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)
NOW = sa.text("now()")
KEPT = ("events", "event_checkpoints", "event_heads")

REFUSE = """
CREATE FUNCTION refuse_to_forget() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on %: history is only ever added to', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'check_violation', CONSTRAINT = 'ck_' || TG_TABLE_NAME || '_kept';
END $$
"""


def upgrade() -> None:
    op.alter_column("events", "hash", nullable=False)
    op.create_check_constraint(op.f("ck_events_hash"), "events", "octet_length(hash) = 32")
    op.drop_constraint("fk_events_deployment_id", "events", type_="foreignkey")
    op.create_foreign_key(op.f("fk_events_deployment_id"), "events", "deployments", ["deployment_id"], ["id"])
    create_checkpoints()
    op.execute(REFUSE)
    for table in KEPT:
        op.execute(
            f"CREATE TRIGGER {table}_kept_rows BEFORE UPDATE OR DELETE ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION refuse_to_forget()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_kept BEFORE TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_forget()"
        )


def create_checkpoints() -> None:
    op.create_table(
        "event_checkpoints",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("number >= 1", name=op.f("ck_event_checkpoints_number")),
        sa.CheckConstraint("octet_length(hash) = 32", name=op.f("ck_event_checkpoints_hash")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_event_checkpoints")),
    )
    op.create_table(
        "event_heads",
        sa.Column("deployment_id", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("checkpoint", sa.Integer(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["checkpoint"], ["event_checkpoints.number"], name=op.f("fk_event_heads_checkpoint")
        ),
        sa.ForeignKeyConstraint(
            ["deployment_id", "sequence"],
            ["events.deployment_id", "events.sequence"],
            name=op.f("fk_event_heads_deployment_id"),
        ),
        sa.PrimaryKeyConstraint("deployment_id", "sequence", name=op.f("pk_event_heads")),
    )
    op.create_index("ix_event_heads_checkpoint", "event_heads", ["checkpoint", "deployment_id"])


def downgrade() -> None:
    for table in KEPT:
        op.execute(f"DROP TRIGGER {table}_kept ON {table}")
        op.execute(f"DROP TRIGGER {table}_kept_rows ON {table}")
    op.execute("DROP FUNCTION refuse_to_forget")
    op.drop_table("event_heads")
    op.drop_table("event_checkpoints")
    op.drop_constraint("fk_events_deployment_id", "events", type_="foreignkey")
    op.create_foreign_key(
        op.f("fk_events_deployment_id"),
        "events",
        "deployments",
        ["deployment_id"],
        ["id"],
        ondelete="CASCADE",
    )
    op.drop_constraint(op.f("ck_events_hash"), "events", type_="check")
    op.alter_column("events", "hash", nullable=True)
