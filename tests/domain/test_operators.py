# SPDX-License-Identifier: Apache-2.0
"""Operators, jobs and devices in any order: every answer is legal, and what is stored stays consistent.

Each example is a deployment's life: commands of several operators mixed with what jobs would write.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import hypothesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import InstallState, Member, Plane
from app.domain import (
    approvals,
    blockers,
    board,
    commands,
    deployments,
    devices,
    effects,
    history,
    operations,
    outcomes,
    promotion,
    pushes,
    retries,
    rollback,
    rollout,
)
from app.domain.board import ExceptionGiven, Verdict
from app.domain.budgets import Limits
from app.domain.promotion import Override
from app.domain.pushes import Push
from app.domain.rollback import Progress
from app.errors import ControlPlaneError
from app.models import (
    Deployment,
    DeploymentStatus,
    Event,
    LaneStatus,
    Operation,
    Promotion,
    Ring,
    RingDeployment,
)
from tests.domain.steps import measure
from tests.factories import FACTORS, NOON, RISK_62, make_deployment, manifest

MANIFESTS = {plane: manifest(plane) for plane in (Plane.INTUNE, Plane.JAMF)}
LIMITS = Limits(unverified_devices=7)
YES = Verdict("fine", exception=ExceptionGiven("watched"))
Step = Callable[[AsyncSession, Deployment, datetime], Awaitable[object]]


async def push_all(session: AsyncSession, deployment: Deployment, now: datetime) -> None:
    """What push jobs write for every lane that has a push, as far as the guards let them."""
    for lane in deployment.lanes:
        if lane.operation_id is None or lane.pushed_at is not None:
            continue
        begun = await pushes.begin_push(session, lane.id, lane.operation_id, now=now, limits=LIMITS)
        if not isinstance(begun, Push):
            continue
        await devices.store_members(session, lane.id, members_of(lane, now), now=now)
        for action, step in begun.steps.items():
            if step.done:
                continue
            held = await pushes.permit_push(session, lane.id, action, now=now, limits=LIMITS)
            if held is not None:
                break
            await effects.sent(session, step.id, operation_id=lane.operation_id, now=now)
            await effects.confirmed(session, step.id, external_id="app-1", now=now)
        else:
            await pushes.confirm_push(session, lane.id, external_id="app-1", now=now)


def members_of(lane: RingDeployment, now: datetime) -> list[Member]:
    """Three devices of the lane's own."""
    names = [f"{lane.ring}-{lane.plane}-{number}" for number in range(3)]
    return [Member(name, name, now) for name in names]


def measuring(state: InstallState, share: int) -> Step:
    """What measuring jobs write when so many of three devices are in that state."""

    async def step(session: AsyncSession, deployment: Deployment, now: datetime) -> None:
        for lane in deployment.lanes:
            names = [f"{lane.ring}-{lane.plane}-{number}" for number in range(share)]
            await measure(session, lane, state, *names, now=now)

    return step


async def take_back(session: AsyncSession, deployment: Deployment, now: datetime) -> None:
    """What rollback jobs write for the lanes that are being taken back."""
    for lane in deployment.lanes:
        if lane.status is LaneStatus.ROLLING_BACK:
            done = Progress(None, complete=True)
            await rollback.finish_lane(session, lane.id, done, deployment_id=deployment.id, now=now)


async def cancel_work(session: AsyncSession, deployment: Deployment, _: datetime) -> None:
    """Somebody cancels the first operation that has not ended."""
    for work in await operations.find(session, limit=50, deployment_id=deployment.id):
        if work.status not in operations.ENDED:
            await operations.cancel(session, work.id, ended=outcomes.operation_ended)
            return


async def decide(session: AsyncSession, deployment: Deployment, now: datetime, *, yes: bool) -> None:
    request = await approvals.newest(session, deployment.id)
    if request is not None:
        order = board.approve if yes else board.reject
        await order(session, request.id, YES, actor="carol", now=now)


def ordering(command: Callable[..., Awaitable[object]], **given: object) -> Step:
    async def step(session: AsyncSession, deployment: Deployment, now: datetime) -> object:
        return await command(session, deployment.id, actor="bob", now=now, **given)

    return step


async def overrule(session: AsyncSession, deployment: Deployment, now: datetime) -> object:
    override = Override("known", now + timedelta(hours=1))
    return await promotion.promote(session, deployment.id, actor="dave", now=now, override=override)


