# SPDX-License-Identifier: Apache-2.0
"""The jobs that carry a rollout out: push a lane, measure it, take it back. No rule lives here."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action, Assignment, Capability, Connector, DeviceReport
from app.connectors.packages import why_it_stays
from app.connectors.sources import PACKAGE_SOURCE
from app.domain import devices, effects, lanes, leases, measurements, pushes, rollback
from app.domain.effects import Planned
from app.domain.measurements import Measurement
from app.domain.pushes import Held, Push
from app.domain.rollback import Removal
from app.models import EffectState, WayBack
from app.resilience.classify import DATABASE
from app.resilience.errors import AttemptTimeout, CallError, NotReady, Unsettled
from workers.context import Again, Done, Job, Outcome
from workers.effects import Permit, PutOff, announce, as_json, in_ledger, perform, settle
from workers.planes import connector_for
from workers.readings import read_all

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
    if not push.steps[Action.ASSIGN].done and not await read_members(job, connector, push):
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


async def save_checkpoint(job: Job, step: Planned, checkpoint: dict[str, object]) -> None:
    """Keep how far the upload is."""
    async with job.transaction() as session:
        await effects.progressed(session, step.id, checkpoint)


async def read_members(job: Job, connector: Connector, push: Push) -> bool:
    """Store the devices the target holds now, page by page; False when it is empty and the lane is closed."""
    async with job.transaction() as session:
        await devices.forget_members(session, push.lane_id)
    async for members in connector.members(push.target):
        async with job.transaction() as session:
            await devices.store_members(session, push.lane_id, members, now=job.runtime.clock())
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


async def with_baseline(job: Job, connector: Connector, step: Planned, assignment: Assignment) -> Assignment:
    """Keep, before it is sent, what a plane without markers needs to find it again after a lost answer."""
    if connector.manifest.can(Capability.MARKER) or step.done or step.baseline is not None:
        return assignment
    baseline = await connector.baseline(assignment)
    await save_checkpoint(job, step, {"previous_id": assignment.previous_id, "baseline": baseline})
    return replace(assignment, baseline=baseline)


async def measure_ring(job: Job) -> Outcome:
    """Read what every device reports, store it, judge the lane; again after the policy's interval."""
    lane_id = UUID(job.claimed.subject.id)
    async with job.transaction() as session:
        measurement = await measurements.begin_measure(session, lane_id)
    if measurement is None:
        return Done()
    try:
        told = await read_lane(job, measurement)
    except CallError as error:
        await wait_for_plane(job, lane_id, error)
        raise
    if not told:
        return Again(reason="there is more to read")
    async with job.transaction() as session:
        delay = await measurements.finish_measure(session, lane_id, now=job.runtime.clock())
        await leases.keep_checkpoint(session, job.claimed, None)
    return Done() if delay is None else Again(delay, "measured")


async def read_lane(job: Job, measurement: Measurement) -> bool:
    """Store what the lane's devices report; False: there is more, for the next run."""
    connector = connector_for(job, measurement.plane)

    async def store(session: AsyncSession, reports: Sequence[DeviceReport]) -> None:
        await measurements.store_reports(session, measurement.lane_id, reports, now=job.runtime.clock())

    return await read_all(job, connector, Action.ASSIGN, measurement.assignment, store)


async def execute_rollback(job: Job) -> Outcome:
    """Take one lane back and watch, at the policy's interval, until no device has the version any more."""
    lane_id, deployment_id = UUID(job.claimed.subject.id), job.claimed.deployment_id
    if deployment_id is None:
        raise ValueError(f"operation {job.claimed.id} has no deployment")
    async with job.transaction() as session:
        removal = await rollback.begin_removal(session, lane_id, job.claimed.id, deployment_id=deployment_id)
    if removal is None:
        return Done()
    if isinstance(removal, timedelta):
        return Again(removal, "a push of this lane is still running")
    try:
        return await take_back(job, connector_for(job, removal.plane), removal, deployment_id)
    except PutOff as put_off:
        return put_off.outcome


def removing(removal: Removal) -> Permit:
    """Nothing of a removal leaves while its rollback is paused, or once it is over."""

    async def permit(session: AsyncSession) -> Again | None:
        delay = await rollback.permit_removal(session, removal.deployment_id)
        return None if delay is None else Again(delay, "paused", parked=True)

    return permit


