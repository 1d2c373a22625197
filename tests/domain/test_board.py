# SPDX-License-Identifier: Apache-2.0
"""The change advisory board: what waits for it, what it may decide, and what its decision starts."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import approvals, blockers, board, commands, measurements, operations, promotion, pushes
from app.domain.board import ExceptionGiven, Verdict
from app.domain.budgets import Limits
from app.domain.facts import Code
from app.domain.operations import OperationKind
from app.domain.pushes import Held, Push
from app.errors import IllegalTransition, Invalid, OwnSubmission, ScopeChangeRequired, VersionMismatch
from app.models import (
    Approval,
    ApprovalStatus,
    Deployment,
    DeploymentPlane,
    DeploymentStatus,
    LaneStatus,
    Promotion,
    Ring,
)
from tests.domain.steps import S, event_types, operation_of, pass_ring, push, reload
from tests.factories import FACTORS, NOON, RISK_62, RISK_90, make_deployment

DAY = timedelta(days=1)
YES = Verdict("it went well so far")
BEARABLE = Verdict("we bear it", exception=ExceptionGiven("kept off the internet"))
CRITICAL = FACTORS | {"sbom_vulnerability": 1.0}


async def at_canary(session: AsyncSession, **overrides: Any) -> Deployment:
    """A risky deployment to PILOT that has passed LAB and CANARY."""
    values = {"target_ring": Ring.PILOT, "risk_factors": RISK_62} | overrides
    deployment = await make_deployment(session, **values)
    await pass_ring(session, deployment, Ring.LAB, NOON)
    await pass_ring(session, deployment, Ring.CANARY, NOON + 10 * S)
    return await reload(session, deployment)


async def change_planes(session: AsyncSession, deployment: Deployment, assignment: str) -> None:
    """What somebody with access to the database could do."""
    change = f"UPDATE deployment_planes SET {assignment} WHERE deployment_id = :id"
    await session.execute(text(change), {"id": deployment.id})
    await session.execute(select(DeploymentPlane), execution_options={"populate_existing": True})


async def request_of(session: AsyncSession, deployment: Deployment) -> Approval:
    found = await approvals.newest(session, deployment.id)
    assert found is not None
    return found


async def pushes_of(session: AsyncSession, deployment: Deployment) -> int:
    kind = OperationKind.DEPLOY_TO_CONNECTOR
    return len(await operations.find(session, limit=100, deployment_id=deployment.id, kind=kind))


async def codes(session: AsyncSession, deployment: Deployment) -> list[str]:
    found = await blockers.of_deployment(session, deployment.id, now=NOON + 60 * S, limits=Limits())
    return [blocker.code.value for blocker in found]


async def approve(session: AsyncSession, deployment: Deployment, verdict: Verdict = YES) -> Approval:
    request = await request_of(session, deployment)
    return (await board.approve(session, request.id, verdict, actor="carol", now=NOON + 60 * S))[0]


async def test_a_risky_deployment_asks_at_once_and_runs_to_canary_meanwhile(session: AsyncSession) -> None:
    deployment = await at_canary(session)

    request = await request_of(session, deployment)

    assert (deployment.risk_score, deployment.status) == (62, DeploymentStatus.AWAITING_CAB)
    assert request.status is ApprovalStatus.PENDING
    assert (request.submitted_by, request.expires_at) == ("alice", NOON + 2 * DAY)
    assert await pushes_of(session, deployment) == 2
    assert await codes(session, deployment) == ["awaiting_cab"]


async def test_a_harmless_deployment_asks_nobody(session: AsyncSession) -> None:
    deployment = await make_deployment(session, target_ring=Ring.GLOBAL)

    assert await approvals.newest(session, deployment.id) is None


async def test_an_approval_starts_what_waited(session: AsyncSession) -> None:
    deployment = await at_canary(session)

    request = await request_of(session, deployment)
    approved, started = await board.approve(session, request.id, YES, actor="carol", now=NOON + 60 * S)

    after = await reload(session, deployment)
    assert (approved.status, approved.decided_by) == (ApprovalStatus.APPROVED, "carol")
    assert (after.status, started) == (DeploymentStatus.APPROVED, after.lanes[-1].operation_id)
    assert await codes(session, deployment) == []
    await pass_ring(session, deployment, Ring.PILOT, NOON + 100 * S)
    assert (await reload(session, deployment)).status is DeploymentStatus.COMPLETED
    assert "approval.approved" in await event_types(session, deployment)


async def test_a_decision_that_comes_early_is_not_waited_for_later(session: AsyncSession) -> None:
    deployment = await make_deployment(session, target_ring=Ring.PILOT, risk_factors=RISK_62)
    await pass_ring(session, deployment, Ring.LAB, NOON)
    await approve(session, deployment)
    assert (await reload(session, deployment)).status is DeploymentStatus.DEPLOYING

    await pass_ring(session, deployment, Ring.CANARY, NOON + 70 * S)

    assert (await reload(session, deployment)).status is DeploymentStatus.DEPLOYING
    assert await pushes_of(session, deployment) == 3
    assert "deployment.awaiting_cab" not in await event_types(session, deployment)


async def test_deciding_twice_is_once_and_deciding_otherwise_is_refused(session: AsyncSession) -> None:
    deployment = await at_canary(session)
    request = await approve(session, deployment)
    before = await event_types(session, deployment)

    assert (await approve(session, deployment)).version == request.version
    assert await event_types(session, deployment) == before
    with pytest.raises(IllegalTransition, match="APPROVED"):
        await board.reject(session, request.id, YES, actor="dave", now=NOON)
    with pytest.raises(IllegalTransition, match="APPROVED"):
        await board.approve(session, request.id, YES, actor="dave", now=NOON)


@pytest.mark.parametrize("name", ["alice", "Alice"])
async def test_nobody_decides_on_what_they_submitted(session: AsyncSession, name: str) -> None:
    deployment = await at_canary(session)
    request = await request_of(session, deployment)

    for decide in (board.approve, board.reject):
        with pytest.raises(OwnSubmission, match="another person"):
            await decide(session, request.id, YES, actor=name, now=NOON)

    assert (await request_of(session, deployment)).status is ApprovalStatus.PENDING


async def test_a_changed_package_needs_a_new_decision(session: AsyncSession) -> None:
    deployment = await at_canary(session)
    await change_planes(session, deployment, f"package = jsonb_set(package, '{{sha256}}', '\"{'cd' * 32}\"')")

    with pytest.raises(ScopeChangeRequired) as refused:
        await approve(session, deployment)

    assert refused.value.code == "scope_change_required"


async def test_a_decision_on_something_else_than_was_looked_at_is_refused(session: AsyncSession) -> None:
    deployment = await at_canary(session)

    with pytest.raises(ScopeChangeRequired):
        await approve(session, deployment, Verdict("fine", digest="0" * 64))

    digest = (await request_of(session, deployment)).digest
    assert (await approve(session, deployment, Verdict("fine", digest=digest))).digest == digest


async def test_what_changes_after_the_decision_is_not_pushed(session: AsyncSession) -> None:
    deployment = await at_canary(session)
    await approve(session, deployment)
    await change_planes(session, deployment, "package = jsonb_set(package, '{install_command}', '\"x.exe\"')")
    pilot = (await reload(session, deployment)).lanes[-1]

    held = await pushes.begin_push(session, pilot.id, await operation_of(session, pilot), now=NOON + 70 * S)

    after = await reload(session, deployment)
    assert held == Held("awaiting_cab", pushes.LOOK_AGAIN)
    assert (after.status, after.lanes[-1].status) == (DeploymentStatus.AWAITING_CAB, LaneStatus.PENDING)
    await approve(session, deployment)
    begun = await pushes.begin_push(session, pilot.id, await operation_of(session, pilot), now=NOON + 80 * S)
    assert isinstance(begun, Push)


async def test_a_rejection_ends_the_deployment_and_withdraws_what_has_not_begun(
    session: AsyncSession,
) -> None:
    deployment = await at_canary(session)
    request = await request_of(session, deployment)

    _, started = await board.reject(session, request.id, YES, actor="carol", now=NOON + 60 * S)

    after = await reload(session, deployment)
    assert (after.status, after.finished_at) == (DeploymentStatus.REJECTED, NOON + 60 * S)
    assert [lane.status.value for lane in after.lanes] == ["PROMOTED", "PROMOTED", "CANCELLED"]
    assert started is not None
    kind = OperationKind.WITHDRAW_LANE
    assert len(await operations.find(session, limit=9, deployment_id=deployment.id, kind=kind)) == 2


async def test_a_rejection_ends_a_deployment_that_runs(session: AsyncSession) -> None:
    deployment = await make_deployment(session, target_ring=Ring.PILOT, risk_factors=RISK_62)
    request = await request_of(session, deployment)

    await board.reject(session, request.id, YES, actor="carol", now=NOON)

    assert (await reload(session, deployment)).status is DeploymentStatus.REJECTED
    assert await pushes.begin_push(session, deployment.lanes[0].id, request.id, now=NOON) is None


@pytest.mark.parametrize(("criticality", "hours"), [("standard", 48), ("critical", 24)])
async def test_an_undecided_request_runs_out(session: AsyncSession, criticality: str, hours: int) -> None:
    deployment = await at_canary(session, criticality=criticality)
    request = await request_of(session, deployment)
    assert request.expires_at == NOON + timedelta(hours=hours)
    assert not await board.expire(session, deployment.id, now=request.expires_at - S)

    assert await board.overdue(session, now=request.expires_at) == [deployment.id]
    assert await board.expire(session, deployment.id, now=request.expires_at)

    after = await reload(session, deployment)
    assert (after.status, after.paused) == (DeploymentStatus.AWAITING_CAB, True)
    assert await codes(session, deployment) == ["paused", "awaiting_cab"]
    with pytest.raises(IllegalTransition, match="EXPIRED"):
        await board.approve(session, request.id, YES, actor="carol", now=request.expires_at)


async def test_nobody_decides_after_the_time_even_before_the_sweeper_came(session: AsyncSession) -> None:
    request = await request_of(session, await at_canary(session))

    with pytest.raises(IllegalTransition, match="EXPIRED"):
        await board.approve(session, request.id, YES, actor="carol", now=request.expires_at)


async def test_resuming_asks_again_after_a_request_ran_out(session: AsyncSession) -> None:
    deployment = await at_canary(session)
    first = await request_of(session, deployment)
    await board.expire(session, deployment.id, now=first.expires_at)

    await commands.resume(session, deployment.id, actor="bob", now=first.expires_at + S)

    second = await request_of(session, deployment)
    assert (second.status, second.expires_at) == (ApprovalStatus.PENDING, first.expires_at + S + 2 * DAY)
    assert second.id != first.id


async def test_a_request_that_ran_out_early_is_made_again_when_it_is_needed(session: AsyncSession) -> None:
    deployment = await make_deployment(session, target_ring=Ring.PILOT, risk_factors=RISK_62)
    await board.expire(session, deployment.id, now=NOON + 2 * DAY)
    assert not (await reload(session, deployment)).paused

    await pass_ring(session, deployment, Ring.LAB, NOON + 3 * DAY)
    await pass_ring(session, deployment, Ring.CANARY, NOON + 4 * DAY)

    assert (await reload(session, deployment)).status is DeploymentStatus.AWAITING_CAB
    assert (await request_of(session, deployment)).status is ApprovalStatus.PENDING


class TestExceptions:
    async def test_a_very_risky_deployment_is_approved_only_with_one(self, session: AsyncSession) -> None:
        deployment = await at_canary(session, risk_factors=RISK_90)

        with pytest.raises(Invalid, match="exception") as refused:
            await approve(session, deployment)
        assert [wrong.pointer for wrong in refused.value.errors] == ["/exception"]

        approved = await approve(session, deployment, BEARABLE)
        assert approved.exception_expires_at == NOON + 60 * S + timedelta(days=30)

    @pytest.mark.parametrize("days", [0, 91])
    async def test_it_lasts_one_to_ninety_days(self, session: AsyncSession, days: int) -> None:
        deployment = await at_canary(session, risk_factors=RISK_90)
        given = ExceptionGiven("kept off the internet", NOON + timedelta(days=days))

        with pytest.raises(Invalid):
            await approve(session, deployment, Verdict("we bear it", exception=given))

    async def test_a_critical_vulnerability_keeps_even_lab_from_beginning(
        self, session: AsyncSession
    ) -> None:
        deployment = await make_deployment(session, risk_factors=CRITICAL)
        assert deployment.status is DeploymentStatus.AWAITING_CAB
        assert await codes(session, deployment) == ["critical_vulnerability"]

        await approve(session, deployment, BEARABLE)

        assert (await reload(session, deployment)).status is DeploymentStatus.APPROVED
        assert await codes(session, deployment) == []
        await pass_ring(session, deployment, Ring.LAB, NOON + 70 * S)
        assert (await reload(session, deployment)).status is DeploymentStatus.DEPLOYING

    async def test_one_that_has_run_out_blocks_the_next_ring(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session, target_ring=Ring.DEPARTMENT, risk_factors=RISK_90)
        given = ExceptionGiven("kept off the internet", NOON + 2 * DAY)
        await approve(session, deployment, Verdict("we bear it", exception=given))
        await pass_ring(session, deployment, Ring.LAB, NOON)
        await pass_ring(session, deployment, Ring.CANARY, NOON + DAY)
        await pass_ring(session, deployment, Ring.PILOT, NOON + 3 * DAY - 4 * S - DAY)
        department = (await reload(session, deployment)).lanes[-1]

        held = await pushes.begin_push(
            session, department.id, await operation_of(session, department), now=NOON + 2 * DAY
        )

        assert isinstance(held, Held)
        assert held.code == "exception_expired"
        assert (await reload(session, deployment)).status is DeploymentStatus.AWAITING_CAB
        [blocker] = await blockers.of_deployment(session, deployment.id, now=NOON + 2 * DAY, limits=Limits())
        assert (blocker.code, blocker.since) == (Code.EXCEPTION_EXPIRED, NOON + 2 * DAY)
        assert (await request_of(session, deployment)).status is ApprovalStatus.PENDING


class TestIrreversible:
    async def stuck(self, session: AsyncSession, **overrides: Any) -> Deployment:
        """A deployment to CANARY whose plane turned out to have no way back."""
        deployment = await make_deployment(session, **overrides)
        await change_planes(session, deployment, "way_back = 'none'")
        return deployment

    async def test_it_is_known_before_canary_and_waits_for_the_board(self, session: AsyncSession) -> None:
        deployment = await self.stuck(session)

        await pass_ring(session, deployment, Ring.LAB, NOON)

        after = await reload(session, deployment)
        assert (after.status, after.requires_cab_approval) == (DeploymentStatus.AWAITING_CAB, True)
        assert after.lanes[0].status is LaneStatus.MEASURING
        assert (await request_of(session, deployment)).irreversible == ["intune"]
        assert await codes(session, deployment) == ["irreversible"]

    async def test_the_boards_yes_lets_the_ring_be_left(self, session: AsyncSession) -> None:
        deployment = await self.stuck(session)
        await pass_ring(session, deployment, Ring.LAB, NOON)

        await approve(session, deployment)

        assert (await reload(session, deployment)).status is DeploymentStatus.DEPLOYING
        await pass_ring_again(session, deployment)
        await pass_ring(session, deployment, Ring.CANARY, NOON + 100 * S)
        assert (await reload(session, deployment)).status is DeploymentStatus.COMPLETED

    async def test_a_yes_from_before_it_was_known_does_not_count(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session, target_ring=Ring.PILOT, risk_factors=RISK_62)
        await approve(session, deployment)
        await change_planes(session, deployment, "way_back = 'none'")

        await pass_ring(session, deployment, Ring.LAB, NOON + 70 * S)

        assert (await reload(session, deployment)).status is DeploymentStatus.AWAITING_CAB
        assert (await request_of(session, deployment)).status is ApprovalStatus.PENDING


async def pass_ring_again(session: AsyncSession, deployment: Deployment) -> None:
    """Measure LAB once more, when its soak is over."""
    await measurements.finish_measure(
        session, deployment.lanes[0].id, read_since=NOON + 70 * S, now=NOON + 70 * S
    )


async def test_manual_promotion_and_the_board_are_both_waited_for(session: AsyncSession) -> None:
    deployment = await make_deployment(
        session, promotion=Promotion.MANUAL, target_ring=Ring.PILOT, risk_factors=RISK_62
    )
    await pass_ring(session, deployment, Ring.LAB, NOON)
    assert await codes(session, deployment) == ["manual_promotion"]
    await promotion.promote(session, deployment.id, actor="bob", now=NOON + 20 * S)
    await pass_ring(session, deployment, Ring.CANARY, NOON + 30 * S)
    assert await codes(session, deployment) == ["manual_promotion", "awaiting_cab"]

    await promotion.promote(session, deployment.id, actor="bob", now=NOON + 40 * S)

    assert (await reload(session, deployment)).status is DeploymentStatus.AWAITING_CAB
    assert await codes(session, deployment) == ["awaiting_cab"]
    await approve(session, deployment)
    assert await codes(session, deployment) == []


async def test_an_approval_of_a_paused_deployment_starts_nothing_until_it_is_resumed(
    session: AsyncSession,
) -> None:
    deployment = await at_canary(session)
    await commands.pause(session, deployment.id, actor="bob", now=NOON + 50 * S)
    await approve(session, deployment)
    assert await pushes_of(session, deployment) == 2
    assert await codes(session, deployment) == ["paused"]

    _, started = await commands.resume(session, deployment.id, actor="bob", now=NOON + 70 * S)

    assert started == (await reload(session, deployment)).lanes[-1].operation_id
    assert await pushes_of(session, deployment) == 3


async def test_empty_rings_that_were_passed_by_hand_are_not_begun_again(session: AsyncSession) -> None:
    deployment = await make_deployment(session, target_ring=Ring.PILOT, risk_factors=RISK_62)
    lab, canary, pilot = deployment.lanes
    for lane in (lab, canary):
        await push(session, lane)
        await promotion.promote(session, deployment.id, actor="bob", now=NOON, reason="nobody is there yet")
    waiting = await reload(session, deployment)
    assert waiting.status is DeploymentStatus.AWAITING_CAB
    assert await codes(session, deployment) == ["awaiting_cab"]

    _, started = await board.approve(
        session, (await request_of(session, deployment)).id, YES, actor="carol", now=NOON + S
    )

    assert started == pilot.operation_id
    assert await codes(session, deployment) == []
    await commands.pause(session, deployment.id, actor="bob", now=NOON + S)
    await commands.resume(session, deployment.id, actor="bob", now=NOON + S)
    assert [lane.status.value for lane in (await reload(session, deployment)).lanes] == [
        *("EMPTY_TARGET", "EMPTY_TARGET", "PENDING"),
    ]
    assert await pushes_of(session, deployment) == 3


async def test_a_stale_version_of_a_request_is_refused(session: AsyncSession) -> None:
    request = await request_of(session, await at_canary(session))

    with pytest.raises(VersionMismatch):
        await board.approve(session, request.id, YES, actor="carol", now=NOON, version=7)


async def test_a_deployment_that_ends_withdraws_its_request(session: AsyncSession) -> None:
    deployment = await at_canary(session)

    await commands.cancel(session, deployment.id, actor="bob", now=NOON)

    assert (await request_of(session, deployment)).status is ApprovalStatus.WITHDRAWN
