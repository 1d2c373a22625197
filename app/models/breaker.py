# SPDX-License-Identifier: Apache-2.0
"""What operators ordered of the breakers: the history of each service."""

from uuid import UUID

from sqlalchemy import Index, text
from sqlalchemy.orm import Mapped

from app.models.base import Base, Created, Id, Json


class BreakerEvent(Base):
    """One order of an operator to the breaker of a service; ids rise with time."""

    __tablename__ = "breaker_events"
    __table_args__ = (Index("ix_breaker_events_service", "service", text("id DESC")),)

    id: Mapped[Id]
    service: Mapped[str]
    type: Mapped[str]
    actor: Mapped[str]
    at: Mapped[Created]
    before: Mapped[Json | None]
    after: Mapped[Json | None]
    correlation_id: Mapped[UUID]
