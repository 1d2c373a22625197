# SPDX-License-Identifier: Apache-2.0
"""Work that outlives its limit ends its process, and costs its neighbours no more than a second run."""

import json
import signal
from functools import partial
from pathlib import Path

import pytest

from app.models import OperationStatus
from tests.waiting import eventually
from tests.workers.conftest import Bench, WorkerProcess, Workers
from workers.watchdog import EXIT_CODE, Watchdog

HASTY = {"hard_limit": 0.6, "overrun": 0.8, "lease": 2, "heartbeat": 0.5, "grace": 0.3}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ended() -> list[int]:
    return []


@pytest.fixture
def watchdog(clock: Clock, ended: list[int]) -> Watchdog:
    return Watchdog(overrun=15, clock=clock, end=ended.append)


def test_what_has_outlived_its_limit_by_fifteen_seconds_ends_the_process(
    watchdog: Watchdog, clock: Clock, ended: list[int]
) -> None:
    watchdog.watch("job", 110.0)

    clock.now = 125.0
    watchdog.look()
    assert ended == []
    clock.now = 125.1
    watchdog.look()

    assert ended == [EXIT_CODE]


def test_what_has_ended_ends_nothing(watchdog: Watchdog, clock: Clock, ended: list[int]) -> None:
    watchdog.watch("job", 110.0)
    watchdog.watch("other", 300.0)
    watchdog.hasten("unknown", 1.0)
    watchdog.release("job")

    clock.now = 300.0
    watchdog.look()

    assert ended == []


def test_what_is_told_to_end_later_ends_when_it_was_to(
    watchdog: Watchdog, clock: Clock, ended: list[int]
) -> None:
    watchdog.watch("job", 110.0)
    watchdog.hasten("job", 200.0)

    clock.now = 125.1
    watchdog.look()

    assert ended == [EXIT_CODE]


def test_what_was_told_to_end_must_end_sooner(watchdog: Watchdog, clock: Clock, ended: list[int]) -> None:
    watchdog.watch("job", 400.0)
    watchdog.hasten("job", 105.0)

    clock.now = 120.1
    watchdog.look()

    assert ended == [EXIT_CODE]


def last_words(worker: WorkerProcess, event: str) -> dict[str, object]:
    """The log line of that name."""
    lines = [json.loads(line) for line in worker.said().splitlines() if line.startswith("{")]
    found: dict[str, object] = next(line for line in lines if line["event"] == event)
    return found


@pytest.mark.parametrize(("act", "place"), [("blocks", "time.sleep"), ("deaf", "run_forever")])
async def test_a_job_that_cannot_be_stopped_ends_its_process_and_runs_out_of_attempts(
    bench: Bench, workers: Workers, tmp_path: Path, *, act: str, place: str
) -> None:
    never, gate = tmp_path / "never", bench.gate()
    worker = await workers.start(**HASTY)
    poison = await bench.enqueue(act, gate=str(never))
    await bench.alter(poison, "max_attempts = 1")
    await eventually(partial(bench.pids, poison), within=5)

    assert await worker.exited(within=10) == EXIT_CODE
    told = last_words(worker, "work_outlives_its_limit")
    assert (told["operation_id"], told["level"]) == (str(poison), "critical")
    assert place in str(told["stack"]) or "uvloop" in str(told["stack"])
    other = await workers.start(lease=2, heartbeat=0.5)
    failed = await bench.ended(poison, within=20)

    assert failed.error is not None
    assert (failed.status, failed.error["code"]) == (OperationStatus.FAILED, "worker_lost")
    assert await bench.pids(poison) == [worker.pid]
    gate.touch()
    assert other.process.returncode is None


async def test_the_neighbours_of_a_job_that_blocks_run_once_more_elsewhere(
    bench: Bench, workers: Workers
) -> None:
    gate = bench.gate()
    worker = await workers.start(**(HASTY | {"hard_limit": 3.0}))
    neighbours = [await bench.enqueue("gated", gate=str(gate)) for _ in range(3)]
    for neighbour in neighbours:
        await eventually(partial(bench.row, neighbour), until=lambda row: row.lived, within=5)
    poison = await bench.enqueue("blocks")
    await bench.alter(poison, "max_attempts = 1")
    await eventually(partial(bench.pids, poison), within=5)
    other = await workers.start(lease=2, heartbeat=0.5)
    gate.touch()

    assert await worker.exited(within=10) == EXIT_CODE
    for neighbour in neighbours:
        assert (await bench.ended(neighbour, within=20)).status is OperationStatus.SUCCEEDED
        assert await bench.pids(neighbour) == [worker.pid, other.pid]
        assert await bench.count("effects_of_jobs", neighbour) == 1
    assert "loop_blocked" in worker.said()
    assert "time.sleep" in str(last_words(worker, "loop_blocked")["stack"])


async def test_a_job_that_ignores_everything_does_not_keep_a_worker_from_stopping(
    bench: Bench, workers: Workers, tmp_path: Path
) -> None:
    worker = await workers.start(overrun=0.5, grace=0.2, completion_wait=0.2)
    held = await bench.enqueue("deaf", gate=str(tmp_path / "never"))
    await eventually(partial(bench.pids, held), within=5)

    worker.send(signal.SIGTERM)

    assert await worker.exited(within=10) == EXIT_CODE
    assert (await bench.row(held)).status is OperationStatus.RUNNING  # its lease ends, then it is taken over
