# SPDX-License-Identifier: Apache-2.0
"""Device results and the counters that go with them."""

import re
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import TextClause, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import DeviceReport, InstallState, Member
from app.domain import comparison, deployments, devices, silence
from app.domain.policies import DEMO, STANDARD, GatePolicy
from app.models import Connectivity, Deployment, DeviceResult, DeviceState, RingDeployment
from tests.factories import NOON, make_deployment


async def lane_with(session: AsyncSession, *names: str, policy: GatePolicy = DEMO) -> RingDeployment:
    """The first lane of a new deployment, targeting these devices."""
    deployment = await make_deployment(session, policy=policy)
    lane = deployment.lanes[0]
    await devices.store_members(
        session, lane.id, [Member(name, name.upper(), NOON) for name in names], now=NOON
    )
    lane.targeted = await devices.count_members(session, lane.id)
    await session.flush()
    return lane


def reports(state: InstallState, *names: str, code: str | None = None) -> list[DeviceReport]:
    return [DeviceReport(name, name.upper(), state, error_code=code) for name in names]


async def counters(session: AsyncSession, lane: RingDeployment) -> tuple[int, int, int]:
    await session.refresh(lane)
    return lane.success_count, lane.failure_count, lane.unreachable_count


async def test_members_are_pending_and_stored_once(session: AsyncSession) -> None:
    lane = await lane_with(session, "a", "b")

    await devices.store_members(session, lane.id, [Member("b", "B"), Member("c", "C")], now=NOON)

    assert await devices.count_members(session, lane.id) == 3


async def test_reports_move_the_counters_with_the_rows(session: AsyncSession) -> None:
    lane = await lane_with(session, "a", "b", "c", "d")

    await devices.store_reports(session, lane.id, reports(InstallState.INSTALLED, "a", "b"), now=NOON)
    await devices.store_reports(session, lane.id, reports(InstallState.FAILED, "c", code="0x1"), now=NOON)
    await devices.store_reports(session, lane.id, reports(InstallState.UNREACHABLE, "d"), now=NOON)

    assert await counters(session, lane) == (2, 1, 1)
    assert lane.success_rate == 0.5


ODD = {
    "NUL": ("a\x00b", "ab"),
    "half a pair": ("half \ud83d", "half \ufffd"),
    "a whole pair": ("whole \U0001f600", "whole \U0001f600"),
    "what looks like one": ("named \\u0000 and \\ud83d", "named \\u0000 and \\ud83d"),
    "quotes": ('quoted "\\" {1,2}', 'quoted "\\" {1,2}'),
}
"""What a plane says, and what is kept of it."""


@pytest.mark.parametrize("case", ODD)
async def test_whatever_a_plane_says_can_be_stored(session: AsyncSession, case: str) -> None:
    said, kept = ODD[case]
    lane = await lane_with(session, said)
    page = [DeviceReport(said, said, InstallState.FAILED, detail=said, error_code=said)]

    await devices.store_reports(session, lane.id, page, now=NOON)

    stored = (await session.scalars(select(DeviceResult).filter_by(lane_id=lane.id))).one()
    assert {stored.device_id, stored.detail, stored.error_code} == {kept}
    assert stored.name == kept.upper()


@pytest.mark.parametrize("case", ODD)
async def test_whatever_an_unknown_device_is_called_it_is_late(session: AsyncSession, case: str) -> None:
    said, kept = ODD[case]
    lane = await lane_with(session, "a")

    await devices.store_reports(session, lane.id, reports(InstallState.INSTALLED, "a", said), now=NOON)

    stored = select(DeviceResult.device_id).filter_by(lane_id=lane.id, late=True)
    assert (await session.scalars(stored)).all() == [kept]
    assert await counters(session, lane) == (1, 0, 0)


async def test_what_is_kept_under_one_id_is_one_device_of_the_page(session: AsyncSession) -> None:
    lane = await lane_with(session, "ab")

    page = reports(InstallState.INSTALLED, "ab", "a\x00b", "late\x00", "late")
    await devices.store_reports(session, lane.id, page, now=NOON)

    assert await counters(session, lane) == (1, 0, 0)
    stored = select(DeviceResult.device_id).filter_by(lane_id=lane.id, late=True)
    assert (await session.scalars(stored)).all() == ["late"]


