# SPDX-License-Identifier: Apache-2.0
"""No state is for ever: the table is whole, and what is past its limit is moved on."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action, InstallState, Observed, Plane
from app.domain import (
    ai_decisions,
    audit,
    blockers,
    commands,
    deadlines,
    deployments,
    effects,
    freezes,
    lanes,
    operations,
    outcomes,
    pushes,
    retries,
    rollback,
    sweeping,
)
from app.domain.budgets import Limits
from app.domain.calendars import FreezeSpan
from app.domain.deadlines import AWAY, MACHINES, Limit, Machine
from app.domain.operations import KINDS, Failure, OperationKind
from app.domain.policies import STANDARD
from app.domain.pushes import Push
from app.domain.sweeping import WATCHES, Aged, Times, Watch
from app.models import (
    AiTaskStatus,
    Deployment,
    DeploymentStatus,
    Effect,
    EffectState,
    LaneStatus,
    Operation,
    OperationStatus,
    Ring,
    RingDeployment,
)
from tests.domain.proposing import code_of, seated, table
from tests.domain.steps import S, event_types, measure, operation_of, pass_ring, push, reload
from tests.domain.test_drift import look, seen
from tests.factories import NOON, RISK_62, make_deployment, manifest

MONTH, DAY, HOUR = timedelta(days=30), timedelta(days=1), timedelta(hours=1)
LIMITS = [(machine, limit) for machine in MACHINES for limit in machine.limits]
WATCHED = [(watch, state.value) for watch in WATCHES for state in watch.states]
PUT_IN = {
    "deployment": "UPDATE deployments SET status = CAST(:state AS deployment_status), finished_at = now()",
    "lane": "UPDATE ring_deployments SET status = CAST(:state AS lane_status) WHERE position = 0",
    "effect": "UPDATE effects SET state = CAST(:state AS effect_state), settled_at = NULL",
    "drift": "UPDATE drifts SET status = CAST(:state AS drift_status)",
    "request": "UPDATE approvals SET status = CAST(:state AS approval_status)",
    "operation": "UPDATE operations SET status = CAST(:state AS operation_status), finished_at = NULL,"
    " lease_owner = CASE :state WHEN 'RUNNING' THEN 'me' END,"
    " lease_until = CASE :state WHEN 'RUNNING' THEN now() END",
    "message": "UPDATE messages SET status = CAST(:state AS message_status), finished_at = NULL"
    " WHERE role = 'assistant'",
    "ai_task": "UPDATE ai_tasks SET status = CAST(:state AS ai_task_status), finished_at = NULL",
}


def times(now: datetime) -> Times:
    return Times(now=now, since=now - DAY, abandoned=MONTH, lease=timedelta(seconds=15))


async def look_at_all(session: AsyncSession, now: datetime) -> list[Aged]:
    return [each for watch in WATCHES for each in await sweeping.aged(session, watch, times(now))]


async def sweep(session: AsyncSession, now: datetime) -> list[tuple[str, str]]:
    """Move on what is past its time; what that was."""
    moved = []
    for watch in WATCHES:
        moved += await enforce(session, [(watch, await sweeping.aged(session, watch, times(now)))], now)
    return moved


async def sweep_late(session: AsyncSession, now: datetime) -> list[tuple[str, str]]:
    """What a sweeper still moves on that has listed it before another one moved it."""
    listed = [(watch, await sweeping.aged(session, watch, times(now))) for watch in WATCHES]
    assert await sweep(session, now)
    return await enforce(session, listed, now)


async def enforce(
    session: AsyncSession, listed: Sequence[tuple[Watch, Sequence[Aged]]], now: datetime
) -> list[tuple[str, str]]:
    return [
        (each.machine, each.state)
        for watch, found in listed
        for each in found
        if await sweeping.move_on(session, watch, each, times(now))
    ]


async def end_work(session: AsyncSession, *, ago: timedelta) -> None:
    """All operations ended so long ago, and nobody cared."""
    ended = (
        "UPDATE operations SET status = 'SUCCEEDED', finished_at = clock_timestamp() - CAST(:ago AS interval)"
    )
    await session.execute(text(ended), {"ago": ago})


class TestTable:
    """Every machine, every state."""

    @pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
    def test_every_state_that_is_not_final_has_one_limit(self, machine: Machine) -> None:
        waiting = [state for state in machine.moves if state not in machine.resting]

        assert [limit.state for limit in machine.limits] == waiting

    @pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
    def test_states_that_may_follow_nothing_are_final(self, machine: Machine) -> None:
        assert {state for state, following in machine.moves.items() if not following} <= machine.resting

    @pytest.mark.parametrize(
        ("machine", "limit"), LIMITS, ids=lambda each: str(getattr(each, "name", getattr(each, "state", "")))
    )
    def test_each_limit_leads_to_a_move_of_the_machine(self, machine: Machine, limit: Limit) -> None:
        following = machine.moves[limit.state]

        assert limit.owner
        assert limit.after
        assert {limit.successor, limit.otherwise or limit.successor} <= following

    def test_work_without_a_deadline_is_a_lanes_whose_state_has_one(self) -> None:
        endless = {kind for kind, rules in KINDS.items() if rules.deadline is None}

        assert endless == {OperationKind.MEASURE_RING, OperationKind.EXECUTE_ROLLBACK}
        owners = " ".join(limit.owner for machine, limit in LIMITS if machine.name == "lane")
        assert all(kind.value in owners for kind in endless)

    @pytest.mark.parametrize(("machine", "limit"), LIMITS, ids=lambda each: str(getattr(each, "name", "")))
    def test_each_state_is_watched_unless_something_else_is_said_to_end_it(
        self, machine: Machine, limit: Limit
    ) -> None:
        watched = [
            watch for watch in WATCHES if watch.machine == machine.name and limit.state in watch.states
        ]

        assert bool(watched) is not bool(limit.instead)

    def test_what_is_watched_may_not_last(self) -> None:
        watched = {(watch.machine, state.value) for watch in WATCHES for state in watch.states}

        assert watched <= {(machine.name, limit.state.value) for machine, limit in LIMITS}

    @pytest.mark.parametrize(("watch", "state"), WATCHED, ids=lambda each: getattr(each, "machine", each))
    async def test_what_is_watched_is_seen(self, session: AsyncSession, watch: Watch, state: str) -> None:
        deployment = await make_deployment(session, risk_factors=RISK_62, target_ring=Ring.PILOT)
        await pass_ring(session, deployment, Ring.LAB, NOON)
        await look(session, deployment, Observed(assigned=False), NOON)
        desk = await seated(session, deployment)
        await desk.approved()
        await desk.said()
        await end_work(session, ago=HOUR)
        over = "ROLLING_BACK" if state == "ROLLING_BACK" else "FAILED"
        await session.execute(text(PUT_IN["deployment"]), {"state": over})
        await session.execute(text(PUT_IN[watch.machine]), {"state": state})

        assert state in {each.state for each in await sweeping.aged(session, watch, times(NOON))}

    async def test_what_is_fresh_is_far_from_its_limit(self, session: AsyncSession) -> None:
        await make_deployment(session, risk_factors=RISK_62, target_ring=Ring.PILOT)

        found = await look_at_all(session, NOON + S)

        assert {each.machine for each in found} == {"deployment", "request", "operation"}
        assert max(each.ratio for each in found) < 0.01


async def untouched(session: AsyncSession, _: Deployment) -> None:
    """Nothing has happened to it."""


async def paused(session: AsyncSession, deployment: Deployment) -> None:
    await pass_ring(session, deployment, Ring.LAB, NOON)
    await commands.pause(session, deployment.id, actor="bob", now=NOON)


async def held(session: AsyncSession, deployment: Deployment) -> None:
    lane = deployment.lanes[0]
    await push(session, lane, "pc-1")
    work = await operation_of(session, lane)
    await operations.cancel(session, work, ended=outcomes.operation_ended)
    assert (await reload(session, deployment)).lanes[0].status is LaneStatus.HELD


class TestAbandoned:
    """A deployment that only a person could move ends when nobody has come for a month."""

    @pytest.mark.parametrize("story", [untouched, paused, held], ids=lambda story: story.__name__)
    async def test_nobody_comes(self, session: AsyncSession, story: Callable[..., Any]) -> None:
        deployment = await make_deployment(session)
        await story(session, deployment)
        changed = (await reload(session, deployment)).updated_at

        assert ("deployment", "CANCELLED") not in await sweep(session, changed + MONTH - S)
        assert (await reload(session, deployment)).status is not DeploymentStatus.CANCELLED
        await sweep(session, changed + MONTH + S)

        after = await reload(session, deployment)
        assert after.status is DeploymentStatus.CANCELLED
        assert not any(lane.status is LaneStatus.PENDING for lane in after.lanes)

    async def test_it_says_why(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session)

        await sweep(session, NOON + MONTH + S)

        (told,) = await session.scalars(
            text("SELECT after->>'reason' FROM events WHERE type = 'deployment.cancelled'")
        )
        assert told == "nobody has moved it for 30 days"
        assert (await audit.verify(session)).broken == []
        assert await blockers.of_deployment(session, deployment.id, now=NOON, limits=Limits()) == []

    async def test_a_freeze_and_a_later_start_are_waited_for(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session, start_at=NOON + 60 * DAY)
        span = FreezeSpan(NOON, NOON + 80 * DAY, frozenset(), frozenset(), "year's end")
        await freezes.create(session, span, actor="bob", now=NOON)

        assert ("deployment", "PENDING") not in await sweep(session, NOON + 79 * DAY)
        await freezes.end(session, (await session.scalars(text("SELECT id FROM freezes"))).one())
        assert ("deployment", "PENDING") not in await sweep(session, NOON + 89 * DAY)
        assert ("deployment", "PENDING") in await sweep(session, NOON + 91 * DAY)
        assert (await reload(session, deployment)).status is DeploymentStatus.CANCELLED

    async def test_a_lane_that_is_measured_keeps_its_deployment(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session)
        await push(session, deployment.lanes[0], "pc-1")

        found = await look_at_all(session, NOON + MONTH + S)

        assert "deployment" not in {each.machine for each in found}


class TestLanes:
    """Lanes whose work does not end, and lanes whose work has ended without them."""

    async def test_a_plane_that_is_away_for_a_week_leaves_the_lane_to_a_person(
        self, session: AsyncSession
    ) -> None:
        deployment = await make_deployment(session)
        lane = deployment.lanes[0]
        await push(session, lane, "pc-1")
        error = Failure("transient", "circuit_open", "intune is away", "intune").to_json()
        await lanes.wait_for_plane(session, lane.id, error=error, now=NOON + S)

        assert ("lane", "WAITING_PLANE") not in await sweep(session, NOON + AWAY)
        await sweep(session, NOON + AWAY + 2 * S)

        after = (await reload(session, deployment)).lanes[0]
        assert (after.status, after.held_for) == (LaneStatus.HELD, "push_failed")
        work = await operations.get(session, await operation_of(session, lane))
        assert (work.status, (work.error or {})["code"]) == (OperationStatus.FAILED, "plane_unavailable")

    async def test_a_lane_without_a_verdict_is_left_to_a_person(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session)
        await push(session, deployment.lanes[0], "pc-1")
        policy = deployments.policy_of(deployment)
        longest = max(policy.connectivity.values()) + policy.gates[Ring.LAB].soak + DAY

        assert ("lane", "MEASURING") not in await sweep(session, NOON + longest - S)
        await sweep(session, NOON + longest + S)

        after = (await reload(session, deployment)).lanes[0]
        assert after.status is LaneStatus.HELD

    async def test_after_a_break_of_everything_a_lane_is_measured_first(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session, policy=STANDARD)
        lane = deployment.lanes[0]
        await push(session, lane, "pc-1")
        back = times(NOON + HOUR).at(NOON + MONTH)
        measuring = next(watch for watch in WATCHES if watch.states == (LaneStatus.MEASURING,))

        (first,) = await sweeping.aged(session, measuring, back)
        (unmeasured,) = await sweeping.aged(session, measuring, back.at(back.now + HOUR))
        await measure(session, lane, InstallState.INSTALLED, "pc-1", now=back.now + S)
        (soaking,) = await sweeping.aged(session, measuring, back.at(back.now + HOUR))
        (forgotten,) = await sweeping.aged(session, measuring, times(back.now + 3 * DAY))

        assert [each.overdue for each in (first, unmeasured, soaking, forgotten)] == [
            False,
            True,
            False,
            True,
        ]

    async def test_a_lane_without_a_verdict_that_is_tried_again_gets_all_its_time(
        self, session: AsyncSession
    ) -> None:
        now = await outcomes.database_now(session)
        deployment = await make_deployment(session)
        lane = deployment.lanes[0]
        await push(session, lane, "pc-1", now=now - MONTH)
        assert ("lane", "MEASURING") in await sweep(session, now)

        work = await operation_of(session, lane)
        await operations.revive(session, work, revived=outcomes.operation_revived)
        moved = await sweep(session, now + 10 * S)
        await measure(session, lane, InstallState.PENDING, now=now + 10 * S)

        after = (await reload(session, deployment)).lanes[0]
        assert (moved, after.status, after.error) == ([], LaneStatus.MEASURING, None)
        assert (after.failure_count, after.unreachable_count) == (0, 1)

    @pytest.mark.parametrize("pushed", [True, False], ids=["measured", "pushed"])
    async def test_a_lane_that_lost_its_work_is_left_to_a_person(
        self, session: AsyncSession, *, pushed: bool
    ) -> None:
        deployment = await make_deployment(session)
        lane = deployment.lanes[0]
        if pushed:
            await push(session, lane, "pc-1")
        else:
            await pushes.begin_push(session, lane.id, await operation_of(session, lane), now=NOON)
        await end_work(session, ago=timedelta(minutes=9))
        assert await sweep(session, NOON + S) == []

        await end_work(session, ago=timedelta(minutes=11))
        await sweep(session, NOON + S)

        after = (await reload(session, deployment)).lanes[0]
        assert (after.status, (after.error or {})["message"]) == (
            LaneStatus.HELD,
            "nobody works on it any more",
        )

    async def test_a_rollback_that_lost_its_work_fails_and_older_rings_are_not_taken_for_lost(
        self, session: AsyncSession
    ) -> None:
        deployment = await make_deployment(session)
        await pass_ring(session, deployment, Ring.LAB, NOON)
        await pass_ring(session, deployment, Ring.CANARY, NOON + 10 * S)
        await rollback.begin(session, deployment.id, actor="bob", now=NOON + 20 * S)
        await end_work(session, ago=HOUR)

        assert await sweep(session, NOON + 30 * S) == [("lane", "ROLLING_BACK")]

        after = await reload(session, deployment)
        assert after.status is DeploymentStatus.FAILED
        assert [lane.status.value for lane in after.lanes] == ["ROLLING_BACK", "FAILED"]

    async def test_a_rollback_that_does_not_move_for_a_month_fails(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session)
        await pass_ring(session, deployment, Ring.LAB, NOON)
        await rollback.begin(session, deployment.id, actor="bob", now=NOON)

        assert ("deployment", "ROLLING_BACK") not in await sweep(session, NOON + MONTH - S)
        await sweep(session, NOON + MONTH + S)

        assert (await reload(session, deployment)).status is DeploymentStatus.FAILED


async def refused(session: AsyncSession) -> tuple[Deployment, RingDeployment]:
    """A deployment that FAILED because one of two planes refused it, and its lane on the other one."""
    deployment = await make_deployment(session, planes=(Plane.INTUNE, Plane.JAMF))
    lane, other = deployments.ring_lanes(deployment, Ring.LAB)
    work = await operations.lock(session, await operation_of(session, lane))
    no = Failure("permanent", "permanent", "the plane refused it", "intune")
    await operations.end(session, work, OperationStatus.FAILED, failure=no, ended=outcomes.operation_ended)
    assert (await reload(session, deployment)).status is DeploymentStatus.FAILED
    return deployment, other


class TestFailed:
    """A deployment that FAILED is over: what still moved is HELD, until it is retried or taken back."""

    @pytest.mark.parametrize("state", ["PENDING", "PUSHING", "WAITING_PLANE"])
    async def test_a_push_that_comes_too_late_leaves_its_lane_to_a_person(
        self, session: AsyncSession, state: str
    ) -> None:
        deployment, lane = await refused(session)
        await session.execute(
            text("UPDATE ring_deployments SET status = CAST(:state AS lane_status) WHERE id = :id"),
            {"state": state, "id": lane.id},
        )

        begun = await pushes.begin_push(session, lane.id, await operation_of(session, lane), now=NOON + S)

        assert begun is None
        after = (await reload(session, deployment)).lanes[1]
        assert (after.status, after.held_for) == (LaneStatus.HELD, "push_failed")
        assert (await event_types(session, deployment))[-1] == "lane.held"

    async def test_a_retry_pushes_it_too(self, session: AsyncSession) -> None:
        deployment, lane = await refused(session)
        await pushes.begin_push(session, lane.id, await operation_of(session, lane), now=NOON + S)
        await session.execute(
            text("UPDATE operations SET status = 'SUCCEEDED' WHERE id = :id"), {"id": lane.operation_id}
        )

        manifests = {plane: manifest(plane) for plane in (Plane.INTUNE, Plane.JAMF)}
        values: dict[str, Any] = {"manifests": manifests, "limits": Limits(), "actor": "bob"}
        await retries.retry(session, deployment.id, now=NOON + 2 * S, **values)
        begun = await pushes.begin_push(session, lane.id, await operation_of(session, lane), now=NOON + 3 * S)

        assert isinstance(begun, Push)
        assert (await reload(session, deployment)).status is DeploymentStatus.DEPLOYING

    async def test_a_lane_that_lost_its_work_is_left_to_a_person(self, session: AsyncSession) -> None:
        deployment, lane = await refused(session)
        await session.execute(
            text("UPDATE ring_deployments SET status = 'PUSHING' WHERE id = :id"), {"id": lane.id}
        )
        await end_work(session, ago=HOUR)

        assert await sweep(session, NOON + S) == [("lane", "PUSHING")]
        assert (await reload(session, deployment)).lanes[1].status is LaneStatus.HELD


async def sent(session: AsyncSession) -> tuple[Deployment, Effect]:
    """A deployment whose publishing was sent, and no answer came."""
    deployment = await make_deployment(session)
    lane = deployment.lanes[0]
    operation_id = await operation_of(session, lane)
    begun = await pushes.begin_push(session, lane.id, operation_id, now=NOON)
    assert isinstance(begun, Push)
    step = begun.steps[Action.PUBLISH]
    await effects.sent(session, step.id, operation_id=operation_id, now=NOON)
    return deployment, await session.get_one(Effect, step.id, populate_existing=True)


async def asking(session: AsyncSession) -> list[Operation]:
    return list(await session.scalars(select(Operation).filter_by(kind="settle_effect")))


class TestEffects:
    """An effect whose work has ended is asked about, and closed where it never left."""

    async def test_a_lost_answer_is_asked_about_once(self, session: AsyncSession) -> None:
        _, effect = await sent(session)
        assert ("effect", "SENT") not in await sweep(session, NOON + S)
        await session.execute(text("UPDATE ring_deployments SET status = 'HELD' WHERE status = 'PUSHING'"))
        await end_work(session, ago=2 * HOUR)

        assert ("effect", "SENT") in await sweep(session, NOON + S)
        assert ("effect", "SENT") not in await sweep(session, NOON + S)

        (work,) = await asking(session)
        assert (work.subject_type, work.subject_id) == ("effect", str(effect.id))

    async def test_two_sweepers_that_saw_it_at_once_ask_once(self, session: AsyncSession) -> None:
        await sent(session)
        await session.execute(text("UPDATE ring_deployments SET status = 'HELD' WHERE status = 'PUSHING'"))
        await end_work(session, ago=2 * HOUR)

        assert await sweep_late(session, NOON + S) == []
        assert len(await asking(session)) == 1

    async def test_a_plane_that_cannot_be_asked_for_a_week_leaves_it_unknown_for_good(
        self, session: AsyncSession
    ) -> None:
        _, effect = await sent(session)
        await session.execute(text("UPDATE ring_deployments SET status = 'HELD' WHERE status = 'PUSHING'"))
        await end_work(session, ago=2 * HOUR)
        await sweep(session, NOON + S)
        (work,) = await asking(session)

        failed = Failure("transient", "plane_unavailable", "away", "intune")
        await operations.end(
            session, work, OperationStatus.FAILED, failure=failed, ended=outcomes.operation_ended
        )
        await end_work(session, ago=2 * HOUR)

        await session.refresh(effect)
        assert (effect.state, (effect.error or {})["code"]) == (EffectState.UNKNOWN, "never_known")
        assert ("effect", "UNKNOWN") not in await sweep(session, NOON + S)

    async def test_what_was_never_sent_is_closed_with_its_deployment(self, session: AsyncSession) -> None:
        deployment, _ = await sent(session)
        await commands.cancel(session, deployment.id, actor="bob", now=NOON)
        await end_work(session, ago=timedelta(0))

        assert ("effect", "PLANNED") not in await sweep(session, NOON + HOUR - S)
        await sweep(session, NOON + HOUR + S)

        states = await session.scalars(select(Effect.state).order_by(Effect.id))
        assert [state.value for state in states] == ["SENT", "REJECTED", "REJECTED"]


ESCALATED = """
    INSERT INTO drifts (id, deployment_id, lane_id, ring, plane, type, severity, status, status_since, detail,
        expected, observed)
    SELECT gen_random_uuid(), lane.deployment_id, lane.id, lane.ring, lane.plane, type, 'high', 'ESCALATED',
        :since, 'it differs', '{}', '{}'
    FROM ring_deployments AS lane, unnest(enum_range(NULL::drift_type)) AS type ON CONFLICT DO NOTHING
