# SPDX-License-Identifier: Apache-2.0
"""How the processes of an installation share what they know of the services, through Redis.

No call waits for Redis, except the one that asks to be the fleet's probe. What is to be told is queued and
sent in the background; every change is published to everybody; every two seconds each process compares what
it knows with the record, which heals lost messages and refills an emptied Redis.
"""

import asyncio
import json
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis
from redis.exceptions import RedisError

from app import telemetry
from app.resilience import metrics
from app.resilience.circuit import Circuit
from app.resilience.errors import FleetUnreachable, Verdict
from app.resilience.shared import Shared
from app.resilience.status import BreakerState

log = telemetry.logger(__name__)

PATIENCE = 0.25
"""Seconds Redis has for an answer: the most a dead one can add to a probe."""
BACK_OFF = 1.0
"""Seconds in which a Redis that just failed is not asked again."""
INSISTENCE = 2.0
"""Seconds for which a person's question or order is asked again: longer than one ``BACK_OFF``."""
BEAT, JITTER = 2.0, 0.2
MOST_WAITING = 10_000
BATCH = 200
LISTEN_FOR = 1.0
CANCEL_AGAIN = 0.2
TROUBLES = (RedisError, OSError, TimeoutError)

Record = dict[str, Any]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Report:
    """One operation of the script on one service's record. ``epoch`` None: the one known when it is sent."""

    service: str
    operation: str
    given: Mapping[str, Any]
    epoch: int | None = None


