# SPDX-License-Identifier: Apache-2.0
"""decide and steer

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

RING = postgresql.ENUM("LAB", "CANARY", "PILOT", "DEPARTMENT", "GLOBAL", name="ring", create_type=False)
APPROVAL_STATUS = postgresql.ENUM(
    "PENDING", "APPROVED", "REJECTED", "EXPIRED", "WITHDRAWN", name="approval_status", create_type=False
)
WAY_BACK = postgresql.ENUM("return", "remove", "none", name="way_back", create_type=False)
ENUMS = (APPROVAL_STATUS, WAY_BACK)
JSON = postgresql.JSONB(none_as_null=True, astext_type=sa.Text())
INSTANT = sa.DateTime(timezone=True)
NOW = sa.text("now()")

FIXED = """
CREATE FUNCTION keep_what_was_judged() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.risk_factors, NEW.risk_score, NEW.risk_model, NEW.risk_breakdown, NEW.submitted_by)
        IS DISTINCT FROM
        (OLD.risk_factors, OLD.risk_score, OLD.risk_model, OLD.risk_breakdown, OLD.submitted_by)
    THEN
        RAISE EXCEPTION 'the risk of a deployment and who submitted it never change'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ck_deployments_judged';
    END IF;
    RETURN NEW;
END $$
"""
FIXED_TRIGGER = """
CREATE TRIGGER deployments_judged
AFTER UPDATE OF risk_factors, risk_score, risk_model, risk_breakdown, submitted_by ON deployments
FOR EACH ROW EXECUTE FUNCTION keep_what_was_judged()
"""
SUBMITTER = """
CREATE FUNCTION know_the_submitter() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE known text;
BEGIN
    SELECT submitted_by INTO known FROM deployments WHERE id = NEW.deployment_id;
    IF known IS NOT NULL AND NEW.submitted_by IS DISTINCT FROM known THEN
        RAISE EXCEPTION 'an approval names another submitter than its deployment'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ck_approvals_submitted_by';
    END IF;
    RETURN NEW;
