# SPDX-License-Identifier: Apache-2.0
"""Guards and blockers: every code has one guard, every guard stands in a table, and they tell the truth."""

from dataclasses import replace
from datetime import datetime, time, timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import InstallState, Member, Plane
from app.domain import (
    blockers,
    budgets,
    commands,
    deployments,
    devices,
    freezes,
    guards,
    lanes,
    operations,
    outcomes,
    promotion,
    pushes,
    rollback,
    rollout,
)
from app.domain.budgets import Limits
from app.domain.calendars import Calendar, FreezeSpan, Span, Weekday
from app.domain.facts import Blocker, Code, Who
from app.domain.gates import Gate
from app.domain.guards import GUARDS, LANE_GUARDS, next_move
from app.domain.intents import GateNumbers
from app.domain.policies import DEMO, STANDARD
from app.domain.promotion import Override
from app.domain.pushes import Held, Push
from app.models import Deployment, DeploymentStatus, LaneStatus, Promotion, Ring
from tests.domain.steps import S, measure, operation_of, pass_ring, push, reload
from tests.factories import NOON, make_deployment

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
AWAY = {"class": "transient", "code": "unavailable", "message": "503", "service": "intune"}


async def found(
    session: AsyncSession, deployment: Deployment, now: datetime = NOON, limits: Limits | None = None
) -> list[Blocker]:
    return await blockers.of_deployment(session, deployment.id, now=now, limits=limits or Limits())


async def codes(session: AsyncSession, deployment: Deployment, now: datetime = NOON) -> list[str]:
    return [blocker.code.value for blocker in await found(session, deployment, now)]


async def begin(
    session: AsyncSession,
    deployment: Deployment,
    index: int = 0,
    *,
    now: datetime = NOON,
    limits: Limits | None = None,
) -> Push | Held | None:
    lane = deployment.lanes[index]
    return await pushes.begin_push(
        session, lane.id, await operation_of(session, lane), now=now, limits=limits or Limits()
    )


class TestTables:
    def test_every_public_code_has_a_guard_and_every_guard_a_code(self) -> None:
        assert set(GUARDS) == set(Code)

    def test_every_guard_stands_in_the_table_of_moves(self) -> None:
        assert {code for codes in LANE_GUARDS.values() for code in codes} == set(Code)

    def test_every_guarded_move_is_one_of_the_table(self) -> None:
        for before, after in LANE_GUARDS:
            assert after in rollout.LANE_MOVES[before], (before, after)

    @pytest.mark.parametrize("status", LaneStatus)
    async def test_whatever_waits_for_a_move_has_guards(
        self, session: AsyncSession, status: LaneStatus
    ) -> None:
        """A state that is left by itself, and has no guard, could stand still without saying why."""
        lane = (await make_deployment(session)).lanes[0]
        lane.status = status

        move = next_move(lane)

        over = {LaneStatus.PROMOTED, LaneStatus.ROLLED_BACK, LaneStatus.CANCELLED}
        assert (move is None) is (status in over)
        if move is not None:
            assert LANE_GUARDS[move]

    def test_a_guard_without_a_code_is_no_guard(self) -> None:
        asked = {name for name, value in vars(guards).items() if value in GUARDS.values()}

        assert asked == {code.value for code in GUARDS} - {code.value for code in guards.AWAY_CODES}


async def test_a_deployment_that_moves_or_is_over_has_no_blocker(session: AsyncSession) -> None:
    deployment = await make_deployment(session, target_ring=Ring.LAB)
    assert await codes(session, deployment) == []
    await push(session, deployment.lanes[0], "a")
    assert await codes(session, deployment) == []
    await measure(session, deployment.lanes[0], InstallState.INSTALLING, "a", now=NOON + S)
    assert await codes(session, deployment) == []
    await measure(session, deployment.lanes[0], InstallState.INSTALLED, "a", now=NOON + 2 * S)
    await measure(session, deployment.lanes[0], InstallState.INSTALLED, "a", now=NOON + 4 * S)
    assert (await reload(session, deployment)).status is DeploymentStatus.COMPLETED
    assert await codes(session, deployment) == []


