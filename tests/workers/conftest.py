# SPDX-License-Identifier: Apache-2.0
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from app import telemetry
from app.domain import operations, outcomes
from app.domain.operations import KINDS, Kind, OperationKind, Subject
from app.embedded import Server, embedded_valkey
from app.models import Operation, OperationStatus
from app.runtime import Runtime
from app.settings import Settings
from tests.sandbox.stage import Stage
from tests.servers import scratch_data_folder
from tests.waiting import eventually
from tests.workers.jobs import TABLES
from workers.context import JobFunction
from workers.main import JOBS
from workers.runner import Runner
from workers.watchdog import Watchdog

if TYPE_CHECKING:
    from tests.workers.rollouts import Rollout

PATIENCE = 5.0
"""Seconds a worker gets to end at the end of a test."""
ROOT = Path(__file__).resolve().parents[2]
RESET_TIMEOUT = 0.4
"""Seconds for which the breaker of the service that the jobs of these tests call stays open."""


@dataclass(slots=True)
class Bench:
    """What the tests of workers ask of the database."""

    runtime: Runtime
    folder: Path

    async def enqueue(
        self, act: str = "effect", *, kind: OperationKind = OperationKind.CHECK_PLANE, **args: Any
    ) -> UUID:
        async with self.runtime.transaction() as session:
            return await operations.enqueue(
                session,
                kind,
                subject=Subject("plane", "intune"),
                correlation_id=uuid4(),
                args={"act": act, **args},
            )

    async def row(self, operation_id: UUID) -> Operation:
        async with self.runtime.transaction() as session:
            return await operations.get(session, operation_id)

    async def until(
        self, operation_id: UUID, *statuses: OperationStatus, within: float = 10, run: int = 0
    ) -> Operation:
        """Wait for one of the statuses, in its ``run``-th run or later."""

        async def look() -> Operation:
            return await self.row(operation_id)

        def reached(operation: Operation) -> bool:
            return operation.status in statuses and operation.fence >= run

        return await eventually(look, until=reached, within=within)

    async def ended(self, operation_id: UUID, *, within: float = 10) -> Operation:
        return await self.until(operation_id, *operations.ENDED, within=within)

    async def alter(self, operation_id: UUID, change: str) -> None:
        """What another process, or time, would have done."""
        async with self.runtime.autocommit() as connection:
            statement = text(f"UPDATE operations SET {change} WHERE id = :id")
            await connection.execute(statement, {"id": operation_id})

    async def count(self, table: str, operation_id: UUID | None = None) -> int:
        query = f"SELECT count(*) FROM {table}" + (" WHERE operation_id = :id" if operation_id else "")
        async with self.runtime.autocommit() as connection:
            return int(
                await connection.scalar(text(query), {"id": operation_id} if operation_id else {}) or 0
            )

    async def pids(self, operation_id: UUID) -> list[int]:
        """The processes that started the operation, in order."""
        query = text("SELECT pid FROM runs WHERE operation_id = :id ORDER BY at")
        async with self.runtime.autocommit() as connection:
            return list(await connection.scalars(query, {"id": operation_id}))

    def gate(self) -> Path:
        """A file that jobs wait for; ``touch`` it to let them go on."""
        return self.folder / f"gate-{uuid4()}"


@pytest.fixture(autouse=True, scope="session")
def logs() -> None:
    """Log as a worker does: the default of the library draws every traceback with all its locals."""
    telemetry.setup(process="test", stream=sys.__stderr__)


@pytest.fixture
async def bench(runtime: Runtime, tmp_path: Path) -> Bench:
    await make_tables(runtime)
    return Bench(runtime, tmp_path)


@pytest.fixture
async def rollout(settings: Settings, stage: Stage) -> AsyncIterator["Rollout"]:
    """A deployment that the test carries out itself."""
    from tests.workers.rollouts import opened

    async with opened(settings, stage) as made:
        yield made


@pytest.fixture
async def valkey() -> AsyncIterator[Server]:
    """A Valkey of the test's own, to be broken; it forgets everything when it stops."""
    with scratch_data_folder() as place:
        async with embedded_valkey(place, report=print, durable=False) as server:
            yield server