async def test_a_device_with_an_odd_id_is_known_again(session: AsyncSession) -> None:
    said, kept = ODD["NUL"]
    lane = await lane_with(session, said)
    await devices.store_reports(session, lane.id, reports(InstallState.INSTALLED, said), now=NOON)

    without = [DeviceReport(said, said, InstallState.NOT_INSTALLED)]

    assert await comparison.have_lost(session, lane.id, without) == [(kept, kept.upper())]


async def test_a_repeated_page_changes_nothing(session: AsyncSession) -> None:
    lane = await lane_with(session, "a", "b")
    page = reports(InstallState.INSTALLED, "a")

    await devices.store_reports(session, lane.id, page, now=NOON)
    await devices.store_reports(session, lane.id, page, now=NOON + timedelta(hours=1))

    assert await counters(session, lane) == (1, 0, 0)
    row = await session.get_one(DeviceResult, (lane.id, "a"))
    assert row.updated_at == NOON


async def test_a_device_that_recovers_moves_from_failure_to_success(session: AsyncSession) -> None:
    lane = await lane_with(session, "a")
    await devices.store_reports(session, lane.id, reports(InstallState.FAILED, "a"), now=NOON)

    await devices.store_reports(session, lane.id, reports(InstallState.INSTALLED, "a"), now=NOON)

    assert await counters(session, lane) == (1, 0, 0)


async def test_the_lack_of_an_answer_takes_nothing_back(session: AsyncSession) -> None:
    lane = await lane_with(session, "a")
    await devices.store_reports(session, lane.id, reports(InstallState.INSTALLED, "a"), now=NOON)

    await devices.store_reports(session, lane.id, reports(InstallState.PENDING, "a"), now=NOON)

    assert await counters(session, lane) == (1, 0, 0)


async def test_a_device_that_joined_after_the_push_is_late_and_changes_no_rate(session: AsyncSession) -> None:
    lane = await lane_with(session, "a")

    await devices.store_reports(session, lane.id, reports(InstallState.FAILED, "z"), now=NOON)
    await devices.store_reports(session, lane.id, reports(InstallState.INSTALLED, "z"), now=NOON)

    assert await counters(session, lane) == (0, 0, 0)
    assert lane.late_count == 1
    assert (await session.get_one(DeviceResult, (lane.id, "z"))).late


async def test_a_device_that_a_page_tells_of_twice_counts_once_and_an_answer_stays_one(
    session: AsyncSession,
) -> None:
    lane = await lane_with(session, "a", "b")
    failed, installed = reports(InstallState.FAILED, "a", "b", "z"), reports(InstallState.INSTALLED, "a", "z")
    waiting = reports(InstallState.PENDING, "a", "b")

    await devices.store_reports(session, lane.id, [*failed, *installed, *waiting], now=NOON)

    assert await counters(session, lane) == (1, 1, 0)
    assert lane.late_count == 1
    assert (await session.get_one(DeviceResult, (lane.id, "z"))).state is DeviceState.SUCCEEDED


@pytest.mark.parametrize("statement", [devices.STORE_REPORTS, devices.STORE_LATE, devices.STORE_ROLLBACK])
async def test_a_page_is_stored_without_reading_all_of_a_lane_that_is_new_to_the_planner(
    session: AsyncSession, statement: TextClause
) -> None:
    lane = await lane_with(session)
    other = (await deployments.get(session, lane.deployment_id)).lanes[1]
    many = [Member(f"d{number}", "x") for number in range(5000)]
    await devices.store_members(session, other.id, many, now=NOON)
    await session.execute(text("ANALYZE device_results"))
    await devices.store_members(session, lane.id, many, now=NOON)
    values = devices.values_of(reports(InstallState.INSTALLED, "d5"), devices.ROLLOUT_STATES)
    values |= {"lane": lane.id, "now": NOON}
    if statement is devices.STORE_ROLLBACK:
        values["answered_only"] = False
    if statement is devices.STORE_LATE:
        values |= {"deployment": lane.deployment_id, "plane": lane.plane}

    plan = "\n".join(await session.scalars(text(f"EXPLAIN {statement.text}"), values))

    assert "using pk_device_results on device_results" in plan
    assert not re.search("(Bitmap Heap|Seq) Scan on device_results", plan)


