# SPDX-License-Identifier: Apache-2.0
"""Whole lives of a deployment: orders, jobs and outcomes, and between them outages, crashes and lost leases.

After each step the promises hold: nothing is lost, nothing is done twice, an outage fails no device, who lost
a lease writes nothing, and the events tell what is stored.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

import hypothesis
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import InstallState, Plane
from app.domain import (
    deployments,
    devices,
    dispatch,
    effects,
    lanes,
    leases,
    operations,
    outcomes,
    pushes,
    sweeping,
)
from app.domain.effects import Planned
from app.domain.leases import Claimed
from app.domain.operations import Failure
from app.domain.pushes import Push
from app.domain.sweeping import Times
from app.errors import ControlPlaneError, LeaseLost
from app.models import (
    Deployment,
    DeviceResult,
    DeviceState,
    Effect,
    EffectState,
    LaneStatus,
    Operation,
    OperationStatus,
    Promotion,
    Ring,
    RingDeployment,
)
from tests.domain.steps import measure
from tests.domain.test_operators import INTENTS, LIMITS, STEPS, check, members_of
from tests.factories import FACTORS, NOON, make_deployment

LEASE = timedelta(seconds=15)
AWAY = Failure("transient", "circuit_open", "intune is kept away from", "intune")
ERROR = {"class": "transient", "code": "circuit_open", "message": "away", "service": "intune"}
MONTH = timedelta(days=30)


@dataclass(slots=True)
class Life:
    """The runs that workers hold, those they have lost, and what the plane has done by the effects' keys."""

    held: list[Claimed] = field(default_factory=list)
    lost: list[Claimed] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    deaths: int = 0
    passed: timedelta = timedelta(0)
    """How much later the next step comes."""


Event = Callable[[AsyncSession, Deployment, datetime, Life], Awaitable[None]]


async def make_due(session: AsyncSession) -> None:
    await session.execute(text("UPDATE operations SET run_after = clock_timestamp() - interval '1 hour'"))


async def claim(session: AsyncSession, deployment: Deployment, _: datetime, life: Life) -> None:
    """A worker takes the first work that is open."""
    await make_due(session)
    for work in await operations.find(session, limit=50, deployment_id=deployment.id):
        if work.status in operations.OPEN:
            mine = await leases.claim(session, work.id, owner="worker", lease=LEASE)
            if mine is not None:
                life.held.append(mine)
            return


async def go_away(session: AsyncSession, deployment: Deployment, now: datetime, life: Life) -> None:
    """The plane of the work that is held is away: the lane waits, the work is put off."""
    del deployment
    if not life.held:
        return
    mine = life.held[-1]
    before = await operations.get(session, mine.id)
    attempt = before.attempt
    if before.subject_type == "lane":
        await lanes.wait_for_plane(session, UUID(before.subject_id), error=ERROR, now=now)
    ended = outcomes.operation_ended
    status = await leases.defer(session, mine, AWAY, delay=timedelta(seconds=2), ended=ended)
    life.held.pop()
    after = await operations.get(session, mine.id)
    if status is OperationStatus.WAITING:
        assert after.attempt == attempt - 1


async def crash(session: AsyncSession, deployment: Deployment, now: datetime, life: Life) -> None:
    """All workers are dead: their leases end, and another one's relay takes the work back."""
    del deployment, now
    await session.execute(
        text("UPDATE operations SET lease_until = now() - interval '1 hour' WHERE status = 'RUNNING'")
    )
    session.expire_all()
    await dispatch.reclaim(session)
    for operation_id in await dispatch.hopeless(session):
        await dispatch.give_up(session, operation_id, ended=outcomes.operation_ended)
    life.lost += life.held
    life.held.clear()


async def write_late(session: AsyncSession, deployment: Deployment, _: datetime, life: Life) -> None:
    """A worker that was thought dead wakes up and wants to write."""
    version = deployment.version
    for mine in life.lost:
        with pytest.raises(LeaseLost):
            await leases.hold(session, mine)
    assert (await deployments.get(session, deployment.id)).version == version


