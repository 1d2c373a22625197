# SPDX-License-Identifier: Apache-2.0
"""Where what a plane has is not what was decided."""

from enum import StrEnum
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Created, Id, Instant, Json, enum_column
from app.models.deployment import Ring


class DriftType(StrEnum):
    """In which way it differs."""

    MISSING_ASSIGNMENT = "missing_assignment"
    VERSION_MISMATCH = "version_mismatch"
    SCOPE_MISMATCH = "scope_mismatch"
    COMPLIANCE_DRIFT = "compliance_drift"


class Severity(StrEnum):
    """How soon somebody should look."""

    HIGH = "high"
    MEDIUM = "medium"


class DriftStatus(StrEnum):
    """SUSPECTED was seen once; OPEN is being repaired; ESCALATED waits for a person."""

    SUSPECTED = "SUSPECTED"
    OPEN = "OPEN"
    ESCALATED = "ESCALATED"
    RESOLVED = "RESOLVED"


class Drift(Base):
    """One difference of one lane, from when it was first seen until it was gone.

    ``expected`` and ``observed`` are in words of the type. ``repairs``: how often a repair was ordered, the
    last by ``operation_id``; before ``next_repair_at`` there is no other.
    """

    __tablename__ = "drifts"
    __table_args__ = (
        CheckConstraint("seen >= 1", name="seen"),
        CheckConstraint("repairs >= 0", name="repairs"),
        CheckConstraint("(status = 'RESOLVED') = (resolved_at IS NOT NULL)", name="resolved"),
        Index(
            "uq_drifts_one_at_a_time",
            "lane_id",
            "type",
            unique=True,
            postgresql_where=text("status <> 'RESOLVED'"),
        ),
        Index("ix_drifts_deployment", "deployment_id", text("id DESC")),
        Index(
            "ix_drifts_unresolved", "status", "status_since", postgresql_where=text("status <> 'RESOLVED'")
        ),
    )

    id: Mapped[Id]
    deployment_id: Mapped[UUID] = mapped_column(ForeignKey("deployments.id"))
    lane_id: Mapped[UUID] = mapped_column(ForeignKey("ring_deployments.id"))
    ring: Mapped[Ring] = mapped_column(enum_column(Ring, "ring"))
    plane: Mapped[str]
    type: Mapped[DriftType] = mapped_column(enum_column(DriftType, "drift_type"))
    severity: Mapped[Severity] = mapped_column(enum_column(Severity, "severity"))
    status: Mapped[DriftStatus] = mapped_column(
        enum_column(DriftStatus, "drift_status"), server_default=DriftStatus.SUSPECTED.value
    )
    status_since: Mapped[Instant]
    detail: Mapped[str]
    expected: Mapped[Json]
    observed: Mapped[Json]
    seen: Mapped[int] = mapped_column(server_default=text("1"))
    repairs: Mapped[int] = mapped_column(server_default=text("0"))
    next_repair_at: Mapped[Instant | None]
    operation_id: Mapped[UUID | None]
    first_seen_at: Mapped[Created]
    last_seen_at: Mapped[Created]
    resolved_at: Mapped[Instant | None]
    version: Mapped[int] = mapped_column(server_default=text("1"))
