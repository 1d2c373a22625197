# SPDX-License-Identifier: Apache-2.0
"""first rollout

Revision ID: 0001
Revises: nothing
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ROLE = postgresql.ENUM("viewer", "packager", "publisher", "approver", "admin", name="role", create_type=False)
RING = postgresql.ENUM("LAB", "CANARY", "PILOT", "DEPARTMENT", "GLOBAL", name="ring", create_type=False)
PROMOTION = postgresql.ENUM("automatic", "manual", name="promotion", create_type=False)
DEPLOYMENT_STATUS = postgresql.ENUM(
    "PENDING",
    "DEPLOYING",
    "AWAITING_CAB",
    "APPROVED",
    "REJECTED",
    "CANCELLED",
    "COMPLETED",
    "ROLLING_BACK",
    "ROLLED_BACK",
    "FAILED",
    name="deployment_status",
    create_type=False,
)
OPERATION_STATUS = postgresql.ENUM(
    "QUEUED",
    "RUNNING",
    "WAITING",
    "SUCCEEDED",
    "FAILED",
    "CANCELLED",
    name="operation_status",
    create_type=False,
)
LANE_STATUS = postgresql.ENUM(
    "PENDING",
    "PUSHING",
    "WAITING_PLANE",
    "MEASURING",
    "PROMOTED",
    "HELD",
    "FAILED",
    "ROLLING_BACK",
    "ROLLED_BACK",
    "CANCELLED",
    "EMPTY_TARGET",
    name="lane_status",
    create_type=False,
)
DEVICE_STATE = postgresql.ENUM(
    "PENDING",
    "IN_PROGRESS",
    "SUCCEEDED",
    "FAILED",
    "UNREACHABLE",
    "UNKNOWN",
    name="device_state",
    create_type=False,
)
CONNECTIVITY = postgresql.ENUM("online", "intermittent", "air_gapped", name="connectivity", create_type=False)
EFFECT_ACTION = postgresql.ENUM(
    "publish", "upload", "assign", "unassign", "remove", name="effect_action", create_type=False
)
EFFECT_STATE = postgresql.ENUM(
    "PLANNED", "SENT", "CONFIRMED", "REJECTED", "UNKNOWN", name="effect_state", create_type=False
)
ENUMS = (
    ROLE,
    RING,
    PROMOTION,
    DEPLOYMENT_STATUS,
    OPERATION_STATUS,
    LANE_STATUS,
    DEVICE_STATE,
    CONNECTIVITY,
    EFFECT_ACTION,
    EFFECT_STATE,
)


def upgrade() -> None:
    for kind in ENUMS:
        kind.create(op.get_bind())
    op.create_table(
        "api_tokens",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", ROLE, nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("octet_length(token_hash) = 32", name=op.f("ck_api_tokens_token_hash")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_tokens")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_api_tokens_token_hash")),
    )
    op.create_table(
        "deployments",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("correlation_id", sa.Uuid(), nullable=False),
        sa.Column("app_name", sa.Text(), nullable=False),
        sa.Column("app_version", sa.Text(), nullable=False),
        sa.Column("planes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("target_ring", RING, nullable=False),
        sa.Column("promotion", PROMOTION, nullable=False),
        sa.Column("privileged", sa.Boolean(), nullable=False),
        sa.Column("criticality", sa.Text(), nullable=False),
        sa.Column("rollback_version", sa.Text(), nullable=True),
        sa.Column("start_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("risk_factors", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column("risk_score", sa.Integer(), nullable=False),
        sa.Column("risk_model", sa.Text(), nullable=False),
        sa.Column(
            "risk_breakdown", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False
        ),
        sa.Column("requires_cab_approval", sa.Boolean(), nullable=False),
        sa.Column("gates", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column("gate_policy", sa.Text(), nullable=False),
        sa.Column("status", DEPLOYMENT_STATUS, server_default="PENDING", nullable=False),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("event_sequence", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("operation_id", sa.Uuid(), nullable=True),
        sa.Column("submitted_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("cardinality(planes) >= 1", name=op.f("ck_deployments_planes")),
        sa.CheckConstraint("event_sequence >= 0", name=op.f("ck_deployments_event_sequence")),
        sa.CheckConstraint("risk_score BETWEEN 0 AND 100", name=op.f("ck_deployments_risk_score")),
        sa.CheckConstraint("version >= 1", name=op.f("ck_deployments_version")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployments")),
    )
    op.create_index(
        "ix_deployments_app_created",
        "deployments",
        ["app_name", sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_index("ix_deployments_correlation", "deployments", ["correlation_id"], unique=False)
    op.create_index(
        "ix_deployments_created",
        "deployments",
        [sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_deployments_status_created",
        "deployments",
        ["status", sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("headers", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("octet_length(digest) = 32", name=op.f("ck_idempotency_keys_digest")),
        sa.CheckConstraint("status BETWEEN 200 AND 299", name=op.f("ck_idempotency_keys_status")),
        sa.PrimaryKeyConstraint("caller", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index("ix_idempotency_keys_created", "idempotency_keys", ["created_at"], unique=False)
    op.create_table(
        "ring_targets",
        sa.Column("plane", sa.Text(), nullable=False),
        sa.Column("ring", RING, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("ref", sa.Text(), nullable=False),
        sa.Column("device_count", sa.Integer(), nullable=True),
        sa.Column("counted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.CheckConstraint("device_count >= 0", name=op.f("ck_ring_targets_device_count")),
        sa.PrimaryKeyConstraint("plane", "ring", name=op.f("pk_ring_targets")),
    )
    op.create_table(
        "deployment_planes",
        sa.Column("deployment_id", sa.Uuid(), nullable=False),
        sa.Column("plane", sa.Text(), nullable=False),
        sa.Column("app_name", sa.Text(), nullable=False),
        sa.Column("package", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column("external_id", sa.Text(), nullable=True),
        sa.Column("active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.ForeignKeyConstraint(
            ["deployment_id"],
            ["deployments.id"],
            name=op.f("fk_deployment_planes_deployment_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("deployment_id", "plane", name=op.f("pk_deployment_planes")),
    )
    op.create_index(
        "uq_deployment_planes_one_active",
        "deployment_planes",
        [sa.literal_column("lower(app_name)"), "plane"],
        unique=True,
        postgresql_where=sa.text("active"),
    )
    op.create_table(
        "events",
        sa.Column("deployment_id", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("before", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("after", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("correlation_id", sa.Uuid(), nullable=False),
        sa.CheckConstraint("sequence >= 1", name=op.f("ck_events_sequence")),
        sa.ForeignKeyConstraint(
            ["deployment_id"], ["deployments.id"], name=op.f("fk_events_deployment_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("deployment_id", "sequence", name=op.f("pk_events")),
    )
    op.create_table(
        "operations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("subject_type", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("deployment_id", sa.Uuid(), nullable=True),
        sa.Column(
            "args",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("status", OPERATION_STATUS, server_default="QUEUED", nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("max_attempts", sa.Integer(), server_default=sa.text("4"), nullable=False),
        sa.Column("deferrals", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("run_after", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("dispatched_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fence", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("correlation_id", sa.Uuid(), nullable=False),
        sa.Column("error", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("result", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(status = 'RUNNING') = (lease_until IS NOT NULL AND lease_owner IS NOT NULL)",
            name=op.f("ck_operations_lease_while_running"),
        ),
        sa.CheckConstraint("attempt >= 0", name=op.f("ck_operations_attempt")),
        sa.CheckConstraint("deferrals >= 0", name=op.f("ck_operations_deferrals")),
        sa.CheckConstraint("fence >= 0", name=op.f("ck_operations_fence")),
        sa.CheckConstraint("max_attempts >= 1", name=op.f("ck_operations_max_attempts")),
        sa.ForeignKeyConstraint(
            ["deployment_id"],
            ["deployments.id"],
            name=op.f("fk_operations_deployment_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operations")),
    )
    op.create_index(
        "ix_operations_created",
        "operations",
        [sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_operations_deadline",
        "operations",
        ["deadline"],
        unique=False,
        postgresql_where=sa.text("status IN ('QUEUED', 'WAITING')"),
    )
    op.create_index(op.f("ix_operations_deployment_id"), "operations", ["deployment_id"], unique=False)
    op.create_index(
        "ix_operations_due",
        "operations",
        ["queue", "run_after"],
        unique=False,
        postgresql_where=sa.text("status IN ('QUEUED', 'WAITING')"),
    )
    op.create_index(
        "ix_operations_kind_created",
        "operations",
        ["kind", sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_operations_leases",
        "operations",
        ["lease_until"],
        unique=False,
        postgresql_where=sa.text("status = 'RUNNING'"),
    )
    op.create_index("ix_operations_subject", "operations", ["subject_type", "subject_id"], unique=False)
    op.create_index(
        "ix_operations_without_success",
        "operations",
        [sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
        postgresql_where=sa.text("status IN ('FAILED', 'CANCELLED')"),
    )
    op.create_table(
        "ring_deployments",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("deployment_id", sa.Uuid(), nullable=False),
        sa.Column("ring", RING, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("plane", sa.Text(), nullable=False),
        sa.Column("status", LANE_STATUS, server_default="PENDING", nullable=False),
        sa.Column("operation_id", sa.Uuid(), nullable=True),
        sa.Column("target_kind", sa.Text(), nullable=False),
        sa.Column("target_ref", sa.Text(), nullable=False),
        sa.Column("targeted", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("success_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failure_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("unreachable_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("late_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "success_rate",
            sa.Double(),
            sa.Computed("success_count::double precision / NULLIF(targeted, 0)", persisted=True),
            nullable=True,
        ),
        sa.Column("external_id", sa.Text(), nullable=True),
        sa.Column("verdict", sa.Text(), nullable=True),
        sa.Column("gate_report", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("error", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("soak_elapsed", sa.Interval(), server_default=sa.text("'0'"), nullable=False),
        sa.Column("waited", sa.Interval(), server_default=sa.text("'0'"), nullable=False),
        sa.Column("waiting_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("pushed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("measured_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("failure_count >= 0", name=op.f("ck_ring_deployments_failure_count")),
        sa.CheckConstraint("late_count >= 0", name=op.f("ck_ring_deployments_late_count")),
        sa.CheckConstraint("position BETWEEN 0 AND 4", name=op.f("ck_ring_deployments_position")),
        sa.CheckConstraint(
            "success_count + failure_count + unreachable_count <= targeted",
            name=op.f("ck_ring_deployments_counts"),
        ),
        sa.CheckConstraint("success_count >= 0", name=op.f("ck_ring_deployments_success_count")),
        sa.CheckConstraint("success_rate BETWEEN 0 AND 1", name=op.f("ck_ring_deployments_success_rate")),
        sa.CheckConstraint("targeted >= 0", name=op.f("ck_ring_deployments_targeted")),
        sa.CheckConstraint("unreachable_count >= 0", name=op.f("ck_ring_deployments_unreachable_count")),
        sa.ForeignKeyConstraint(
            ["deployment_id"],
            ["deployments.id"],
            name=op.f("fk_ring_deployments_deployment_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ring_deployments")),
        sa.UniqueConstraint(
            "deployment_id", "ring", "plane", name=op.f("uq_ring_deployments_deployment_id_ring_plane")
        ),
    )
    op.create_index(
        "ix_ring_deployments_deployment_position",
        "ring_deployments",
        ["deployment_id", "position", "plane"],
        unique=False,
    )
    op.create_index("ix_ring_deployments_plane_status", "ring_deployments", ["plane", "status"], unique=False)
    op.create_table(
        "device_results",
        sa.Column("lane_id", sa.Uuid(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", DEVICE_STATE, server_default="PENDING", nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("connectivity", CONNECTIVITY, nullable=False),
        sa.Column("late", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("rollback_state", DEVICE_STATE, nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["lane_id"], ["ring_deployments.id"], name=op.f("fk_device_results_lane_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("lane_id", "device_id", name=op.f("pk_device_results")),
    )
    op.create_index(
        "ix_device_results_lane_state", "device_results", ["lane_id", "state", "device_id"], unique=False
    )
    op.create_table(
        "effects",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("deployment_id", sa.Uuid(), nullable=False),
        sa.Column("lane_id", sa.Uuid(), nullable=True),
        sa.Column("operation_id", sa.Uuid(), nullable=False),
        sa.Column("ring", RING, nullable=True),
        sa.Column("plane", sa.Text(), nullable=False),
        sa.Column("action", EFFECT_ACTION, nullable=False),
        sa.Column("state", EFFECT_STATE, server_default="PLANNED", nullable=False),
        sa.Column("external_id", sa.Text(), nullable=True),
        sa.Column("checkpoint", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("error", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("planned_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("absent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["deployment_id"], ["deployments.id"], name=op.f("fk_effects_deployment_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["lane_id"], ["ring_deployments.id"], name=op.f("fk_effects_lane_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["operation_id"], ["operations.id"], name=op.f("fk_effects_operation_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_effects")),
        sa.UniqueConstraint("key", name=op.f("uq_effects_key")),
    )
    op.create_index("ix_effects_deployment", "effects", ["deployment_id", "id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_effects_deployment", table_name="effects")
    op.drop_table("effects")
    op.drop_index("ix_device_results_lane_state", table_name="device_results")
    op.drop_table("device_results")
    op.drop_index("ix_ring_deployments_plane_status", table_name="ring_deployments")
    op.drop_index("ix_ring_deployments_deployment_position", table_name="ring_deployments")
    op.drop_table("ring_deployments")
    op.drop_index(
        "ix_operations_without_success",
        table_name="operations",
        postgresql_where=sa.text("status IN ('FAILED', 'CANCELLED')"),
    )
    op.drop_index("ix_operations_subject", table_name="operations")
    op.drop_index(
        "ix_operations_leases", table_name="operations", postgresql_where=sa.text("status = 'RUNNING'")
    )
    op.drop_index("ix_operations_kind_created", table_name="operations")
    op.drop_index(
        "ix_operations_due",
        table_name="operations",
        postgresql_where=sa.text("status IN ('QUEUED', 'WAITING')"),
    )
    op.drop_index(op.f("ix_operations_deployment_id"), table_name="operations")
    op.drop_index(
        "ix_operations_deadline",
        table_name="operations",
        postgresql_where=sa.text("status IN ('QUEUED', 'WAITING')"),
    )
    op.drop_index("ix_operations_created", table_name="operations")
    op.drop_table("operations")
    op.drop_table("events")
    op.drop_index(
        "uq_deployment_planes_one_active", table_name="deployment_planes", postgresql_where=sa.text("active")
    )
    op.drop_table("deployment_planes")
    op.drop_table("ring_targets")
    op.drop_index("ix_idempotency_keys_created", table_name="idempotency_keys")
    op.drop_table("idempotency_keys")
    op.drop_index("ix_deployments_status_created", table_name="deployments")
    op.drop_index("ix_deployments_created", table_name="deployments")
    op.drop_index("ix_deployments_correlation", table_name="deployments")
    op.drop_index("ix_deployments_app_created", table_name="deployments")
    op.drop_table("deployments")
    op.drop_table("api_tokens")
    for kind in ENUMS:
        kind.drop(op.get_bind())
