# SPDX-License-Identifier: Apache-2.0
"""What a process is made of, built once, closed in reverse: engines, queue client, connectors, policy."""

import asyncio
import gc
import os
import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType

import asyncpg
from arq.connections import ArqRedis
from sqlalchemy import URL, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.util import greenlet_spawn

from app import telemetry
from app.ai import settings as ai_settings
from app.ai.catalogue import open_provider
from app.ai.contract import Provider
from app.ai.guardrails import Redactor
from app.ai.settings import WHAT_TO_SET, AiSettings, BadAiSettings
from app.clock import Clock, system_clock
from app.connectors import catalogue
from app.connectors.contract import Connector, Manifest, Plane
from app.connectors.services import Services
from app.connectors.sources import FileRules
from app.database import database_url, hurry, open_accept_engine, open_engine, reaching
from app.domain import breakers, policies
from app.domain.ai_calls import Allowance
from app.domain.budgets import Limits
from app.domain.policies import GatePolicy, load_policy
from app.doorbell import Doorbell
from app.errors import AiNotConfigured, Invalid
from app.models import BreakerEvent
from app.redis import open_hasty_redis, open_redis
from app.resilience import SERVICES, BreakerPolicy, Breakers, BreakerState
from app.resilience.classify import DATABASE
from app.resilience.errors import CallError
from app.resilience.registry import in_use
from app.resilience.status import DEFAULT_POLICY, DEFAULTS, StandingOrder
from app.settings import Settings, secrets_of

RESTORE_AGAIN = 5.0
YOUNG = 20_000, 20, 20
"""New objects before the collector looks at them: with the default, 700, it takes a twentieth of the time."""
log = telemetry.logger(__name__)


@dataclass(frozen=True, slots=True)
class Assistant:
    """The language model of this installation; what goes to it passes ``redactor``."""

    provider: Provider
    settings: AiSettings
    redactor: Redactor

    @property
    def allowance(self) -> Allowance:
        """What each caller may have of it in a day."""
        return Allowance(self.settings.requests_per_day, self.settings.tokens_per_day)


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a request or a job works with.

    ``accept_engine`` is in autocommit: each statement is its own transaction. ``unconfigured`` tells for each
    known plane without a connector what is missing. ``model`` None: no language model is configured.
    """

    settings: Settings
    clock: Clock
    engine: AsyncEngine
    accept_engine: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]
    redis: ArqRedis
    breakers: Breakers
    doorbell: Doorbell
    connectors: Mapping[Plane, Connector]
    unconfigured: Mapping[Plane, str]
    policy: GatePolicy
    limits: Limits
    model: Assistant | None = None

    @property
    def manifests(self) -> Mapping[Plane, Manifest]:
        """What each configured plane can do."""
        return {plane: connector.manifest for plane, connector in self.connectors.items()}

    def cleaned(self, text: str) -> str:
        """What somebody typed, without secrets."""
        redactor = self.model.redactor if self.model else Redactor(secrets_of(self.settings))
        return redactor.text(text)

    @property
    def assistant(self) -> Assistant:
        """The language model.

        Raises:
            AiNotConfigured: there is none; says what to set.
        """
        if self.model is None:
            raise AiNotConfigured(f"no language model is configured: {WHAT_TO_SET}")
        return self.model

    @asynccontextmanager
    async def transaction(self, *, guarded: bool = True) -> AsyncIterator[AsyncSession]:
        """A session in a transaction that commits at the end; then wakes the relays if work was enqueued.

        Its statements end with the deadline of the work. ``guarded`` False: for what must be written whatever
        the breaker says, because a lease runs out.

        Raises:
            BreakerOpen, DatabaseDown, DeadlineExceeded: before anything was done.
        """
        async with self._permit(guarded=guarded), self.sessions() as session:
            async with session.begin():
                with reaching():
                    await session.connection()
                await hurry(session, self.settings.database.statement_timeout)
                yield session
            if session.info.get("wake"):
                self.doorbell.ring()

    @asynccontextmanager
    async def autocommit(self, *, guarded: bool = True) -> AsyncIterator[AsyncConnection]:
        """A connection on which each statement commits by itself; ``guarded`` and errors as above."""
        async with self._permit(guarded=guarded), AsyncExitStack() as stack:
            with reaching():
                connection = await stack.enter_async_context(self.accept_engine.connect())
            yield connection

    @asynccontextmanager
    async def statements(self) -> AsyncIterator[AsyncSession]:
        """A session on which each statement commits by itself; errors as above."""
        async with (
            self.autocommit() as connection,
            AsyncSession(connection, expire_on_commit=False) as session,
        ):
            yield session

    @asynccontextmanager
    async def driver(self, *, guarded: bool = True) -> AsyncIterator[asyncpg.Connection]:
        """A connection of the same pool as the driver knows it: for what runs with each request or operation.

        SQLAlchemy's layers around one statement cost more than half of what the statement itself does.
        """
        async with self._permit(guarded=guarded):
            with reaching():
                pooled = await self.accept_engine.raw_connection()
            try:
                yield pooled.driver_connection
            finally:
                await greenlet_spawn(pooled.close)

    def _permit(self, *, guarded: bool = True) -> AbstractAsyncContextManager[object]:
        return self.breakers.get(DATABASE).permit() if guarded else nullcontext()


def connector_services(settings: Settings, breakers: Breakers) -> Services:
    """What every connector is handed; any local file may be sent only while every plane is a sandbox."""
    return Services(
        spool=settings.data_dir / "spool",
        files=FileRules(settings.package_roots, allow_any_file=catalogue.is_all_sandbox(settings.planes)),
        breakers=breakers,
    )


def breaker_policies(settings: Settings) -> dict[str, BreakerPolicy]:
    """The policies that the settings change.

    Raises:
        Invalid: a service is not one that has a breaker.
    """
    if unknown := set(settings.breakers) - set(SERVICES):
        raise Invalid(f"EUCORA_BREAKERS: no service {min(unknown)!r}; known are {', '.join(SERVICES)}")
    return {
        service: replace(DEFAULTS.get(service, DEFAULT_POLICY), **policy.model_dump(exclude_none=True))
        for service, policy in settings.breakers.items()
    }


async def restore_orders(runtime: Runtime) -> None:
    """Give operators' orders again that Redis lost while no process was there to remember them.

    Tries until database and Redis have answered once; what Redis knows stays as it is.
    """
    while True:
        try:
            async with runtime.transaction() as session:
                standing = await breakers.standing(session, runtime.clock())
            for event in standing:
                await runtime.breakers.give(order_of(event), only_if_new=True)
        except (CallError, SQLAlchemyError) as error:
            log.warning("orders_not_restored", error=repr(error))
            await asyncio.sleep(RESTORE_AGAIN)
        else:
            return


async def database_time(runtime: Runtime) -> datetime:
    """The present by the database."""
    async with runtime.autocommit() as connection:
        told: datetime = (await connection.execute(text("SELECT clock_timestamp()"))).scalar_one()
    return told


async def keep_policy(runtime: Runtime) -> None:
    """Store the gate policy in force, so that what is decided under it can be explained later.

    Tries until the database has answered once.

    Raises:
        Invalid: another policy is stored under its name and version.
    """
    while True:
        try:
            async with runtime.transaction() as session:
                await policies.store(session, runtime.policy)
        except (CallError, SQLAlchemyError) as error:
            log.warning("policy_not_stored", error=repr(error))
            await asyncio.sleep(RESTORE_AGAIN)
        else:
            return


def order_of(event: BreakerEvent) -> StandingOrder:
    """An order as it was written down."""
    order = event.after or {}
    ends = datetime.fromisoformat(order["expires_at"]) if order["expires_at"] else None
    return StandingOrder(event.service, BreakerState(order["state"]), event.actor, order["reason"], ends)


def collect_less() -> None:
    """What is there now lives as long as the process: it is no garbage, and need not be looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*YOUNG)


