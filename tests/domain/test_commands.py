# SPDX-License-Identifier: Apache-2.0
"""What operators order: legal or refused by the state, and harmless when repeated."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action, InstallState
from app.domain import (
    commands,
    deployments,
    leases,
    operations,
    outcomes,
    promotion,
    pushes,
    retries,
    rollback,
    rollout,
    withdrawal,
)
from app.domain.budgets import Limits
from app.domain.intents import GateNumbers
from app.domain.operations import OperationKind
from app.domain.pushes import Held, Push
from app.domain.rollout import COMMANDS, HOLDS, Command
from app.errors import IllegalTransition, VersionMismatch
from app.models import Deployment, DeploymentStatus, LaneStatus, OperationStatus, Ring, new_id
from tests.domain.steps import S, carry_out, event_types, measure, operation_of, pass_ring, push, reload
from tests.factories import NOON, make_deployment

Order = Callable[..., Awaitable[Any]]


async def retry(session: AsyncSession, *given: Any, **named: Any) -> Any:
    return await retries.retry(session, *given, manifests={}, limits=Limits(), **named)


ORDERS: dict[Command, Order] = {
    Command.PROMOTE: promotion.promote,
    Command.PAUSE: commands.pause,
    Command.RESUME: commands.resume,
    Command.CANCEL: commands.cancel,
    Command.ROLLBACK: rollback.begin,
    Command.RETRY: retry,
}


async def order(session: AsyncSession, command: Command, deployment: Deployment, **given: Any) -> Deployment:
    await ORDERS[command](session, deployment.id, **{"actor": "bob", "now": NOON + S} | given)
    return await reload(session, deployment)


@pytest.mark.parametrize("command", Command)
@pytest.mark.parametrize("status", DeploymentStatus)
async def test_a_command_is_legal_or_names_the_state(
    session: AsyncSession, command: Command, status: DeploymentStatus
) -> None:
    deployment = await make_deployment(session)
    await push(session, deployment.lanes[0], "a")
    deployment.status = status
    await session.flush()

    if status in COMMANDS[command] or status in HOLDS.get(command, ()):
        assert rollout.holds_already(command, status) is (status in HOLDS.get(command, ()))
        if command not in {Command.PROMOTE, Command.RETRY}:  # they need more than a state
            await order(session, command, deployment)
        return
    with pytest.raises(IllegalTransition, match=status.value) as refused:
        await order(session, command, deployment)
    assert refused.value.context["status"] == status.value


def test_every_command_has_states_and_none_both_acts_and_holds() -> None:
    assert set(COMMANDS) == set(Command)
    assert all(COMMANDS[command].isdisjoint(states) for command, states in HOLDS.items())


@pytest.mark.parametrize("command", [Command.PAUSE, Command.CANCEL])
async def test_it_is_legal_in_the_first_moment_of_a_deployments_life(
    session: AsyncSession, command: Command
) -> None:
    deployment = await make_deployment(session)

    await order(session, command, deployment, now=NOON)

    begun = await pushes.begin_push(session, deployment.lanes[0].id, new_id(), now=NOON)
    assert not isinstance(begun, Push)


@pytest.mark.parametrize("command", [Command.PAUSE, Command.RESUME, Command.CANCEL, Command.ROLLBACK])
async def test_a_repeat_changes_nothing(session: AsyncSession, command: Command) -> None:
    deployment = await make_deployment(session)
    await push(session, deployment.lanes[0], "a")
    if command is Command.RESUME:
        await order(session, Command.PAUSE, deployment)
    first = await order(session, command, deployment)
    events = await event_types(session, deployment)
    work = len(await operations.find(session, limit=100, deployment_id=deployment.id))

    again = await order(session, command, deployment)

    assert again.version == first.version
    assert await event_types(session, deployment) == events
    assert len(await operations.find(session, limit=100, deployment_id=deployment.id)) == work


async def test_a_command_decided_on_an_old_version_is_refused(session: AsyncSession) -> None:
    deployment = await make_deployment(session)

    for command in Command:
        with pytest.raises(VersionMismatch):
            await order(session, command, deployment, version=77)


class TestPause:
    async def test_from_its_answer_on_nothing_more_leaves(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session)
        lane = deployment.lanes[0]
        await pushes.begin_push(session, lane.id, await operation_of(session, lane), now=NOON)

        await order(session, Command.PAUSE, deployment)

        held = await pushes.permit_push(session, lane.id, Action.ASSIGN, now=NOON + S)
        assert held == Held("paused", pushes.LOOK_AGAIN)

    async def test_measuring_goes_on_and_a_passed_ring_is_left_when_it_is_resumed(
        self, session: AsyncSession
    ) -> None:
        deployment = await make_deployment(session)
        await push(session, deployment.lanes[0], "a")
        await order(session, Command.PAUSE, deployment)
        await measure(session, deployment.lanes[0], InstallState.INSTALLED, "a", now=NOON + S)
        await measure(session, deployment.lanes[0], InstallState.INSTALLED, "a", now=NOON + 3 * S)
        paused = await reload(session, deployment)
        assert (paused.lanes[0].status, paused.lanes[1].operation_id) == (LaneStatus.PROMOTED, None)

        resumed = await order(session, Command.RESUME, deployment, now=NOON + 4 * S)

        assert resumed.lanes[1].operation_id is not None
        again = await order(session, Command.RESUME, deployment, now=NOON + 5 * S)
        assert again.lanes[1].operation_id == resumed.lanes[1].operation_id

    @pytest.mark.parametrize("resumed", ["after the push began to wait", "while the push was about to wait"])
    async def test_resuming_wakes_what_looks_only_once_a_minute(
        self, session: AsyncSession, resumed: str
    ) -> None:
        deployment = await make_deployment(session)
        assert deployment.operation_id is not None
        await order(session, Command.PAUSE, deployment)
        claimed = await leases.claim(
            session, deployment.operation_id, owner="worker", lease=timedelta(minutes=1)
        )
        assert claimed is not None

        if resumed.startswith("while"):
            await order(session, Command.RESUME, deployment)
        await leases.again(
            session, claimed, delay=pushes.LOOK_AGAIN, ended=outcomes.operation_ended, parked=True
        )
        if resumed.startswith("after"):
            await order(session, Command.RESUME, deployment)

        operation = await operations.get(session, deployment.operation_id)
        await session.refresh(operation)
        assert operation.status is OperationStatus.WAITING
        assert operation.run_after <= await outcomes.database_now(session)

    async def test_a_pause_does_not_use_up_the_time_of_a_push(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session)
        assert deployment.operation_id is not None
        claimed = await leases.claim(
            session, deployment.operation_id, owner="worker", lease=timedelta(minutes=1)
        )
        assert claimed is not None
        before = (await operations.get(session, deployment.operation_id)).deadline

        await leases.again(
            session, claimed, delay=timedelta(days=3), ended=outcomes.operation_ended, parked=True
        )

        after = await operations.get(session, deployment.operation_id)
        assert before is not None
        assert after.deadline is not None
        assert after.deadline - before > timedelta(days=2, hours=23)

    async def test_it_stops_a_rollback_and_a_rollback_ends_it(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session)
        await push(session, deployment.lanes[0], "a")
        await order(session, Command.PAUSE, deployment)

        rolling = await order(session, Command.ROLLBACK, deployment)
        assert not rolling.paused
        assert await rollback.permit_removal(session, deployment.id) is None

        await order(session, Command.PAUSE, deployment)
        assert await rollback.permit_removal(session, deployment.id) == rollback.PAUSED_AGAIN


class TestCancel:
    async def test_lanes_end_and_what_was_touched_is_withdrawn(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session, target_ring=Ring.PILOT)
        await pass_ring(session, deployment, Ring.LAB, NOON)
        await push(session, deployment.lanes[1], "b", now=NOON + 10 * S)

        cancelled = await order(session, Command.CANCEL, deployment, now=NOON + 20 * S)

        assert cancelled.status is DeploymentStatus.CANCELLED
        assert [lane.status.value for lane in cancelled.lanes] == ["PROMOTED", "CANCELLED", "CANCELLED"]
        kind = OperationKind.WITHDRAW_LANE
        found = await operations.find(session, limit=9, deployment_id=deployment.id, kind=kind)
        assert {work.subject_id for work in found} == {str(lane.id) for lane in cancelled.lanes[:2]}
        assert {work.queue for work in found} == {"rollback"}

    async def test_another_deployment_of_the_application_may_start(self, session: AsyncSession) -> None:
        await order(session, Command.CANCEL, await make_deployment(session))

        assert (await make_deployment(session)).status is DeploymentStatus.PENDING

    async def test_its_withdrawal_is_an_effect_of_the_ledger_and_ends_with_an_event(
        self, session: AsyncSession
    ) -> None:
        deployment = await make_deployment(session)
        lane = deployment.lanes[0]
        await push(session, lane, "a")
        await order(session, Command.CANCEL, deployment)
        operation_id = await operation_of(session, lane)

        asked = await withdrawal.begin(session, lane.id, operation_id, deployment_id=deployment.id)
        assert isinstance(asked, withdrawal.Withdrawal)
        await withdrawal.permit(session, deployment.id)
        await carry_out(session, asked.step, operation_id)
        await withdrawal.finish(session, lane.id, deployment_id=deployment.id, now=NOON)

        assert asked.step.key == f"{deployment.id}/intune/LAB/unassign"
        assert (await event_types(session, deployment))[-1] == "lane.withdrawn"

    async def test_a_rollback_after_it_removes_and_withdraws_the_removal_too(
        self, session: AsyncSession
    ) -> None:
        deployment = await make_deployment(session)
        lane = deployment.lanes[0]
        await push(session, lane, "a")
        await order(session, Command.CANCEL, deployment)
        withdrawn = await operation_of(session, lane)
        asked = await withdrawal.begin(session, lane.id, withdrawn, deployment_id=deployment.id)
        assert isinstance(asked, withdrawal.Withdrawal)
        await carry_out(session, asked.step, withdrawn)

        await order(session, Command.ROLLBACK, deployment)

        removal = await rollback.begin_removal(
            session, lane.id, await operation_of(session, lane), deployment_id=deployment.id
        )
        assert isinstance(removal, rollback.Removal)
        assert not removal.unassign.done
        again = await withdrawal.begin(session, lane.id, withdrawn, deployment_id=deployment.id)
        assert again is None
        with pytest.raises(IllegalTransition):
            await withdrawal.permit(session, deployment.id)


async def test_a_gate_that_fails_while_paused_takes_everything_back(session: AsyncSession) -> None:
    deployment = await make_deployment(session, gates={Ring.LAB: GateNumbers(max_failure_rate=0.0)})
    await push(session, deployment.lanes[0], "a", "b")
    await order(session, Command.PAUSE, deployment)

    await measure(session, deployment.lanes[0], InstallState.FAILED, "a", now=NOON + 2 * S)

    back = await deployments.get(session, deployment.id)
    assert (back.status, back.paused) == (DeploymentStatus.ROLLING_BACK, False)
