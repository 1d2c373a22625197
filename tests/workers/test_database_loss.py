# SPDX-License-Identifier: Apache-2.0
"""A runner whose database goes away: under a job, under a heartbeat, under the outcome."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.embedded import Server
from app.models import Operation, OperationStatus
from app.runtime import Runtime, open_runtime
from app.settings import Settings, WorkerSettings
from tests.logs import captured_lines
from tests.servers import own_server
from tests.waiting import eventually
from tests.workers.conftest import Bench, make_tables
from tests.workers.jobs import JOBS
from workers.runner import Runner
from workers.watchdog import Watchdog

HASTY = WorkerSettings(lease=1.5, heartbeat=0.3, backoff=0.001, grace=0.5)


@pytest.fixture
async def place(settings: Settings) -> AsyncIterator[tuple[Server, Runtime]]:
    """A PostgreSQL of the test's own, and a runtime on it."""
    hasty = settings.model_copy(update={"worker": HASTY})
    async with own_server(hasty) as (server, own), open_runtime(own, process="test") as runtime:
        await make_tables(runtime)
        yield server, runtime


async def nothing(_: AsyncSession, __: Operation) -> None:
    """Nobody asked for these operations."""


def runner_of(runtime: Runtime) -> Runner:
    return Runner(runtime, JOBS, ended=nothing, watchdog=Watchdog(overrun=60))


async def test_a_claim_over_dead_connections_is_made_over_new_ones(
    place: tuple[Server, Runtime], tmp_path: Path
) -> None:
    _, runtime = place
    bench = Bench(runtime, tmp_path)
    operation_id = await bench.enqueue()
    async with runtime.transaction() as session:
        await session.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'eucora test' AND pid <> pg_backend_pid()"
            )
        )

    await runner_of(runtime).deliver({}, str(operation_id))

    assert (await bench.row(operation_id)).status is OperationStatus.SUCCEEDED


async def test_a_job_whose_lease_cannot_be_kept_stops_by_itself_and_is_left_to_others(
    place: tuple[Server, Runtime], tmp_path: Path
) -> None:
    server, runtime = place
    bench = Bench(runtime, tmp_path)
    operation_id = await bench.enqueue("endless")
    with captured_lines() as written:
        task = asyncio.create_task(runner_of(runtime).deliver({}, str(operation_id)))
        await eventually(partial(bench.pids, operation_id), within=5)
        await server.child.stop()
        await asyncio.wait_for(task, 15)
        await server.child.start()
        told = [line["event"] for line in written()]

    assert "heartbeat_failed" in told
    held = await eventually(partial(bench.row, operation_id), within=10)
    assert held.status is OperationStatus.RUNNING  # nothing was written: a sweeper takes it from here


async def test_an_outcome_is_written_once_the_database_is_back(
    place: tuple[Server, Runtime], tmp_path: Path
) -> None:
    server, runtime = place
    bench, gate = Bench(runtime, tmp_path), tmp_path / "gate"
    calm = WorkerSettings(lease=30, heartbeat=10)
    operation_id = await bench.enqueue("fails_at", gate=str(gate))
    with captured_lines() as written:
        async with open_runtime(
            runtime.settings.model_copy(update={"worker": calm}), process="test"
        ) as unhurried:
            task = asyncio.create_task(runner_of(unhurried).deliver({}, str(operation_id)))
            await eventually(partial(bench.pids, operation_id), within=5)
            await server.child.stop()
            gate.touch()
            await eventually(
                lambda: "outcome_not_written_yet" in [line["event"] for line in written()], within=15
            )
            await server.child.start()
            await asyncio.wait_for(task, 20)

    failed = await eventually(partial(bench.row, operation_id), within=10)
    assert failed.error is not None
    assert (failed.status, failed.error["code"]) == (OperationStatus.FAILED, "permanent")
