# SPDX-License-Identifier: Apache-2.0
"""Real worker processes, broken in every way that costs an operation elsewhere."""

import asyncio
import json
import signal
from functools import partial
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import operations
from app.domain.dispatch import Due
from app.domain.operations import OperationKind, Subject
from app.models import Operation, OperationStatus
from tests.waiting import eventually, quickest
from tests.workers.conftest import Bench, Workers
from workers import queues

DEPLOY, ROLLBACK = OperationKind.DEPLOY_TO_CONNECTOR, OperationKind.EXECUTE_ROLLBACK


async def test_an_operation_is_done_within_a_moment(bench: Bench, workers: Workers) -> None:
    worker = await workers.start()

    done = await bench.ended(await bench.enqueue())

    assert (done.status, done.result) == (OperationStatus.SUCCEEDED, {"pid": worker.pid})
    assert (done.attempt, done.fence) == (1, 1)


async def test_the_log_tells_every_run_under_its_correlation_id(bench: Bench, workers: Workers) -> None:
    worker = await workers.start()
    done = await bench.ended(await bench.enqueue())

    lines = await eventually(
        lambda: [json.loads(line) for line in worker.said().splitlines() if str(done.id) in line],
        until=lambda found: any(line["event"] == "operation_left" for line in found),
        within=5,
    )

    assert {line["correlation_id"] for line in lines} == {str(done.correlation_id)}
    assert {line["process"] for line in lines} == {"worker"}


async def test_a_killed_worker_costs_an_attempt_and_nothing_else(bench: Bench, workers: Workers) -> None:
    gate = bench.gate()
    first = await workers.start()
    operation_id = await bench.enqueue("gated", gate=str(gate))
    await eventually(lambda: bench.pids(operation_id), within=5)
    second = await workers.start()

    first.send(signal.SIGKILL)
    gate.touch()
    done = await bench.ended(operation_id, within=20)

    assert (done.status, done.attempt, done.result) == (OperationStatus.SUCCEEDED, 2, {"pid": second.pid})
    assert await bench.pids(operation_id) == [first.pid, second.pid]
    assert await bench.count("effects_of_jobs", operation_id) == 1


async def test_a_stopped_worker_gives_back_what_it_cannot_finish(bench: Bench, workers: Workers) -> None:
    gate = bench.gate()
    first = await workers.start(completion_wait=0.2)
    operation_id = await bench.enqueue("gated", gate=str(gate))
    await eventually(lambda: bench.pids(operation_id), within=5)

    first.send(signal.SIGTERM)
    assert await first.exited(within=10) == 0

    given_back = await bench.row(operation_id)
    assert (given_back.status, given_back.attempt) == (OperationStatus.QUEUED, 0)
    gate.touch()
    await workers.start()
    done = await bench.ended(operation_id)
    assert (done.status, done.attempt, done.fence) == (OperationStatus.SUCCEEDED, 1, 2)
    assert await bench.count("effects_of_jobs", operation_id) == 1


async def test_a_stopped_worker_finishes_what_it_can_and_takes_nothing_new(
    bench: Bench, workers: Workers
) -> None:
    gate = bench.gate()
    worker = await workers.start(completion_wait=10)
    running = await bench.enqueue("gated", gate=str(gate))
    await eventually(lambda: bench.pids(running), within=5)

    worker.send(signal.SIGTERM)
    await eventually(lambda: "worker_stopping" in worker.said(), within=5)
    late = await bench.enqueue()
    gate.touch()

    assert await worker.exited(within=10) == 0
    assert (await bench.row(running)).status is OperationStatus.SUCCEEDED
    assert (await bench.row(late)).status is OperationStatus.QUEUED
    assert await bench.pids(late) == []


async def test_a_frozen_worker_writes_nothing_when_it_wakes_up(bench: Bench, workers: Workers) -> None:
    gate = bench.gate()
    first = await workers.start(lease=2, heartbeat=0.5)
    operation_id = await bench.enqueue("deaf", gate=str(gate))
    await eventually(lambda: bench.pids(operation_id), within=5)
    first.send(signal.SIGSTOP)
    second = await workers.start(lease=2, heartbeat=0.5)
    await eventually(lambda: bench.pids(operation_id), until=lambda pids: second.pid in pids, within=10)

    gate.touch()
    done = await bench.ended(operation_id)
    first.send(signal.SIGCONT)
    await eventually(first.has_lost, within=10)

    assert done.result == {"pid": second.pid}
    assert await bench.count("effects_of_jobs", operation_id) == 1
    assert (await bench.row(operation_id)).version == done.version


