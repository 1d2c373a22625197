# SPDX-License-Identifier: Apache-2.0
"""One worker process: a runner, a relay, and one arq worker per queue in one loop."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from types import MappingProxyType

import uvloop
from redis.exceptions import RedisError

from app import telemetry
from app.clock import Clock, SharedClock, begun, system_clock
from app.domain import outcomes
from app.domain.operations import KINDS, Kind, OperationKind, Queue
from app.runtime import collect_less, database_time, open_runtime, restore_orders
from app.settings import Settings, WorkerSettings
from workers import (
    ai_tasks,
    conversations,
    deployments,
    effects,
    housekeeping,
    planes,
    reconciliation,
    rollback,
    schedules,
    steering,
    sweeper,
)
from workers.context import JobFunction
from workers.exposition import exposition
from workers.queues import QueueLoop, QueueWorker, Slots
from workers.relay import Relay
from workers.runner import Runner
from workers.watchdog import Watchdog

PRESENCE_EVERY, PRESENCE_LASTS = 10.0, 30
CANCEL_AGAIN = 0.2

JOBS: Mapping[OperationKind, JobFunction] = MappingProxyType(
    {
        OperationKind.DEPLOY_TO_CONNECTOR: deployments.deploy_to_connector,
        OperationKind.EXECUTE_ROLLBACK: rollback.execute_rollback,
        OperationKind.MEASURE_RING: deployments.measure_ring,
        OperationKind.WITHDRAW_LANE: steering.withdraw_lane,
        OperationKind.RETRY_DEVICES: steering.retry_devices,
        OperationKind.CHECK_PLANE: planes.check_plane,
        OperationKind.COUNT_TARGET: planes.count_target,
        OperationKind.RECONCILE: reconciliation.reconcile,
        OperationKind.REPAIR_LANE: reconciliation.repair_lane,
        OperationKind.SETTLE_EFFECT: effects.settle_effect,
        OperationKind.CHECKPOINT_HISTORY: housekeeping.checkpoint_history,
        OperationKind.APPLY_RETENTION: housekeeping.apply_retention,
        OperationKind.PROCESS_AI_CONVERSATION: conversations.process_ai_conversation,
        OperationKind.EXECUTE_AI_TASK: ai_tasks.execute_ai_task,
    }
)

log = telemetry.logger(__name__)


def run_worker(
    settings: Settings,
    jobs: Mapping[OperationKind, JobFunction] = JOBS,
    kinds: Mapping[OperationKind, Kind] = KINDS,
    wall: Clock = system_clock,
) -> None:
    """Work until SIGTERM or SIGINT; returns when everything held is finished or given back.

    ``wall`` is the machine's clock, believed until the database has told the time.
    """
    telemetry.setup(process="worker", level=settings.log_level)
    # Around the loop, which waits at its end for work that is deaf to being cancelled.
    with Watchdog(overrun=settings.worker.overrun) as watchdog, exposition(settings.worker) as metrics:
        uvloop.run(main(settings, jobs, kinds, watchdog, metrics=metrics, wall=wall))


async def main(
    settings: Settings,
    jobs: Mapping[OperationKind, JobFunction],
    kinds: Mapping[OperationKind, Kind],
    watchdog: Watchdog,
    *,
    metrics: str,
    wall: Clock = system_clock,
) -> None:
    """One worker process from start to stop."""
    clock, known = SharedClock(wall), asyncio.Event()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_runtime(settings, process="worker", clock=clock) as runtime:
        runner = Runner(runtime, jobs, ended=outcomes.operation_ended, watchdog=watchdog, kinds=kinds)
        timing = asyncio.create_task(clock.keep(partial(database_time, runtime), known=known))
        await begun(known)
        collect_less()
        await work(runner, stop, metrics=metrics)
        await end(timing)


async def work(runner: Runner, stop: asyncio.Event, *, metrics: str) -> None:
    """Run operations until ``stop`` is set; then finish or give back what runs."""
    runtime, jobs, watchdog = runner.runtime, runner.jobs, runner.watchdog
    loops = queue_loops(runner)
    relay = Relay(
        runtime,
        list(jobs),
        ended=outcomes.operation_ended,
        rules=schedules.rules(runtime),
        heard_by=[loop.hear for loop in loops],
    )
    ringing = [asyncio.create_task(loop) for loop in relay.loops()]
    hearing = [asyncio.create_task(loop.run()) for loop in loops]
    others = [asyncio.create_task(show_presence(runner, metrics)), asyncio.create_task(watchdog.beat())]
    others.append(asyncio.create_task(restore_orders(runtime)))
    others.append(asyncio.create_task(sweeper.sweep_for_ever(runtime)))
    log.info("worker_started", owner=runner.owner, kinds=[kind.value for kind in jobs], metrics=metrics)
    await stop.wait()

    limits = runtime.settings.worker
    ends_at = time.monotonic() + limits.completion_wait + 3 * limits.grace
    watchdog.watch("shutdown", ends_at)  # deaf work must not keep the process alive
    log.info("worker_stopping", running=runner.running)
    await end(*ringing)
    for loop in loops:
        loop.stop_taking()
    await runner.stop(limits.completion_wait)
    await end(*others, *hearing)
    await hide_presence(runner)
    log.info("worker_stopped", running=runner.running)


async def end(*tasks: asyncio.Task[None]) -> None:
    """Cancel until it has happened: redis-py loses a cancellation that comes while it connects (seen)."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("loop_failed", exc_info=error)


def queue_loops(runner: Runner) -> list[QueueLoop]:
    """One per queue that has a job.

    Rollbacks have slots of their own, so that nothing can starve them; so has the assistant, so that a
    language model that hangs keeps no rollout waiting.
    """
    limits = runner.runtime.settings.worker
    shared = Slots(limits.max_jobs)
    own = {Queue.ROLLBACK: Slots(limits.rollback_jobs), Queue.AI: Slots(limits.ai_jobs)}
    queues: dict[Queue, list[OperationKind]] = {}
    for kind in runner.jobs:
        queues.setdefault(KINDS[kind].queue, []).append(kind)
    return [
        QueueLoop(partial(queue_worker, runner, limits, queue, kinds, own.get(queue, shared)))
        for queue, kinds in queues.items()
    ]


def queue_worker(
    runner: Runner, limits: WorkerSettings, queue: Queue, kinds: list[OperationKind], slots: Slots
) -> QueueWorker:
    """A new arq worker for one queue."""
    return QueueWorker(queue.value, kinds, runner, slots=slots, redis=runner.runtime.redis, poll=limits.poll)


async def show_presence(runner: Runner, metrics: str) -> None:
    """Keep a key of this process's own in Redis while it lives; arq's is shared by a queue's workers."""
    since = time.time()
    while True:
        state = {"pid": os.getpid(), "since": round(since), "running": runner.running, "metrics": metrics}
        with suppress(RedisError, OSError, TimeoutError):
            await runner.runtime.redis.set(presence_key(runner), json.dumps(state), ex=PRESENCE_LASTS)
        await asyncio.sleep(PRESENCE_EVERY)


async def hide_presence(runner: Runner) -> None:
    """Take the key away, once nothing that shares the connections is cancelled; at worst it expires."""
    with suppress(RedisError, OSError, TimeoutError):
        async with asyncio.timeout(1):
            await runner.runtime.redis.delete(presence_key(runner))


def presence_key(runner: Runner) -> str:
    """Where in Redis this process shows that it is there."""
    return f"eucora:worker:{runner.owner}"
