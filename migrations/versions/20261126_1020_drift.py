# SPDX-License-Identifier: Apache-2.0
"""where planes differ from what was decided

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

RING = postgresql.ENUM("LAB", "CANARY", "PILOT", "DEPARTMENT", "GLOBAL", name="ring", create_type=False)
TYPE = postgresql.ENUM(
    *("missing_assignment", "version_mismatch", "scope_mismatch", "compliance_drift"),
    name="drift_type",
    create_type=False,
)
SEVERITY = postgresql.ENUM("high", "medium", name="severity", create_type=False)
STATUS = postgresql.ENUM("SUSPECTED", "OPEN", "ESCALATED", "RESOLVED", name="drift_status", create_type=False)
ENUMS = (TYPE, SEVERITY, STATUS)
JSON = postgresql.JSONB(none_as_null=True, astext_type=sa.Text())
INSTANT = sa.DateTime(timezone=True)
NOW = sa.text("now()")
UNRESOLVED = sa.text("status <> 'RESOLVED'")


def upgrade() -> None:
    for kind in ENUMS:
        kind.create(op.get_bind())
    op.create_index("ix_deployments_app", "deployments", [sa.text("lower(app_name)"), "id"])
    op.add_column("ring_deployments", sa.Column("looked_at", INSTANT, nullable=True))
    op.create_table(
        "drifts",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("deployment_id", sa.Uuid(), nullable=False),
        sa.Column("lane_id", sa.Uuid(), nullable=False),
        sa.Column("ring", RING, nullable=False),
        sa.Column("plane", sa.Text(), nullable=False),
        sa.Column("type", TYPE, nullable=False),
        sa.Column("severity", SEVERITY, nullable=False),
        sa.Column("status", STATUS, server_default="SUSPECTED", nullable=False),
        sa.Column("status_since", INSTANT, nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("expected", JSON, nullable=False),
        sa.Column("observed", JSON, nullable=False),
        sa.Column("seen", sa.Integer(), server_default="1", nullable=False),
        sa.Column("repairs", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_repair_at", INSTANT, nullable=True),
        sa.Column("operation_id", sa.Uuid(), nullable=True),
        sa.Column("first_seen_at", INSTANT, server_default=NOW, nullable=False),
        sa.Column("last_seen_at", INSTANT, server_default=NOW, nullable=False),
        sa.Column("resolved_at", INSTANT, nullable=True),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.CheckConstraint("seen >= 1", name=op.f("ck_drifts_seen")),
        sa.CheckConstraint("repairs >= 0", name=op.f("ck_drifts_repairs")),
        sa.CheckConstraint(
            "(status = 'RESOLVED') = (resolved_at IS NOT NULL)", name=op.f("ck_drifts_resolved")
        ),
        sa.ForeignKeyConstraint(["deployment_id"], ["deployments.id"], name=op.f("fk_drifts_deployment_id")),
        sa.ForeignKeyConstraint(["lane_id"], ["ring_deployments.id"], name=op.f("fk_drifts_lane_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_drifts")),
    )
    op.create_index(
        "uq_drifts_one_at_a_time", "drifts", ["lane_id", "type"], unique=True, postgresql_where=UNRESOLVED
    )
    op.create_index("ix_drifts_deployment", "drifts", ["deployment_id", sa.text("id DESC")])
    op.create_index("ix_drifts_unresolved", "drifts", ["status", "status_since"], postgresql_where=UNRESOLVED)


def downgrade() -> None:
    op.drop_table("drifts")
    op.drop_column("ring_deployments", "looked_at")
    op.drop_index("ix_deployments_app", table_name="deployments")
    for kind in ENUMS:
        kind.drop(op.get_bind())
