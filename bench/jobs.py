# SPDX-License-Identifier: Apache-2.0
"""Jobs a second: durable ones beside task queues, whole ones beside the usual way, two workers beside one.

Each contender's worker is a process of its own, fresh in each round and warm before anything counts. The time
goes from the first job asked for to the end of the last one: where ends are stored, until all are.
"""

import asyncio
import contextlib
import importlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import IO, Any

import asyncpg
from sqlalchemy import make_url

from app.settings import Settings
from bench.answering import Server, answering
from bench.installation import servers
from bench.queues import product
from bench.queues.place import Place
from bench.report import Comparison, Goal, Report
from bench.rounds import Once, Size, alternate
from tests.databases import connected
from tests.waiting import eventually

OURS, OURS_TWICE = "this product, one worker", "this product, two workers"
PROCRASTINATE, USUAL = "procrastinate", "arq + httpx + ORM, not durable"
PEERS = {
    PROCRASTINATE: "procrastinate_queue",
    "SAQ, not durable": "saq_queue",
    "taskiq streams, not durable": "taskiq_queue",
    "Celery, not durable": "celery_queue",
    "arq, not durable": "arq_queue",
}
NOOP_JOBS, WHOLE_JOBS = 100, 32
"""How many run at once in each process, unless another number suits a contender better."""
SUITS = {PROCRASTINATE: 20, USUAL: 10}
"""Of 5 to 100 what these two were fastest with."""
WARM = 300
PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Contest:
    """What all contenders of one comparison share: the servers, and how many jobs a round has."""

    place: Place
    count: int
    warm: int

    def of(self, name: str, database: int) -> "Contest":
        """The same in a Redis database of its own, with as many jobs at once as suit the contender."""
        url = self.place.redis_url
        url += f"{'&' if '?' in url else '?'}db={database}"
        return replace(self, place=replace(self.place, redis_url=url, jobs=SUITS.get(name, self.place.jobs)))


async def measure(size: Size) -> Report:
    """The three questions, on the same servers."""
    report = Report("jobs")
    warm = size.of(WARM, 20)
    async with servers() as settings, answering() as server:
        noop = Contest(place_of(settings, NOOP_JOBS), size.of(4000, 100), warm)
        whole = Contest(place_of(settings, WHOLE_JOBS, f"{server.url}/jobs"), size.of(2500, 100), warm)
        await compare_queues(report, noop, size)
        await compare_whole_jobs(report, whole, server, size)
    return report


def place_of(settings: Settings, jobs: int, target: str = "") -> Place:
    """Where everything runs."""
    assert settings.database_url is not None
    assert settings.redis_url is not None
    return Place(
        settings.database_url.get_secret_value(), settings.redis_url.get_secret_value(), jobs, target
    )


async def compare_queues(report: Report, contest: Contest, size: Size) -> None:
    """Jobs that do nothing: what is measured is all that is around them."""
    compared = ours(contest)
    if size.peers:
        from bench.queues import procrastinate_queue

        await procrastinate_queue.prepare(contest.place)
        for number, (name, module) in enumerate(PEERS.items(), start=1):
            compared[name] = partial(of_a_peer, module, contest.of(name, number))
    figures = await alternate(compared, size.rounds)
    done = Comparison("jobs that do nothing", "a second", figures, PROCRASTINATE if size.peers else OURS)
    report.comparisons.append(done)
    if size.peers:
        report.goals.append(Goal("durable operation / procrastinate", done.ratio(OURS), 1, 2))
    report.notes.append(
        f"{contest.count:,} jobs a round, {contest.place.jobs} at once in a process, "
        f"of procrastinate {SUITS[PROCRASTINATE]}."
    )
    note_two(report, "nothing", figures)


