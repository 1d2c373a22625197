# SPDX-License-Identifier: Apache-2.0
"""The jobs that carry a rollout out: push a lane, measure it. No rule lives here."""

from contextlib import aclosing
from datetime import timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action, Capability, Connector
from app.connectors.packages import why_it_stays
from app.connectors.sources import PACKAGE_SOURCE
from app.domain import devices, lanes, measurements, pushes
from app.domain.pushes import Held, Push
from app.models import EffectState, WayBack
from app.resilience.classify import DATABASE
from app.resilience.errors import AttemptTimeout, CallError, Unsettled
from workers.context import Again, Done, Job, Outcome
from workers.effects import (
    Permit,
    PutOff,
    announce,
    as_json,
    in_ledger,
    perform,
    save_checkpoint,
    settle,
    with_baseline,
)
from workers.planes import connector_for
from workers.readings import Readings, read_members

NOT_THE_PLANE = {PACKAGE_SOURCE, DATABASE}
"""The plane is well when the package is out of reach, or we are."""

SAVE_EVERY = timedelta(seconds=5)
"""How much of an upload a killed worker may have to send again."""


async def deploy_to_connector(job: Job) -> Outcome:
    """Push one lane: publish the application, upload its content, assign it to the ring's target.

    May be repeated: what the ledger has as confirmed is not sent again.
    """
    lane_id = UUID(job.claimed.subject.id)
    now, limits = job.runtime.clock(), job.runtime.limits
    async with job.transaction() as session:
        push = await pushes.begin_push(session, lane_id, job.claimed.id, now=now, limits=limits)
    if push is None:
        return Done()
    if isinstance(push, Held):
        return Again(push.delay, push.code, parked=True)
    try:
        return await push_lane(job, connector_for(job, push.plane), push)
    except PutOff as put_off:
        return put_off.outcome
    except CallError as error:
        await wait_for_plane(job, lane_id, error)
        raise


async def wait_for_plane(job: Job, lane_id: UUID, error: CallError) -> None:
    """Show the lane as waiting, if it is the plane it waits for; the work is deferred by others."""
    if not error.defers or isinstance(error, Unsettled) or error.service in NOT_THE_PLANE:
        return
    async with job.transaction() as session:
        await lanes.wait_for_plane(session, lane_id, error=as_json(error), now=job.runtime.clock())


async def push_lane(job: Job, connector: Connector, push: Push) -> Outcome:
    """Take the steps that are left, in order; ``Again`` when an upload needs another run."""
    if push.waits:
        await find_back(job, connector, push)
    external_id = await publish(job, connector, push)
    if not await upload(job, connector, push, external_id):
        return Again(timedelta(0), "the upload goes on")
    await find_way_back(job, connector, push)
    if not push.steps[Action.ASSIGN].done and not await read_target(job, connector, push):
        return Done({"outcome": "empty_target"})
    await assign(job, connector, push, external_id)
    async with job.transaction() as session:
        await pushes.confirm_push(session, push.lane_id, external_id=external_id, now=job.runtime.clock())
    return Done({"external_id": external_id})


def pushing(job: Job, push: Push, action: Action) -> Permit:
    """Nothing of a push leaves while a guard holds it, or once its deployment failed or is taken back."""

    async def permit(session: AsyncSession) -> Again | None:
        now, limits = job.runtime.clock(), job.runtime.limits
        held = await pushes.permit_push(session, push.lane_id, action, now=now, limits=limits)
        return None if held is None else Again(held.delay, held.code, parked=True)

    return permit


async def find_way_back(job: Job, connector: Connector, push: Push) -> None:
    """Find out, before a device of a ring is touched, how the plane could take this back.

    A way to remove it is known from the start; the version before may go from the plane at any time.
    """
    known = push.way_back is not None and push.rollback_version is None
    if known or push.steps[Action.ASSIGN].state is not EffectState.PLANNED:
        return
    previous_id = push.ledger_version if connector.manifest.can(Capability.RETURN) else None
    if previous_id is None and push.rollback_version is not None:
        previous_id = await connector.find_version(push.app_for(Action.ASSIGN), push.rollback_version)
    removable = why_it_stays(push.app.package) is None
    found = WayBack.RETURN if previous_id else WayBack.REMOVE if removable else WayBack.NONE
    async with job.transaction() as session:
        await pushes.keep_way_back(session, push, found, now=job.runtime.clock())


