# SPDX-License-Identifier: Apache-2.0
"""Servers that go away under running workers: Redis, a mere doorbell, and PostgreSQL, which comes back."""

import os
import signal
from functools import partial
from pathlib import Path

from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy import make_url

from app import admin
from app.embedded import Server, embedded_postgres
from app.models import OperationStatus
from app.runtime import open_runtime
from app.settings import Settings
from tests.servers import scratch_data_folder
from tests.waiting import eventually
from tests.workers.conftest import Bench, Workers, make_tables
from workers import queues


async def succeeded(bench: Bench) -> int:
    return await bench.count("operations WHERE status = 'SUCCEEDED'")


async def waiting_in(url: str) -> int:
    async with Redis.from_url(url) as client:
        return int(await client.zcard(queues.queue_key("default")))


async def test_a_redis_that_restarts_empty_loses_nothing(bench: Bench, crew: Workers, valkey: Server) -> None:
    gate = bench.gate()
    worker = await crew.start(max_jobs=2)
    held = [await bench.enqueue("gated", gate=str(gate)) for _ in range(2)]
    for operation_id in held:
        await eventually(partial(bench.pids, operation_id), within=5)
    for _ in range(200):
        await bench.enqueue()
    await eventually(partial(waiting_in, valkey.url), until=lambda number: number >= 200, within=10)

    await valkey.child.stop()
    gate.touch()
    for operation_id in held:  # what runs needs no Redis, and is recorded without one
        assert (await bench.ended(operation_id)).status is OperationStatus.SUCCEEDED
    await valkey.child.start()

    await eventually(partial(succeeded, bench), until=lambda number: number == 202, within=60)
    assert await bench.count("runs") == 202
    assert await bench.count("effects_of_jobs") == 202
    assert worker.process.returncode is None


async def test_what_is_accepted_while_redis_is_away_runs_soon_after_it_returns(
    bench: Bench, crew: Workers, valkey: Server
) -> None:
    await crew.start()
    await valkey.child.stop()
    queued = [await bench.enqueue() for _ in range(20)]

    await valkey.child.start()

    await eventually(partial(succeeded, bench), until=lambda number: number == len(queued), within=4)


async def test_a_redis_that_answers_nothing_stops_neither_worker_nor_running_jobs(
    bench: Bench, crew: Workers, valkey: Server
) -> None:
    gate = bench.gate()
    worker = await crew.start(lease=3, heartbeat=1)
    held = await bench.enqueue("gated", gate=str(gate))
    await eventually(partial(bench.pids, held), within=5)

    signal_process(valkey, signal.SIGSTOP)
    try:
        lease = (await bench.row(held)).lease_until
        await eventually(partial(bench.row, held), until=lambda row: row.lease_until != lease, within=5)
        gate.touch()
        assert (await bench.ended(held)).attempt == 1
        later = await bench.enqueue()
    finally:
        signal_process(valkey, signal.SIGCONT)

    assert (await bench.ended(later, within=15)).status is OperationStatus.SUCCEEDED
    assert worker.process.returncode is None


def signal_process(server: Server, number: signal.Signals) -> None:
    os.kill(server.child.pid, number)


async def test_a_postgresql_that_restarts_costs_no_worker(redis_url: str, tmp_path: Path) -> None:
    with scratch_data_folder() as place:
        async with embedded_postgres(place, report=print, durable=False) as postgres:
            url = make_url(postgres.url).set(drivername="postgresql+asyncpg")
            await admin.migrate(url)
            settings = Settings(
                database_url=SecretStr(postgres.url), redis_url=SecretStr(redis_url), gate_policy="demo"
            )
            crew = Workers(settings, tmp_path)
            try:
                async with open_runtime(settings, process="test") as runtime:
                    await make_tables(runtime)
                    await restart_under_a_running_job(Bench(runtime, tmp_path), crew, postgres)
            finally:
                await crew.stop()
                for worker in crew.started:
                    print(worker.said())  # noqa: T201


async def restart_under_a_running_job(bench: Bench, crew: Workers, postgres: Server) -> None:
    gate = bench.gate()
    worker = await crew.start()
    running = await bench.enqueue("gated", gate=str(gate))
    await eventually(partial(bench.pids, running), within=5)

    await postgres.child.stop()
    await postgres.child.start()
    await bench.runtime.accept_engine.dispose()  # its connections are as dead as the workers'
    following = await bench.enqueue()
    gate.touch()

    assert (await bench.ended(running, within=30)).status is OperationStatus.SUCCEEDED
    assert (await bench.ended(following, within=30)).status is OperationStatus.SUCCEEDED
    assert await bench.count("effects_of_jobs", running) == 1
    assert worker.process.returncode is None
