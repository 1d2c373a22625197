# SPDX-License-Identifier: Apache-2.0
"""What the change advisory board is asked, and what it decided."""

from enum import StrEnum
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, Text, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.models.base import Base, Created, Id, Instant, enum_column
from app.models.deployment import Deployment


class ApprovalStatus(StrEnum):
    """Where a request stands. Only PENDING may be decided; WITHDRAWN: its deployment needs none any more."""

    PENDING = "PENDING"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"
    WITHDRAWN = "WITHDRAWN"


class Approval(Base):
    """One request to the board about one deployment; several may follow each other, one is open at a time.

    ``digest`` is that of what is to be approved, 64 hexadecimal digits. ``irreversible``: the planes known
    not to be able to take it back when it was decided. That nobody decides on what they submitted is a
    constraint here; that ``submitted_by`` is the deployment's own is a trigger.
    """

    __tablename__ = "approvals"
    __table_args__ = (
        CheckConstraint("lower(decided_by) <> lower(submitted_by)", name="decided_by_another"),
        CheckConstraint(
            "(status IN ('APPROVED', 'REJECTED')) = (decided_by IS NOT NULL AND reason IS NOT NULL)",
            name="decision",
        ),
        CheckConstraint("(status = 'PENDING') = (settled_at IS NULL)", name="settled"),
        CheckConstraint("(exception_expires_at IS NULL) = (compensating_controls IS NULL)", name="exception"),
        CheckConstraint("version >= 1", name="version"),
        Index(
            "uq_approvals_one_pending",
            "deployment_id",
            unique=True,
            postgresql_where=text("status = 'PENDING'"),
        ),
        Index("ix_approvals_deployment", "deployment_id", text("id DESC")),
        Index("ix_approvals_created", text("created_at DESC"), text("id DESC")),
        Index("ix_approvals_expiring", "expires_at", postgresql_where=text("status = 'PENDING'")),
    )

    id: Mapped[Id]
    deployment_id: Mapped[UUID] = mapped_column(ForeignKey("deployments.id", ondelete="CASCADE"))
    status: Mapped[ApprovalStatus] = mapped_column(
        enum_column(ApprovalStatus, "approval_status"), server_default=ApprovalStatus.PENDING.value
    )
    digest: Mapped[str]
    submitted_by: Mapped[str]
    expires_at: Mapped[Instant]
    irreversible: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    decided_by: Mapped[str | None]
    reason: Mapped[str | None]
    conditions: Mapped[str | None]
    exception_expires_at: Mapped[Instant | None]
    compensating_controls: Mapped[str | None]
    created_at: Mapped[Created]
    settled_at: Mapped[Instant | None]
    version: Mapped[int] = mapped_column(server_default=text("1"))

    deployment: Mapped[Deployment] = relationship(lazy="raise")
