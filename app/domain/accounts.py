# SPDX-License-Identifier: Apache-2.0
"""Who a token stands for."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app import security
from app.errors import Invalid
from app.models import ApiToken, Role


@dataclass(frozen=True, slots=True)
class Actor:
    """Whoever asks: ``name`` stands in the history, ``id`` tells two tokens of one name apart."""

    id: UUID
    name: str
    role: Role


BOOTSTRAP = Actor(UUID(int=0), "bootstrap", Role.ADMIN)
"""The bearer of the token in the settings: for first use, before any token is stored."""


async def authenticate(
    connection: AsyncSession | AsyncConnection, token_hash: bytes, now: datetime
) -> Actor | None:
    """The bearer of the token with this hash; None if it is unknown, expired or revoked."""
    return await _bearer(connection, ApiToken.token_hash == token_hash, now)


async def current(session: AsyncSession, actor_id: UUID, now: datetime) -> Actor | None:
    """The bearer of a token by its id, as of now; None if it expired or was revoked meanwhile."""
    if actor_id == BOOTSTRAP.id:
        return BOOTSTRAP
    return await _bearer(session, ApiToken.id == actor_id, now)


async def _bearer(
    connection: AsyncSession | AsyncConnection, which: ColumnElement[bool], now: datetime
) -> Actor | None:
    """The bearer of one token, while it is valid."""
    query = select(ApiToken.id, ApiToken.name, ApiToken.role).where(
        which,
        ApiToken.revoked_at.is_(None),
        or_(ApiToken.expires_at.is_(None), ApiToken.expires_at > now),
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else Actor(row.id, row.name, row.role)


async def create_token(
    session: AsyncSession, *, name: str, role: Role, expires_at: datetime | None = None
) -> tuple[ApiToken, str]:
    """Store a new token's hash; the stored row and the token's text, which cannot be read again.

    Raises:
        Invalid: the name is blank; it stands in the history.
    """
    if not name.strip():
        raise Invalid("a token needs a name: it stands in the history")
    text = security.new_token()
    token = ApiToken(name=name, role=role, token_hash=security.hash_token(text), expires_at=expires_at)
    session.add(token)
    await session.flush()
    return token, text
