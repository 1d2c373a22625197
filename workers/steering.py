# SPDX-License-Identifier: Apache-2.0
"""The jobs behind operators' commands: withdraw what has not begun, try what failed once more."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action, Verified
from app.domain import pushes, retries, withdrawal
from workers.context import Again, Done, Job, Outcome
from workers.effects import PutOff, perform
from workers.planes import connector_for


async def withdraw_lane(job: Job) -> Outcome:
    """Keep devices of a lane that have not begun from beginning; what runs or is done stays as it is."""
    lane_id, deployment_id = UUID(job.claimed.subject.id), job.claimed.deployment_id
    if deployment_id is None:
        raise ValueError(f"operation {job.claimed.id} has no deployment")
    async with job.transaction() as session:
        asked = await withdrawal.begin(session, lane_id, job.claimed.id, deployment_id=deployment_id)
    if asked is None:
        return Done()
    if not isinstance(asked, withdrawal.Withdrawal):
        return Again(asked, "a push of this lane is still running")
    connector, assignment = connector_for(job, asked.plane), asked.assignment

    async def permit(session: AsyncSession) -> None:
        await withdrawal.permit(session, deployment_id)

    async def send() -> None:
        await connector.cancel(assignment)

    async def ask() -> Verified:
        return await connector.verify(Action.UNASSIGN, assignment.app, assignment)

    await perform(job, asked.step, permit=permit, ask=ask, send=send)
    async with job.transaction() as session:
        await withdrawal.finish(session, lane_id, deployment_id=deployment_id, now=job.runtime.clock())
    return Done({"outcome": "withdrawn"})


async def retry_devices(job: Job) -> Outcome:
    """Have the plane try the failed devices of a held lane again, then measure it anew."""
    lane_id = UUID(job.claimed.subject.id)
    async with job.transaction() as session:
        again = await retries.begin(session, lane_id, job.claimed.id)
    if again is None:
        return Done()
    connector = connector_for(job, again.plane)

    async def permit(session: AsyncSession) -> Again | None:
        held = await pushes.permit_push(
            session, lane_id, Action.ASSIGN, now=job.runtime.clock(), limits=job.runtime.limits
        )
        return None if held is None else Again(held.delay, held.code, parked=True)

    async def unknown() -> Verified:
        return Verified(holds=False)  # asked again it finds what it started, and starts nothing else

    async def send() -> str:
        return await connector.retry(again.assignment)

    try:
        await perform(job, again.step, permit=permit, ask=unknown, send=send)
    except PutOff as put_off:
        return put_off.outcome
    async with job.transaction() as session:
        await retries.confirm(session, lane_id, now=job.runtime.clock())
    return Done()