async def test_the_same_wake_up_delivered_ten_times_is_one_run(bench: Bench, workers: Workers) -> None:
    for _ in range(3):
        await workers.start()
    gate = bench.gate()
    operation_id = await bench.enqueue("gated", gate=str(gate))
    await eventually(lambda: bench.pids(operation_id), within=5)

    redis = bench.runtime.redis
    for fence in range(1, 11):  # different names, so that arq too takes each of them for new
        await queues.ring(redis, [Due(operation_id, OperationKind.CHECK_PLANE, "default", fence)])
    await eventually(
        lambda: redis.zcard(queues.queue_key("default")), until=lambda left: left <= 1, within=10
    )
    gate.touch()
    done = await bench.ended(operation_id)

    assert (done.status, done.attempt, done.fence) == (OperationStatus.SUCCEEDED, 1, 1)
    assert await bench.count("runs", operation_id) == 1
    assert not [
        line for worker in workers.started for line in worker.said().splitlines() if '"error"' in line
    ]


async def test_an_emptied_redis_loses_nothing(bench: Bench, workers: Workers) -> None:
    gate = bench.gate()
    await workers.start(max_jobs=2)
    held = [await bench.enqueue("gated", gate=str(gate)) for _ in range(2)]
    for operation_id in held:
        await eventually(partial(bench.pids, operation_id), within=5)
    for _ in range(200):
        await bench.enqueue()
    redis, key = bench.runtime.redis, queues.queue_key("default")
    await eventually(lambda: redis.zcard(key), until=lambda waiting: waiting >= 200, within=10)

    await redis.flushdb()
    gate.touch()

    await eventually(lambda: finished(bench), until=lambda number: number == 202, within=60)
    assert await bench.count("runs") == 202
    assert await bench.count("effects_of_jobs") == 202


async def finished(bench: Bench) -> int:
    return await bench.count("operations WHERE status = 'SUCCEEDED'")


async def test_a_job_that_raises_each_time_fails_after_three_retries(bench: Bench, workers: Workers) -> None:
    await workers.start()
    poison = await bench.enqueue("out_of_service")
    others = [await bench.enqueue() for _ in range(10)]

    failed = await bench.ended(poison)

    assert (failed.status, failed.attempt) == (OperationStatus.FAILED, 4)
    assert failed.error == {
        "class": "transient",
        "code": "transient",
        "message": "503 Service Unavailable",
        "service": "intune",
    }
    assert await bench.count("runs", poison) == 4
    for other in others:
        assert (await bench.ended(other)).status is OperationStatus.SUCCEEDED


async def test_a_job_that_kills_its_process_runs_out_of_attempts(bench: Bench, workers: Workers) -> None:
    poison = await bench.enqueue("dies")

    for attempt in range(1, 5):
        worker = await workers.start(lease=1, heartbeat=0.3)
        assert await worker.exited(within=15) == 9
        assert (await bench.row(poison)).attempt == attempt
    await workers.start(lease=1, heartbeat=0.3)

    failed = await bench.ended(poison)
    assert failed.error is not None
    assert (failed.status, failed.error["code"]) == (OperationStatus.FAILED, "worker_lost")


async def test_an_operation_is_cancelled_with_no_worker_alive(bench: Bench, workers: Workers) -> None:
    operation_id = await bench.enqueue()
    async with bench.runtime.transaction() as session:
        await operations.cancel(session, operation_id, ended=nobody)
    await workers.start()
    after = await bench.enqueue()

    assert (await bench.ended(after)).status is OperationStatus.SUCCEEDED
    assert (await bench.row(operation_id)).status is OperationStatus.CANCELLED
    assert await bench.pids(operation_id) == []


async def nobody(*_: object) -> None:
    """These operations belong to no lane."""


async def test_a_running_operation_is_cancelled_by_its_worker(bench: Bench, workers: Workers) -> None:
    await workers.start(heartbeat=0.2)
    operation_id = await bench.enqueue("endless")
    await eventually(lambda: bench.pids(operation_id), within=5)

    async with bench.runtime.transaction() as session:
        await operations.cancel(session, operation_id, ended=nobody)

    assert (await bench.ended(operation_id)).status is OperationStatus.CANCELLED


