# SPDX-License-Identifier: Apache-2.0
"""Whoever counts a lane's devices waits for whoever does so already: each device counts once."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import DeviceReport, InstallState, Member
from app.domain import devices, silence
from app.domain.policies import DEMO
from app.models import RingDeployment
from app.runtime import Runtime
from tests.domain.operation_bench import waits_for_lock, within
from tests.factories import NOON, make_deployment

Count = Callable[[AsyncSession, UUID], Awaitable[None]]


def telling(state: InstallState, *names: str) -> Count:
    """A page that says so of these devices."""

    async def store(session: AsyncSession, lane_id: UUID) -> None:
        page = [DeviceReport(name, name.upper(), state) for name in names]
        await devices.store_reports(session, lane_id, page, now=NOON)

    return store


async def past_all_deadlines(session: AsyncSession, lane_id: UUID) -> None:
    await silence.expire(session, lane_id, DEMO, asked_for=timedelta(days=365), now=NOON)


async def asked_again(session: AsyncSession, lane_id: UUID) -> None:
    await devices.forget_failures(session, lane_id, now=NOON)


ALL_SUCCEED = telling(InstallState.INSTALLED, "a", "b", "c", "d")
TWO_FAIL = telling(InstallState.FAILED, "a", "b")
CASES: dict[str, tuple[Count, Count, tuple[int, int, int]]] = {
    "the same page": (ALL_SUCCEED, ALL_SUCCEED, (4, 0, 0)),
    "another page": (TWO_FAIL, ALL_SUCCEED, (4, 0, 0)),
    "a deadline": (ALL_SUCCEED, past_all_deadlines, (4, 0, 0)),
    "an answer after the deadline": (past_all_deadlines, TWO_FAIL, (0, 4, 0)),
    "a retry": (TWO_FAIL, asked_again, (0, 0, 0)),
}


@pytest.mark.parametrize("case", CASES)
async def test_each_device_counts_once(runtime: Runtime, case: str) -> None:
    first, second, expected = CASES[case]
    async with runtime.transaction() as session:
        lane = (await make_deployment(session)).lanes[0]
        lane_id, lane.targeted = lane.id, 4
        await devices.store_members(session, lane_id, [Member(name, name) for name in "abcd"], now=NOON)

    async with runtime.transaction() as session:
        await first(session, lane_id)
        other = asyncio.create_task(within(runtime, lambda session: second(session, lane_id)))
        await waits_for_lock(runtime)
    await other

    lane = await within(runtime, lambda session: session.get_one(RingDeployment, lane_id))
    assert (lane.success_count, lane.failure_count, lane.unreachable_count) == expected
