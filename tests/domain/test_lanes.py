# SPDX-License-Identifier: Apache-2.0
"""Lanes: pushed, measured, judged; and what that makes of their deployment."""

from datetime import timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import InstallState, Plane, Target, TargetKind
from app.domain import deployments, lanes, measurements, promotion, pushes
from app.domain.facts import Code
from app.domain.intents import GateNumbers
from app.domain.policies import STANDARD
from app.domain.promotion import Override
from app.domain.pushes import Push
from app.errors import IllegalTransition, Invalid
from app.models import (
    DeploymentStatus,
    Event,
    LaneStatus,
    Promotion,
    Ring,
    new_id,
)
from tests.domain.steps import S, event_types, measure, operation_of, pass_ring, push, reload
from tests.factories import NOON, make_deployment


async def test_a_healthy_deployment_walks_its_rings_to_the_end(session: AsyncSession) -> None:
    deployment = await make_deployment(session)

    await pass_ring(session, deployment, Ring.LAB, NOON)
    await pass_ring(session, deployment, Ring.CANARY, NOON + 10 * S)

    done = await reload(session, deployment)
    assert done.status is DeploymentStatus.COMPLETED
    assert [lane.status for lane in done.lanes] == [LaneStatus.PROMOTED, LaneStatus.PROMOTED]
    assert await event_types(session, deployment) == [
        "deployment.submitted",
        "deployment.deploying",
        "lane.pushing",
        "lane.measuring",
        "lane.promoted",
        "ring.started",
        "lane.pushing",
        "lane.measuring",
        "lane.promoted",
        "deployment.completed",
    ]


