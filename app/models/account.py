# SPDX-License-Identifier: Apache-2.0
"""Who may call, and the answers kept so that a call may be repeated."""

from enum import StrEnum

from sqlalchemy import CheckConstraint, Index, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Created, Id, Instant, Json, enum_column


class Role(StrEnum):
    """What a token's bearer may do; the table of permissions is in ``app.security``."""

    VIEWER = "viewer"
    PACKAGER = "packager"
    PUBLISHER = "publisher"
    APPROVER = "approver"
    ADMIN = "admin"


class ApiToken(Base):
    """A bearer token, kept as the SHA-256 of its text only."""

    __tablename__ = "api_tokens"
    __table_args__ = (CheckConstraint("octet_length(token_hash) = 32", name="token_hash"),)

    id: Mapped[Id]
    name: Mapped[str]
    role: Mapped[Role] = mapped_column(enum_column(Role, "role"))
    token_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    created_at: Mapped[Created]
    expires_at: Mapped[Instant | None]
    revoked_at: Mapped[Instant | None]


class IdempotencyKey(Base):
    """The 2xx answer to a request that carried a key; ``digest`` is the SHA-256 of method, path and body."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        CheckConstraint("octet_length(digest) = 32", name="digest"),
        CheckConstraint("status BETWEEN 200 AND 299", name="status"),
        Index("ix_idempotency_keys_created", "created_at"),
    )

    caller: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    status: Mapped[int]
    headers: Mapped[Json]
    body: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[Created]