async def push(session: AsyncSession, deployment: Deployment, now: datetime, life: Life) -> None:
    """The lanes' pushes go on, as jobs do it: what is in doubt is not sent before the plane was asked."""
    async for lane, begun in pushes_begun(session, deployment, now):
        await devices.store_members(session, lane.id, members_of(lane, now), now=now)
        for step in begun.steps.values():
            if not step.done and not await carry_out(session, lane, step, now, life):
                break
        else:
            await pushes.confirm_push(session, lane.id, external_id="app-1", now=now)


async def pushes_begun(
    session: AsyncSession, deployment: Deployment, now: datetime
) -> AsyncIterator[tuple[RingDeployment, Push]]:
    """The lanes at whose push a worker could be: work that has ended is claimed by nobody."""
    for lane in deployment.lanes:
        if lane.operation_id is None or lane.pushed_at is not None:
            continue
        if (await operations.get(session, lane.operation_id)).status in operations.ENDED:
            continue
        begun = await pushes.begin_push(session, lane.id, lane.operation_id, now=now, limits=LIMITS)
        if isinstance(begun, Push):
            yield lane, begun


async def carry_out(
    session: AsyncSession, lane: RingDeployment, step: Planned, now: datetime, life: Life
) -> bool:
    """One effect of a push; False if it must not be sent yet."""
    if step.doubtful and step.absent_at is None:
        return False
    if await pushes.permit_push(session, lane.id, step.action, now=now, limits=LIMITS) is not None:
        return False
    assert step.key not in life.done, "done twice"
    hypothesis.event("sent again" if step.doubtful else "sent")
    assert lane.operation_id is not None
    await effects.sent(session, step.id, operation_id=lane.operation_id, now=now)
    life.done.add(step.key)
    await effects.confirmed(session, step.id, external_id="app-1", now=now)
    return True


async def die_after_sending(session: AsyncSession, deployment: Deployment, now: datetime, life: Life) -> None:
    """A push writes that it is about to publish, or assign, and is never heard of again.

    Every other time the plane got it.
    """
    async for lane, begun in pushes_begun(session, deployment, now):
        step = next((step for step in begun.steps.values() if not step.done), None)
        if step is None or step.doubtful:
            continue
        held = await pushes.permit_push(session, lane.id, step.action, now=now, limits=LIMITS)
        if held is None:
            assert lane.operation_id is not None
            await effects.sent(session, step.id, operation_id=lane.operation_id, now=now)
            life.deaths += 1
            if life.deaths % 2 == 0:
                life.done.add(step.key)
        return


async def ask_the_plane(session: AsyncSession, deployment: Deployment, now: datetime, life: Life) -> None:
    """What is in doubt turns out to be there, or not: then it may be sent again."""
    query = select(Effect).where(Effect.deployment_id == deployment.id, Effect.state.in_(effects.DOUBTFUL))
    for effect in (await session.scalars(query.order_by(Effect.id))).all():
        if effect.key in life.done:
            await effects.confirmed(session, effect.id, external_id="app-1", now=now)
        else:
            await effects.absent(session, effect.id, now=now)


async def away_for_a_month(session: AsyncSession, deployment: Deployment, now: datetime, life: Life) -> None:
    """The planes of all lanes that are measured go away, and come back with nothing new to tell.

    That costs no device which had not been silent for too long before.
    """
    life.passed = MONTH
    for lane in deployment.lanes:
        await measure(session, lane, InstallState.PENDING, now=now)
        failed = await failed_devices(session)
        if lane.status is LaneStatus.MEASURING:
            await lanes.wait_for_plane(session, lane.id, error=ERROR, now=now)
            await measure(session, lane, InstallState.PENDING, now=now + MONTH)
        assert await failed_devices(session) == failed


async def pass_by(session: AsyncSession, deployment: Deployment, now: datetime, life: Life) -> None:
    """Nobody does anything for longer than any state may last."""
    del session, deployment, now
    life.passed = 2 * MONTH


async def run_out(session: AsyncSession, deployment: Deployment, _: datetime, life: Life) -> None:
    """The deadlines of all work that waits pass."""
    del deployment, life
    past = "UPDATE operations SET deadline = now() - interval '1 hour' WHERE deadline IS NOT NULL"
    await session.execute(text(f"{past} AND status IN ('QUEUED', 'WAITING')"))
    session.expire_all()
    for operation_id in await dispatch.hopeless(session):
        await dispatch.give_up(session, operation_id, ended=outcomes.operation_ended)


