# SPDX-License-Identifier: Apache-2.0
"""The history: what changed, who did it, in which order; and where it stood at times.

Triggers refuse UPDATE, DELETE and TRUNCATE on all three tables.
"""

from uuid import UUID

from sqlalchemy import CheckConstraint, FetchedValue, ForeignKey, ForeignKeyConstraint, Index, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Created, Instant, Json


class Event(Base):
    """One change of a deployment; ``sequence`` counts from 1 without gaps within it.

    ``hash`` is written by a trigger: SHA-256 over the hash before it and this row; see ``app.domain.audit``.
    """

    __tablename__ = "events"
    __table_args__ = (
        CheckConstraint("sequence >= 1", name="sequence"),
        CheckConstraint("octet_length(hash) = 32", name="hash"),
    )

    __mapper_args__ = {"eager_defaults": False}  # noqa: RUF012 - nobody who records an event needs its hash

    deployment_id: Mapped[UUID] = mapped_column(ForeignKey("deployments.id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str]
    actor: Mapped[str]
    at: Mapped[Created]
    before: Mapped[Json | None]
    after: Mapped[Json | None]
    correlation_id: Mapped[UUID]
    hash: Mapped[bytes] = mapped_column(LargeBinary, FetchedValue(), deferred=True)


class EventCheckpoint(Base):
    """Where the histories stood; ``hash`` covers the checkpoint before it and the heads new in this one."""

    __tablename__ = "event_checkpoints"
    __table_args__ = (
        CheckConstraint("number >= 1", name="number"),
        CheckConstraint("octet_length(hash) = 32", name="hash"),
    )

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[Instant]
    hash: Mapped[bytes] = mapped_column(LargeBinary)


class EventHead(Base):
    """The newest event of one deployment at a checkpoint, with its hash."""

    __tablename__ = "event_heads"
    __table_args__ = (
        ForeignKeyConstraint(["deployment_id", "sequence"], ["events.deployment_id", "events.sequence"]),
        Index("ix_event_heads_checkpoint", "checkpoint", "deployment_id"),
    )

    deployment_id: Mapped[UUID] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    checkpoint: Mapped[int] = mapped_column(ForeignKey("event_checkpoints.number"))
    hash: Mapped[bytes] = mapped_column(LargeBinary)
