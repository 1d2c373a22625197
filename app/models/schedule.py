# SPDX-License-Identifier: Apache-2.0
"""What is done again and again, and the ticks at which it was."""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import CheckConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Created, Instant


class Schedule(Base):
    """One kind of repeated work; ``next_tick`` is the first tick that nobody has dealt with yet."""

    __tablename__ = "schedules"
    __table_args__ = (CheckConstraint("every > interval '0'", name="every"),)

    name: Mapped[str] = mapped_column(primary_key=True)
    every: Mapped[timedelta]
    catch_up: Mapped[str]
    next_tick: Mapped[Instant]


class ScheduleTick(Base):
    """One tick that was run, however many schedulers there are: ``operation_id`` is the work of it.

    Null where the work of an earlier tick had not ended. ``missed`` ticks before it were not run.
    """

    __tablename__ = "schedule_ticks"
    __table_args__ = (
        CheckConstraint("missed >= 0", name="missed"),
        Index("ix_schedule_ticks_created", "created_at"),
    )

    name: Mapped[str] = mapped_column(primary_key=True)
    tick: Mapped[Instant] = mapped_column(primary_key=True)
    operation_id: Mapped[UUID | None]
    missed: Mapped[int]
    created_at: Mapped[Created]
