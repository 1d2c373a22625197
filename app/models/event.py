# SPDX-License-Identifier: Apache-2.0
"""The history: what changed, who did it, in which order."""

from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Created, Json


class Event(Base):
    """One change of a deployment; ``sequence`` counts from 1 without gaps within it."""

    __tablename__ = "events"
    __table_args__ = (CheckConstraint("sequence >= 1", name="sequence"),)

    deployment_id: Mapped[UUID] = mapped_column(
        ForeignKey("deployments.id", ondelete="CASCADE"), primary_key=True
    )
    sequence: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str]
    actor: Mapped[str]
    at: Mapped[Created]
    before: Mapped[Json | None]
    after: Mapped[Json | None]
    correlation_id: Mapped[UUID]