@pytest.fixture
async def crew(settings: Settings, valkey: Server, tmp_path: Path) -> AsyncIterator["Workers"]:
    """Workers on the Valkey that will be broken."""
    crew = Workers(settings.model_copy(update={"redis_url": SecretStr(valkey.url)}), tmp_path)
    yield crew
    await crew.stop()
    for worker in crew.started:
        print(worker.said())  # noqa: T201


async def make_tables(runtime: Runtime) -> None:
    """What the jobs of these tests write down."""
    async with runtime.autocommit() as connection:
        for table in TABLES:
            await connection.execute(text(table))


def product_runner(
    runtime: Runtime,
    *,
    jobs: Mapping[OperationKind, JobFunction] = JOBS,
    kinds: Mapping[OperationKind, Kind] = KINDS,
) -> Runner:
    """What runs operations in a worker of the product, in this process."""
    return Runner(runtime, jobs, ended=outcomes.operation_ended, watchdog=Watchdog(overrun=60), kinds=kinds)


async def run_once(runner: Runner, operation_id: UUID) -> Operation:
    """Run an operation once; it as it is then."""
    await runner.deliver({}, str(operation_id))
    async with runner.runtime.transaction() as session:
        return await operations.get(session, operation_id)


@dataclass(slots=True)
class WorkerProcess:
    process: asyncio.subprocess.Process
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def exited(self, within: float) -> int:
        return await asyncio.wait_for(self.process.wait(), within)

    def said(self) -> str:
        return self.log.read_text()

    def has_lost(self) -> bool:
        """Whether a run of it has learned that its operation is no longer its own."""
        lines = [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]
        return any(line.get("outcome") == "lost" for line in lines)


@dataclass(slots=True)
class Workers:
    """Real worker processes on the test's database and Redis."""

    settings: Settings
    folder: Path
    command: tuple[str, ...] = ("-m", "tests.workers.jobs")
    started: list[WorkerProcess] = field(default_factory=list)

    async def start(self, *, hard_limit: float | None = None, **settings: object) -> WorkerProcess:
        """One more; ``settings`` are those of ``EUCORA_WORKER__…``, in lower case."""
        assert self.settings.database_url is not None
        assert self.settings.redis_url is not None
        given = {"backoff": 0.01, "completion_wait": 1.0, **settings}
        environment = {
            **os.environ,
            "EUCORA_DATABASE_URL": self.settings.database_url.get_secret_value(),
            "EUCORA_REDIS_URL": self.settings.redis_url.get_secret_value(),
            "EUCORA_GATE_POLICY": self.settings.gate_policy,
            **({"EUCORA_SANDBOX_URL": self.settings.sandbox_url} if self.settings.sandbox_url else {}),
            **{f"EUCORA_WORKER__{name.upper()}": str(value) for name, value in given.items()},
            "EUCORA_BREAKERS__JIRA__RESET_TIMEOUT": str(RESET_TIMEOUT),
            **({} if hard_limit is None else {"EUCORA_TEST_HARD_LIMIT": str(hard_limit)}),
        }
        log = self.folder / f"worker-{len(self.started)}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *self.command),
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
            )
        worker = WorkerProcess(process, log)
        self.started.append(worker)
        await eventually(lambda: "worker_started" in worker.said() or process.returncode, within=20)
        assert process.returncode is None, worker.said()
        return worker

    async def stop(self) -> None:
        """As an orchestrator would: asked first, then killed."""
        running = [worker for worker in self.started if worker.process.returncode is None]
        for worker in running:
            worker.send(signal.SIGTERM)
        for worker in running:
            with contextlib.suppress(TimeoutError):
                await worker.exited(within=PATIENCE)
            if worker.process.returncode is None:
                worker.process.kill()
                await worker.process.wait()


@pytest.fixture
async def workers(settings: Settings, tmp_path: Path) -> AsyncIterator[Workers]:
    workers = Workers(settings, tmp_path)
    yield workers
    await workers.stop()
    for worker in workers.started:  # shown by pytest when the test has failed
        print(worker.log.read_text())  # noqa: T201
