# SPDX-License-Identifier: Apache-2.0
"""The queues in Redis as arq keeps them: how work is rung for, and one arq worker per queue that hears it."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

from arq.connections import ArqRedis
from arq.constants import job_key_prefix
from arq.jobs import SerializationError, deserialize_job_raw, serialize_job
from arq.typing import WorkerCoroutine
from arq.worker import Worker, func
from redis.exceptions import RedisError

from app import telemetry
from app.domain.dispatch import Due
from app.domain.operations import OperationKind
from app.redis import deserialize, serialize
from workers.runner import Runner

MOST = 32
"""How many wake-ups are taken at once: their operations are claimed in one statement."""
EXPIRES = timedelta(hours=1)
SKEW = timedelta(days=1)
BACK_OFF = (0.1, 1.0)
SETTLED = 5.0

log = telemetry.logger(__name__)


def queue_key(queue: str) -> str:
    """The sorted set in Redis."""
    return f"eucora:queue:{queue}"


async def ring(redis: ArqRedis, due: Sequence[Due]) -> None:
    """Put the wake-ups into their queues in one pipeline: ids only, and harmless when repeated."""
    now = round(time.time() * 1000)
    # arq hides what lies in the future of its own clock, and clocks differ. Nothing here is early.
    score = now - round(SKEW.total_seconds() * 1000)
    queues: dict[str, dict[str, int]] = {}
    async with redis.pipeline(transaction=False) as pipe:
        for item in due:
            name = bell(item.id, item.fence)
            job = serialize_job(item.kind.value, (str(item.id),), {}, None, now, serializer=serialize)
            pipe.psetex(job_key_prefix + name, EXPIRES, job)
            queues.setdefault(queue_key(item.queue), {})[name] = score
        for key, names in queues.items():
            pipe.zadd(key, names, nx=True)
        await pipe.execute()


def bell(operation_id: UUID, fence: int) -> str:
    """The id of a wake-up in arq. The fence makes it new after each claim, so no old key can block it."""
    return f"{operation_id}:{fence}"


class Slots:
    """How many jobs the queues that share it may run at once in this process."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = asyncio.Semaphore(size)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def take(self, most: int) -> int:
        """Wait for a slot; how many were taken, all that are free up to ``most`` unless others wait too."""
        await self._free.acquire()
        taken = 1
        while taken < most and not self._free.locked():
            await self._free.acquire()
            taken += 1
        return taken

    def give(self, number: int) -> None:
        """Slots that were not used after all."""
        for _ in range(number):
            self._free.release()

    def hold(self, task: asyncio.Task[None]) -> None:
        """Keep a slot, and the task alive, until the task ends: it may outlive its arq worker."""
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def keep(self, taking: asyncio.Task[None]) -> None:
        """Keep alive what hands taken slots over to tasks."""
        self._tasks.add(taking)
        taking.add_done_callback(self._tasks.discard)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._free.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("run_failed", exc_info=error)


class QueueWorker(Worker):
    """One queue's arq worker, which takes as many wake-ups at a time as there are slots for them.

    arq itself asks Redis four times before each job and twice around it, so that nothing is lost with a
    worker. Here nothing can be: a wake-up that was taken and not answered by a claim is rung for again.
    """

    def __init__(
        self,
        queue: str,
        kinds: Iterable[OperationKind],
        runner: Runner,
        *,
        slots: Slots,
        redis: ArqRedis,
        poll: float,
    ) -> None:
        super().__init__(
            functions=[func(cast("WorkerCoroutine", runner.deliver), name=kind.value) for kind in kinds],
            queue_name=queue_key(queue),
            redis_pool=redis,
            handle_signals=False,
            poll_delay=poll,
            health_check_key=f"{queue_key(queue)}:health:{runner.owner}",
            job_serializer=serialize,
            job_deserializer=deserialize,
        )
        self._runner = runner
        self._slots = slots
        self._rung = asyncio.Event()

    def hear(self) -> None:
        """Look at once."""
        self._rung.set()

    async def main(self) -> None:
        """Until cancelled; looks when it is told to, and every ``poll`` seconds."""
        while True:
            self._rung.clear()
            while self.allow_pick_jobs and await self._take():
                pass
            await self.heart_beat()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.poll_delay_s):
                    await self._rung.wait()

    async def _take(self) -> bool:
        """As many as there are slots for; whether there may be more."""
        free = await self._slots.take(MOST)
        due: list[UUID] = []
        try:
            due, found = await self._pop(free)
        finally:
            self._slots.give(free - len(due))
        if due:
            self._slots.keep(asyncio.create_task(self._start(due)))
        return found == free

    async def _pop(self, number: int) -> tuple[list[UUID], int]:
        """The operations that the first wake-ups are for, and how many wake-ups there were."""
        bells = [name.decode() for name, _ in await self.pool.zpopmin(self.queue_name, number)]
        if not bells:
            return [], 0
        keys = [job_key_prefix + bell for bell in bells]
        async with self.pool.pipeline(transaction=False) as pipe:
            pipe.mget(keys)
            pipe.unlink(*keys)
            jobs, _ = await pipe.execute()
        return [due for bell, job in zip(bells, jobs, strict=True) if (due := self._due(bell, job))], len(
            bells
        )

    def _due(self, bell: str, job: bytes | None) -> UUID | None:
        """Whom it is for; None if it is none of ours, or its text has expired."""
        try:
            if job is None:
                raise ValueError("it has expired")  # noqa: TRY301
            kind, arguments, *_ = deserialize_job_raw(job, deserializer=deserialize)
            if kind not in self.functions:
                raise ValueError(f"no job is called {kind!r} here")  # noqa: TRY301
            return UUID(arguments[0])
        except (SerializationError, ValueError, TypeError, IndexError, AttributeError) as error:
            log.warning("wake_up_dropped", queue=self.queue_name, wake_up=bell, error=repr(error))
            return None

    async def _start(self, due: Sequence[UUID]) -> None:
        """Have them run; each run keeps a slot. The queue may be lost meanwhile."""
        runs: list[asyncio.Task[None]] = []
        try:
            runs = await self._runner.take(due)
        finally:
            for run in runs:
                self._slots.hold(run)
            self._slots.give(len(due) - len(runs))


class QueueLoop:
    """One queue, heard as long as the process lives: an arq worker ends with its Redis, this makes more."""

    def __init__(self, make: Callable[[], QueueWorker]) -> None:
        self._make = make
        self._worker: QueueWorker | None = None
        self._stopping = False

    def hear(self) -> None:
        """Look at once: there is something."""
        if self._worker is not None:
            self._worker.hear()

    def stop_taking(self) -> None:
        """Start nothing more; what runs goes on."""
        self._stopping = True
        if self._worker is not None:
            self._worker.allow_pick_jobs = False

    async def run(self) -> None:
        """Until cancelled."""
        wait = BACK_OFF[0]
        while True:
            began = time.monotonic()
            self._worker = self._make()
            self._worker.allow_pick_jobs = not self._stopping
            try:
                await self._worker.main()
            except (RedisError, OSError, TimeoutError) as error:
                log.warning("queue_lost", queue=self._worker.queue_name, error=repr(error))
            except Exception:
                log.exception("queue_failed", queue=self._worker.queue_name)
            wait = BACK_OFF[0] if time.monotonic() - began > SETTLED else min(wait * 2, BACK_OFF[1])
            await asyncio.sleep(wait)
