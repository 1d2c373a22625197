# SPDX-License-Identifier: Apache-2.0
"""Everything a process is made of, built once and closed in reverse: engines, queue client, connectors, policy."""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType

from arq.connections import ArqRedis
from sqlalchemy import URL, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from app.connectors import catalogue
from app.connectors.contract import Connector, Plane
from app.domain.gates import GatePolicy, load_policy
from app.doorbell import Doorbell
from app.errors import Invalid
from app.redis import open_redis
from app.settings import DatabaseSettings, Settings

Clock = Callable[[], datetime]


def system_clock() -> datetime:
    """The present, aware UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a request or a job works with.

    ``accept_engine`` is in autocommit: each statement is its own transaction. ``unconfigured`` tells for each known
    plane without a connector what is missing.
    """

    settings: Settings
    clock: Clock
    engine: AsyncEngine
    accept_engine: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]
    redis: ArqRedis
    doorbell: Doorbell
    connectors: Mapping[Plane, Connector]
    unconfigured: Mapping[Plane, str]
    policy: GatePolicy

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """A session in a transaction that commits at the end; then wakes the relays if work was enqueued."""
        async with self.sessions() as session:
            async with session.begin():
                yield session
            if session.info.get("wake"):
                self.doorbell.ring()

    @asynccontextmanager
    async def autocommit(self) -> AsyncIterator[AsyncConnection]:
        """A connection on which each statement commits by itself."""
        async with self.accept_engine.connect() as connection:
            yield connection


def database_url(settings: Settings) -> URL:
    """The setting as SQLAlchemy wants it: any PostgreSQL scheme, spoken by asyncpg.

    Raises:
        Invalid: the setting is missing or no PostgreSQL URL.
    """
    if settings.database_url is None:
        raise Invalid("EUCORA_DATABASE_URL is not set")
    url = make_url(settings.database_url.get_secret_value())
    if url.get_backend_name() != "postgresql":
        raise Invalid("EUCORA_DATABASE_URL must be a postgresql:// URL")
    return url.set(drivername="postgresql+asyncpg")


def open_engine(url: URL, limits: DatabaseSettings, *, process: str) -> AsyncEngine:
    """A pool whose every connection carries the limits and the process's name (seen in ``pg_stat_activity``)."""
    engine = create_async_engine(
        url,
        pool_size=limits.pool_size,
        max_overflow=limits.max_overflow,
        pool_timeout=limits.pool_timeout,
        pool_recycle=1800,
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
    ping_when_idle(engine)
    return engine


def ping_when_idle(engine: AsyncEngine, *, idle: float = 10.0) -> None:
    """Ping a pooled connection at checkout, but not one that was used in the last ``idle`` seconds.

    SQLAlchemy's own pre-ping costs a round trip on every checkout, which is most of what a hot statement costs.
    """

    @event.listens_for(engine.sync_engine, "checkin")
    def used(_: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
        record.info["used"] = time.monotonic()

    @event.listens_for(engine.sync_engine, "checkout")
    def ping(connection: DBAPIConnection, record: ConnectionPoolEntry, _: PoolProxiedConnection) -> None:
        if time.monotonic() - record.info.get("used", time.monotonic()) < idle:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise DisconnectionError from error  # the pool drops this connection and takes another


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


@asynccontextmanager
async def open_runtime(settings: Settings, *, process: str, clock: Clock = system_clock) -> AsyncIterator[Runtime]:
    """Build the runtime of one process; nothing is connected until it is used.

    Raises:
        Invalid: a setting is missing or wrong; the message names it.
    """
    url = database_url(settings)
    if settings.redis_url is None:
        raise Invalid("EUCORA_REDIS_URL is not set")
    policy = load_policy(settings.gate_policy)
    async with AsyncExitStack() as stack:
        engine = open_engine(url, settings.database, process=process)
        stack.push_async_callback(engine.dispose)
        redis = open_redis(settings.redis_url.get_secret_value())
        stack.push_async_callback(redis.aclose)
        doorbell = await stack.enter_async_context(Doorbell(url))
        planes = await stack.enter_async_context(catalogue.open_planes(settings.planes, settings.sandbox_url))
        yield Runtime(
            settings=settings,
            clock=clock,
            engine=engine,
            accept_engine=engine.execution_options(isolation_level="AUTOCOMMIT"),
            sessions=async_sessionmaker(engine, expire_on_commit=False),
            redis=redis,
            doorbell=doorbell,
            connectors=MappingProxyType(planes.connectors),
            unconfigured=MappingProxyType(planes.unconfigured),
            policy=policy,
        )