async def sweep(session: AsyncSession, _: Deployment, now: datetime, life: Life) -> None:
    """A sweeper comes by."""
    del life
    times = Times(now=now, since=now - MONTH, abandoned=MONTH, lease=LEASE)
    for watch in sweeping.WATCHES:
        for each in await sweeping.aged(session, watch, times):
            await sweeping.move_on(session, watch, each, times)


OUTAGES: dict[str, Event] = {
    "push": push,
    "claim": claim,
    "the plane is away": go_away,
    "workers crash": crash,
    "a late write": write_late,
    "dies after sending": die_after_sending,
    "the plane is asked": ask_the_plane,
    "deadlines pass": run_out,
    "sweep": sweep,
}
PASSING: dict[str, Event] = {"away for a month": away_for_a_month, "time passes": pass_by}
AUTOMATIC = {
    "planes": (Plane.INTUNE,),
    "target_ring": Ring.LAB,
    "promotion": Promotion.AUTOMATIC,
    "risk_factors": FACTORS,
}
SENT_TWICE = ["dies after sending", "the plane is asked", "push", "all succeed"]
NOT_SENT_AGAIN = [
    "dies after sending",
    "the plane is asked",
    "push",
    "dies after sending",
    "push",
    "the plane is asked",
]
"""The plane had not got the first, and has got the second."""
LIKELY = (
    ["push", "all succeed", "claim", "workers crash"] * 3 + list(OUTAGES) * 2 + list(PASSING) + list(STEPS)
)


@settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    print_blob=True,
)
@example(AUTOMATIC, [(step, 1) for step in SENT_TWICE])
@example(AUTOMATIC, [(step, 1) for step in [*NOT_SENT_AGAIN, "push"]])
@given(INTENTS, st.lists(st.tuples(st.sampled_from(LIKELY), st.integers(0, 5)), min_size=5, max_size=30))
async def test_no_life_breaks_a_promise(
    session: AsyncSession, intent: dict[str, object], steps: list[tuple[str, int]]
) -> None:
    savepoint = await session.begin_nested()
    try:
        deployment_id = (await make_deployment(session, **intent)).id  # type: ignore[arg-type]
        now, life = NOON, Life()
        for name, seconds in steps:
            now += timedelta(seconds=seconds) + life.passed
            life.passed = timedelta(0)
            await live(session, await deployments.get(session, deployment_id), name, now, life)
            session.expire_all()
            await check(session, await deployments.get(session, deployment_id), now)
            await check_promises(session, life)
        hypothesis.event((await deployments.get(session, deployment_id)).status.value)
    finally:
        await savepoint.rollback()
        session.expunge_all()


async def live(session: AsyncSession, deployment: Deployment, name: str, now: datetime, life: Life) -> None:
    """One step; a refusal is the product's own, and leaves nothing behind. No outage fails a device."""
    deployment_id, version = deployment.id, deployment.version
    failed, done = await failed_devices(session), set(life.done)
    try:
        async with session.begin_nested():
            if name in OUTAGES:
                await OUTAGES[name](session, deployment, now, life)
                assert await failed_devices(session) == failed
            elif name in PASSING:
                await PASSING[name](session, deployment, now, life)
            else:
                await STEPS[name](session, deployment, now)
    except ControlPlaneError:
        life.done = done
        session.expire_all()
        assert (await deployments.get(session, deployment_id)).version == version


async def failed_devices(session: AsyncSession) -> int:
    query = select(func.count()).select_from(DeviceResult).where(DeviceResult.state == DeviceState.FAILED)
    return int(await session.scalar(query) or 0)


async def check_promises(session: AsyncSession, life: Life) -> None:
    """What holds of all work and of the ledger."""
    for work in await session.scalars(select(Operation)):
        assert work.attempt <= work.max_attempts
        assert (work.status is OperationStatus.RUNNING) == (work.lease_until is not None)
        assert work.status not in operations.ENDED or work.finished_at is not None
    for mine in life.held:
        held = await operations.get(session, mine.id)
        assert held.fence >= mine.fence
    query = select(Effect).order_by(Effect.id)
    for effect in await session.scalars(query):
        assert effect.state is EffectState.PLANNED or effect.sent_at is not None or effect.error is not None