async def test_dropped_database_sessions_cost_no_worker_and_no_second_effect(
    bench: Bench, workers: Workers
) -> None:
    gate = bench.gate()
    worker = await workers.start(heartbeat=0.3, lease=5)
    operation_id = await bench.enqueue("gated", gate=str(gate))
    await eventually(lambda: bench.pids(operation_id), within=5)

    async with bench.runtime.autocommit() as connection:
        await connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = current_database()"
                " AND application_name LIKE 'eucora %' AND application_name <> 'eucora test'"
            )
        )
    gate.touch()
    done = await bench.ended(operation_id)
    following = await bench.ended(await bench.enqueue(), within=15)

    assert (done.status, following.status) == (OperationStatus.SUCCEEDED, OperationStatus.SUCCEEDED)
    assert await bench.count("effects_of_jobs", operation_id) == 1
    assert worker.process.returncode is None


async def test_a_rollback_starts_within_a_second_while_300_pushes_are_busy_and_more_wait(
    bench: Bench, workers: Workers
) -> None:
    await workers.start(max_jobs=300)
    async with bench.runtime.transaction() as session:
        for _ in range(330):
            await enqueue_push(session)
    await eventually(lambda: bench.count("runs"), until=lambda started: started == 300, within=30)

    begun: list[Operation] = []

    async def wait() -> float:
        begun.append(await bench.ended(await bench.enqueue(kind=ROLLBACK), within=15))
        assert begun[-1].started_at is not None
        return (begun[-1].started_at - begun[-1].created_at).total_seconds()

    assert await quickest(wait, below=1.0) < 1.0
    assert await bench.count("runs") == 300 + len(begun)  # the shared slots hold 300, whatever waits


async def enqueue_push(session: AsyncSession) -> None:
    """A push that never ends by itself."""
    await operations.enqueue(
        session, DEPLOY, subject=Subject("plane", "intune"), correlation_id=uuid4(), args={"act": "endless"}
    )


async def test_workers_share_the_work(bench: Bench, workers: Workers) -> None:
    gate = bench.gate()
    first, second = await workers.start(max_jobs=2), await workers.start(max_jobs=2)
    queued = [await bench.enqueue("gated", gate=str(gate)) for _ in range(4)]

    await eventually(lambda: bench.count("runs"), until=lambda started: started == 4, within=10)
    started = [pid for operation_id in queued for pid in await bench.pids(operation_id)]

    assert sorted(started) == sorted([first.pid, first.pid, second.pid, second.pid])
    gate.touch()


async def test_a_worker_shows_that_it_is_there_and_that_it_went(bench: Bench, workers: Workers) -> None:
    worker = await workers.start()
    redis = bench.runtime.redis

    async def present() -> list[int]:
        keys = await redis.keys("eucora:worker:*")
        return [json.loads(await redis.get(key) or "{}").get("pid") for key in keys]

    await eventually(present, until=lambda pids: pids == [worker.pid], within=5)
    worker.send(signal.SIGTERM)
    assert await worker.exited(within=10) == 0

    assert await present() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_an_idle_worker_stops_at_once(workers: Workers, number: signal.Signals) -> None:
    worker = await workers.start(completion_wait=25)

    worker.send(number)

    assert await worker.exited(within=3) == 0


async def test_the_whole_fleet_killed_at_once_loses_nothing(bench: Bench, workers: Workers) -> None:
    gate = bench.gate()
    fleet = [await workers.start(lease=3, heartbeat=1) for _ in range(2)]
    queued = [await bench.enqueue("gated", gate=str(gate)) for _ in range(60)]
    await eventually(lambda: bench.count("runs"), until=lambda started: started == 40, within=10)

    for worker in fleet:
        worker.send(signal.SIGKILL)
    await asyncio.gather(*(worker.exited(within=5) for worker in fleet))
    gate.touch()
    await workers.start(lease=3, heartbeat=1)

    await eventually(lambda: finished(bench), until=lambda number: number == 60, within=60)
    for operation_id in queued:
        assert await bench.count("effects_of_jobs", operation_id) == 1
