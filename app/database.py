# SPDX-License-Identifier: Apache-2.0
"""Connections to PostgreSQL: their URL, their limits and when they are pinged."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
from sqlalchemy import URL, event, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from app.errors import Invalid
from app.resilience import deadline, metrics
from app.resilience.classify import DATABASE, recognise
from app.resilience.errors import (
    CallError,
    DatabaseConflict,
    DatabaseDown,
    DatabaseSlow,
    DeadlineExceeded,
    LocalSaturation,
)
from app.settings import DatabaseSettings, Settings
from app.storable import storable_json

DOWN = ("08", "53", "57P")
"""What these begin codes of: the connection, the server's resources, the server's end."""
SLOW = {"57014", "55P03"}
LOST_TO_ANOTHER = {"40001", "40P01"}


@recognise
def call_error(error: BaseException) -> CallError | None:
    """What SQLAlchemy and asyncpg raise, as a class of the calls out; None for what is not theirs."""
    if isinstance(error, PoolTimeout):
        return LocalSaturation(
            "all connections to the database are in use", service=DATABASE, retry_after=1.0
        )
    state = sqlstate(error)
    if state in SLOW:
        metrics.slow_statements.inc()
        return DatabaseSlow("the database took too long", service=DATABASE)
    if state in LOST_TO_ANOTHER:
        return DatabaseConflict("a concurrent change won", service=DATABASE)
    if _is_lost(error) or (state is not None and state.startswith(DOWN)):
        return DatabaseDown("the database cannot be reached", service=DATABASE)
    return None


def _is_lost(error: BaseException) -> bool:
    if isinstance(error, InterfaceError | asyncpg.InterfaceError):
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated


def sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's code, whether SQLAlchemy wrapped the error or (while connecting) did not."""
    source: Any = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(source, "sqlstate", None)
    return state if isinstance(state, str) else None


@contextmanager
def reaching() -> Iterator[None]:
    """What fails inside failed on the way to the server.

    Raises:
        DatabaseDown: there is no way; what the server itself says is raised as it is.
    """
    try:
        yield
    except OSError as error:
        detail = f"the database cannot be reached ({type(error).__name__})"
        raise DatabaseDown(detail, service=DATABASE) from error


async def hurry(session: AsyncSession, longest: float) -> None:
    """Let no statement of this transaction outlive the deadline of the work; ``longest`` is the usual limit.

    Raises:
        DeadlineExceeded: it has passed already.
    """
    left = deadline.remaining()
    if left is None or left >= longest:
        return
    if left <= 0:
        raise DeadlineExceeded("no time is left for the database", service=DATABASE)
    await session.execute(text(f"SET LOCAL statement_timeout = {max(1, round(left * 1000))}"))


def database_url(settings: Settings) -> URL:
    """The setting as SQLAlchemy wants it: any PostgreSQL scheme, spoken by asyncpg.

    Raises:
        Invalid: the setting is missing or no PostgreSQL URL.
    """
    if settings.database_url is None:
        raise Invalid("EUCORA_DATABASE_URL is not set")
    try:
        url = make_url(settings.database_url.get_secret_value())
    except (ArgumentError, ValueError):  # without the text: it may hold a password
        url = None
    if url is None or url.get_backend_name() != "postgresql":
        raise Invalid("EUCORA_DATABASE_URL must be a URL such as postgresql://user:password@host/database")
    return url.set(drivername="postgresql+asyncpg")


def open_engine(url: URL, limits: DatabaseSettings, *, process: str) -> AsyncEngine:
    """A pool for transactions: connections are pinged at checkout and carry limits and process name."""
    return create_async_engine(url, pool_pre_ping=True, **_pool(limits, process))


def open_accept_engine(url: URL, limits: DatabaseSettings, *, process: str) -> AsyncEngine:
    """A pool for single statements, each its own transaction; pinged only after it was idle for 10 s.

    Without overflow: connections that come and go under load cost more than the statements they are for.
    """
    pool = {**_pool(limits, process), "max_overflow": 0}
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT", **pool)
    ping_when_idle(engine)
    return engine


def _pool(limits: DatabaseSettings, process: str) -> dict[str, Any]:
    return dict(  # noqa: C408 - keyword arguments of create_async_engine
        pool_size=limits.pool_size,
        max_overflow=limits.max_overflow,
        pool_timeout=limits.pool_timeout,
        pool_recycle=1800,
        json_serializer=storable_json,
        connect_args={
            "timeout": limits.connect_timeout,
            "command_timeout": limits.command_timeout,
            "server_settings": {
                "application_name": f"eucora {process}",
                "statement_timeout": _milliseconds(limits.statement_timeout),
                "lock_timeout": _milliseconds(limits.lock_timeout),
                "idle_in_transaction_session_timeout": _milliseconds(limits.idle_in_transaction_timeout),
                "jit": "off",
            },
        },
    )


def ping_when_idle(engine: AsyncEngine, *, idle: float = 10.0) -> None:
    """Ping a pooled connection at checkout, but not one that was used in the last ``idle`` seconds.

    SQLAlchemy's own pre-ping costs a round trip on every checkout: most of what a hot statement costs. One
    that is closed already is replaced at once: who used the driver directly could not tell the pool.
    """

    @event.listens_for(engine.sync_engine, "checkin")
    def used(_: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
        record.info["used"] = time.monotonic()

    @event.listens_for(engine.sync_engine, "checkout")
    def ping(connection: Any, record: ConnectionPoolEntry, _: PoolProxiedConnection) -> None:
        if connection.driver_connection.is_closed():
            raise DisconnectionError("the connection was closed since it was used")
        if time.monotonic() - record.info.get("used", time.monotonic()) < idle:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise DisconnectionError from error  # the pool drops this connection and takes another


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