async def take_back(job: Job, connector: Connector, removal: Removal, deployment_id: UUID) -> Outcome:
    """Remove, watch, and withdraw the removal once nobody needs it."""
    removal = await name_devices(job, connector, removal)
    previous_id = await previous_version(job, connector, removal)
    removed = await remove(job, connector, removal, previous_id)
    told = await watch(job, connector, removal, removed)
    async with job.transaction() as session:
        progress = await rollback.weigh(
            session,
            removal.lane_id,
            deployment_id=deployment_id,
            removed_at=removed.made_at or job.runtime.clock(),
            told=told,
            now=job.runtime.clock(),
        )
        await leases.keep_checkpoint(session, job.claimed, None)
    if progress.delay is not None:
        return Again(progress.delay, "devices are still being taken back")
    if progress.all_answered:
        await unassign(job, connector, removal)
    async with job.transaction() as session:
        await rollback.finish_lane(
            session,
            removal.lane_id,
            progress,
            deployment_id=deployment_id,
            now=job.runtime.clock(),
        )
    return Done({"outcome": "rolled_back" if progress.complete else "incomplete"})


async def name_devices(job: Job, connector: Connector, removal: Removal) -> Removal:
    """The removal of just the devices that were touched, where the plane can name so many.

    Looks once more before anything leaves: a target's devices may have joined, and been served, since.
    """
    most = connector.manifest.names_devices
    if not most:
        return removal
    if removal.remove.state is EffectState.PLANNED and removal.made.external_id is not None:
        async for page in connector.status(Action.ASSIGN, removal.installed):
            async with job.transaction() as session:
                now = job.runtime.clock()
                await measurements.store_reports(session, removal.lane_id, page.reports, now=now)
    async with job.transaction() as session:
        named = await devices.named(session, removal.lane_id, most=most)
    return replace(removal, devices=named or None)


async def previous_version(job: Job, connector: Connector, removal: Removal) -> str | None:
    """The id of the version to return to: the ledger's, or one the plane still has; None: only remove.

    The choice is kept with the effect, so that a later run does not choose differently.
    """
    if removal.remove.checkpoint is not None or removal.remove.done:
        return removal.previous_id
    previous_id = removal.previous_id if connector.manifest.can(Capability.RETURN) else None
    if previous_id is None and removal.rollback_version is not None:
        previous_id = await connector.find_version(removal.app, removal.rollback_version)
    await save_checkpoint(job, removal.remove, {"previous_id": previous_id})
    return previous_id


async def remove(job: Job, connector: Connector, removal: Removal, previous_id: str | None) -> Assignment:
    """Uninstall from the ring's target, and require the previous version there; what was made, and when."""
    step = removal.remove
    assignment = await with_baseline(job, connector, step, removal.assignment(step, previous_id))
    made_id = await perform(
        job,
        step,
        permit=removing(removal),
        ask=lambda: connector.verify(Action.REMOVE, removal.app, assignment),
        send=lambda: connector.remove(assignment),
    )
    return replace(assignment, made_id=made_id, made_at=step.settled_at or job.runtime.clock())


async def watch(job: Job, connector: Connector, removal: Removal, removed: Assignment) -> bool:
    """Store what every device says of the version that goes, and of the one that comes back.

    False: the plane is not done, and tells nothing of any device before it is.
    """

    async def store(session: AsyncSession, reports: Sequence[DeviceReport]) -> None:
        await devices.store_removal(session, removal.lane_id, reports, now=job.runtime.clock())

    try:
        if not await read_all(job, connector, Action.REMOVE, removed, store):
            raise PutOff(Again(reason="there is more to read"))
    except NotReady:
        return False
    if removed.previous_id is not None:
        async for reports in connector.returned(removed):
            async with job.transaction() as session:
                await devices.store_return(session, removal.lane_id, reports, now=job.runtime.clock())
    return True


async def unassign(job: Job, connector: Connector, removal: Removal) -> None:
    """Withdraw the uninstallation once every device has answered: nothing we assigned stays behind."""
    assignment = removal.assignment(removal.unassign, None)

    async def send() -> None:
        await connector.unassign(assignment)

    await perform(
        job,
        removal.unassign,
        permit=removing(removal),
        ask=lambda: connector.verify(Action.UNASSIGN, removal.app, assignment),
        send=send,
    )