async def test_the_version_rises_with_states_and_not_with_counters(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    lane = deployment.lanes[0]
    await push(session, lane, "a", "b")
    before = (await reload(session, deployment)).version

    await measure(session, lane, InstallState.INSTALLED, "a", now=NOON + S)

    assert (await reload(session, deployment)).version == before


async def test_a_lane_soaks_only_on_fresh_measurements(session: AsyncSession) -> None:
    deployment = await make_deployment(session, policy=STANDARD)
    lane = deployment.lanes[0]
    await push(session, lane, "a")

    await measure(session, lane, InstallState.INSTALLED, "a", now=NOON + timedelta(minutes=1))
    await measure(session, lane, InstallState.INSTALLED, "a", now=NOON + timedelta(hours=30))

    assert lane.soak_elapsed == timedelta(minutes=1) + 2 * STANDARD.measure_later
    assert lane.status is LaneStatus.MEASURING


async def test_a_lane_is_measured_every_minute_and_later_every_five(session: AsyncSession) -> None:
    deployment = await make_deployment(session, policy=STANDARD)
    lane = deployment.lanes[0]
    await push(session, lane, "a")

    early = await measure(session, lane, InstallState.PENDING, "a", now=NOON + timedelta(minutes=1))
    late = await measure(session, lane, InstallState.PENDING, "a", now=NOON + timedelta(hours=1))

    assert (early, late) == (timedelta(minutes=1), timedelta(minutes=5))


async def test_clocks_stand_still_while_the_plane_is_away(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    lane = deployment.lanes[0]
    await push(session, lane, "a")

    await lanes.wait_for_plane(session, lane.id, error={"code": "circuit_open"}, now=NOON + S)
    waiting = lane.status
    await measure(session, lane, InstallState.PENDING, "a", now=NOON + timedelta(hours=1))

    assert (waiting, lane.status) == (LaneStatus.WAITING_PLANE, LaneStatus.MEASURING)
    assert lane.waited == timedelta(hours=1) - S
    assert (lane.soak_elapsed, lane.failure_count, lane.unreachable_count) == (timedelta(0), 0, 0)


async def test_an_empty_target_is_its_own_outcome_and_pauses_the_deployment(session: AsyncSession) -> None:
    deployment = await make_deployment(session)

    await push(session, deployment.lanes[0])

    stopped = await reload(session, deployment)
    assert stopped.lanes[0].status is LaneStatus.EMPTY_TARGET
    assert (stopped.status, stopped.paused) == (DeploymentStatus.DEPLOYING, True)


async def test_an_empty_lane_is_skipped_when_another_lane_of_the_ring_has_devices(
    session: AsyncSession,
) -> None:
    deployment = await make_deployment(session, planes=(Plane.INTUNE, Plane.JAMF))
    empty, full = deployments.ring_lanes(deployment, Ring.LAB)

    await push(session, empty)
    await push(session, full, "a")
    await measure(session, full, InstallState.INSTALLED, "a", now=NOON + S)
    await measure(session, full, InstallState.INSTALLED, now=NOON + 3 * S)

    after = await reload(session, deployment)
    assert (after.paused, empty.status, full.status) == (False, LaneStatus.EMPTY_TARGET, LaneStatus.PROMOTED)
    assert all(lane.operation_id for lane in deployments.ring_lanes(after, Ring.CANARY))


async def test_promoting_an_empty_ring_needs_a_reason(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    await push(session, deployment.lanes[0])

    with pytest.raises(Invalid, match="reason"):
        await promotion.promote(session, deployment.id, actor="bob", now=NOON)
    promoted, operation_id = await promotion.promote(
        session, deployment.id, actor="bob", now=NOON, reason="no lab"
    )

    assert promoted.paused is False
    assert operation_id == promoted.lanes[1].operation_id


async def test_a_ring_waits_for_all_its_lanes(session: AsyncSession) -> None:
    deployment = await make_deployment(session, planes=(Plane.INTUNE, Plane.JAMF))
    first, second = deployments.ring_lanes(deployment, Ring.LAB)

    for lane in (first, second):
        await push(session, lane, f"{lane.plane}-1")
    await measure(session, first, InstallState.INSTALLED, "intune-1", now=NOON + S)
    await measure(session, first, InstallState.INSTALLED, now=NOON + 3 * S)

    after = await reload(session, deployment)
    assert first.status is LaneStatus.PROMOTED
    assert [lane.operation_id for lane in deployments.ring_lanes(after, Ring.CANARY)] == [None, None]


async def test_manual_promotion_waits_for_a_person_and_a_repeat_changes_nothing(
    session: AsyncSession,
) -> None:
    deployment = await make_deployment(session, promotion=Promotion.MANUAL)
    await pass_ring(session, deployment, Ring.LAB, NOON)
    assert (await reload(session, deployment)).lanes[1].operation_id is None

    first, started = await promotion.promote(session, deployment.id, actor="bob", now=NOON)
    version = first.version
    second, again = await promotion.promote(session, deployment.id, actor="bob", now=NOON)

    assert started is not None
    assert (again, second.version) == (started, version)


async def test_a_lane_at_work_cannot_be_promoted(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    await push(session, deployment.lanes[0], "a")

    with pytest.raises(IllegalTransition, match="MEASURING"):
        await promotion.promote(session, deployment.id, actor="bob", now=NOON)


async def test_a_held_lane_is_promoted_only_by_an_override_that_names_reason_and_expiry(
    session: AsyncSession,
) -> None:
    gates = {Ring.LAB: GateNumbers(max_failure_rate=0.5)}
    deployment = await make_deployment(session, gates=gates)
    lane = deployment.lanes[0]
    await push(session, lane, "a", "b")
    await measure(session, lane, InstallState.INSTALLED, "a", now=NOON + S)
    await measure(session, lane, InstallState.FAILED, "b", now=NOON + 2 * S)
    assert lane.status is LaneStatus.HELD

    with pytest.raises(Invalid, match="override"):
        await promotion.promote(session, deployment.id, actor="bob", now=NOON)
    with pytest.raises(Invalid, match="expired"):
        await promotion.promote(session, deployment.id, actor="bob", now=NOON, override=Override("ok", NOON))
    override = Override("known bad device", NOON + timedelta(days=1))
    await promotion.promote(session, deployment.id, actor="bob", now=NOON, override=override)

    told = await session.scalar(select(Event.after).filter_by(type="lane.promoted"))
    assert told is not None
    assert told["override"] == "known bad device"


async def test_what_needs_the_cab_runs_lab_and_canary_and_then_waits(session: AsyncSession) -> None:
    deployment = await make_deployment(session, target_ring=Ring.PILOT, privileged=True)

    await pass_ring(session, deployment, Ring.LAB, NOON)
    await pass_ring(session, deployment, Ring.CANARY, NOON + 10 * S)

    waiting = await reload(session, deployment)
    assert waiting.status is DeploymentStatus.AWAITING_CAB
    assert (waiting.lanes[2].status, waiting.lanes[2].operation_id) == (LaneStatus.PENDING, None)


async def test_a_paused_deployment_pushes_nothing_and_looks_again(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    locked = await deployments.lock(session, deployment.id)
    await deployments.set_paused(session, locked, paused=True, actor="bob", now=NOON, reason=None)

    begun = await pushes.begin_push(session, deployment.lanes[0].id, new_id(), now=NOON)

    assert begun == pushes.Held("paused", pushes.LOOK_AGAIN)


async def test_a_repeated_push_finds_the_effects_it_planned(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    lane = deployment.lanes[0]
    operation_id = await operation_of(session, lane)

    first = await pushes.begin_push(session, lane.id, operation_id, now=NOON)
    second = await pushes.begin_push(session, lane.id, operation_id, now=NOON)

    assert isinstance(first, Push)
    assert isinstance(second, Push)
    assert first.steps == second.steps
    assert [step.key for step in first.steps.values()] == [
        f"{deployment.id}/intune/publish",
        f"{deployment.id}/intune/upload",
        f"{deployment.id}/intune/LAB/assign",
    ]


async def test_setting_a_target_lets_an_empty_ring_go_on(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    lane = deployment.lanes[0]
    await push(session, lane)

    target = Target(TargetKind.GROUP, "another-group")
    started = await pushes.retarget(session, "intune", Ring.LAB, target, actor="bob", now=NOON)
    begun = await pushes.begin_push(session, lane.id, started[0], now=NOON)

    assert isinstance(begun, Push)
    assert begun.target == target
    after = await reload(session, deployment)
    assert (after.paused, after.lanes[0].status) == (False, LaneStatus.PUSHING)


async def test_setting_a_target_moves_no_ring_that_has_devices(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    await push(session, deployment.lanes[0], "a")

    target = Target(TargetKind.GROUP, "another-group")

    assert await pushes.retarget(session, "intune", Ring.LAB, target, actor="bob", now=NOON) == []


async def test_time_waited_before_the_push_shortens_no_deadline_after_it(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    lane = deployment.lanes[0]
    await pushes.begin_push(session, lane.id, await operation_of(session, lane), now=NOON)
    await lanes.wait_for_plane(session, lane.id, error={"code": "circuit_open"}, now=NOON)
    later = NOON + timedelta(hours=5)

    begun = await pushes.begin_push(session, lane.id, await operation_of(session, lane), now=later)
    assert isinstance(begun, Push)
    assert (begun.waits, lane.status) == (True, LaneStatus.WAITING_PLANE)
    await pushes.resume_push(session, lane.id, now=later)
    await push(session, lane, "a", now=later)

    assert (lane.status, lane.waited) == (LaneStatus.MEASURING, timedelta(0))


async def test_a_plane_that_stays_away_is_told_once(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    lane = deployment.lanes[0]
    await push(session, lane, "a")

    for minute in range(1, 4):
        assert await measurements.begin_measure(session, lane.id) is not None
        at = NOON + timedelta(minutes=minute)
        await lanes.wait_for_plane(session, lane.id, error={"code": "circuit_open"}, now=at)

    assert (await event_types(session, deployment)).count("lane.waiting_plane") == 1
    assert lane.waiting_since == NOON + timedelta(minutes=1)


async def test_a_held_lane_that_was_never_pushed_cannot_be_promoted_past(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    lane = deployment.lanes[0]
    await pushes.begin_push(session, lane.id, await operation_of(session, lane), now=NOON)
    await lanes.hold(session, deployment, lane, Code.GATE_NOT_MET, now=NOON)

    override = Override("go on", NOON + timedelta(days=1))

    with pytest.raises(IllegalTransition, match="never pushed"):
        await promotion.promote(session, deployment.id, actor="bob", now=NOON, override=override)


async def test_silence_is_counted_up_to_when_the_devices_were_asked(session: AsyncSession) -> None:
    deployment = await make_deployment(session, target_ring=Ring.LAB)
    (lane,) = deployment.lanes
    await push(session, lane, "pc-1")
    late = NOON + timedelta(days=30)

    await measurements.finish_measure(session, lane.id, read_since=NOON + S, now=late)
    await session.refresh(lane)
    before = lane.failure_count
    await measurements.finish_measure(session, lane.id, read_since=late, now=late)
    await session.refresh(lane)

    assert (before, lane.failure_count) == (0, 1)
