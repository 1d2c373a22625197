# SPDX-License-Identifier: Apache-2.0
"""Retries: only what failed, within one budget, over all rings; and one reset that is written down."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action, Capability, InstallState, Manifest, Plane
from app.domain import deployments, devices, effects, lanes, operations, outcomes, retries, rollback
from app.domain.budgets import Limits
from app.domain.intents import GateNumbers
from app.domain.operations import OperationKind
from app.domain.rollback import Progress
from app.errors import IllegalTransition, Invalid, RetryBudgetSpent, RetryUnavailable
from app.models import Deployment, DeploymentStatus, LaneStatus, OperationStatus, Ring, RingDeployment
from tests.domain.steps import S, event_types, measure, operation_of, push, reload
from tests.factories import NOON, make_deployment, manifest

ASKS = {Plane.INTUNE: manifest(Plane.INTUNE)}
BY_ITSELF = {Plane.INTUNE: replace(ASKS[Plane.INTUNE], cannot={Capability.RETRY: "no"}, retries_itself=True)}
NEVER = {Plane.INTUNE: replace(ASKS[Plane.INTUNE], cannot={Capability.RETRY: "a policy runs once"})}
LIMITS = Limits(retry_share=0.5, retry_floor=2)


async def held(session: AsyncSession) -> Deployment:
    """A deployment whose LAB stopped at its gate: two of four failed."""
    deployment = await make_deployment(session, gates={Ring.LAB: GateNumbers(max_failure_rate=0.9)})
    await push(session, deployment.lanes[0], "a", "b", "c", "d")
    await measure(session, deployment.lanes[0], InstallState.FAILED, "a", "b", now=NOON + S)
    await measure(session, deployment.lanes[0], InstallState.INSTALLED, "c", "d", now=NOON + 2 * S)
    assert (await reload(session, deployment)).lanes[0].status is LaneStatus.HELD
    return deployment


async def retry(
    session: AsyncSession, deployment: Deployment, manifests: dict[Plane, Manifest] = ASKS, **given: Any
) -> UUID | None:
    values: dict[str, Any] = {"limits": LIMITS, "actor": "bob", "now": NOON + 3 * S, **given}
    _, started = await retries.retry(session, deployment.id, manifests=manifests, **values)
    return started


async def test_the_plane_is_asked_to_try_the_failed_devices_again(session: AsyncSession) -> None:
    deployment = await held(session)

    operation_id = await retry(session, deployment)

    assert operation_id is not None
    assert (await operations.get(session, operation_id)).kind == OperationKind.RETRY_DEVICES.value
    again = await retries.begin(session, deployment.lanes[0].id, operation_id)
    assert again is not None
    assert (again.step.key, again.assignment.made_id) == (f"{deployment.id}/intune/LAB/assign/2", "app-1")
    assert again.assignment.key_of(Action.ASSIGN) == f"{deployment.id}/intune/LAB/assign"


async def test_only_they_are_open_again_and_the_lane_soaks_anew(session: AsyncSession) -> None:
    deployment = await held(session)
    await retry(session, deployment)

    await retries.confirm(session, deployment.lanes[0].id, now=NOON + 5 * S)

    lane = (await reload(session, deployment)).lanes[0]
    assert (lane.status, lane.success_count, lane.failure_count) == (LaneStatus.MEASURING, 2, 0)
    rows, _ = await devices.page(session, deployment.id, limit=9)
    assert {row.device_id: row.state.value for row in rows} == {
        **dict.fromkeys("ab", "PENDING"),
        **dict.fromkeys("cd", "SUCCEEDED"),
    }
    await measure(session, lane, InstallState.INSTALLED, "a", "b", now=NOON + 6 * S)
    await measure(session, lane, InstallState.INSTALLED, now=NOON + 8 * S)
    assert (await reload(session, deployment)).lanes[0].status is LaneStatus.PROMOTED


async def test_a_retry_that_is_taken_up_again_is_the_same_effect(session: AsyncSession) -> None:
    deployment = await held(session)
    operation_id = await retry(session, deployment)
    assert operation_id is not None
    first = await retries.begin(session, deployment.lanes[0].id, operation_id)
    assert first is not None
    await effects.sent(session, first.step.id, operation_id=operation_id, now=NOON)

    second = await retries.begin(session, deployment.lanes[0].id, operation_id)

    assert second is not None
    assert (second.step.id, second.assignment.made_id) == (first.step.id, "app-1")


async def test_devices_that_try_again_by_themselves_are_waited_for(session: AsyncSession) -> None:
    deployment = await held(session)

    await retry(session, deployment, BY_ITSELF)

    lane = (await reload(session, deployment)).lanes[0]
    assert lane.status is LaneStatus.MEASURING
    await measure(session, lane, InstallState.FAILED, "a", "b", now=NOON + 4 * S)
    assert (await reload(session, deployment)).lanes[0].status is LaneStatus.MEASURING
    await measure(session, lane, InstallState.FAILED, "a", "b", now=NOON + 30 * S)
    assert (await reload(session, deployment)).lanes[0].status is LaneStatus.HELD


async def test_a_plane_that_never_tries_again_is_said_to_be_one(session: AsyncSession) -> None:
    deployment = await held(session)

    with pytest.raises(RetryUnavailable, match="a policy runs once"):
        await retry(session, deployment, NEVER)

    assert (await reload(session, deployment)).retries_used == 0


class TestBudget:
    async def used(self, session: AsyncSession) -> Deployment:
        """The budget of two is used up, and the devices have failed again."""
        deployment = await held(session)
        await retry(session, deployment)
        await retries.confirm(session, deployment.lanes[0].id, now=NOON + 4 * S)
        await measure(session, deployment.lanes[0], InstallState.FAILED, "a", "b", now=NOON + 5 * S)
        return deployment

    async def test_a_spent_one_leaves_the_lane_held_and_names_the_cause(self, session: AsyncSession) -> None:
        deployment = await self.used(session)

        with pytest.raises(RetryBudgetSpent, match=r"2 of 2 devices were tried again.*no reason given"):
            await retry(session, deployment)

        after = await reload(session, deployment)
        assert (after.lanes[0].status, after.retries_used) == (LaneStatus.HELD, 2)

    async def test_one_reset_gives_one_more_and_is_in_the_history(self, session: AsyncSession) -> None:
        deployment = await self.used(session)

        await retry(session, deployment, reset_budget=True, reason="the proxy works again")

        assert (await reload(session, deployment)).retries_used == 2
        assert (await event_types(session, deployment))[-2:] == ["retry_budget.reset", "deployment.retried"]
        await retries.confirm(session, deployment.lanes[0].id, now=NOON + 6 * S)
        await measure(session, deployment.lanes[0], InstallState.FAILED, "a", "b", now=NOON + 7 * S)
        with pytest.raises(Invalid, match="given already"):
            await retry(session, deployment, reset_budget=True, reason="once more")

    async def test_a_reset_needs_a_reason(self, session: AsyncSession) -> None:
        deployment = await self.used(session)

        with pytest.raises(Invalid, match="needs a reason"):
            await retry(session, deployment, reset_budget=True)


async def test_a_push_that_failed_is_pushed_again_and_costs_no_budget(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    await refuse(session, deployment.lanes[0])
    assert (await reload(session, deployment)).status is DeploymentStatus.FAILED

    started = await retry(session, deployment)

    after = await reload(session, deployment)
    assert (after.status, started, after.retries_used) == (
        DeploymentStatus.DEPLOYING,
        deployment.operation_id,
        0,
    )


async def test_all_pushes_of_a_ring_that_ended_go_on_together(session: AsyncSession) -> None:
    deployment = await make_deployment(session, planes=(Plane.INTUNE, Plane.JAMF))
    intune, jamf = deployments.ring_lanes(deployment, Ring.LAB)
    await refuse(session, intune)
    assert jamf.operation_id is not None
    await operations.cancel(session, jamf.operation_id, ended=outcomes.operation_ended)

    await retry(session, deployment)

    after = await reload(session, deployment)
    assert after.status is DeploymentStatus.DEPLOYING
    for lane in deployments.ring_lanes(after, Ring.LAB):
        assert lane.operation_id is not None
        assert (await operations.get(session, lane.operation_id)).status is OperationStatus.QUEUED


async def test_a_rollback_that_could_not_finish_is_not_taken_for_a_push(session: AsyncSession) -> None:
    deployment = await held(session)
    await rollback.begin(session, deployment.id, actor="bob", now=NOON + 3 * S)
    gave_up = Progress(None, reason="devices kept the version past their deadline")
    lane = deployment.lanes[0]
    removal = await operations.get(session, await operation_of(session, lane))
    await rollback.finish_lane(session, lane.id, gave_up, deployment_id=deployment.id, now=NOON + 4 * S)
    await session.execute(
        text("UPDATE operations SET status = 'SUCCEEDED' WHERE id = :id"), {"id": removal.id}
    )
    await session.refresh(removal)

    with pytest.raises(IllegalTransition):
        await retry(session, deployment)

    assert (await reload(session, deployment)).status is DeploymentStatus.FAILED


async def refuse(session: AsyncSession, lane: RingDeployment) -> None:
    """The plane refuses the lane's push for good."""
    operation = await operations.lock(session, await operation_of(session, lane))
    refused = operations.Failure("permanent", "permanent", "the plane refused it", "intune")
    await operations.end(
        session, operation, OperationStatus.FAILED, failure=refused, ended=outcomes.operation_ended
    )


async def test_there_is_nothing_to_retry_where_nothing_failed(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    await push(session, deployment.lanes[0], "a")

    with pytest.raises(IllegalTransition, match="nothing of it has failed"):
        await retry(session, deployment)


async def test_a_second_retry_while_the_first_is_under_way_is_the_first(session: AsyncSession) -> None:
    deployment = await held(session)

    first = await retry(session, deployment)

    assert await retry(session, deployment) == first
    assert (await reload(session, deployment)).retries_used == 2


async def test_a_second_retry_finds_nothing_left(session: AsyncSession) -> None:
    deployment = await held(session)
    await retry(session, deployment, BY_ITSELF)

    with pytest.raises(IllegalTransition):
        await retry(session, deployment, BY_ITSELF)

    assert (await operation_of(session, deployment.lanes[0])) is not None
    assert lanes.is_measured(deployment.lanes[0])