END $$
"""
SUBMITTER_TRIGGER = """
CREATE TRIGGER approvals_submitter BEFORE INSERT OR UPDATE OF submitted_by, deployment_id ON approvals
FOR EACH ROW EXECUTE FUNCTION know_the_submitter()
"""


def upgrade() -> None:
    for kind in ENUMS:
        kind.create(op.get_bind())
    add_columns()
    op.create_table(
        "approvals",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("deployment_id", sa.Uuid(), nullable=False),
        sa.Column("status", APPROVAL_STATUS, server_default="PENDING", nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("submitted_by", sa.Text(), nullable=False),
        sa.Column("expires_at", INSTANT, nullable=False),
        sa.Column("irreversible", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("conditions", sa.Text(), nullable=True),
        sa.Column("exception_expires_at", INSTANT, nullable=True),
        sa.Column("compensating_controls", sa.Text(), nullable=True),
        sa.Column("created_at", INSTANT, server_default=NOW, nullable=False),
        sa.Column("settled_at", INSTANT, nullable=True),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.CheckConstraint(
            "lower(decided_by) <> lower(submitted_by)", name=op.f("ck_approvals_decided_by_another")
        ),
        sa.CheckConstraint(
            "(status IN ('APPROVED', 'REJECTED')) = (decided_by IS NOT NULL AND reason IS NOT NULL)",
            name=op.f("ck_approvals_decision"),
        ),
        sa.CheckConstraint("(status = 'PENDING') = (settled_at IS NULL)", name=op.f("ck_approvals_settled")),
        sa.CheckConstraint(
            "(exception_expires_at IS NULL) = (compensating_controls IS NULL)",
            name=op.f("ck_approvals_exception"),
        ),
        sa.CheckConstraint("version >= 1", name=op.f("ck_approvals_version")),
        sa.ForeignKeyConstraint(
            ["deployment_id"],
            ["deployments.id"],
            name=op.f("fk_approvals_deployment_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_approvals")),
    )
    op.create_index(
        "uq_approvals_one_pending",
        "approvals",
        ["deployment_id"],
        unique=True,
        postgresql_where=sa.text("status = 'PENDING'"),
    )
    op.create_index("ix_approvals_deployment", "approvals", ["deployment_id", sa.text("id DESC")])
    op.create_index("ix_approvals_created", "approvals", [sa.text("created_at DESC"), sa.text("id DESC")])
    op.create_index(
        "ix_approvals_expiring",
        "approvals",
        ["expires_at"],
        postgresql_where=sa.text("status = 'PENDING'"),
    )
    create_freezes()
    op.create_table(
        "gate_policies",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("document", JSON, nullable=False),
        sa.Column("created_at", INSTANT, server_default=NOW, nullable=False),
        sa.CheckConstraint("version >= 1", name=op.f("ck_gate_policies_version")),
        sa.PrimaryKeyConstraint("name", "version", name=op.f("pk_gate_policies")),
    )
    for statement in (FIXED, FIXED_TRIGGER, SUBMITTER, SUBMITTER_TRIGGER):
        op.execute(statement)


def add_columns() -> None:
    op.add_column("deployments", sa.Column("status_since", INSTANT, server_default=NOW, nullable=False))
    op.add_column("deployments", sa.Column("paused_by", sa.Text(), nullable=True))
    op.add_column("deployments", sa.Column("paused_at", INSTANT, nullable=True))
    op.add_column("deployments", sa.Column("pause_reason", sa.Text(), nullable=True))
    op.add_column("deployments", sa.Column("retries_used", sa.Integer(), server_default="0", nullable=False))
    op.add_column(
        "deployments", sa.Column("retries_reset", sa.Boolean(), server_default="false", nullable=False)
    )
    op.create_check_constraint(op.f("ck_deployments_retries_used"), "deployments", "retries_used >= 0")
    op.add_column("operations", sa.Column("nudged", sa.Boolean(), server_default="false", nullable=False))
    op.add_column("deployment_planes", sa.Column("way_back", WAY_BACK, nullable=True))
    op.add_column("ring_deployments", sa.Column("status_since", INSTANT, server_default=NOW, nullable=False))
    op.add_column("ring_deployments", sa.Column("held_for", sa.Text(), nullable=True))
    op.add_column("ring_deployments", sa.Column("override", JSON, nullable=True))
    op.add_column("ring_deployments", sa.Column("retry_until", INSTANT, nullable=True))
    op.add_column("ring_deployments", sa.Column("reserved", sa.Integer(), server_default="0", nullable=False))
    op.create_check_constraint(op.f("ck_ring_deployments_reserved"), "ring_deployments", "reserved >= 0")
    op.create_index(
        "ix_ring_deployments_reserved",
        "ring_deployments",
        ["status"],
        postgresql_where=sa.text("reserved > 0"),
    )


def create_freezes() -> None:
    op.create_table(
        "freezes",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("starts_at", INSTANT, nullable=False),
        sa.Column("ends_at", INSTANT, nullable=False),
        sa.Column("rings", postgresql.ARRAY(RING), nullable=False),
        sa.Column("planes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", INSTANT, server_default=NOW, nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.CheckConstraint("ends_at > starts_at", name=op.f("ck_freezes_order")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_freezes")),
    )
    op.create_index("ix_freezes_ends", "freezes", ["ends_at"])
    op.create_table(
        "maintenance_windows",
        sa.Column("plane", sa.Text(), nullable=False),
        sa.Column("ring", RING, nullable=False),
        sa.Column("zone", sa.Text(), nullable=False),
        sa.Column("spans", JSON, nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.Column("updated_at", INSTANT, server_default=NOW, nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("plane", "ring", name=op.f("pk_maintenance_windows")),
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER approvals_submitter ON approvals")
    op.execute("DROP FUNCTION know_the_submitter")
    op.execute("DROP TRIGGER deployments_judged ON deployments")
    op.execute("DROP FUNCTION keep_what_was_judged")
    op.drop_table("gate_policies")
    op.drop_table("maintenance_windows")
    op.drop_table("freezes")
    op.drop_table("approvals")
    op.drop_index(
        "ix_ring_deployments_reserved",
        table_name="ring_deployments",
        postgresql_where=sa.text("reserved > 0"),
    )
    for column in ("status_since", "held_for", "override", "retry_until", "reserved"):
        op.drop_column("ring_deployments", column)
    op.drop_column("deployment_planes", "way_back")
    op.drop_column("operations", "nudged")
    for column in (
        *("status_since", "paused_by", "paused_at", "pause_reason"),
        *("retries_used", "retries_reset"),
    ):
        op.drop_column("deployments", column)
    for kind in ENUMS:
        kind.drop(op.get_bind())
