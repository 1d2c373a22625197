# SPDX-License-Identifier: Apache-2.0
"""Wake-ups that are taken many at a time, in this process: what becomes of each of them."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from app.domain.dispatch import Due
from app.domain.operations import OperationKind
from app.models import OperationStatus
from app.runtime import Runtime
from app.settings import Settings, WorkerSettings
from tests.waiting import eventually
from tests.workers.conftest import Bench, product_runner
from tests.workers.jobs import JOBS
from workers import queues
from workers.main import end, queue_loops
from workers.queues import Slots, queue_key
from workers.runner import Runner

LOCK = text("SELECT FROM operations WHERE id = :id FOR UPDATE")
CHECK, QUEUE = OperationKind.CHECK_PLANE, "default"
SLOTS = 4


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"worker": WorkerSettings(max_jobs=SLOTS, poll=0.02, grace=0.5)})


@pytest.fixture
async def runner(runtime: Runtime) -> AsyncIterator[Runner]:
    """Hears its queues; nobody rings but the test."""
    runner = product_runner(runtime, jobs=JOBS)
    loops = queue_loops(runner)
    hearing = [asyncio.create_task(loop.run()) for loop in loops]
    yield runner
    for loop in loops:
        loop.stop_taking()
    await runner.stop(0)
    await end(*hearing)


async def ring(bench: Bench, *ids: UUID) -> None:
    await queues.ring(bench.runtime.redis, [Due(each, CHECK, QUEUE, 0) for each in ids])


async def ended(bench: Bench, *ids: UUID) -> list[OperationStatus]:
    return [(await bench.ended(each)).status for each in ids]


@pytest.mark.usefixtures("runner")
async def test_more_wake_ups_than_slots_are_all_answered_and_leave_nothing(bench: Bench) -> None:
    ids = [await bench.enqueue() for _ in range(5 * SLOTS)]
    await ring(bench, *ids)

    assert set(await ended(bench, *ids)) == {OperationStatus.SUCCEEDED}

    assert await bench.count("runs") == len(ids)
    redis = bench.runtime.redis
    assert await redis.zcard(queue_key(QUEUE)) == 0
    assert await redis.keys("arq:job:*") == []


async def test_no_more_run_at_once_than_there_are_slots(bench: Bench, runner: Runner) -> None:
    gate = bench.gate()
    ids = [await bench.enqueue("gated", gate=str(gate)) for _ in range(SLOTS + 3)]
    await ring(bench, *ids)
    await eventually(lambda: bench.count("runs"), until=lambda started: started == SLOTS, within=10)

    left = await bench.runtime.redis.zcard(queue_key(QUEUE))
    assert (left, runner.running) == (3, SLOTS)

    gate.touch()
    assert set(await ended(bench, *ids)) == {OperationStatus.SUCCEEDED}


@pytest.mark.usefixtures("runner")
async def test_what_is_no_wake_up_of_ours_is_dropped_and_takes_no_slot(bench: Bench) -> None:
    redis, good = bench.runtime.redis, await bench.enqueue()
    texts = [b"\x80\x04", b"[]", b"{}", b'{"f": "no_such_job", "a": ["x"], "k": {}, "t": 1, "et": 1}']
    texts += [
        b'{"f": "check_plane", "a": %s, "k": {}, "t": 1, "et": 1}' % a for a in (b'["x"]', b"[]", b"[3]")
    ]
    texts += [b" " * 70_000]
    for number, told in enumerate(texts):
        await redis.set(f"arq:job:{number}", told)
        await redis.zadd(queue_key(QUEUE), {str(number): 1})
    await redis.zadd(queue_key(QUEUE), {"expired": 1})
    await ring(bench, uuid4(), good)

    assert await ended(bench, good) == [OperationStatus.SUCCEEDED]
    others = [await bench.enqueue() for _ in range(2 * SLOTS)]
    await ring(bench, *others)
    assert set(await ended(bench, *others)) == {OperationStatus.SUCCEEDED}
    assert await redis.zcard(queue_key(QUEUE)) == 0


@pytest.mark.usefixtures("runner")
async def test_a_result_that_cannot_be_stored_takes_no_neighbour_with_it(bench: Bench) -> None:
    gate = bench.gate()
    neighbours = [await bench.enqueue("gated", gate=str(gate)) for _ in range(SLOTS - 1)]
    bad = await bench.enqueue("with_nan", gate=str(gate))
    await ring(bench, bad, *neighbours)
    await eventually(lambda: bench.count("runs"), until=lambda started: started == SLOTS, within=10)

    gate.touch()

    assert set(await ended(bench, *neighbours)) == {OperationStatus.SUCCEEDED}
    kept = await bench.until(bad, OperationStatus.WAITING, OperationStatus.FAILED)
    assert kept.error is not None


async def test_what_is_taken_while_the_worker_stops_is_left_to_others_at_once(
    bench: Bench, runner: Runner
) -> None:
    operation_id = await bench.enqueue()
    await bench.alter(operation_id, "dispatched_at = clock_timestamp()")
    await runner.stop(0)

    assert await runner.take([operation_id]) == []

    left = await bench.row(operation_id)
    assert (left.status, left.fence, left.dispatched_at) == (OperationStatus.QUEUED, 0, None)


async def test_two_wake_ups_for_one_operation_are_one_run(bench: Bench, runner: Runner) -> None:
    operation_id = await bench.enqueue()

    runs = await runner.take([operation_id, operation_id])
    await asyncio.gather(*runs)

    assert len(runs) == 1
    assert await bench.count("runs", operation_id) == 1


async def test_what_somebody_is_looking_at_is_claimed_once_he_has_looked(
    bench: Bench, runner: Runner
) -> None:
    locked, free = await bench.enqueue(), await bench.enqueue()
    async with bench.runtime.transaction() as session:
        await session.execute(LOCK, {"id": locked})
        runs = await runner.take([locked, free])
        assert (await bench.ended(free)).status is OperationStatus.SUCCEEDED
        assert (await bench.row(locked)).status is OperationStatus.QUEUED

    await asyncio.gather(*runs)
    assert (await bench.row(locked)).status is OperationStatus.SUCCEEDED


async def test_slots_go_together_unless_others_wait_for_them() -> None:
    slots = Slots(4)

    assert await slots.take(3) == 3
    assert await slots.take(3) == 1
    waiting = [asyncio.create_task(slots.take(3)) for _ in range(2)]
    await asyncio.sleep(0)
    slots.give(4)
    assert await asyncio.gather(*waiting) == [1, 3]
