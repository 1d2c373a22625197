# SPDX-License-Identifier: Apache-2.0
"""Safe repeats: the answer to a request that carried a key is kept with the change it made."""

from dataclasses import dataclass

import asyncpg
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app.errors import IdempotencyKeyReused
from app.models import IdempotencyKey


@dataclass(frozen=True, slots=True)
class RequestKey:
    """Who asked for what: ``digest`` is the SHA-256 of method, path and body, 32 bytes."""

    caller: str
    key: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """A 2xx answer as it left: ``headers`` are those that belong to it (Location, ETag), ``body`` is JSON."""

    status: int
    headers: dict[str, str]
    body: bytes


async def find(connection: AsyncSession | AsyncConnection, request: RequestKey) -> StoredAnswer | None:
    """The answer kept under this key, or None.

    Raises:
        IdempotencyKeyReused: the key came with another body before.
    """
    query = select(IdempotencyKey.digest, IdempotencyKey.status, IdempotencyKey.headers, IdempotencyKey.body)
    rows = await connection.execute(query.filter_by(caller=request.caller, key=request.key))
    row = rows.one_or_none()
    return None if row is None else _answer(request, *row)


async def find_by_driver(connection: asyncpg.Connection, request: RequestKey) -> StoredAnswer | None:
    """``find`` on a connection of the driver's."""
    query = "SELECT digest, status, headers, body FROM idempotency_keys WHERE caller = $1 AND key = $2"
    row = await connection.fetchrow(query, request.caller, request.key)
    return None if row is None else _answer(request, *row)


def _answer(
    request: RequestKey, digest: bytes, status: int, headers: dict[str, str], body: bytes
) -> StoredAnswer:
    if digest != request.digest:
        raise IdempotencyKeyReused("this Idempotency-Key was used with another request", key=request.key)
    return StoredAnswer(status, headers, body)


async def keep(session: AsyncSession, request: RequestKey, answer: StoredAnswer) -> bool:
    """Store the answer in the caller's transaction; False if somebody stored one under this key meanwhile.

    Waits for a concurrent transaction that holds the same key.
    """
    statement = insert(IdempotencyKey).values(
        caller=request.caller,
        key=request.key,
        digest=request.digest,
        status=answer.status,
        headers=answer.headers,
        body=answer.body,
    )
    kept = await session.execute(statement.on_conflict_do_nothing().returning(IdempotencyKey.key))
    return kept.one_or_none() is not None


async def claim(session: AsyncSession, request: RequestKey) -> StoredAnswer | None:
    """Keep others with the same key waiting until this transaction ends; the answer kept so far, or None.

    Raises:
        IdempotencyKeyReused: as ``find``.
    """
    lock = func.pg_advisory_xact_lock(func.hashtextextended(f"{request.caller} {request.key}", 0))
    await session.execute(select(lock))
    return await find(session, request)
