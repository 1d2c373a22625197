# SPDX-License-Identifier: Apache-2.0
"""The jobs that compare planes with what was decided, and put back what was lost."""

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app import telemetry
from app.connectors.contract import Action, Connector, Plane
from app.domain import comparison, drift, repairs
from app.domain.comparison import Look
from app.domain.drift import Pace
from app.resilience.errors import PermanentError, PolicyError
from workers.context import Again, Done, Job, Outcome
from workers.deployments import with_baseline
from workers.effects import PutOff, perform
from workers.planes import connector_for

PAGE = 50
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
    connector = connector_for(job, plane)
    async with job.transaction() as session:
        await drift.close_moot(session, plane, now=job.runtime.clock())
    while True:
        async with job.transaction() as session:
            found = await comparison.to_look_at(session, plane, since=tick, critical=critical, limit=PAGE)
        if not found:
            return Done({"outcome": "looked"})
        for lane_id in found:
            await look_at(job, connector, lane_id, tick)
            if job.out_of_time():
                return Again(timedelta(0), "there are more lanes")


async def look_at(job: Job, connector: Connector, lane_id: UUID, tick: datetime) -> None:
    """Ask the plane about one lane, and write down how it differs. What cannot be read keeps nobody up."""
    async with job.transaction() as session:
        look = await comparison.begin_look(session, lane_id)
    if look is None:
        return
    try:
        findings = await differences(job, connector, look)
    except (PermanentError, PolicyError) as error:
        log.warning(
            "lane_not_readable", lane_id=str(lane_id), plane=connector.manifest.plane.value, code=error.code
        )
        async with job.transaction() as session:
            await drift.not_readable(session, lane_id, tick=tick, now=job.runtime.clock())
        return
    async with job.transaction() as session:
        await drift.record(
            session,
            lane_id,
            findings,
            manifest=connector.manifest,
            pace=pace_of(job),
            tick=tick,
            now=job.runtime.clock(),
        )


async def differences(job: Job, connector: Connector, look: Look) -> list[comparison.Finding]:
    """What the plane has otherwise than it was decided; of settled lanes also what their devices lost."""
    observed = await connector.observe(look.assignment)
    lost: list[tuple[str, str]] = []
    if look.settled and observed.assigned:
        async for page in connector.status(Action.ASSIGN, look.assignment):
            async with job.transaction() as session:
                lost += await comparison.have_lost(session, look.lane_id, page.reports)
    return comparison.weigh(look, observed, lost)


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
            ask=lambda: connector.verify(Action.ASSIGN, assignment.app, assignment),
            send=lambda: connector.assign(assignment),
        )
    except PutOff as put_off:
        return put_off.outcome
    async with job.transaction() as session:
        await repairs.confirm(session, repair, now=job.runtime.clock())
    return Done({"outcome": "repaired"})
