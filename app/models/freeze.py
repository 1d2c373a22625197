# SPDX-License-Identifier: Apache-2.0
"""When nothing may begin: freezes, and outside of maintenance windows."""

from sqlalchemy import CheckConstraint, Index, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Created, Id, Instant, Json, enum_column
from app.models.deployment import Ring


class Freeze(Base):
    """From ``starts_at`` until ``ends_at`` no device is touched; empty ``rings`` or ``planes`` mean all."""

    __tablename__ = "freezes"
    __table_args__ = (
        CheckConstraint("ends_at > starts_at", name="order"),
        Index("ix_freezes_ends", "ends_at"),
    )

    id: Mapped[Id]
    starts_at: Mapped[Instant]
    ends_at: Mapped[Instant]
    rings: Mapped[list[Ring]] = mapped_column(ARRAY(enum_column(Ring, "ring")))
    planes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    reason: Mapped[str]
    created_by: Mapped[str]
    created_at: Mapped[Created]
    version: Mapped[int] = mapped_column(server_default=text("1"))


class MaintenanceWindow(Base):
    """When a ring's devices on a plane may be touched; ``spans`` are ``{days, start, end}`` in ``zone``."""

    __tablename__ = "maintenance_windows"

    plane: Mapped[str] = mapped_column(primary_key=True)
    ring: Mapped[Ring] = mapped_column(enum_column(Ring, "ring"), primary_key=True)
    zone: Mapped[str]
    spans: Mapped[list[Json]] = mapped_column(JSONB(none_as_null=True))
    updated_by: Mapped[str]
    updated_at: Mapped[Created]
    version: Mapped[int] = mapped_column(server_default=text("1"))
