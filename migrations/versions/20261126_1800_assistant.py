# SPDX-License-Identifier: Apache-2.0
"""conversations with the assistant, its tasks, and what they cost

Revision ID: 0013
Revises: 0012
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

ROLE = postgresql.ENUM("user", "assistant", name="message_role", create_type=False)
MESSAGE_STATUS = postgresql.ENUM(
    *("PENDING", "ANSWERING", "COMPLETE", "INCOMPLETE"), name="message_status", create_type=False
)
KIND = postgresql.ENUM(
    *("summarise_rollout", "triage_failures", "draft_change_request", "propose_rollback"),
    "propose_promotion_plan",
    name="ai_task_kind",
    create_type=False,
)
TASK_STATUS = postgresql.ENUM(
    *("PENDING", "RUNNING", "AWAITING_APPROVAL", "REVISION_REQUESTED", "APPROVED", "REJECTED", "EXECUTING"),
    *("COMPLETED", "FAILED", "EXPIRED"),
    name="ai_task_status",
    create_type=False,
)
OUTCOME = postgresql.ENUM("done", "refused", name="ai_action_outcome", create_type=False)
ENUMS = (ROLE, MESSAGE_STATUS, KIND, TASK_STATUS, OUTCOME)
JSON = postgresql.JSONB(none_as_null=True, astext_type=sa.Text())
INSTANT = sa.DateTime(timezone=True)
NOW = sa.text("now()")
TABLES = ("ai_calls", "ai_actions", "ai_tasks", "messages", "conversations")


def upgrade() -> None:
    for kind in ENUMS:
        kind.create(op.get_bind())
    op.create_table(
        "conversations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("correlation_id", sa.Uuid(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("last_sequence", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("summary", sa.Text(), nullable=True),
        sa.Column("summarised_through", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("operation_id", sa.Uuid(), nullable=True),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_at", INSTANT, server_default=NOW, nullable=False),
        sa.Column("updated_at", INSTANT, server_default=NOW, nullable=False),
        sa.CheckConstraint("last_sequence >= 0", name=op.f("ck_conversations_last_sequence")),
        sa.CheckConstraint(
            "summarised_through BETWEEN 0 AND last_sequence", name=op.f("ck_conversations_summarised_through")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_conversations")),
    )
    op.create_index(
        "ix_conversations_created", "conversations", [sa.text("created_at DESC"), sa.text("id DESC")]
    )
    op.create_table(
        "messages",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("conversation_id", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("role", ROLE, nullable=False),
        sa.Column("status", MESSAGE_STATUS, nullable=False),
        sa.Column("status_since", INSTANT, server_default=NOW, nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("author_id", sa.Uuid(), nullable=False),
        sa.Column("content", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("run", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("draft", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("steps", JSON, server_default=sa.text("'[]'"), nullable=False),
        sa.Column("tool_calls", JSON, server_default=sa.text("'[]'"), nullable=False),
        sa.Column("citations", JSON, server_default=sa.text("'[]'"), nullable=False),
        sa.Column("unverified", JSON, server_default=sa.text("'[]'"), nullable=False),
        sa.Column("stop_reason", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("error", JSON, nullable=True),
        sa.Column("operation_id", sa.Uuid(), nullable=True),
        sa.Column("began_at", INSTANT, nullable=True),
        sa.Column("created_at", INSTANT, server_default=NOW, nullable=False),
        sa.Column("finished_at", INSTANT, nullable=True),
        sa.CheckConstraint("run >= 0 AND draft >= 0", name=op.f("ck_messages_draft")),
        sa.CheckConstraint(
            "(status IN ('COMPLETE', 'INCOMPLETE')) = (finished_at IS NOT NULL)",
            name=op.f("ck_messages_finished"),
        ),
        sa.CheckConstraint(
            "role = 'assistant' OR status = 'COMPLETE'", name=op.f("ck_messages_only_answers_take_time")
        ),
        sa.CheckConstraint("sequence >= 1", name=op.f("ck_messages_sequence")),
        sa.ForeignKeyConstraint(
            ["conversation_id"],
            ["conversations.id"],
            name=op.f("fk_messages_conversation_id"),
            ondelete="CASCADE",
        ),
        sa.UniqueConstraint("conversation_id", "sequence", name=op.f("uq_messages_conversation_id_sequence")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_messages")),
    )
    op.create_index("ix_messages_author_created", "messages", ["author", "created_at"])
    op.create_index(
        "uq_messages_one_open",
        "messages",
        ["conversation_id"],
        unique=True,
        postgresql_where=sa.text("status IN ('PENDING', 'ANSWERING')"),
    )
    op.create_table(
        "ai_tasks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", KIND, nullable=False),
        sa.Column("deployment_id", sa.Uuid(), nullable=False),
        sa.Column("correlation_id", sa.Uuid(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("author_id", sa.Uuid(), nullable=False),
        sa.Column("instructions", sa.Text(), nullable=True),
        sa.Column("status", TASK_STATUS, server_default="PENDING", nullable=False),
        sa.Column("status_since", INSTANT, server_default=NOW, nullable=False),
        sa.Column("revision", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("revision_note", sa.Text(), nullable=True),
        sa.Column("steps", JSON, server_default=sa.text("'[]'"), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("actions", JSON, nullable=True),
        sa.Column("digest", sa.Text(), nullable=True),
        sa.Column("proposed_at", INSTANT, nullable=True),
        sa.Column("expires_at", INSTANT, nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("decided_by_id", sa.Uuid(), nullable=True),
        sa.Column("decided_at", INSTANT, nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("approved_digest", sa.Text(), nullable=True),
        sa.Column("error", JSON, nullable=True),
        sa.Column("operation_id", sa.Uuid(), nullable=True),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_at", INSTANT, server_default=NOW, nullable=False),
        sa.Column("finished_at", INSTANT, nullable=True),
        sa.CheckConstraint(
            "approved_digest IS NULL OR (decided_by IS NOT NULL AND lower(decided_by) <> lower(author)"
            " AND decided_by_id IS NOT NULL AND decided_by_id <> author_id)",
            name=op.f("ck_ai_tasks_approved_by_another"),
        ),
        sa.CheckConstraint(
            "(status IN ('REJECTED', 'COMPLETED', 'FAILED', 'EXPIRED')) = (finished_at IS NOT NULL)",
            name=op.f("ck_ai_tasks_finished"),
        ),
        sa.CheckConstraint(
            "status NOT IN ('APPROVED', 'EXECUTING', 'COMPLETED')"
            " OR (approved_digest IS NOT NULL AND approved_digest = digest)",
            name=op.f("ck_ai_tasks_nothing_without_approval"),
        ),
        sa.CheckConstraint(
            "status NOT IN ('AWAITING_APPROVAL', 'APPROVED', 'EXECUTING', 'COMPLETED') OR (text IS NOT NULL AND actions IS NOT NULL AND digest IS NOT NULL AND expires_at IS NOT NULL)",
            name=op.f("ck_ai_tasks_proposal"),
        ),
        sa.CheckConstraint("jsonb_typeof(actions) = 'array'", name=op.f("ck_ai_tasks_actions")),
        sa.CheckConstraint("revision >= 0", name=op.f("ck_ai_tasks_revision")),
        sa.ForeignKeyConstraint(
            ["deployment_id"], ["deployments.id"], name=op.f("fk_ai_tasks_deployment_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ai_tasks")),
    )
    op.create_index("ix_ai_tasks_author_created", "ai_tasks", ["author", "created_at"])
    op.create_index(
        "ix_ai_tasks_read", "ai_tasks", ["finished_at"], postgresql_where=sa.text("steps <> '[]'")
    )
    op.create_index("ix_ai_tasks_created", "ai_tasks", [sa.text("created_at DESC"), sa.text("id DESC")])
    op.create_index("ix_ai_tasks_deployment", "ai_tasks", ["deployment_id", sa.text("id DESC")])
    op.create_index(
        "ix_ai_tasks_open",
        "ai_tasks",
        ["status"],
        postgresql_where=sa.text("status NOT IN ('REJECTED', 'COMPLETED', 'FAILED', 'EXPIRED')"),
    )
    op.create_table(
        "ai_actions",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("outcome", OUTCOME, nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("operation_id", sa.Uuid(), nullable=True),
        sa.Column("at", INSTANT, nullable=False),
        sa.CheckConstraint("position >= 0", name=op.f("ck_ai_actions_position")),
        sa.ForeignKeyConstraint(
            ["task_id"], ["ai_tasks.id"], name=op.f("fk_ai_actions_task_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("task_id", "position", name=op.f("pk_ai_actions")),
    )
    op.create_table(
        "ai_calls",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("operation_id", sa.Uuid(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("input_digest", sa.Text(), nullable=False),
        sa.Column("output_digest", sa.Text(), nullable=True),
        sa.Column("input_tokens", sa.Integer(), nullable=False),
        sa.Column("output_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("stop_reason", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("began_at", INSTANT, server_default=NOW, nullable=False),
        sa.Column("ended_at", INSTANT, nullable=True),
        sa.CheckConstraint("input_tokens >= 0 AND output_tokens >= 0", name=op.f("ck_ai_calls_tokens")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ai_calls")),
    )
    op.create_index("ix_ai_calls_actor_began", "ai_calls", ["actor", "began_at"])
    op.create_index("ix_ai_calls_began", "ai_calls", ["began_at"])


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)
    for kind in ENUMS:
        kind.drop(op.get_bind())