"""


class TestDrift:
    """Suspicions, repairs and escalations have their time, too."""

    async def test_each_is_closed_or_escalated_in_time(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session)
        await pass_ring(session, deployment, Ring.LAB, NOON)
        deployment = await reload(session, deployment)
        gone, now = Observed(assigned=False), NOON + HOUR
        await look(session, deployment, gone, now)
        assert ("drift", "SUSPECTED") in await sweep(session, now + AWAY + S)
        assert await seen(session) == [("missing_assignment", "RESOLVED")]

        now += AWAY + DAY
        await look(session, deployment, gone, now)
        await look(session, deployment, gone, now + HOUR)
        assert (await seen(session))[-1] == ("missing_assignment", "OPEN")
        now += HOUR + AWAY + S
        assert ("drift", "OPEN") in await sweep(session, now)
        assert (await seen(session))[-1] == ("missing_assignment", "ESCALATED")
        assert ("drift", "ESCALATED") in await sweep(session, now + MONTH + S)
        assert (await seen(session))[-1] == ("missing_assignment", "RESOLVED")

    async def test_what_may_last_long_keeps_up_nothing_that_may_not(self, session: AsyncSession) -> None:
        planes = (Plane.INTUNE, Plane.JAMF)
        deployment = await make_deployment(session, planes=planes, target_ring=Ring.GLOBAL)
        await pass_ring(session, deployment, Ring.LAB, NOON)
        await look(session, deployment, Observed(assigned=False), NOON)
        await session.execute(text(ESCALATED), {"since": NOON - 15 * DAY})

        found = await look_at_all(session, NOON + AWAY - HOUR)
        moved = await sweep(session, NOON + AWAY + S)

        assert 0.98 < max(each.ratio for each in found if each.state == "SUSPECTED") < 1
        assert ("drift", "SUSPECTED") in moved

    async def test_two_sweepers_that_saw_it_at_once_leave_it_to_a_person(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session)
        await pass_ring(session, deployment, Ring.LAB, NOON)
        gone, now = Observed(assigned=False), NOON + HOUR
        await look(session, deployment, gone, now)
        await look(session, deployment, gone, now + HOUR)

        assert await sweep_late(session, now + HOUR + AWAY + S) == []
        assert await seen(session) == [("missing_assignment", "ESCALATED")]


class TestTasks:
    """Proposals hold for their time, and nobody waits for work that nobody does."""

    async def test_a_proposal_that_nobody_decided_on_expires_and_the_history_tells(
        self, session: AsyncSession
    ) -> None:
        desk = await table(session)
        task = await desk.proposed("rollback")
        over = NOON + 5 * S + 4 * HOUR

        assert ("ai_task", "AWAITING_APPROVAL") not in await sweep(session, over - S)
        assert ("ai_task", "AWAITING_APPROVAL") in await sweep(session, over)

        assert (await desk.seen(task.id)).status is AiTaskStatus.EXPIRED
        assert "ai_task.expired" in await event_types(session, desk.deployment)
        assert (await audit.verify(session)).broken == []

    async def test_what_was_approved_meanwhile_does_not_expire(self, session: AsyncSession) -> None:
        desk = await table(session)
        task = await desk.proposed("rollback")
        now = NOON + DAY
        watch = next(watch for watch in WATCHES if AiTaskStatus.AWAITING_APPROVAL in watch.states)
        listed = [(watch, await sweeping.aged(session, watch, times(now)))]
        await ai_decisions.approve(session, task.id, desk.decision())

        assert await enforce(session, listed, now) == []
        assert (await desk.seen(task.id)).status is AiTaskStatus.APPROVED

    @pytest.mark.parametrize("state", ["PENDING", "RUNNING", "REVISION_REQUESTED", "APPROVED", "EXECUTING"])
    @pytest.mark.parametrize("gone", [False, True], ids=["ended", "gone"])
    async def test_a_task_whose_work_has_ended_without_it_has_failed(
        self, session: AsyncSession, state: str, *, gone: bool
    ) -> None:
        desk = await table(session)
        task = await desk.approved("rollback")
        await session.execute(text(PUT_IN["ai_task"]), {"state": state})
        await end_work(session, ago=timedelta(minutes=9))
        assert ("ai_task", state) not in await sweep(session, NOON + 7 * S)

        await end_work(session, ago=timedelta(minutes=11))
        if gone:
            await session.execute(text("DELETE FROM operations WHERE id = :id"), {"id": task.operation_id})
        before = await desk.state(desk.deployment.id)
        assert await sweep(session, NOON + 7 * S) == [("ai_task", state)]

        assert code_of(await desk.seen(task.id)) == (AiTaskStatus.FAILED, "deadline")
        assert await desk.state(desk.deployment.id) == before
        assert await desk.done(task.id) == []
        seen = "ai_task.failed" in await event_types(session, desk.deployment)
        assert seen is (state in {"APPROVED", "EXECUTING"})

    async def test_two_sweepers_that_saw_it_at_once_end_it_once(self, session: AsyncSession) -> None:
        desk = await table(session)
        await desk.proposed("rollback")

        assert await sweep_late(session, NOON + DAY) == []
        assert (await event_types(session, desk.deployment)).count("ai_task.expired") == 1


async def test_the_longest_time_is_told_with_what_enforcing_it_takes() -> None:
    at_its_end = Aged("lane", "PUSHING", uuid4(), HOUR, HOUR)

    assert at_its_end.overdue
    assert at_its_end.ratio == HOUR / (HOUR + deadlines.ENFORCED_WITHIN) < 1