async def compare_whole_jobs(report: Report, contest: Contest, server: Server, size: Size) -> None:
    """A job that sends a POST to another process; its end is stored."""
    before = await server.count()
    compared = ours(contest)
    if size.peers:
        compared[USUAL] = partial(of_a_peer, "arq_and_orm", contest.of(USUAL, 9))
    figures = await alternate(compared, size.rounds)
    sent, expected = (
        await server.count() - before,
        len(compared) * size.rounds * (contest.count + contest.warm),
    )
    if sent != expected:
        raise SystemExit(f"the server was asked {sent} times by {expected} jobs: nothing was measured")
    done = Comparison("jobs with one POST", "a second", figures, USUAL if size.peers else OURS)
    report.comparisons.append(done)
    if size.peers:
        report.goals.append(Goal("whole job / arq + httpx + ORM", done.ratio(OURS), 1.5, 3.5))
    two = replace(done, beside=OURS).ratio(OURS_TWICE)
    report.goals.append(Goal("whole jobs of two workers / of one", two, 1.3, 1.6))
    report.notes.append(f"{sent:,} jobs sent as many POSTs, and the server answered each once.")


def note_two(report: Report, what: str, figures: Mapping[str, list[float]]) -> None:
    """How two processes stand to one where the goal is not judged."""
    ratio = Comparison("", "", dict(figures), OURS).ratio(OURS_TWICE)
    report.notes.append(f"Two workers do {ratio:.2f} times what one does, if the jobs do {what}.")


def ours(contest: Contest) -> dict[str, Once]:
    """One worker process of the product, and two."""
    return {
        OURS: partial(of_the_product, contest, processes=1),
        OURS_TWICE: partial(of_the_product, contest, processes=2),
    }


async def of_a_peer(module: str, contest: Contest) -> float:
    """One round; where ends are stored, all have to be."""
    queue: Any = importlib.import_module(f"bench.queues.{module}")
    place, stores = contest.place, hasattr(queue, "finished")
    already = await stored(queue, place) if stores else 0
    async with working(module, contest) as worker:
        await queue.enqueue(place, contest.warm)
        await worker.done()
        began = time.perf_counter()
        await queue.enqueue(place, contest.count)
        await worker.done()
        if stores:
            all_of_them = already + contest.warm + contest.count
            await eventually(
                partial(queue.finished, place), until=all_of_them.__eq__, within=PATIENCE, every=0.01
            )
        return contest.count / (time.perf_counter() - began)


async def stored(queue: Any, place: Place) -> int:
    """How many ends there are already; none where nobody has asked for a job yet."""
    with contextlib.suppress(asyncpg.UndefinedTableError):
        return int(await queue.finished(place))
    return 0


async def of_the_product(contest: Contest, *, processes: int) -> float:
    """One round; every operation has to be SUCCEEDED, at its first attempt."""
    already = await product.finished(contest.place)
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(connected(make_url(contest.place.database_url)))
        for _ in range(processes):
            await stack.enter_async_context(working("product", contest))
        await drained(connection, contest.place, contest.warm)
        began = time.perf_counter()
        await drained(connection, contest.place, contest.count)
        seconds = time.perf_counter() - began
    done = await product.finished(contest.place) - already
    if done != contest.warm + contest.count:
        raise SystemExit(f"{done} operations succeeded at once of {contest.warm + contest.count}")
    return contest.count / seconds


async def drained(connection: asyncpg.Connection, place: Place, number: int) -> None:
    """So many operations, from their being asked for to their end."""
    await product.enqueue(place, number)
    await eventually(partial(product.all_ended, connection), within=PATIENCE, every=0.01)


@dataclass(frozen=True, slots=True)
class Worker:
    """A process, and what it has said."""

    process: asyncio.subprocess.Process
    log: IO[bytes]

    async def done(self) -> None:
        """Until it has told that the next number of jobs is done."""
        assert self.process.stdout is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                async for line in self.process.stdout:
                    if line == b"done\n":
                        return
        raise SystemExit(f"the worker did not do its jobs:\n{self.said()}")

    def said(self) -> str:
        """The end of its log."""
        self.log.seek(0)
        return self.log.read().decode()[-4000:]


@asynccontextmanager
async def working(module: str, contest: Contest) -> AsyncIterator[Worker]:
    """A worker that ends with the block."""
    given = (json.dumps(asdict(contest.place)), json.dumps([contest.warm, contest.count]))
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.queues", module, *given),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
        worker = Worker(process, log)
        try:
            yield worker
        except AssertionError as error:
            raise SystemExit(f"{error}; the worker said:\n{worker.said()}") from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
                await process.wait()
