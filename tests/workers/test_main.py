# SPDX-License-Identifier: Apache-2.0
import asyncio

from app.domain.operations import OperationKind
from app.runtime import open_runtime
from app.settings import Settings, WorkerSettings
from tests.workers.jobs import JOBS
from workers import main
from workers.main import work


def test_every_kind_has_a_job_and_every_job_a_kind() -> None:
    assert set(main.JOBS) == set(OperationKind)
    assert {kind.value for kind in main.JOBS} == {job.__name__ for job in main.JOBS.values()}


async def test_a_worker_ends_at_whatever_moment_it_is_stopped(settings: Settings) -> None:
    settings = settings.model_copy(update={"worker": WorkerSettings(completion_wait=0.1)})
    for moment in range(40):
        stop = asyncio.Event()
        async with open_runtime(settings, process="worker") as runtime:
            working = asyncio.create_task(work(runtime, JOBS, stop))
            await asyncio.sleep(moment / 400)  # what varies: connecting, listening, polling
            stop.set()
            await asyncio.wait_for(working, 5)
