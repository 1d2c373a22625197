# SPDX-License-Identifier: Apache-2.0
"""Durable work and the ledger of what it changed outside."""

from enum import StrEnum
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from app.connectors.contract import Action
from app.models.base import WRITTEN_OFTEN, Base, Created, Id, Instant, Json, enum_column
from app.models.deployment import Ring


class OperationStatus(StrEnum):
    """Where work stands. QUEUED was never started or was given back; WAITING was, and will be again."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    WAITING = "WAITING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class EffectState(StrEnum):
    """What is known of one change asked of a plane."""

    PLANNED = "PLANNED"
    SENT = "SENT"
    CONFIRMED = "CONFIRMED"
    REJECTED = "REJECTED"
    UNKNOWN = "UNKNOWN"


class Operation(Base):
    """One durable piece of asynchronous work; the row is the job, the queue only rings.

    ``fence`` rises at each claim and is never given back: every later write presents it. ``attempt`` rises at
    each claim and is returned by deferrals, checkpoints and shut-downs. All instants are of the database's
    clock. ``nudged``: while it ran, something changed that it may have found in its way. ``lived``: the run
    that was claimed last has written something, or a heartbeat, so it was no death of its own if its worker
    is lost. ``lost_with``: the ``lease_owner`` with which it was lost last, not having lived.
    ``checkpoint``: how far it has come, for the run that follows one which did not end it.
    """

    __tablename__ = "operations"
    __table_args__ = (
        CheckConstraint("attempt >= 0", name="attempt"),
        CheckConstraint("max_attempts >= 1", name="max_attempts"),
        CheckConstraint("deferrals >= 0", name="deferrals"),
        CheckConstraint("fence >= 0", name="fence"),
        CheckConstraint(
            "(status = 'RUNNING') = (lease_until IS NOT NULL AND lease_owner IS NOT NULL)",
            name="lease_while_running",
        ),
        Index(
            "ix_operations_due",
            "queue",
            "run_after",
            postgresql_where=text("status IN ('QUEUED', 'WAITING')"),
        ),
        Index("ix_operations_leases", "lease_until", postgresql_where=text("status = 'RUNNING'")),
        Index("ix_operations_lost_with", "lost_with", postgresql_where=text("lost_with IS NOT NULL")),
        Index("ix_operations_deadline", "deadline", postgresql_where=text("status IN ('QUEUED', 'WAITING')")),
        Index(
            "ix_operations_without_success",
            text("created_at DESC"),
            text("id DESC"),
            postgresql_where=text("status IN ('FAILED', 'CANCELLED')"),
        ),
        Index("ix_operations_kind_created", "kind", text("created_at DESC"), text("id DESC")),
        Index("ix_operations_created", text("created_at DESC"), text("id DESC")),
        Index("ix_operations_subject", "subject_type", "subject_id"),
        WRITTEN_OFTEN,
    )

    id: Mapped[Id]
    kind: Mapped[str]
    queue: Mapped[str]
    subject_type: Mapped[str]
    subject_id: Mapped[str]
    deployment_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("deployments.id", ondelete="CASCADE"), index=True
    )
    args: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    status: Mapped[OperationStatus] = mapped_column(
        enum_column(OperationStatus, "operation_status"), server_default=OperationStatus.QUEUED.value
    )
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    max_attempts: Mapped[int] = mapped_column(server_default=text("4"))
    deferrals: Mapped[int] = mapped_column(server_default=text("0"))
    run_after: Mapped[Instant] = mapped_column(server_default=func.now())
    dispatched_at: Mapped[Instant | None]
    lease_owner: Mapped[str | None]
    lease_until: Mapped[Instant | None]
    fence: Mapped[int] = mapped_column(server_default=text("0"))
    deadline: Mapped[Instant | None]
    cancel_requested: Mapped[bool] = mapped_column(server_default=text("false"))
    nudged: Mapped[bool] = mapped_column(server_default=text("false"))
    lived: Mapped[bool] = mapped_column(server_default=text("false"))
    lost_with: Mapped[str | None]
    checkpoint: Mapped[Json | None]
    correlation_id: Mapped[UUID]
    error: Mapped[Json | None]
    result: Mapped[Json | None]
    version: Mapped[int] = mapped_column(server_default=text("1"))
    created_at: Mapped[Created]
    started_at: Mapped[Instant | None]
    finished_at: Mapped[Instant | None]


class Effect(Base):
    """One change asked of a plane, written before it is sent. ``key`` makes a repeat harmless.

    ``operation_id`` may outlive that operation's own row. ``absent_at``: asked after a lost answer, the plane
    did not show it. ``checkpoint`` is how far an upload has come, in the connector's own words.
    """

    __tablename__ = "effects"
    __table_args__ = (
        Index("ix_effects_deployment", "deployment_id", "id"),
        Index(
            "ix_effects_unsettled",
            "planned_at",
            postgresql_where=text("state IN ('PLANNED', 'SENT', 'UNKNOWN')"),
        ),
        WRITTEN_OFTEN,
    )

    id: Mapped[Id]
    key: Mapped[str] = mapped_column(unique=True)
    deployment_id: Mapped[UUID] = mapped_column(ForeignKey("deployments.id", ondelete="CASCADE"))
    lane_id: Mapped[UUID | None] = mapped_column(ForeignKey("ring_deployments.id", ondelete="CASCADE"))
    operation_id: Mapped[UUID]
    ring: Mapped[Ring | None] = mapped_column(enum_column(Ring, "ring"))
    plane: Mapped[str]
    action: Mapped[Action] = mapped_column(enum_column(Action, "effect_action"))
    state: Mapped[EffectState] = mapped_column(
        enum_column(EffectState, "effect_state"), server_default=EffectState.PLANNED.value
    )
    external_id: Mapped[str | None]
    checkpoint: Mapped[Json | None]
    error: Mapped[Json | None]
    planned_at: Mapped[Created]
    sent_at: Mapped[Instant | None]
    absent_at: Mapped[Instant | None]
    settled_at: Mapped[Instant | None]