STEPS: dict[str, Step] = {
    "push": push_all,
    "two of three succeed": measuring(InstallState.INSTALLED, 2),
    "all succeed": measuring(InstallState.INSTALLED, 3),
    "one fails": measuring(InstallState.FAILED, 1),
    "take back": take_back,
    "cancel work": cancel_work,
    "approve": lambda *given: decide(*given, yes=True),
    "reject": lambda *given: decide(*given, yes=False),
    "run out": lambda session, deployment, now: board.expire(session, deployment.id, now=now),
    "promote": ordering(promotion.promote, reason="go on"),
    "overrule": overrule,
    "pause": ordering(commands.pause),
    "resume": ordering(commands.resume),
    "cancel": ordering(commands.cancel),
    "roll back": ordering(rollback.begin),
    "retry": ordering(retries.retry, manifests=MANIFESTS, limits=LIMITS),
}
LIKELY = ["push", "all succeed"] * 4 + list(STEPS)
INTENTS = st.fixed_dictionaries(
    {
        "planes": st.sampled_from([(Plane.INTUNE,), (Plane.INTUNE, Plane.JAMF)]),
        "target_ring": st.sampled_from([Ring.LAB, Ring.CANARY, Ring.PILOT]),
        "promotion": st.sampled_from(Promotion),
        "risk_factors": st.sampled_from([FACTORS, RISK_62, FACTORS | {"sbom_vulnerability": 1.0}]),
    }
)


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    print_blob=True,
)
@given(INTENTS, st.lists(st.tuples(st.sampled_from(LIKELY), st.integers(0, 5)), min_size=4, max_size=25))
async def test_any_order_of_orders_and_outcomes_is_legal_and_tells_one_story(
    session: AsyncSession, intent: dict[str, object], steps: list[tuple[str, int]]
) -> None:
    savepoint = await session.begin_nested()
    try:
        deployment_id = (await make_deployment(session, **intent)).id  # type: ignore[arg-type]
        now = NOON
        for name, seconds in steps:
            now += timedelta(seconds=seconds)
            await attempt(session, await deployments.get(session, deployment_id), STEPS[name], now)
            await check(session, await deployments.get(session, deployment_id), now)
        hypothesis.event((await deployments.get(session, deployment_id)).status.value)
    finally:
        await savepoint.rollback()
        session.expunge_all()


async def attempt(session: AsyncSession, deployment: Deployment, step: Step, now: datetime) -> None:
    """One step; a refusal is one of the product's own, and leaves nothing behind."""
    deployment_id, version = deployment.id, deployment.version
    try:
        async with session.begin_nested():
            await step(session, deployment, now)
    except ControlPlaneError:
        session.expire_all()
        assert (await deployments.get(session, deployment_id)).version == version


async def check(session: AsyncSession, deployment: Deployment, now: datetime) -> None:
    """What holds at any moment."""
    told = list(
        await session.scalars(select(Event).filter_by(deployment_id=deployment.id).order_by(Event.sequence))
    )
    assert [event.sequence for event in told] == list(range(1, len(told) + 1))
    check_story(deployment, told)
    found = await blockers.of_deployment(session, deployment.id, now=now, limits=LIMITS)
    works = await moving(session, deployment)
    over = deployment.status in rollout.FINAL
    assert not (over and found)
    if not over and not works:
        assert found, (deployment.status, [lane.status for lane in deployment.lanes])
    if deployment.status is DeploymentStatus.AWAITING_CAB:
        assert found
    touched = await effects.touched_lanes(session, deployment.id)
    wide = {lane.id for lane in deployment.lanes if lane.position >= rollout.CAB_FROM}
    if deployment.requires_cab_approval and touched & wide:
        assert any(event.type == "approval.approved" for event in told)


def check_story(deployment: Deployment, told: list[Event]) -> None:
    """Folding the events gives what is stored, and each follows from what was told before it."""
    story = history.fold(told)

    assert story.broken_at is None
    assert story.differences(deployment) == []


WORKS_ON = {
    "deploy_to_connector": {LaneStatus.PENDING, LaneStatus.PUSHING, LaneStatus.WAITING_PLANE},
    "measure_ring": {LaneStatus.MEASURING, LaneStatus.WAITING_PLANE},
    "execute_rollback": {LaneStatus.ROLLING_BACK},
}
"""In which states of its lane work of each kind moves it."""


async def moving(session: AsyncSession, deployment: Deployment) -> bool:
    """Whether work that is due or running has something to do, so that something happens by itself."""
    query = select(Operation).where(
        Operation.deployment_id == deployment.id, Operation.status.not_in(operations.ENDED)
    )
    status = {str(lane.id): lane.status for lane in deployment.lanes}
    return any(
        status.get(work.subject_id) in WORKS_ON.get(work.kind, ()) for work in await session.scalars(query)
    )