def process_name(process: str) -> str:
    """How the other processes call this one: kind, host, pid, and a part nobody else will have."""
    return f"{process}:{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def check_settings(settings: Settings) -> tuple[URL, str, GatePolicy]:
    """The databases' addresses and the gate policy.

    Raises:
        Invalid: a setting is missing or wrong; the message names it.
    """
    url = database_url(settings)
    if settings.redis_url is None:
        raise Invalid("EUCORA_REDIS_URL is not set")
    breaker_policies(settings)
    ai_settings_of(settings)
    return url, settings.redis_url.get_secret_value(), load_policy(settings.gate_policy)


def ai_settings_of(settings: Settings) -> AiSettings | None:
    """How the language model is reached: the sandbox's scripted one where there is a sandbox and no other.

    Raises:
        Invalid: a setting is missing or wrong; the message names it.
    """
    try:
        given = ai_settings.parse(settings.ai)
    except BadAiSettings as error:
        raise Invalid(str(error)) from error
    if given is None and settings.sandbox_url is not None:
        return ai_settings.sandbox_settings(settings.sandbox_url)
    return given


async def open_assistant(stack: AsyncExitStack, settings: Settings, breakers: Breakers) -> Assistant | None:
    """The language model, if one is configured."""
    found = ai_settings_of(settings)
    if found is None:
        return None
    provider = await stack.enter_async_context(open_provider(found, breakers))
    return Assistant(provider, found, Redactor(secrets_of(settings)))


@asynccontextmanager
async def open_runtime(
    settings: Settings, *, process: str, clock: Clock = system_clock
) -> AsyncIterator[Runtime]:
    """Build the runtime of one process; nothing is connected until it is used.

    Raises:
        Invalid: a setting is missing or wrong; the message names it.
    """
    url, redis_url, policy = check_settings(settings)
    async with AsyncExitStack() as stack:
        engine = open_engine(url, settings.database, process=process)
        stack.push_async_callback(engine.dispose)
        accept_engine = open_accept_engine(url, settings.database, process=process)
        stack.push_async_callback(accept_engine.dispose)
        redis = open_redis(redis_url)
        stack.push_async_callback(redis.aclose)
        doorbell = await stack.enter_async_context(Doorbell(url))
        known = Breakers(policies=breaker_policies(settings))
        signals = open_hasty_redis(redis_url)
        stack.push_async_callback(signals.aclose)
        await stack.enter_async_context(known.shared(signals, process=process_name(process)))
        stack.enter_context(in_use(known))
        planes = await stack.enter_async_context(
            catalogue.open_planes(settings.planes, settings.sandbox_url, connector_services(settings, known))
        )
        model = await open_assistant(stack, settings, known)
        yield Runtime(
            settings=settings,
            clock=clock,
            engine=engine,
            accept_engine=accept_engine,
            sessions=async_sessionmaker(engine, expire_on_commit=False),
            redis=redis,
            breakers=known,
            doorbell=doorbell,
            connectors=MappingProxyType(planes.connectors),
            unconfigured=MappingProxyType(planes.unconfigured),
            policy=policy,
            limits=Limits(**settings.limits.model_dump()),
            model=model,
        )