async def test_soak_says_until_when(session: AsyncSession) -> None:
    deployment = await make_deployment(session, policy=STANDARD)
    await push(session, deployment.lanes[0], "a")
    await measure(session, deployment.lanes[0], InstallState.INSTALLED, "a", now=NOON + 60 * S)

    [blocker] = await found(session, deployment, NOON + 60 * S)

    assert (blocker.code, blocker.subject, blocker.since) == (Code.SOAK, "LAB/intune", NOON)
    assert blocker.next_check_at == NOON + DAY
    assert blocker.who_can_act is Who.APPROVER


async def test_a_pause_holds_the_push_and_says_who_and_why(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    await commands.pause(session, deployment.id, actor="bob", now=NOON, reason="the audit")

    assert await begin(session, deployment) == Held("paused", pushes.LOOK_AGAIN)
    [blocker] = await found(session, deployment)
    assert (blocker.subject, blocker.since, blocker.next_check_at) == ("deployment", NOON, None)
    assert "by bob" in blocker.unblocks_when
    assert "the audit" in blocker.unblocks_when


async def test_a_start_in_the_future_is_waited_for(session: AsyncSession) -> None:
    deployment = await make_deployment(session, start_at=NOON + HOUR / 2)

    assert await begin(session, deployment) == Held("not_before", HOUR / 2)
    [blocker] = await found(session, deployment)
    assert (blocker.code, blocker.next_check_at) == (Code.NOT_BEFORE, NOON + HOUR / 2)
    assert await codes(session, deployment, NOON + HOUR / 2) == []


class TestFreezes:
    async def freeze(self, session: AsyncSession, **overrides: Any) -> None:
        values: dict[str, Any] = {
            "starts_at": NOON - HOUR,
            "ends_at": NOON + 2 * HOUR,
            "rings": frozenset(),
            "planes": frozenset(),
            "reason": "the books are closed",
        }
        await freezes.create(session, FreezeSpan(**values | overrides), actor="bob", now=NOON)

    async def test_what_it_covers_is_not_pushed_until_it_ends(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session)
        await self.freeze(session)

        assert await begin(session, deployment) == Held("freeze", pushes.LATEST)
        [blocker] = await found(session, deployment)
        assert (blocker.subject, blocker.since) == ("LAB/intune", NOON - HOUR)
        assert blocker.next_check_at == NOON + 2 * HOUR
        assert "books" in blocker.unblocks_when
        assert await codes(session, deployment, NOON + 2 * HOUR) == []

    @pytest.mark.parametrize(
        "other",
        [
            {"rings": frozenset({Ring.PILOT})},
            {"planes": frozenset({"jamf"})},
            {"starts_at": NOON + S},
            {"ends_at": NOON},
        ],
    )
    async def test_another_ring_plane_or_time_is_not_frozen(
        self, session: AsyncSession, other: dict[str, Any]
    ) -> None:
        deployment = await make_deployment(session)
        await self.freeze(session, **other)

        assert isinstance(await begin(session, deployment), Push)

    async def test_an_assignment_does_not_leave_in_a_freeze_that_began_meanwhile(
        self, session: AsyncSession
    ) -> None:
        deployment = await make_deployment(session)
        await begin(session, deployment)
        await self.freeze(session)

        held = await pushes.permit_push(session, deployment.lanes[0].id, pushes.PUSH_ACTIONS[-1], now=NOON)

        assert held == Held("freeze", pushes.LATEST)
        assert await codes(session, deployment) == ["freeze"]

    async def test_a_rollback_knows_no_freeze(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session)
        await push(session, deployment.lanes[0], "a")
        await self.freeze(session)

        await rollback.begin(session, deployment.id, actor="bob", now=NOON)

        assert await codes(session, deployment) == []


async def test_outside_its_window_a_ring_waits_for_the_next_one(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    nights = Span(tuple(Weekday), time(22), time(4))
    calendar = Calendar("Europe/Berlin", (nights,))
    await freezes.put_window(session, Plane.INTUNE, Ring.LAB, calendar, actor="bob", now=NOON)

    held = await begin(session, deployment)

    assert held == Held("maintenance_window", pushes.LATEST)
    [blocker] = await found(session, deployment)
    assert blocker.next_check_at == NOON + 8 * HOUR  # 22:00 in Berlin's summer is 20:00 UTC
    assert "Europe/Berlin" in blocker.unblocks_when
    assert isinstance(await begin(session, deployment, now=NOON + 8 * HOUR), Push)


class TestBudget:
    LIMITS = Limits(unverified_devices=5)

    async def test_a_ring_waits_until_others_are_verified(self, session: AsyncSession) -> None:
        first = await make_deployment(session, app_name="First", target_ring=Ring.LAB)
        second = await make_deployment(session, app_name="Second", target_ring=Ring.LAB)
        await self.reserve(session, first, "a", "b", "c")
        lane = second.lanes[0]
        await self.members(session, second, "d", "e", "f")

        held = await pushes.permit_push(
            session, lane.id, pushes.PUSH_ACTIONS[-1], now=NOON, limits=self.LIMITS
        )

        assert held == Held("budget", pushes.BUDGET_AGAIN)
        [blocker] = await found(session, second, limits=self.LIMITS)
        assert (blocker.code, blocker.who_can_act) == (Code.BUDGET, Who.NOBODY)
        assert "3 are" in blocker.unblocks_when
        await self.verify(session, first, "a", "b", "c")
        assert (
            await pushes.permit_push(session, lane.id, pushes.PUSH_ACTIONS[-1], now=NOON, limits=self.LIMITS)
            is None
        )
        assert (await budgets.budget(session, self.LIMITS)).used == 3

    async def test_a_ring_that_never_fits_says_that_the_budget_must_be_raised(
        self, session: AsyncSession
    ) -> None:
        deployment = await make_deployment(session)
        await self.members(session, deployment, *"abcdef")

        [blocker] = await found(session, deployment, limits=self.LIMITS)

        assert (blocker.code, blocker.who_can_act) == (Code.BUDGET, Who.ADMIN)
        assert "the 6 it needs" in blocker.unblocks_when

    async def test_a_lane_that_is_pushed_again_takes_its_part_anew(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session)
        await self.reserve(session, deployment, *"abc")
        lane = deployment.lanes[0]
        assert lane.reserved == 3

        await deployments.move_lane(session, deployment, lane, LaneStatus.FAILED, now=NOON)

        assert (lane.reserved, (await budgets.budget(session, self.LIMITS)).used) == (0, 0)

    async def test_a_rollback_needs_no_budget(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session)
        await self.reserve(session, deployment, *"abcde")

        await rollback.begin(session, deployment.id, actor="bob", now=NOON)

        assert await found(session, deployment, limits=self.LIMITS) == []

    async def members(self, session: AsyncSession, deployment: Deployment, *names: str) -> None:
        """What a push writes until its assignment is about to leave."""
        await begin(session, deployment)
        members = [Member(name, name, NOON) for name in names]
        await devices.store_members(session, deployment.lanes[0].id, members, now=NOON)

    async def reserve(self, session: AsyncSession, deployment: Deployment, *names: str) -> None:
        """The same, and the assignment leaves."""
        await self.members(session, deployment, *names)
        lane = deployment.lanes[0]
        permitted = await pushes.permit_push(
            session, lane.id, pushes.PUSH_ACTIONS[-1], now=NOON, limits=self.LIMITS
        )
        assert permitted is None
        await push(session, lane, *names)

    async def verify(self, session: AsyncSession, deployment: Deployment, *names: str) -> None:
        lane = deployment.lanes[0]
        await measure(session, lane, InstallState.INSTALLED, *names, now=NOON + S)
        await measure(session, lane, InstallState.INSTALLED, *names, now=NOON + 3 * S)


@pytest.mark.parametrize(
    ("error", "code"),
    [("unavailable", "plane_unavailable"), ("throttled", "throttled"), ("plane_not_configured",) * 2],
)
async def test_a_plane_that_is_away_says_which_and_why(session: AsyncSession, error: str, code: str) -> None:
    deployment = await make_deployment(session)
    lane = deployment.lanes[0]
    await begin(session, deployment)
    await lanes.wait_for_plane(session, lane.id, error=AWAY | {"code": error}, now=NOON)

    [blocker] = await found(session, deployment)

    assert (blocker.code.value, blocker.subject, blocker.since) == (code, "LAB/intune", NOON)


async def test_a_gate_that_is_not_met_tells_the_commonest_cause(session: AsyncSession) -> None:
    gates = {Ring.LAB: GateNumbers(max_failure_rate=0.9)}
    deployment = await make_deployment(session, gates=gates)
    await push(session, deployment.lanes[0], "a", "b", "c")
    await measure(session, deployment.lanes[0], InstallState.FAILED, "a", "b", now=NOON + S)
    await measure(session, deployment.lanes[0], InstallState.INSTALLED, "c", now=NOON + 2 * S)

    [blocker] = await found(session, deployment)

    assert (blocker.code, blocker.who_can_act) == (Code.GATE_NOT_MET, Who.PUBLISHER)
    assert "2 of 2: no reason given" in blocker.unblocks_when


async def test_too_small_a_sample_pauses_and_says_what_is_missing(session: AsyncSession) -> None:
    deployment = await make_deployment(session, gates={Ring.LAB: GateNumbers(min_reported=5)})
    await push(session, deployment.lanes[0], "a")
    await measure(session, deployment.lanes[0], InstallState.INSTALLED, "a", now=NOON + S)

    after = await reload(session, deployment)
    assert after.paused
    assert "min_reported is 1, not 5" in (after.pause_reason or "")
    assert await codes(session, deployment) == ["paused", "inconclusive"]


async def test_an_empty_ring_says_so(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    await push(session, deployment.lanes[0])

    assert await codes(session, deployment) == ["paused", "empty_target"]
    await commands.resume(session, deployment.id, actor="bob", now=NOON)
    await push(session, (await reload(session, deployment)).lanes[0], "a")
    assert await codes(session, deployment) == []


async def test_a_push_that_ended_waits_for_a_person(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    await begin(session, deployment)
    assert deployment.operation_id is not None
    await operations.cancel(session, deployment.operation_id, ended=outcomes.operation_ended)

    [blocker] = await found(session, deployment)

    assert (blocker.code, blocker.who_can_act) == (Code.PUSH_FAILED, Who.PUBLISHER)


async def test_manual_promotion_waits_and_names_the_ring(session: AsyncSession) -> None:
    deployment = await make_deployment(session, promotion=Promotion.MANUAL)
    await pass_ring(session, deployment, Ring.LAB, NOON)

    [blocker] = await found(session, deployment)

    assert blocker.code is Code.MANUAL_PROMOTION
    assert "CANARY" in blocker.unblocks_when


class TestOverrides:
    async def overridden(self, session: AsyncSession) -> Deployment:
        """LAB is passed over while it soaks; the override ends in an hour."""
        deployment = await make_deployment(session, policy=STANDARD)
        await push(session, deployment.lanes[0], "a")
        await measure(session, deployment.lanes[0], InstallState.INSTALLED, "a", now=NOON + S)
        override = Override("the fix is urgent", NOON + HOUR)
        await promotion.promote(session, deployment.id, actor="carol", now=NOON + 2 * S, override=override)
        return await reload(session, deployment)

    async def test_one_passes_over_a_soak_and_is_kept(self, session: AsyncSession) -> None:
        deployment = await self.overridden(session)

        lab = deployment.lanes[0]
        assert (lab.status, lab.override) == (
            LaneStatus.PROMOTED,
            {"actor": "carol", "reason": "the fix is urgent", "expires_at": (NOON + HOUR).isoformat()},
        )
        assert isinstance(await begin(session, deployment, 1, now=NOON + 3 * S), Push)

    async def test_one_that_ran_out_before_the_next_ring_began_does_not_hold(
        self, session: AsyncSession
    ) -> None:
        deployment = await self.overridden(session)

        held = await begin(session, deployment, 1, now=NOON + HOUR)

        assert held == Held("gate_not_met", pushes.LOOK_AGAIN)
        [blocker] = await found(session, deployment, NOON + HOUR)
        assert (blocker.subject, blocker.who_can_act) == ("LAB/intune", Who.APPROVER)
        again = Override("still urgent", NOON + 3 * HOUR)
        await promotion.promote(session, deployment.id, actor="carol", now=NOON + HOUR, override=again)
        assert isinstance(await begin(session, deployment, 1, now=NOON + HOUR), Push)


def test_the_policies_differ_only_in_their_clocks() -> None:
    for ring in Ring:
        gates: tuple[Gate, Gate] = (STANDARD.gates[ring], DEMO.gates[ring])
        assert replace(gates[0], soak=timedelta(0)) == replace(gates[1], soak=timedelta(0))


async def test_the_version_of_a_whole_is_unmoved_by_looking(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    before = (await reload(session, deployment)).version

    await found(session, deployment)

    assert (await deployments.get(session, deployment.id)).version == before