async def find_back(job: Job, connector: Connector, push: Push) -> None:
    """Ask a plane that was away whether it is back, before anything is sent to it."""
    await connector.check()
    async with job.transaction() as session:
        await pushes.resume_push(session, push.lane_id, now=job.runtime.clock())


async def publish(job: Job, connector: Connector, push: Push) -> str:
    """Find or create the application; the vendor's id."""
    app = push.app_for(Action.PUBLISH)
    external_id = await perform(
        job,
        push.steps[Action.PUBLISH],
        permit=pushing(job, push, Action.PUBLISH),
        ask=lambda: connector.verify(Action.PUBLISH, app, None),
        send=lambda: connector.publish(app),
    )
    return str(external_id)


async def upload(job: Job, connector: Connector, push: Push, external_id: str) -> bool:
    """Send the content from where the last run stopped; False when the time was up before it was all there.

    Raises:
        AttemptTimeout: the time was up and nothing had been sent.
    """
    step = push.steps[Action.UPLOAD]
    if step.done:
        return True
    await announce(job, step, pushing(job, push, Action.UPLOAD))
    async with in_ledger(job, step):
        finished = await send_content(job, connector, push, external_id)
    if finished:
        await settle(job, step, external_id)
    return finished


async def send_content(job: Job, connector: Connector, push: Push, external_id: str) -> bool:
    """Drive the connector's upload, keeping its checkpoints, until it is done or at the soft limit."""
    step, saved_at, first = push.steps[Action.UPLOAD], job.runtime.clock(), None
    progress = connector.upload(push.app_for(Action.UPLOAD), external_id, step.checkpoint)
    async with aclosing(progress):
        async for now_at in progress:
            if now_at.done:
                return True
            first = first or now_at
            if job.out_of_time() or job.runtime.clock() - saved_at >= SAVE_EVERY:
                await save_checkpoint(job, step, dict(now_at.checkpoint))
                saved_at = job.runtime.clock()
            if job.out_of_time() and now_at.checkpoint == first.checkpoint == step.checkpoint:
                raise AttemptTimeout("no part of the upload was done in time", service=push.plane.value)
            if job.out_of_time():
                return False
    return True


async def read_target(job: Job, connector: Connector, push: Push) -> bool:
    """Store the devices the target holds now, page by page; False when it is empty and the lane is closed."""
    async with job.transaction() as session:
        await devices.forget_members(session, push.lane_id)
    await read_members(job, connector, push.lane_id, push.target)
    async with job.transaction() as session:
        return await pushes.targeted(session, push.lane_id, now=job.runtime.clock())


async def assign(job: Job, connector: Connector, push: Push, external_id: str) -> None:
    """Require the application on the ring's target."""
    step, app = push.steps[Action.ASSIGN], push.app_for(Action.ASSIGN)
    assignment = await with_baseline(job, connector, step, push.assignment(external_id))
    await perform(
        job,
        step,
        permit=pushing(job, push, Action.ASSIGN),
        ask=lambda: connector.verify(Action.ASSIGN, app, assignment),
        send=lambda: connector.assign(assignment),
    )


async def measure_ring(job: Job) -> Outcome:
    """Read what every device reports, store it, judge the lane; again after the policy's interval."""
    lane_id = UUID(job.claimed.subject.id)
    async with job.transaction() as session:
        measurement = await measurements.begin_measure(session, lane_id)
    if measurement is None:
        return Done()
    readings = Readings(job)
    try:
        connector = connector_for(job, measurement.plane)
        since = await readings.read_status(connector, lane_id, measurement.assignment)
    except CallError as error:
        await wait_for_plane(job, lane_id, error)
        raise
    if since is None:
        return Again(reason="there is more to read")
    async with job.transaction() as session:
        now = job.runtime.clock()
        delay = await measurements.finish_measure(session, lane_id, read_since=since, now=now)
        await readings.end(session)
    return Done() if delay is None else Again(delay, "measured")
