# SPDX-License-Identifier: Apache-2.0
"""The jobs that compare planes with what was decided, and put back what was lost."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Self
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app import telemetry
from app.connectors.contract import Action as Change
from app.connectors.contract import Connector, Plane, ReportPage
from app.domain import comparison, drift, leases, repairs
from app.domain.comparison import NOBODY, Finding, Look, Lost
from app.domain.drift import Pace
from app.models.base import Json
from app.resilience import deadline
from app.resilience.classify import leaves
from app.resilience.errors import CallError, DeadlineExceeded, TransientError
from workers import failures, readings
from workers.context import Again, Done, Job, Outcome
from workers.effects import PutOff, perform, with_baseline
from workers.failures import Action
from workers.planes import connector_for
from workers.readings import Place

PAGE = 50
SPARE = 10.0
"""Seconds of a run that no look may use up: what became of it is still to be written down."""
LONGEST = timedelta(minutes=30)
"""How long the devices of one lane may be read, run after run, before others get their turn."""
log = telemetry.logger(__name__)


def pace_of(job: Job) -> Pace:
    """How patient this installation is."""
    settings = job.runtime.settings.reconciliation
    return Pace(timedelta(seconds=settings.apart), timedelta(seconds=settings.repair_after))


async def reconcile(job: Job) -> Outcome:
    """Look at every lane that is in force on a plane, once for each tick; with ``critical`` only at those.

    May be repeated: a lane that was looked at since the tick is not looked at again.
    """
    plane, tick = Plane(job.claimed.subject.id), datetime.fromisoformat(job.claimed.args["tick"])
    critical = bool(job.claimed.args.get("critical", False))
    looks = Looks(job, connector_for(job, plane), tick)
    async with job.transaction() as session:
        await drift.close_moot(session, plane, now=job.runtime.clock())
    while True:
        async with job.transaction() as session:
            found = await comparison.to_look_at(session, plane, since=tick, critical=critical, limit=PAGE)
        if not found:
            return Done({"outcome": "looked", "not_readable": looks.unread})
        for lane_id in found:
            if not await looks.at(lane_id) or job.out_of_time():
                return Again(timedelta(0), "there are more lanes")


@dataclass(frozen=True, slots=True)
class Reading:
    """How far the devices of one lane are read, and who has lost it so far."""

    what: str
    place: Place
    lost: Lost = NOBODY

    def to_json(self) -> Json:
        """As it is kept with the operation."""
        lost = {"number": self.lost.number, "examples": list(self.lost.examples)}
        return {"what": self.what, "place": self.place.to_json(), "lost": lost}

    @classmethod
    def of(cls, kept: Json) -> Self:
        """As it was kept."""
        lost = Lost(kept["lost"]["number"], tuple(kept["lost"]["examples"]))
        return cls(kept["what"], Place.of(kept["place"]), lost)


def time_for_one() -> float | None:
    """Seconds that a look may take now, so that what became of it can be written down."""
    left = deadline.remaining()
    return None if left is None else left - min(SPARE, left / 10)


class Looks:
    """One run's looks at the lanes of a plane, and how many lanes were ``read`` and ``unread`` for this tick.

    An error that says that the plane is away ends the run. Any other costs just the lane's own look.
    """

    def __init__(self, job: Job, connector: Connector, tick: datetime) -> None:
        kept = job.claimed.checkpoint or {}
        self._job, self._connector, self._tick = job, connector, tick
        self._kept: Json | None = kept.get("reading")
        self.read: int = kept.get("read", 0)
        self.unread: int = kept.get("unread", 0)
        self._begun, self._came_further = 0, False

    async def at(self, lane_id: UUID) -> bool:
        """Look at one lane, and write down how it differs; False: the next run goes on with it."""
        self._begun, self._came_further = self._begun + 1, False
        try:
            async with asyncio.timeout(time_for_one()):
                return await self._look(lane_id)
        except Exception as error:  # a bug too: other lanes are not to suffer from it
            verdict = failures.judge(error)
            if verdict.action in {Action.DEFER, Action.DROP}:
                await self._was_kept_away(lane_id, error)
                raise
            if verdict.failure.code == DeadlineExceeded.code and self._may_have_more_time:
                return False
            await self._not_readable(lane_id, error)
            return True

    @property
    def _may_have_more_time(self) -> bool:
        """Other lanes had some of this run's, or what was read is kept."""
        return self._begun > 1 or self._came_further

    async def _look(self, lane_id: UUID) -> bool:
        async with self._job.transaction() as session:
            look = await comparison.begin_look(session, lane_id)
        if look is None:
            return True
        findings = await self._differences(look)
        if findings is not None:
            self.read += 1
            await self._record(lane_id, findings)
        return findings is not None

    async def _differences(self, look: Look) -> list[Finding] | None:
        """What differs; of settled lanes also what their devices lost. None: there are more devices."""
        observed = await self._connector.observe(look.assignment)
        lost = await self._lost(look) if look.settled and observed.assigned else NOBODY
        return None if lost is None else comparison.weigh(look, observed, lost)

    async def _lost(self, look: Look) -> Lost | None:
        """Which devices lost it, from where an earlier run broke off; None: the time of this one is over."""
        reading = self._reading(look)
        async for page in self._connector.status(Change.ASSIGN, look.assignment, after=reading.place.mark):
            reading = await self._store(look, reading, page)
            if self._job.out_of_time() and self._came_further:
                return None
        return reading.lost

    def _reading(self, look: Look) -> Reading:
        """The one that broke off a short time ago, or a new one.

        Raises:
            TransientError: it goes on for so long that others wait too long for their turn.
        """
        now = self._job.runtime.clock()
        what = f"{look.lane_id} {readings.of(Change.ASSIGN, look.assignment)}"
        kept = None if self._kept is None else Reading.of(self._kept)
        if kept is None or kept.what != what or not kept.place.is_recent(now):
            return Reading(what, Place(now, now))
        if now - kept.place.began > LONGEST:
            detail = f"its devices could not be read within {LONGEST}"
            raise TransientError(detail, service=self._connector.manifest.plane.value)
        return kept

    async def _store(self, look: Look, reading: Reading, page: ReportPage) -> Reading:
        now = self._job.runtime.clock()
        async with self._job.transaction() as session:
            gone = await comparison.have_lost(session, look.lane_id, page.reports)
            place = replace(reading.place, at=now, mark=page.mark)
            read = replace(reading, place=place, lost=reading.lost.and_these(gone))
            if page.mark != reading.place.mark:
                await self._keep(session, read)
        self._came_further |= page.mark != reading.place.mark
        return read

    async def _keep(self, session: AsyncSession, reading: Reading | None) -> None:
        self._kept = None if reading is None else reading.to_json()
        kept = {"read": self.read, "unread": self.unread, "reading": self._kept}
        await leases.keep_checkpoint(session, self._job.claimed, kept)

    async def _record(self, lane_id: UUID, findings: Sequence[Finding]) -> None:
        async with self._job.transaction() as session:
            await drift.record(
                session,
                lane_id,
                findings,
                manifest=self._connector.manifest,
                pace=pace_of(self._job),
                tick=self._tick,
                now=self._job.runtime.clock(),
            )

    async def _was_kept_away(self, lane_id: UUID, error: Exception) -> None:
        """The lane whose own call made the breaker keep everybody away does not come first next time.

        If the plane has told of others for this tick, it is likely to be just that lane: it has had its look.
        """
        if not any(isinstance(leaf, CallError) and leaf.kept_away is not None for leaf in leaves(error)):
            return
        if self.read:
            await self._not_readable(lane_id, error)
            return
        async with self._job.transaction() as session:
            await drift.set_back(session, lane_id, tick=self._tick)

    async def _not_readable(self, lane_id: UUID, error: Exception) -> None:
        failure = failures.judge(error).failure
        told = {"lane_id": str(lane_id), "plane": self._connector.manifest.plane.value, "code": failure.code}
        if failure.code == failures.BUG:
            log.error("lane_not_readable", **told, exc_info=error)
        else:
            log.warning("lane_not_readable", **told, detail=failure.message)
        self.unread += 1
        async with self._job.transaction() as session:
            await drift.not_readable(session, lane_id, tick=self._tick, now=self._job.runtime.clock())
            await self._keep(session, None)


async def repair_lane(job: Job) -> Outcome:
    """Assign once more what a plane has lost, as an effect of its own."""
    drift_id = UUID(job.claimed.subject.id)
    async with job.transaction() as session:
        repair = await repairs.begin(session, drift_id, job.claimed.id)
    if repair is None:
        return Done({"outcome": "not_wanted"})
    connector = connector_for(job, repair.plane)
    assignment = await with_baseline(job, connector, repair.step, repair.assignment)

    async def permit(session: AsyncSession) -> Again | None:
        held = await repairs.permit(session, drift_id, now=job.runtime.clock())
        return None if held is None else Again(held.delay, held.code, parked=True)

    try:
        await perform(
            job,
            repair.step,
            permit=permit,
            ask=lambda: connector.verify(Change.ASSIGN, assignment.app, assignment),
            send=lambda: connector.assign(assignment),
        )
    except PutOff as put_off:
        return put_off.outcome
    async with job.transaction() as session:
        await repairs.confirm(session, repair, now=job.runtime.clock())
    return Done({"outcome": "repaired"})