async def test_a_device_of_another_ring_is_not_late_here(session: AsyncSession) -> None:
    lane = await lane_with(session, "a")
    deployment = await deployments.get(session, lane.deployment_id)
    canary = deployment.lanes[1]
    await devices.store_members(session, canary.id, [Member("b", "B")], now=NOON)
    canary.targeted = 1
    await session.flush()

    await devices.store_reports(session, canary.id, reports(InstallState.INSTALLED, "a", "b"), now=NOON)

    await session.refresh(canary)
    assert (canary.late_count, await session.get(DeviceResult, (canary.id, "a"))) == (0, None)


@pytest.mark.parametrize(
    ("hours", "expected"),
    [
        (5.9, {"PENDING": 3}),
        (6, {"UNREACHABLE": 1, "PENDING": 2}),
        (24, {"FAILED": 1, "UNREACHABLE": 1, "PENDING": 1}),
        (42, {"FAILED": 1, "UNREACHABLE": 2}),
        (72, {"FAILED": 2, "UNREACHABLE": 1}),
        (168, {"FAILED": 3}),
    ],
)
async def test_silent_devices_become_unreachable_and_fail_at_their_classs_deadline(
    session: AsyncSession, hours: float, expected: dict[str, int]
) -> None:
    lane = await lane_with(session, "now", policy=STANDARD)
    long_ago = [
        Member("week", "W", NOON - timedelta(days=3)),
        Member("never", "N", NOON - timedelta(days=30)),
    ]
    await devices.store_members(session, lane.id, long_ago, now=NOON)
    lane.targeted = 3
    await session.flush()

    await silence.expire(session, lane.id, STANDARD, asked_for=timedelta(hours=hours), now=NOON)

    assert Counter(await states(session, lane)) == expected
    assert await counters(session, lane) == (0, expected.get("FAILED", 0), expected.get("UNREACHABLE", 0))


async def test_a_lane_that_is_silent_as_a_whole_expires_in_batches(session: AsyncSession) -> None:
    lane = await lane_with(session, "a", "b", "c", "d", "e")
    await devices.store_reports(session, lane.id, reports(InstallState.INSTALLED, "b"), now=NOON)

    await silence.expire(session, lane.id, DEMO, asked_for=timedelta(seconds=6), now=NOON, batch=2)
    assert await counters(session, lane) == (1, 0, 4)
    await silence.expire(session, lane.id, DEMO, asked_for=timedelta(days=1), now=NOON, batch=2)
    assert await counters(session, lane) == (1, 4, 0)


async def states(session: AsyncSession, lane: RingDeployment) -> Sequence[str]:
    rows = await session.scalars(select(DeviceResult.state).filter_by(lane_id=lane.id))
    return [state.value for state in rows]


async def test_a_device_that_succeeded_never_expires(session: AsyncSession) -> None:
    lane = await lane_with(session, "a")
    await devices.store_reports(session, lane.id, reports(InstallState.INSTALLED, "a"), now=NOON)

    await silence.expire(session, lane.id, DEMO, asked_for=timedelta(days=1), now=NOON)

    assert await counters(session, lane) == (1, 0, 0)


async def test_an_unreachable_device_that_comes_back_counts(session: AsyncSession) -> None:
    lane = await lane_with(session, "a")
    await silence.expire(session, lane.id, DEMO, asked_for=timedelta(seconds=6), now=NOON)
    assert await counters(session, lane) == (0, 0, 1)

    await devices.store_reports(session, lane.id, reports(InstallState.INSTALLED, "a"), now=NOON)

    assert await counters(session, lane) == (1, 0, 0)


