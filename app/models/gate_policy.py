# SPDX-License-Identifier: Apache-2.0
"""Gate policies that were ever in force."""

from sqlalchemy import CheckConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Created, Json


class StoredPolicy(Base):
    """One version of one policy, as it was when it first came into force; it never changes."""

    __tablename__ = "gate_policies"
    __table_args__ = (CheckConstraint("version >= 1", name="version"),)

    name: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    document: Mapped[Json]
    created_at: Mapped[Created]
