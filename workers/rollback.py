# SPDX-License-Identifier: Apache-2.0
"""The job that takes one lane back: remove, watch, and withdraw the removal. No rule lives here."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action, Assignment, Capability, Connector, DeviceReport
from app.domain import devices, rollback
from app.domain.rollback import Removal
from app.models import EffectState
from app.resilience.errors import NotReady
from workers.context import Again, Done, Job, Outcome
from workers.effects import Permit, PutOff, perform, save_checkpoint, with_baseline
from workers.planes import connector_for
from workers.readings import Readings, of, read_members


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
    readings = Readings(job)
    await know_devices(job, connector, removal, readings)
    removal = await name_devices(job, connector, removal)
    previous_id = await previous_version(job, connector, removal)
    removed = await remove(job, connector, removal, previous_id)
    told = await watch(job, connector, removal, removed, readings)
    async with job.transaction() as session:
        progress = await rollback.weigh(
            session,
            removal.lane_id,
            deployment_id=deployment_id,
            removed_at=removed.made_at or job.runtime.clock(),
            told=told,
            now=job.runtime.clock(),
        )
        await readings.end(session)
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


def require_all(since: datetime | None) -> None:
    """What was read, or the rest of it in the next run.

    Raises:
        PutOff: there is more.
    """
    if since is None:
        raise PutOff(Again(reason="there is more to read"))


async def know_devices(job: Job, connector: Connector, removal: Removal, readings: Readings) -> None:
    """Look once more, before anything leaves, whom the removal is for.

    A target's devices may have joined, and been served, since; those of an old lane may have been forgotten,
    and nobody could tell when they have lost the version.
    """
    if removal.remove.state is not EffectState.PLANNED or removal.made.external_id is None:
        return
    async with job.transaction() as session:
        known = await devices.count_members(session, removal.lane_id)
    if not known:
        await read_members(job, connector, removal.lane_id, removal.target, late=True)
    elif known > connector.manifest.names_devices:
        return
    require_all(await readings.read_status(connector, removal.lane_id, removal.installed))


async def name_devices(job: Job, connector: Connector, removal: Removal) -> Removal:
    """The removal of just the devices that were touched, where the plane can name so many."""
    most = connector.manifest.names_devices
    if not most:
        return removal
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


async def watch(
    job: Job, connector: Connector, removal: Removal, removed: Assignment, readings: Readings
) -> bool:
    """Store what every device says of the version that goes, and of the one that comes back.

    False: the plane is not done, and tells nothing of any device before it is.
    """

    async def store_removal(session: AsyncSession, reports: Sequence[DeviceReport]) -> None:
        await devices.store_removal(session, removal.lane_id, reports, now=job.runtime.clock())

    async def store_return(session: AsyncSession, reports: Sequence[DeviceReport]) -> None:
        await devices.store_return(session, removal.lane_id, reports, now=job.runtime.clock())

    try:
        pages = partial(connector.status, Action.REMOVE, removed)
        require_all(await readings.read(of(Action.REMOVE, removed), pages, store_removal))
    except NotReady:
        return False
    if removed.previous_id is not None:
        back = f"return {removed.previous_id}"
        require_all(await readings.read(back, partial(connector.returned, removed), store_return))
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