@pytest.mark.parametrize(
    ("silent", "expected"),
    [
        (timedelta(hours=1), Connectivity.ONLINE),
        (timedelta(days=3), Connectivity.INTERMITTENT),
        (timedelta(days=8), Connectivity.AIR_GAPPED),
        (None, Connectivity.INTERMITTENT),
    ],
)
def test_a_devices_class_follows_from_when_it_was_last_seen(
    silent: timedelta | None, expected: Connectivity
) -> None:
    member = Member("a", "A", None if silent is None else NOON - silent)

    assert devices.connectivity(member, NOON) is expected


async def all_pages(
    session: AsyncSession, deployment: Deployment, limit: int, **filters: str
) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    after: tuple[int, str, str] | None = None
    while True:
        rows, after = await devices.page(session, deployment.id, after=after, limit=limit, **filters)
        found += [(row.ring, row.device_id) for row in rows]
        if after is None:
            return found


async def test_pages_walk_all_devices_by_ring_and_id_without_gap_or_repeat(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    for lane in deployment.lanes:
        members = [Member(f"d{number:02}", "x") for number in range(7)]
        await devices.store_members(session, lane.id, members, now=NOON)

    found = await all_pages(session, deployment, 3)

    assert found == [(ring, f"d{number:02}") for ring in ("LAB", "CANARY") for number in range(7)]
    assert await all_pages(session, deployment, 3, ring="CANARY") == found[7:]
    assert await all_pages(session, deployment, 3, state=DeviceState.SUCCEEDED.value) == []


@pytest.mark.parametrize("state", [None, DeviceState.FAILED])
async def test_a_deep_page_begins_where_the_one_before_ended(
    session: AsyncSession, state: DeviceState | None
) -> None:
    lane = await lane_with(session, *(f"d{number}" for number in range(2000)))
    await session.execute(text("ANALYZE device_results"))
    query = devices.OF_ANY_STATE if state is None else devices.OF_ONE_STATE
    values: dict[str, Any] = {"deployment": lane.deployment_id, "ring": None, "plane": None, "limit": 3}
    values |= {"at_position": 0, "at_plane": "intune", "at_device": "d9"}
    if state is not None:
        values["state"] = state.value

    plan = "\n".join(await session.scalars(text(f"EXPLAIN {query.text}"), values))

    condition = r"lane_id = .+ AND .*device_id > " if state is None else r"state = .+ AND .*device_id > "
    assert re.search(rf"Index Scan using \w+ on device_results .*\n\s+Index Cond: .*{condition}", plan)


async def test_a_removal_is_counted_by_what_devices_answer(session: AsyncSession) -> None:
    lane = await lane_with(session, "a", "b", "c", "d")
    await devices.store_reports(session, lane.id, reports(InstallState.INSTALLED, "a", "b", "c"), now=NOON)

    await devices.store_removal(session, lane.id, reports(InstallState.NOT_INSTALLED, "a"), now=NOON)
    await devices.store_removal(session, lane.id, reports(InstallState.INSTALLED, "b"), now=NOON)
    await devices.store_removal(session, lane.id, reports(InstallState.REMOVE_FAILED, "c"), now=NOON)

    assert await devices.rollback_counts(session, lane.id) == devices.RollbackCounts(
        done=1, failed=1, silent=1, open=1
    )


async def test_a_device_is_back_only_when_it_has_the_previous_version(session: AsyncSession) -> None:
    lane = await lane_with(session, "a", "b", "silent")
    await devices.store_reports(session, lane.id, reports(InstallState.INSTALLED, "a", "b"), now=NOON)
    await devices.store_removal(session, lane.id, reports(InstallState.NOT_INSTALLED, "a", "b"), now=NOON)

    await devices.store_return(session, lane.id, reports(InstallState.INSTALLED, "a"), now=NOON)
    await devices.store_return(session, lane.id, reports(InstallState.PENDING, "b", "silent"), now=NOON)

    assert await devices.rollback_counts(session, lane.id) == devices.RollbackCounts(
        done=1, failed=0, silent=1, open=1
    )
