# SPDX-License-Identifier: Apache-2.0
"""What jobs write while a deployment walks its rings, in the words of the tests."""

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import DeviceReport, InstallState, Member
from app.domain import deployments, devices, effects, measurements, pushes
from app.domain.effects import Planned
from app.domain.pushes import Push
from app.models import Deployment, Event, Ring, RingDeployment
from tests.factories import NOON

S = timedelta(seconds=1)


async def push(
    session: AsyncSession, lane: RingDeployment, *names: str, now: datetime = NOON, external_id: str = "app-1"
) -> None:
    """Everything a push job writes, for a target of these devices."""
    begun = await pushes.begin_push(session, lane.id, await operation_of(session, lane), now=now)
    assert isinstance(begun, Push)
    for step in begun.steps.values():
        if step.done:
            continue
        await carry_out(session, step, await operation_of(session, lane), external_id=external_id, now=now)
    await devices.store_members(session, lane.id, [Member(name, name, now) for name in names], now=now)
    if await pushes.targeted(session, lane.id, now=now):
        await pushes.confirm_push(session, lane.id, external_id=external_id, now=now)


async def carry_out(
    session: AsyncSession,
    step: Planned,
    operation_id: UUID,
    *,
    external_id: str | None = None,
    now: datetime = NOON,
) -> None:
    """What a job writes around a change that the plane makes."""
    await effects.sent(session, step.id, operation_id=operation_id, now=now)
    await effects.confirmed(session, step.id, external_id=external_id, now=now)


async def operation_of(session: AsyncSession, lane: RingDeployment) -> UUID:
    await session.refresh(lane)
    assert lane.operation_id is not None
    return lane.operation_id


async def measure(
    session: AsyncSession, lane: RingDeployment, state: InstallState, *names: str, now: datetime
) -> timedelta | None:
    """Everything a measuring job writes; when it would measure again."""
    if await measurements.begin_measure(session, lane.id) is None:
        return None
    reports = [DeviceReport(name, name, state) for name in names]
    await devices.store_reports(session, lane.id, reports, now=now)
    return await measurements.finish_measure(session, lane.id, read_since=now, now=now)


async def reload(session: AsyncSession, deployment: Deployment) -> Deployment:
    return await deployments.get(session, deployment.id)


async def event_types(session: AsyncSession, deployment: Deployment) -> list[str]:
    query = select(Event.type).filter_by(deployment_id=deployment.id).order_by(Event.sequence)
    return list(await session.scalars(query))


async def pass_ring(session: AsyncSession, deployment: Deployment, ring: Ring, now: datetime) -> None:
    """Push and promote every lane of a ring, with one device each."""
    for lane in deployments.ring_lanes(deployment, ring):
        await push(session, lane, f"{ring}-{lane.plane}", now=now)
        await measure(session, lane, InstallState.INSTALLED, f"{ring}-{lane.plane}", now=now + S)
        await measure(session, lane, InstallState.INSTALLED, now=now + 3 * S)
