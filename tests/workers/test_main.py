# SPDX-License-Identifier: Apache-2.0
import asyncio

from app.domain.operations import KINDS, OperationKind
from app.runtime import open_runtime
from app.settings import Settings, WorkerSettings
from tests.wire import Wire, wired
from tests.workers.conftest import product_runner
from tests.workers.jobs import JOBS
from workers import main
from workers.main import work


def test_every_kind_has_a_job_and_every_job_a_kind() -> None:
    assert set(main.JOBS) == set(OperationKind)
    assert {kind.value for kind in main.JOBS} == {job.__name__ for job in main.JOBS.values()}


LEAST, MOST = 60, 200
"""How many moments are tried: a password or a busy machine puts more messages before the first polls."""


async def test_a_worker_ends_at_whatever_moment_it_is_stopped(settings: Settings) -> None:
    """Each time one message to a server further on: while it connects, logs in, listens, polls."""
    settings = settings.model_copy(update={"worker": WorkerSettings(completion_wait=0.1)})
    for moment in range(1, MOST):
        wire = Wire(moment)
        async with wired(settings, wire) as through, open_runtime(through, process="worker") as runtime:
            working = asyncio.create_task(work(product_runner(runtime, jobs=JOBS), wire.reached, metrics=""))
            await asyncio.wait_for(wire.reached.wait(), 30)
            await asyncio.wait_for(working, 30)
        if moment >= LEAST and was_polling(b"".join(wire.sent[:moment])):
            return

    raise AssertionError(f"{MOST} messages were sent before every queue was polled")


def was_polling(sent: bytes) -> bool:
    """Whether the worker had come as far as its work: it listened, and asked every queue."""
    return b"LISTEN" in sent and sent.count(b"ZPOPMIN") >= len({KINDS[kind].queue for kind in JOBS})
