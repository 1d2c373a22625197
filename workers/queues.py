# SPDX-License-Identifier: Apache-2.0
"""The queues in Redis as arq keeps them: how work is rung for, and one arq worker per queue that hears it."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

from arq.connections import ArqRedis
from arq.constants import job_key_prefix
from arq.jobs import serialize_job
from arq.typing import WorkerCoroutine
from arq.worker import Worker, func
from redis.exceptions import RedisError

from app import telemetry
from app.domain.dispatch import Due
from app.domain.operations import KINDS, OperationKind
from app.redis import deserialize, serialize

READ_LIMIT = 1000
MAX_TRIES = 10
MARGIN = timedelta(seconds=30)
"""How long after our own hard limit arq would cancel: never the first to do so."""
STARTING = 10.0
"""Seconds for which a wake-up that one worker took is hidden from the others. Claims keep them apart, so this
only has to outlast the moment between hearing and claiming; a worker killed in it mutes the bell so long."""
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
    async with redis.pipeline(transaction=False) as pipe:
        for item in due:
            name = bell(item.id, item.fence)
            job = serialize_job(item.kind.value, (str(item.id),), {}, None, now, serializer=serialize)
            pipe.psetex(job_key_prefix + name, EXPIRES, job)
            pipe.zadd(queue_key(item.queue), {name: score}, nx=True)
        await pipe.execute()


def bell(operation_id: UUID, fence: int) -> str:
    """The id of a wake-up in arq. The fence makes it new after each claim, so no old key can block it."""
    return f"{operation_id}:{fence}"


class Slots:
    """How many jobs the queues that share it may run at once in this process."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = asyncio.Semaphore(size)
        self._tasks: set[asyncio.Task[None]] = set()

    async def take(self) -> None:
        """Wait for a slot."""
        await self._free.acquire()

    def give(self) -> None:
        """A slot that was not used after all."""
        self._free.release()

    def hold(self, task: asyncio.Task[None]) -> None:
        """Keep the slot, and the task alive, until the task ends: it may outlive its arq worker."""
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._free.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning(
                "wake_up_not_removed", error=repr(error)
            )  # found again, the claim finds nothing to do


class QueueWorker(Worker):
    """One queue's arq worker, which takes its slots from a shared number and uses each as it becomes free."""

    def __init__(
        self,
        queue: str,
        kinds: Iterable[OperationKind],
        deliver: Callable[[dict[Any, Any], str], Coroutine[Any, Any, None]],
        *,
        slots: Slots,
        redis: ArqRedis,
        owner: str,
        poll: float,
    ) -> None:
        super().__init__(
            functions=[
                func(
                    cast("WorkerCoroutine", deliver),
                    name=kind.value,
                    timeout=KINDS[kind].hard_limit + MARGIN,
                    max_tries=MAX_TRIES,
                    keep_result=0,
                )
                for kind in kinds
            ],
            queue_name=queue_key(queue),
            redis_pool=redis,
            handle_signals=False,
            max_jobs=slots.size,
            keep_result=0,
            poll_delay=poll,
            queue_read_limit=READ_LIMIT,
            max_tries=MAX_TRIES,
            health_check_key=f"{queue_key(queue)}:health:{owner}",
            job_serializer=serialize,
            job_deserializer=deserialize,
            log_results=False,
        )
        self.in_progress_timeout_s = STARTING
        self._slots = slots

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Start what is due, in order, as slots become free; what runs here already is left out."""
        for job_id in job_ids:
            if job_id.decode() in self.tasks:
                continue
            await self._slots.take()
            try:
                if not self.allow_pick_jobs:
                    return
                await super().start_jobs([job_id])
            finally:
                self._settle(job_id.decode())

    def _settle(self, job_id: str) -> None:
        task = self.tasks.get(job_id)
        if task is None:
            self._slots.give()
        else:
            self._slots.hold(task)


class QueueLoop:
    """One queue, heard as long as the process lives: an arq worker ends with its Redis, this makes more."""

    def __init__(self, make: Callable[[], QueueWorker]) -> None:
        self._make = make
        self._worker: QueueWorker | None = None
        self._stopping = False

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
