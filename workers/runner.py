# SPDX-License-Identifier: Apache-2.0
"""What happens around every job: claim, lease, heartbeat, limits, and the outcome written under the fence.

Nothing is ever raised into the queue's library: the row in PostgreSQL says what happened and what comes next.
"""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app import telemetry
from app.clock import awake
from app.domain import leases
from app.domain.leases import Beat, Claimed
from app.domain.operations import KINDS, Ended, Failure, Kind, OperationKind
from app.errors import LeaseLost
from app.models import OperationStatus
from app.resilience import deadline, fence
from app.runtime import Runtime
from workers import failures
from workers.claims import Claims
from workers.context import Again, CancelRequested, Done, Job, JobFunction, Outcome
from workers.failures import Action, Verdict
from workers.successes import Successes
from workers.watchdog import Watchdog

LAST_MOMENTS = 2.0
"""Seconds before the hard limit at which calls and statements end, so that the outcome can be written."""
FIRST_BEAT = 0.5
"""Seconds after which the first heartbeat shows that the work did not kill its process at once."""
LEASE_TRUST = 0.9
"""Part of a lease after which, without a heartbeat that came through, the work stops by itself."""

T = TypeVar("T")
log = telemetry.logger(__name__)


class Stop(StrEnum):
    """Why a run was stopped from outside."""

    LOST = "lost"
    CANCEL = "cancel"
    SHUTDOWN = "shutdown"
    HARD_LIMIT = "hard_limit"


Ending = Outcome | Verdict | Stop


