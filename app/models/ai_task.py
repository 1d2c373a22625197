# SPDX-License-Identifier: Apache-2.0
"""Work given to the assistant: a proposal, a person's decision about it, and what was carried out."""

from enum import StrEnum
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy import text as sql
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Created, Id, Instant, Json, enum_column


class AiTaskKind(StrEnum):
    """What may be asked for."""

    SUMMARISE_ROLLOUT = "summarise_rollout"
    TRIAGE_FAILURES = "triage_failures"
    DRAFT_CHANGE_REQUEST = "draft_change_request"
    PROPOSE_ROLLBACK = "propose_rollback"
    PROPOSE_PROMOTION_PLAN = "propose_promotion_plan"


class AiTaskStatus(StrEnum):
    """Where a task stands; only AWAITING_APPROVAL is decided, only APPROVED is carried out."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    REVISION_REQUESTED = "REVISION_REQUESTED"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    EXECUTING = "EXECUTING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    EXPIRED = "EXPIRED"


class ActionOutcome(StrEnum):
    """What became of one action: carried out, or refused by the rules that hold for people too."""

    DONE = "done"
    REFUSED = "refused"


class AiTask(Base):
    """One task about one deployment.

    The proposal is ``text`` and ``actions``, the ``revision``-th of this task, and holds until
    ``expires_at``; ``digest`` is over it and all it depends on. ``approved_digest`` is that of what was
    approved. ``author_id`` and ``decided_by_id`` are tokens. ``steps`` as in ``Message``.
    """

    __tablename__ = "ai_tasks"
    __table_args__ = (
        CheckConstraint("revision >= 0", name="revision"),
        CheckConstraint("jsonb_typeof(actions) = 'array'", name="actions"),
        CheckConstraint(
            "approved_digest IS NULL OR (decided_by IS NOT NULL AND lower(decided_by) <> lower(author)"
            " AND decided_by_id IS NOT NULL AND decided_by_id <> author_id)",
            name="approved_by_another",
        ),
        CheckConstraint(
            "status NOT IN ('APPROVED', 'EXECUTING', 'COMPLETED')"
            " OR (approved_digest IS NOT NULL AND approved_digest = digest)",
            name="nothing_without_approval",
        ),
        CheckConstraint(
            "status NOT IN ('AWAITING_APPROVAL', 'APPROVED', 'EXECUTING', 'COMPLETED') OR (text IS NOT NULL"
            " AND actions IS NOT NULL AND digest IS NOT NULL AND expires_at IS NOT NULL)",
            name="proposal",
        ),
        CheckConstraint(
            "(status IN ('REJECTED', 'COMPLETED', 'FAILED', 'EXPIRED')) = (finished_at IS NOT NULL)",
            name="finished",
        ),
        Index("ix_ai_tasks_created", sql("created_at DESC"), sql("id DESC")),
        Index("ix_ai_tasks_deployment", "deployment_id", sql("id DESC")),
        Index("ix_ai_tasks_author_created", "author", "created_at"),
        Index("ix_ai_tasks_read", "finished_at", postgresql_where=sql("steps <> '[]'")),
        Index(
            "ix_ai_tasks_open",
            "status",
            postgresql_where=sql("status NOT IN ('REJECTED', 'COMPLETED', 'FAILED', 'EXPIRED')"),
        ),
    )

    id: Mapped[Id]
    kind: Mapped[AiTaskKind] = mapped_column(enum_column(AiTaskKind, "ai_task_kind"))
    deployment_id: Mapped[UUID] = mapped_column(ForeignKey("deployments.id"))
    correlation_id: Mapped[UUID]
    author: Mapped[str]
    author_id: Mapped[UUID]
    instructions: Mapped[str | None]
    status: Mapped[AiTaskStatus] = mapped_column(
        enum_column(AiTaskStatus, "ai_task_status"), server_default=AiTaskStatus.PENDING.value
    )
    status_since: Mapped[Created]
    revision: Mapped[int] = mapped_column(server_default=sql("0"))
    revision_note: Mapped[str | None]
    steps: Mapped[list[Json]] = mapped_column(server_default=sql("'[]'"))
    text: Mapped[str | None]
    actions: Mapped[list[Json] | None]
    digest: Mapped[str | None]
    proposed_at: Mapped[Instant | None]
    expires_at: Mapped[Instant | None]
    model: Mapped[str | None]
    decided_by: Mapped[str | None]
    decided_by_id: Mapped[UUID | None]
    decided_at: Mapped[Instant | None]
    reason: Mapped[str | None]
    approved_digest: Mapped[str | None]
    error: Mapped[Json | None]
    operation_id: Mapped[UUID | None]
    version: Mapped[int] = mapped_column(server_default=sql("1"))
    created_at: Mapped[Created]
    finished_at: Mapped[Instant | None]


class AiAction(Base):
    """What became of one action of a task: its row is written with what it did, so it is done once."""

    __tablename__ = "ai_actions"
    __table_args__ = (CheckConstraint("position >= 0", name="position"),)

    task_id: Mapped[UUID] = mapped_column(ForeignKey("ai_tasks.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    outcome: Mapped[ActionOutcome] = mapped_column(enum_column(ActionOutcome, "ai_action_outcome"))
    detail: Mapped[str | None]
    operation_id: Mapped[UUID | None]
    at: Mapped[Instant]


class AiCall(Base):
    """One question to a model. ``ended_at`` null: it is being asked, or its worker was lost.

    Digests are SHA-256 over question and answer, in hexadecimal digits; ``prompt`` is the file with its
    version; tokens are the provider's counts, or our estimates where it told none.
    """

    __tablename__ = "ai_calls"
    __table_args__ = (
        CheckConstraint("input_tokens >= 0 AND output_tokens >= 0", name="tokens"),
        Index("ix_ai_calls_actor_began", "actor", "began_at"),
        Index("ix_ai_calls_began", "began_at"),
    )

    id: Mapped[Id]
    operation_id: Mapped[UUID]
    actor: Mapped[str]
    provider: Mapped[str]
    model: Mapped[str]
    prompt: Mapped[str]
    input_digest: Mapped[str]
    output_digest: Mapped[str | None]
    input_tokens: Mapped[int]
    output_tokens: Mapped[int] = mapped_column(server_default=sql("0"))
    stop_reason: Mapped[str | None]
    error_code: Mapped[str | None]
    began_at: Mapped[Created]
    ended_at: Mapped[Instant | None]
