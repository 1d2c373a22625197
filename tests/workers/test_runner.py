# SPDX-License-Identifier: Apache-2.0
"""One runner in this process: how each way in which a job can end is written down."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain.operations import KINDS, OperationKind
from app.models import Operation, OperationStatus
from app.resilience import deadline
from app.runtime import Runtime
from app.settings import Settings, WorkerSettings
from tests.waiting import eventually
from tests.workers.conftest import Bench
from tests.workers.jobs import JOBS
from workers.context import Done, Job, Outcome
from workers.runner import Runner
from workers.watchdog import Watchdog

CHECK = OperationKind.CHECK_PLANE
SHORT = {kind: replace(rules, hard_limit=timedelta(seconds=0.3)) for kind, rules in KINDS.items()}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    hasty = WorkerSettings(lease=3, heartbeat=0.2, backoff=0.001, grace=0.5)
    return settings.model_copy(update={"worker": hasty})


@pytest.fixture
def endings() -> list[OperationStatus]:
    return []


@pytest.fixture
async def runner(runtime: Runtime, endings: list[OperationStatus]) -> AsyncIterator[Runner]:
    async def ended(_: AsyncSession, operation: Operation) -> None:
        endings.append(operation.status)

    runner = Runner(runtime, JOBS, ended=ended, watchdog=Watchdog(overrun=60))
    yield runner
    await runner.stop(0)


async def run(runner: Runner, operation_id: UUID) -> None:
    await runner.deliver({}, str(operation_id))


async def run_out(bench: Bench, runner: Runner, operation_id: UUID) -> Operation:
    """Deliver wake-ups until the operation has ended."""

    async def deliver() -> Operation:
        await run(runner, operation_id)
        return await bench.row(operation_id)

    return await eventually(deliver, until=lambda row: row.finished_at is not None, within=20)


async def test_a_finished_job_leaves_its_result(bench: Bench, runner: Runner) -> None:
    done = await run_out(bench, runner, await bench.enqueue())

    assert (done.status, done.error) == (OperationStatus.SUCCEEDED, None)
    assert done.result is not None


async def test_a_job_goes_on_where_it_stopped(bench: Bench, runner: Runner) -> None:
    done = await run_out(bench, runner, await bench.enqueue("twice"))

    assert (done.status, done.result, done.fence) == (OperationStatus.SUCCEEDED, {"effects": 2}, 2)
    assert done.attempt == 1


@pytest.mark.parametrize(
    ("act", "runs", "error_class", "code"),
    [
        ("out_of_service", 4, "transient", "transient"),
        ("refused", 1, "permanent", "permanent"),
        ("broken", 2, "permanent", "bug"),
        ("exits", 2, "permanent", "bug"),
        ("unwritable", 2, "permanent", "bug"),
    ],
)
async def test_a_failing_job_runs_as_often_as_its_error_deserves(
    bench: Bench,
    runner: Runner,
    endings: list[OperationStatus],
    *,
    act: str,
    runs: int,
    error_class: str,
    code: str,
) -> None:
    operation_id = await bench.enqueue(act)

    failed = await run_out(bench, runner, operation_id)

    assert failed.status is OperationStatus.FAILED
    assert failed.error is not None
    assert (failed.error["class"], failed.error["code"]) == (error_class, code)
    assert "abcdefgh" not in str(failed.error)
    assert await bench.count("runs", operation_id) == runs
    assert endings == [OperationStatus.FAILED]


async def test_a_deferred_job_spends_no_attempt(bench: Bench, runner: Runner) -> None:
    operation_id = await bench.enqueue("kept_away")

    async def deferred() -> Operation:
        await run(runner, operation_id)
        return await bench.row(operation_id)

    waiting = await eventually(deferred, until=lambda row: row.deferrals >= 6, within=20)

    assert (waiting.status, waiting.attempt) == (OperationStatus.WAITING, 0)
    assert waiting.error is not None
    assert waiting.error["code"] == "circuit_open"


async def test_a_job_past_its_hard_limit_is_stopped_and_tried_again(bench: Bench, runner: Runner) -> None:
    runner.kinds = SHORT
    operation_id = await bench.enqueue("endless")

    await run(runner, operation_id)

    waiting = await bench.row(operation_id)
    assert (waiting.status, waiting.attempt) == (OperationStatus.WAITING, 1)
    assert waiting.error is not None
    assert (waiting.error["class"], waiting.error["code"]) == ("transient", "deadline")


async def test_a_job_that_ignores_its_cancellation_keeps_its_operation_until_it_ends(
    bench: Bench, runner: Runner
) -> None:
    runner.kinds = SHORT
    gate = bench.gate()
    operation_id = await bench.enqueue("deaf", gate=str(gate))
    task = asyncio.create_task(run(runner, operation_id))
    held = await bench.until(operation_id, OperationStatus.RUNNING)
    assert held.lease_until is not None
    much_later = held.lease_until + timedelta(seconds=2)  # its limit and all patience are over by then

    await eventually(
        partial(bench.row, operation_id),
        until=lambda row: (row.lease_until or much_later) > much_later,
        within=10,
    )
    await run(runner, operation_id)  # nobody else can begin it
    assert await bench.count("runs", operation_id) == 1
    gate.touch()
    await task

    left = await bench.row(operation_id)
    assert (left.status, left.fence, left.attempt) == (OperationStatus.WAITING, 1, 1)
    assert await bench.count("effects_of_jobs", operation_id) == 0  # past its limit it writes nothing
    assert (await run_out(bench, runner, operation_id)).status is OperationStatus.SUCCEEDED
    assert await bench.count("effects_of_jobs", operation_id) == 1


async def test_a_cancelled_job_that_does_not_listen_keeps_its_lease(bench: Bench, runner: Runner) -> None:
    gate = bench.gate()
    operation_id = await bench.enqueue("deaf", gate=str(gate))
    task = asyncio.create_task(run(runner, operation_id))
    held = await bench.until(operation_id, OperationStatus.RUNNING)
    assert held.lease_until is not None
    later = held.lease_until + timedelta(seconds=2)

    await bench.alter(operation_id, "cancel_requested = true")
    await eventually(
        partial(bench.row, operation_id), until=lambda row: (row.lease_until or later) > later, within=10
    )
    gate.touch()
    await task

    assert (await bench.row(operation_id)).finished_at is not None
    assert await bench.count("runs", operation_id) == 1


async def test_calls_and_statements_of_a_job_know_how_long_they_may_take(
    bench: Bench, runner: Runner
) -> None:
    async def asking(_: Job) -> Outcome:
        return Done({"left": deadline.remaining()})

    runner.jobs = {CHECK: asking}
    done = await run_out(bench, runner, await bench.enqueue())

    limit = KINDS[CHECK].hard_limit.total_seconds()
    assert done.result is not None
    assert limit - 4 < done.result["left"] <= limit - 2
    assert deadline.remaining() is None


async def test_a_job_checks_before_its_call_that_the_work_is_still_its_own(
    bench: Bench, runner: Runner
) -> None:
    gate = bench.gate()
    operation_id = await bench.enqueue("careful", gate=str(gate))
    task = asyncio.create_task(run(runner, operation_id))
    await eventually(lambda: bench.count("runs", operation_id), within=5)

    await bench.alter(operation_id, "fence = fence + 1")  # somebody else has it
    gate.touch()
    await task

    assert await bench.count("effects_of_jobs", operation_id) == 0
    assert (await bench.row(operation_id)).status is OperationStatus.RUNNING


async def test_a_lost_lease_stops_the_job(bench: Bench, runner: Runner) -> None:
    operation_id = await bench.enqueue("endless")
    task = asyncio.create_task(run(runner, operation_id))
    await eventually(lambda: bench.count("runs", operation_id), within=5)

    await bench.alter(operation_id, "fence = fence + 1")

    await asyncio.wait_for(task, 20)


async def test_heartbeats_keep_the_lease_of_a_long_job(bench: Bench, runner: Runner) -> None:
    gate = bench.gate()
    operation_id = await bench.enqueue("gated", gate=str(gate))
    task = asyncio.create_task(run(runner, operation_id))
    held = await bench.until(operation_id, OperationStatus.RUNNING)

    seen = {held.lease_until}

    async def prolonged() -> int:
        seen.add((await bench.row(operation_id)).lease_until)
        return len(seen)

    await eventually(prolonged, until=lambda number: number > 3, within=5)
    gate.touch()
    await task

    assert (await bench.row(operation_id)).status is OperationStatus.SUCCEEDED


async def test_stopping_gives_back_what_runs_and_claims_nothing_more(
    bench: Bench, runner: Runner, endings: list[OperationStatus]
) -> None:
    running, waiting = await bench.enqueue("endless"), await bench.enqueue()
    task = asyncio.create_task(run(runner, running))
    await eventually(lambda: bench.count("runs", running), within=5)

    await runner.stop(0.05)
    await run(runner, waiting)
    await task

    given_back, untouched = await bench.row(running), await bench.row(waiting)
    assert (given_back.status, given_back.attempt) == (OperationStatus.QUEUED, 0)
    assert (untouched.status, untouched.fence) == (OperationStatus.QUEUED, 0)
    assert endings == []


async def test_what_is_in_the_queue_but_is_no_operation_is_dropped(runner: Runner) -> None:
    await runner.deliver({}, "'; DROP TABLE operations; --")
    await runner.deliver({}, "00000000-0000-0000-0000-000000000000")

    assert runner.running == 0


async def test_a_job_transaction_is_rolled_back_when_the_lease_was_lost_inside(
    bench: Bench, runner: Runner
) -> None:
    operation_id = await bench.enqueue("effect")

    async def lose(job: Job) -> Outcome:
        await bench.alter(operation_id, "fence = fence + 1")
        return await JOBS[CHECK](job)

    runner.jobs = {CHECK: lose}
    await run(runner, operation_id)

    assert await bench.count("effects_of_jobs", operation_id) == 0


async def test_an_answer_that_is_none_is_a_bug(bench: Bench, runner: Runner) -> None:
    async def forgetful(_: Job) -> Any:
        return None

    runner.jobs = {CHECK: forgetful}
    failed = await run_out(bench, runner, await bench.enqueue())

    assert failed.error is not None
    assert failed.error["code"] == "bug"


async def test_a_settlement_that_fails_leaves_the_operation_to_the_sweeper(
    bench: Bench, runner: Runner
) -> None:
    async def unable(_: AsyncSession, __: Operation) -> None:
        raise LookupError

    runner.ended = unable
    operation_id = await bench.enqueue("refused")

    await run(runner, operation_id)

    held = await bench.row(operation_id)
    assert (held.status, held.error) == (OperationStatus.RUNNING, None)


async def test_the_soft_limit_is_seen_by_the_job(bench: Bench, runner: Runner) -> None:
    async def patient(job: Job) -> Outcome:
        await eventually(job.out_of_time, within=5)
        return Done({"left": job.time_left().total_seconds()})

    runner.jobs = {CHECK: patient}
    runner.kinds = {CHECK: replace(KINDS[CHECK], soft_limit=timedelta(seconds=0.2))}
    done = await run_out(bench, runner, await bench.enqueue())

    assert done.result is not None
    assert -30 < done.result["left"] <= 0