def owner_name() -> str:
    """Who holds the leases of this process: host, process and a part that no other process will have."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


class Runner:
    """Runs operations for one process, and gives them back when the process ends."""

    def __init__(
        self,
        runtime: Runtime,
        jobs: Mapping[OperationKind, JobFunction],
        *,
        ended: Ended,
        watchdog: Watchdog,
        kinds: Mapping[OperationKind, Kind] = KINDS,
    ) -> None:
        self.runtime = runtime
        self.jobs = jobs
        self.kinds = kinds
        self.ended = ended
        self.watchdog = watchdog
        self.owner = owner_name()
        self.successes = Successes(runtime)
        self._claims = Claims(runtime, self.owner)
        self._runs: dict[asyncio.Task[Any], Run | None] = {}
        self._stopping = False

    @property
    def running(self) -> int:
        """How many operations are being worked on, or claimed, right now."""
        return len(self._runs)

    async def deliver(self, _: object, operation_id: str) -> None:
        """The function behind every name in the queue.

        The work outlives a cancelled caller: the queue may be lost, what was claimed is not.
        """
        await asyncio.shield(self._begin(self._run(operation_id)))

    def take(self, operation_ids: Sequence[UUID]) -> "asyncio.Task[list[asyncio.Task[None]]]":
        """Claim them together and begin to work; the runs. What could not be claimed so is tried alone."""
        return self._begin(self._take(operation_ids))

    async def _take(self, operation_ids: Sequence[UUID]) -> list[asyncio.Task[None]]:
        ids = list(dict.fromkeys(operation_ids))
        if self._stopping:
            await self._claims.leave_to_others(ids)
            return []
        asked = awake()
        try:
            claimed = await self._claims.together(ids)
        except Exception as error:  # noqa: BLE001 - each is tried alone, and hears what is the matter
            log.warning("not_claimed_together", operations=len(ids), error=repr(error))
            claimed = {}
        runs = [self._begin(self._attend(each, asked)) for each in claimed.values()]
        return runs + [self._begin(self._run(str(each))) for each in ids if each not in claimed]

    def _begin(self, run: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that ``stop`` waits for."""
        task = asyncio.create_task(run)
        self._runs[task] = None
        task.add_done_callback(self._runs.pop)
        return task

    async def stop(self, wait: float) -> None:
        """Claim nothing more, let what runs finish within ``wait`` seconds, give back the rest."""
        self._stopping = True
        await self._idle(wait)
        for run in self._runs.values():
            if run is not None:
                run.stop(Stop.SHUTDOWN)
        await self._idle(self.runtime.settings.worker.grace * 2)
        for task in self._runs:
            task.cancel()

    async def _idle(self, within: float) -> None:
        """Until nothing is claimed and nothing runs: what is being claimed makes new runs."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self._runs:
                    await asyncio.wait(self._runs)

    async def _run(self, operation_id: str) -> None:
        asked = awake()
        try:
            claimed = None if self._stopping else await self._claims.one(UUID(operation_id))
        except Exception as error:  # noqa: BLE001 - whatever it was: nothing is claimed, so it is rung for again
            log.warning("claim_failed", operation_id=operation_id, error=repr(error))
            return
        if claimed is not None:
            await self._attend(claimed, asked)

    async def _attend(self, claimed: Claimed, asked: float) -> None:
        operation_id = str(claimed.id)
        with telemetry.correlated(claimed.correlation_id, operation_id=operation_id, kind=claimed.kind.value):
            run = Run(self, claimed, asked)
            task = asyncio.current_task()
            if task is not None:
                self._runs[task] = run
            await run.attend()


class Run:
    """One run of one operation: the job's task, its lease, and what stopped it."""

    def __init__(self, runner: Runner, claimed: Claimed, asked: float) -> None:
        self.runner = runner
        self.runtime = runner.runtime
        self.limits = runner.runtime.settings.worker
        self.kind = runner.kinds[claimed.kind]
        self.claimed = claimed
        self.began = time.monotonic()
        self.renewed = asked
        self.hard_limit = self.kind.hard_limit.total_seconds()
        self._stopped: asyncio.Future[Stop] = asyncio.get_running_loop().create_future()
        self._keeping: asyncio.Task[None] | None = None

    def stop(self, reason: Stop) -> None:
        """Have the job cancelled; the first reason counts."""
        if not self._stopped.done():
            self._stopped.set_result(reason)

    def holds(self) -> bool:
        """Whether the lease lasts for certain: renewed not long ago, by a clock that never stands still."""
        return awake() - self.renewed < self.limits.lease * LEASE_TRUST

    async def attend(self) -> None:
        """Do the job and write down what became of it."""
        self._say("operation_started", fence=self.claimed.fence)
        telemetry.operations_running.inc()
        work = asyncio.create_task(self._work())
        self._have_watched(work)
        first = min(FIRST_BEAT, self.limits.heartbeat)
        # Not a task yet: short work needs none.
        beating = asyncio.get_running_loop().call_later(first, self._begin_to_beat)
        try:
            outcome = await self._record(await self._ending(work))
            self._tell(outcome)
        except Exception:
            log.exception("outcome_not_written")  # the lease ends, and a relay takes it from there
        finally:
            telemetry.operations_running.dec()
            beating.cancel()
            if self._keeping is not None:
                self._keeping.cancel()
            work.cancel()

    def _have_watched(self, work: "asyncio.Task[Ending]") -> None:
        """As long as the job runs, whatever became of its operation."""
        watchdog, claimed = self.runner.watchdog, self.claimed
        watchdog.watch(
            work,
            self.began + self.hard_limit,
            operation_id=str(claimed.id),
            kind=claimed.kind.value,
            correlation_id=str(claimed.correlation_id),
        )
        work.add_done_callback(watchdog.release)

    def _tell(self, outcome: str) -> None:
        seconds = time.monotonic() - self.began
        telemetry.operations_ended.labels(self.claimed.kind.value, outcome).inc()
        telemetry.operation_seconds.labels(self.claimed.kind.value).observe(seconds)
        self._say("operation_left", outcome=outcome, seconds=round(seconds, 3))

    def _say(self, event: str, **facts: str | float) -> None:
        """To the log, the short way: these two lines are written for each run."""
        claimed = self.claimed
        told = {"operation_id": str(claimed.id), "kind": claimed.kind.value, "attempt": claimed.attempt}
        telemetry.tell(event, logger=__name__, **told, **facts)

    async def _work(self) -> Ending:
        job = Job(self.runtime, self.claimed, self.began + self.kind.soft_limit.total_seconds())
        margin = min(LAST_MOMENTS, self.hard_limit / 10)
        try:
            with deadline.within(self.began + self.hard_limit - margin), fence.behind(self.holds):
                outcome = await self.runner.jobs[self.claimed.kind](job)
        except asyncio.CancelledError:
            raise
        except CancelRequested:
            return Stop.CANCEL
        except BaseException as error:  # noqa: BLE001 - SystemExit too: one job must not end its neighbours
            return self._judge(error)
        if not isinstance(outcome, Done | Again):
            return self._judge(TypeError(f"the job answered {type(outcome).__name__}, not Done or Again"))
        return outcome

    def _judge(self, error: BaseException) -> Verdict:
        last_code = (self.claimed.last_error or {}).get("code")
        verdict = failures.judge(error, last_code=last_code)
        if verdict.failure.code == failures.BUG:
            log.error("job_failed_unexpectedly", exc_info=error)
        elif verdict.action is not Action.DROP:
            failure, attempt = verdict.failure.to_json(), self.claimed.attempt
            log.warning("job_failed", action=verdict.action.name.lower(), attempt=attempt, **failure)
        return verdict

    async def _ending(self, work: asyncio.Task[Ending]) -> Ending:
        """How the job ended. One that ignores being stopped keeps its operation: nobody else may begin it.

        It is waited for until it ends by itself, or the watchdog ends the process.
        """
        either: set[asyncio.Future[Any]] = {work, self._stopped}
        await asyncio.wait(either, timeout=self.hard_limit, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            self.stop(Stop.HARD_LIMIT)
            self.runner.watchdog.hasten(work, time.monotonic() + self.limits.grace)
            work.cancel()
            await asyncio.wait({work}, timeout=self.limits.grace)
        if not work.done():
            log.error("job_ignores_cancellation", reason=self._stopped.result())
            await self._accuse()
            if self._stopped.result() is Stop.LOST:
                return Stop.LOST
            await asyncio.wait({work})
        if not work.cancelled():
            ending = work.result()
            # An error that came out of being stopped says nothing about the work.
            return self._stopped.result() if self._stopped.done() and isinstance(ending, Verdict) else ending
        if self._stopped.done():
            return self._stopped.result()
        return self._judge(RuntimeError("the job was cancelled from inside"))

    async def _accuse(self) -> None:
        """The watchdog will end this process because of the job: nobody is to take it for a bystander."""
        try:
            async with self.runtime.autocommit(guarded=False) as connection:
                await leases.accuse(connection, self.claimed)
        except Exception as error:  # noqa: BLE001 - the process ends either way
            log.warning("not_accused", error=repr(error))

    def _begin_to_beat(self) -> None:
        self._keeping = asyncio.create_task(self._keep_lease())

    async def _keep_lease(self) -> None:
        while True:
            asked = awake()
            try:
                beat = await self._beat()
            except Exception as error:  # noqa: BLE001 - without an answer the lease ends, whatever the reason
                log.warning("heartbeat_failed", error=repr(error))
                if not self.holds():
                    return self.stop(Stop.LOST)
                await asyncio.sleep(min(1.0, self.limits.heartbeat))
                continue
            if beat is Beat.LOST:
                return self.stop(Stop.LOST)
            if beat is Beat.CANCEL:
                self.stop(Stop.CANCEL)  # the lease is kept until the job has ended
            self.renewed = asked
            await asyncio.sleep(self.limits.heartbeat)

    async def _beat(self) -> Beat:
        lease = timedelta(seconds=self.limits.lease)
        async with (
            asyncio.timeout(self.limits.heartbeat),
            self.runtime.autocommit(guarded=False) as connection,
        ):
            well = not self._stopped.done()
            return await leases.heartbeat(connection, self.claimed, lease=lease, well=well)

    async def _record(self, ending: Ending) -> str:
        """Write the ending, trying for as long as the lease lasts; the word for it."""
        last_try = time.monotonic() + self.limits.lease
        while True:
            try:
                return await self._write(ending)
            except LeaseLost:
                log.warning("lease_lost")
                return Stop.LOST.value
            except Exception as error:
                verdict = failures.judge(error)
                if verdict.failure.code == failures.BUG:
                    if isinstance(ending, Verdict):
                        raise
                    ending = self._judge(error)  # a result that cannot be stored is the job's fault
                elif time.monotonic() > last_try:
                    raise
                else:
                    log.warning("outcome_not_written_yet", error=repr(error))
                    await asyncio.sleep(0.2)

    async def _write(self, ending: Ending) -> str:
        if isinstance(ending, Done):
            await self.runner.successes.write(self.claimed, ending.result)
            return OperationStatus.SUCCEEDED.value.lower()
        if ending is Stop.LOST or (isinstance(ending, Verdict) and ending.action is Action.DROP):
            return Stop.LOST.value
        async with self.runtime.transaction(guarded=False) as session:
            return (await self._write_unfinished(session, ending)).value.lower()

    async def _write_unfinished(self, session: AsyncSession, ending: Ending) -> OperationStatus:
        claimed, ended = self.claimed, self.runner.ended
        if isinstance(ending, Again):
            return await leases.again(session, claimed, delay=ending.delay, ended=ended, parked=ending.parked)
        if isinstance(ending, Verdict):
            return await self._write_verdict(session, ending)
        if ending is Stop.SHUTDOWN:
            return await leases.give_back(session, claimed, ended=ended)
        if ending is Stop.CANCEL:
            return await leases.finish_cancel(session, claimed, ended=ended)
        limit = f"stopped after {self.hard_limit:.0f} s, the limit of one run"
        delay = failures.retry_delay(claimed.attempt, unit=self.limits.backoff)
        return await leases.retry(
            session, claimed, Failure("transient", "deadline", limit), delay=delay, ended=ended
        )

    async def _write_verdict(self, session: AsyncSession, verdict: Verdict) -> OperationStatus:
        claimed, ended, unit = self.claimed, self.runner.ended, self.limits.backoff
        if verdict.action is Action.DEFER:
            failure = verdict.failure
            telemetry.operation_deferrals.labels(
                claimed.kind.value, failure.service or "", failure.code
            ).inc()
            delay = failures.deferral_delay(verdict, claimed.deferrals, unit=unit)
            return await leases.defer(session, claimed, verdict.failure, delay=delay, ended=ended)
        if verdict.action is Action.RETRY:
            delay = failures.retry_delay(claimed.attempt, unit=unit, retry_after=verdict.retry_after)
            return await leases.retry(session, claimed, verdict.failure, delay=delay, ended=ended)
        return await leases.fail(session, claimed, verdict.failure, ended=ended)
