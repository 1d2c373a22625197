# SPDX-License-Identifier: Apache-2.0
"""The loop in every worker that rings for due operations, and takes back what silent workers held.

Rows are stamped in one short statement and rung for after it, never with a transaction open while Redis is
asked. A crash in between costs a wake-up, which is repeated; it never costs an operation.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextlib import suppress
from datetime import timedelta
from typing import Any

import asyncpg
from redis.exceptions import RedisError

from app import telemetry
from app.domain import board, dispatch, schedules
from app.domain.dispatch import Due
from app.domain.operations import Ended, OperationKind
from app.domain.schedules import Rule
from app.doorbell import CHANNEL, connect
from app.resilience import BreakerOpen
from app.runtime import Runtime
from workers import queues

BATCH = 500
PUSH_LIMIT = 1.0
SWEEP_EVERY = 1.0
LISTEN_CHECK = 15.0
BACK_OFF = (0.1, 1.0)
KEPT_AWAY = 1.0
"""Seconds after which it is looked whether the database's breaker lets somebody through."""
FILLED = "eucora:queue:filled"
"""A key that only an emptied Redis lacks."""

log = telemetry.logger(__name__)


class Relay:
    """Due operations to Redis, expired leases to due again. Any number may run; locked rows are skipped."""

    def __init__(
        self,
        runtime: Runtime,
        kinds: Collection[OperationKind],
        *,
        ended: Ended,
        rules: Collection[Rule] = (),
        heard_by: Collection[Callable[[], None]] = (),
    ) -> None:
        """``heard_by``: whom to tell in this process that it has rung; the others look by themselves."""
        self._runtime = runtime
        self._rules = rules
        self._heard_by = heard_by
        self._declared = False
        self._kinds = kinds
        self._ended = ended
        self._limits = runtime.settings.worker
        self._rung = asyncio.Event()

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """To be run side by side until cancelled; they survive the loss of PostgreSQL and of Redis."""
        return [self._for_ever(step) for step in (self._listen, self._ring, self._sweep)]

    async def _for_ever(self, step: Callable[[], Awaitable[None]]) -> None:
        wait = BACK_OFF[0]
        while True:
            try:
                await step()
                wait = BACK_OFF[0]
            except BreakerOpen as error:
                await asyncio.sleep(min(error.retry_after or wait, KEPT_AWAY))
            except Exception as error:  # noqa: BLE001 - servers come and go, the relay stays
                telemetry.relay_failures.labels(step.__name__.strip("_")).inc()
                log.warning("relay_failed", step=step.__name__, error=repr(error), again_in=wait)
                await asyncio.sleep(wait)
                wait = min(wait * 2, BACK_OFF[1])

    async def _listen(self) -> None:
        """Hear the doorbell until the connection is lost."""
        url = self._runtime.engine.url
        connection = await connect(url, application_name="eucora relay")
        try:
            await connection.add_listener(CHANNEL, self._hear)
            self._rung.set()  # whatever rang while nobody listened
            while True:
                await asyncio.sleep(LISTEN_CHECK)
                await connection.execute("SELECT 1")
        finally:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection.terminate()

    def _hear(self, *_: Any) -> None:
        self._rung.set()

    async def _ring(self) -> None:
        """Ring for one batch, then wait for the doorbell or the interval, unless there is more."""
        self._rung.clear()
        await self._refill_if_emptied()
        again = timedelta(seconds=self._limits.ring_again)
        async with self._runtime.statements() as session:
            due = await dispatch.dispatch(session, self._kinds, ring_again=again, limit=BATCH)
        if due:
            await self._push(due)
        if len(due) < BATCH:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.relay_interval):
                    await self._rung.wait()

    async def _refill_if_emptied(self) -> None:
        """Asked before rows are stamped, so a Redis that is away costs PostgreSQL nothing."""
        async with asyncio.timeout(PUSH_LIMIT):
            emptied = await self._runtime.redis.set(FILLED, "1", nx=True)
        if emptied:
            async with self._runtime.statements() as session:
                await dispatch.undispatch(session)

    async def _push(self, due: list[Due]) -> None:
        try:
            async with asyncio.timeout(PUSH_LIMIT):
                await queues.ring(self._runtime.redis, due)
        except (RedisError, OSError, TimeoutError):
            async with self._runtime.statements() as session:
                await dispatch.undispatch(session, [item.id for item in due])
            raise
        telemetry.wake_ups.inc(len(due))
        for hear in self._heard_by:
            hear()

    async def _sweep(self) -> None:
        async with self._runtime.transaction() as session:
            queued = await dispatch.reclaim(session)
        if queued:
            log.warning("leases_expired", queued=queued)
        async with self._runtime.statements() as session:
            hopeless = await dispatch.hopeless(session)
        for operation_id in hopeless:
            await self._give_up(operation_id)
        await self._expire_requests()
        await self._tick()
        await asyncio.sleep(SWEEP_EVERY)

    async def _tick(self) -> None:
        """Begin the repeated work whose time has come."""
        async with self._runtime.transaction() as session:
            if not self._declared:
                await schedules.declare(session, self._rules)
            await schedules.tick(session, self._rules)
        self._declared = True

    async def _expire_requests(self) -> None:
        """Close requests to the board that nobody decided in time."""
        now = self._runtime.clock()
        async with self._runtime.statements() as session:
            overdue = await board.overdue(session, now=now)
        for deployment_id in overdue:
            async with self._runtime.transaction() as session:
                await board.expire(session, deployment_id, now=now)

    async def _give_up(self, operation_id: Any) -> None:
        try:
            async with self._runtime.transaction() as session:
                operation = await dispatch.give_up(session, operation_id, ended=self._ended)
        except Exception:  # the others must not wait for this one
            log.exception("not_given_up", operation_id=str(operation_id))
            return
        if operation is not None:
            log.warning("operation_given_up", operation_id=str(operation_id), status=operation.status.value)