class FleetHub:
    """The fleet as one process sees it: it hears and tells for all of this process's breakers."""

    def __init__(
        self,
        redis: Redis,
        circuits: Mapping[str, Circuit],
        *,
        process: str,
        patience: float = PATIENCE,
        clock: Clock = time.monotonic,
    ) -> None:
        self.process = process
        self._patience = patience
        self._redis = redis
        self._circuits = circuits
        self._clock = clock
        self._script = redis.register_script(files(__package__).joinpath("fleet.lua").read_text())
        database = redis.connection_pool.connection_kwargs.get("db") or 0
        self._channel = f"eucora:{database}:breakers"  # channels know nothing of databases
        self._reports: deque[Report] = deque()
        self._wake = asyncio.Event()
        self._heard = asyncio.Event()
        self._silent_until = 0.0
        self.questions: set[asyncio.Future[Any]] = set()
        """What waits for an answer of Redis."""

    # What breakers tell. None of these waits.

    def used(self, service: str) -> None:
        """See ``Fleet``."""
        self._tell(service, "beat", self._presence(self._circuits[service], used=True))

    def failed(self, service: str, number: int, *, tripped: bool) -> None:
        """See ``Fleet``."""
        circuit = self._circuits[service]
        self._tell(
            service,
            "fail",
            {
                "number": number,
                "tripped": tripped,
                "error": circuit.last_error or "",
                "fail_max": circuit.policy.fail_max,
                "quorum": circuit.policy.quorum,
                "cool": _ms(circuit.policy.reset_timeout),
            },
            epoch=circuit.shared.epoch,
        )

    def succeeded(self, service: str, *, seen: int, own: int) -> None:
        """See ``Fleet``."""
        given = {"seen": seen, "own": own}
        self._tell(service, "succeed", given, epoch=self._circuits[service].shared.epoch)

    def probed(self, service: str, token: str, outcome: Verdict, why: str | None) -> None:
        """See ``Fleet``."""
        task = asyncio.get_running_loop().create_task(self._settle(service, token, outcome, why))
        self.questions.add(task)
        task.add_done_callback(self.questions.discard)

    def throttled(self, service: str, seconds: float) -> None:
        """See ``Fleet``."""
        self._tell(service, "throttle", {"pause": _ms(seconds)})

    def _tell(
        self, service: str, operation: str, given: Mapping[str, Any], *, epoch: int | None = None
    ) -> None:
        if len(self._reports) >= MOST_WAITING:
            metrics.fleet_dropped.inc()
            return
        self._reports.append(Report(service, operation, given, epoch))
        self._wake.set()

    # What waits for an answer.

    async def ask(self, service: str, lease: float) -> str | None:
        """See ``Fleet``. Whoever is cancelled while asking gives back what it may have been granted."""
        token = uuid4().hex
        asked = asyncio.ensure_future(self._ask(service, token, lease))
        self.questions.add(asked)
        asked.add_done_callback(self.questions.discard)
        try:
            return token if await asyncio.shield(asked) else None
        except asyncio.CancelledError:
            asked.add_done_callback(lambda done: self._unasked(service, token, done))
            raise

    def _unasked(self, service: str, token: str, asked: "asyncio.Future[bool]") -> None:
        if not asked.cancelled() and asked.exception() is None and asked.result():
            self.probed(service, token, Verdict.NEUTRAL, None)

    async def _ask(self, service: str, token: str, lease: float) -> bool:
        given = {"token": token, "lease": _ms(lease)}
        return bool((await self.exchange(Report(service, "probe", given))).get("granted"))

    async def _settle(self, service: str, token: str, outcome: Verdict, why: str | None) -> None:
        circuit = self._circuits[service]
        given = {
            "token": token,
            "outcome": outcome.value,
            "error": why or "",
            "cool": _ms(circuit.policy.reset_timeout),
        }
        try:
            await self.exchange(Report(service, "verdict", given))
        except FleetUnreachable:
            if circuit.shared.state is BreakerState.HALF_OPEN:  # else somebody has decided meanwhile
                circuit.decide_alone(outcome)

    async def exchange(self, report: Report) -> Record:
        """Carry out one operation now, and take over the record.

        Raises:
            FleetUnreachable: Redis did not answer in time, or did not a moment ago.
        """
        return (await self.exchange_all([report]))[0]

    async def exchange_all(self, reports: Iterable[Report]) -> list[Record]:
        """As ``exchange``, in one round trip."""
        reports = list(reports)
        if self._clock() < self._silent_until:
            raise FleetUnreachable("Redis did not answer a moment ago", service=reports[0].service)
        try:
            async with asyncio.timeout(self._patience):
                answers = await self._run(reports)
        except TROUBLES as error:
            self._silent_until = self._clock() + BACK_OFF
            metrics.fleet_failures.inc()
            raise FleetUnreachable(f"Redis: {type(error).__name__}", service=reports[0].service) from error
        records: list[Record] = [json.loads(answer) for answer in answers]
        for record in records:
            self.hear(record)
        return records

    async def insist(self, reports: Iterable[Report]) -> list[Record]:
        """As ``exchange_all``, for whoever can wait a moment: a Redis that just failed is asked again."""
        reports, gives_up_at = list(reports), self._clock() + INSISTENCE
        while True:
            try:
                return await self.exchange_all(reports)
            except FleetUnreachable:
                if self._silent_until >= gives_up_at:
                    raise
                await asyncio.sleep(max(0.0, self._silent_until - self._clock()))

    async def _run(self, reports: list[Report]) -> list[bytes]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for report in reports:
                await self._script(_keys(report.service), self._arguments(report), client=pipe)
            answers: list[bytes] = await pipe.execute()
        return answers

    def _arguments(self, report: Report) -> list[str | int]:
        epoch = self._circuits[report.service].shared.epoch if report.epoch is None else report.epoch
        given = json.dumps(dict(report.given))
        return [report.operation, self.process, epoch, self._channel, report.service, given]

    def hear(self, record: Record) -> None:
        """Take over a record; one that knows less than this process is refilled."""
        circuit = self._circuits.get(record["service"])
        if circuit is None:
            return
        if gate := record["gate"]:
            circuit.gate.close_for(gate / 1000)
        if not circuit.adopt(self.shared(record)):
            known = self._known(circuit)
            self._tell(circuit.service, "refill", known, epoch=circuit.shared.epoch)

    def shared(self, record: Record) -> Shared:
        """A record with its remaining times as instants of this process's clock."""
        now = self._clock()
        opened = record["opened"]
        return Shared(
            state=BreakerState(record["state"]),
            epoch=record["epoch"],
            revision=record["revision"],
            sequence=record["sequence"],
            failures=record["failures"],
            reopens_at=_instant(now, record["reopens"]),
            lease_ends_at=_instant(now, record["lease"]),
            expires_at=_instant(now, record["expires"]),
            opened_at=datetime.fromtimestamp(opened / 1000, UTC) if opened else None,
            error=record["error"] or None,
            actor=record["actor"] or None,
            reason=record["reason"] or None,
        )

    def _known(self, circuit: Circuit) -> dict[str, Any]:
        shared, now = circuit.shared, self._clock()
        return {
            "state": shared.state.value,
            "revision": shared.revision,
            "sequence": shared.sequence,
            "reopens": _ms(max(0.0, shared.reopens_at - now)),
            "expires": _ms(max(0.0, shared.expires_at - now)),
            "gate": _ms(circuit.gate.remaining()),
            "opened": round(shared.opened_at.timestamp() * 1000) if shared.opened_at else 0,
            "error": shared.error or circuit.last_error or "",
            "actor": shared.actor or "",
            "reason": shared.reason or "",
        }

    def _presence(self, circuit: Circuit, *, used: bool) -> dict[str, Any]:
        return {"used": used, "away": _ms(circuit.own_time_left)}

    # The background.

    def loops(self) -> list[Awaitable[None]]:
        """To be run side by side until cancelled; they survive the loss of Redis."""
        return [self._for_ever(self._send), self._for_ever(self._listen), self._for_ever(self._beat)]

    async def _for_ever(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except FleetUnreachable:
                await asyncio.sleep(max(0.05, self._silent_until - self._clock()))
            except TROUBLES as error:
                log.warning("fleet_lost", step=step.__name__, error=repr(error))
                await asyncio.sleep(BACK_OFF)
            except Exception:
                log.exception("fleet_failed", step=step.__name__)
                await asyncio.sleep(BACK_OFF)

    async def _send(self) -> None:
        await self._wake.wait()
        batch = [self._reports.popleft() for _ in range(min(len(self._reports), BATCH))]
        if not self._reports:
            self._wake.clear()
        if not batch:
            return
        try:
            await self.exchange_all(batch)
        except FleetUnreachable:
            metrics.fleet_dropped.inc(len(batch))  # the next beat tells what still matters
            raise

    async def _listen(self) -> None:
        """Hear what is published until the connection is lost."""
        async with self._redis.pubsub() as channel:
            await channel.subscribe(self._channel)
            while True:
                message = await channel.get_message(ignore_subscribe_messages=True, timeout=LISTEN_FOR)
                self._heard.set()
                if message is not None:
                    self.hear(json.loads(message["data"]))

    async def _beat(self) -> None:
        await self.compare()
        await asyncio.sleep(BEAT * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311 - parts the processes

    async def compare(self) -> None:
        """Tell which services this process uses, and compare every record with what it knows.

        Raises:
            FleetUnreachable: Redis did not answer in time.
        """
        await self.exchange_all(
            Report(circuit.service, "beat", self._presence(circuit, used=circuit.in_use))
            for circuit in self._circuits.values()
        )

    async def ready(self) -> None:
        """Know what the others know, if Redis answers at once: a new process must not start from nothing."""
        with suppress(FleetUnreachable):
            await self.compare()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._heard.wait(), self._patience)


@asynccontextmanager
async def joined(hub: FleetHub, circuits: Iterable[Circuit]) -> AsyncIterator[FleetHub]:
    """Connect the breakers to the fleet while the block runs."""
    tasks = [asyncio.ensure_future(loop) for loop in hub.loops()]
    for circuit in circuits:
        circuit.connect(hub)
    try:
        await hub.ready()
        yield hub
    finally:
        await _end({*tasks, *hub.questions})


async def _end(tasks: set[asyncio.Future[Any]]) -> None:
    """Cancel until it has happened: redis-py loses a cancellation that comes while it connects (seen)."""
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=CANCEL_AGAIN)


def _keys(service: str) -> list[str]:
    record = f"eucora:breaker:{{{service}}}"
    return [record, f"{record}:failures", f"{record}:users", f"{record}:away"]


def _ms(seconds: float) -> int:
    return math.ceil(seconds * 1000)


def _instant(now: float, left: float) -> float:
    return now + left / 1000 if left else 0.0
