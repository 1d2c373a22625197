# SPDX-License-Identifier: Apache-2.0
"""The jobs behind operators' commands, and the ways of a rollout, run one by one against a sandbox plane."""

from app.connectors.catalogue import MANIFESTS
from app.domain import commands, deployments, operations, retries, rollback
from app.domain.intents import GateNumbers
from app.domain.operations import OperationKind
from app.models import DeploymentStatus, LaneStatus, Operation, OperationStatus, Ring
from tests.sandbox.stage import Stage
from tests.workers.conftest import product_runner, run_once
from tests.workers.rollouts import Rollout, pushed


async def held(rollout: Rollout, stage: Stage) -> int:
    """LAB has stopped at its gate; how many hosts failed."""
    await rollout.fleet(fail=0.4)
    await pushed(rollout, stage, gates={Ring.LAB: GateNumbers(max_failure_rate=0.9, min_success_rate=1.0)})
    assert (await rollout.run(OperationKind.MEASURE_RING)).status is OperationStatus.SUCCEEDED
    lane = (await rollout.whole()).lanes[0]
    assert lane.status is LaneStatus.HELD
    return lane.failure_count


async def test_the_failed_hosts_are_tried_again_and_the_ring_passes(rollout: Rollout, stage: Stage) -> None:
    failed = await held(rollout, stage)
    await rollout.fleet()
    await rollout.order(retries.retry, manifests=MANIFESTS, limits=rollout.runtime.limits)

    await rollout.order(commands.pause)
    waiting = await once(rollout)
    assert waiting.status is OperationStatus.WAITING
    assert "LAB/assign/2" not in {key for key, state in (await rollout.ledger()).items() if state == "SENT"}
    await rollout.order(commands.resume)
    assert (await rollout.run(OperationKind.RETRY_DEVICES)).status is OperationStatus.SUCCEEDED

    assert (await rollout.whole()).retries_used == failed
    assert (await rollout.run(OperationKind.MEASURE_RING)).status is OperationStatus.SUCCEEDED
    assert (await rollout.whole()).status is DeploymentStatus.COMPLETED
    assert (await rollout.ledger())["LAB/assign/2"] == "CONFIRMED"


async def once(rollout: Rollout) -> Operation:
    """One run of the retry."""
    async with rollout.runtime.transaction() as session:
        found = await operations.find(
            session, limit=1, deployment_id=rollout.id, kind=OperationKind.RETRY_DEVICES
        )
    return await run_once(product_runner(rollout.runtime), found[0].id)


async def test_a_retry_that_nobody_needs_any_more_is_done(rollout: Rollout, stage: Stage) -> None:
    await held(rollout, stage)
    await rollout.order(retries.retry, manifests=MANIFESTS, limits=rollout.runtime.limits)
    async with rollout.runtime.transaction() as session:
        deployment = await deployments.lock(session, rollout.id)
        now = rollout.runtime.clock()
        await deployments.move_lane(session, deployment, deployment.lanes[0], LaneStatus.PROMOTED, now=now)

    assert (await once(rollout)).status is OperationStatus.SUCCEEDED
    assert "LAB/assign/2" not in await rollout.ledger()


async def test_what_a_cancelled_deployment_has_begun_is_withdrawn_once(
    rollout: Rollout, stage: Stage
) -> None:
    await pushed(rollout, stage)
    await rollout.order(commands.cancel, reason="not wanted")

    done = await rollout.run(OperationKind.WITHDRAW_LANE)

    assert (done.status, done.result) == (OperationStatus.SUCCEEDED, {"outcome": "withdrawn"})
    assert (await rollout.ledger())["LAB/unassign"] == "CONFIRMED"


async def test_a_withdrawal_gives_way_to_a_rollback(rollout: Rollout, stage: Stage) -> None:
    await pushed(rollout, stage)
    await rollout.order(commands.cancel)
    async with rollout.runtime.transaction() as session:
        kind = OperationKind.WITHDRAW_LANE
        [withdrawal] = await operations.find(session, limit=9, deployment_id=rollout.id, kind=kind)
    await rollout.order(rollback.begin)

    async with rollout.runtime.transaction() as session:
        assert (await operations.get(session, withdrawal.id)).status is OperationStatus.CANCELLED
    assert (await rollout.run(OperationKind.EXECUTE_ROLLBACK)).status is OperationStatus.SUCCEEDED
    after = await rollout.whole()
    assert (after.status, after.lanes[0].status) == (DeploymentStatus.ROLLED_BACK, LaneStatus.ROLLED_BACK)
    ledger = await rollout.ledger()
    assert (ledger["LAB/remove"], ledger["LAB/unassign"]) == ("CONFIRMED", "CONFIRMED")


async def test_a_rollback_is_not_over_while_its_job_runs(rollout: Rollout, stage: Stage) -> None:
    await rollout.fleet(delay=[0.0, 20.0])
    await pushed(rollout, stage)
    await rollout.order(rollback.begin)
    async with rollout.runtime.transaction() as session:
        kind = OperationKind.EXECUTE_ROLLBACK
        [removal] = await operations.find(session, limit=9, deployment_id=rollout.id, kind=kind)

    launched = await run_once(product_runner(rollout.runtime), removal.id)

    assert (await rollout.ledger())["LAB/remove"] == "CONFIRMED"
    assert (launched.status, launched.error) == (OperationStatus.WAITING, None)
    assert (await rollout.whole()).status is DeploymentStatus.ROLLING_BACK
    assert (await rollout.run(OperationKind.EXECUTE_ROLLBACK)).status is OperationStatus.SUCCEEDED
    assert (await rollout.ledger())["LAB/unassign"] == "CONFIRMED"


async def test_a_rollback_that_is_paused_removes_nothing_until_it_is_resumed(
    rollout: Rollout, stage: Stage
) -> None:
    await pushed(rollout, stage)
    await rollout.order(rollback.begin)
    await rollout.order(commands.pause)
    async with rollout.runtime.transaction() as session:
        kind = OperationKind.EXECUTE_ROLLBACK
        [removal] = await operations.find(session, limit=9, deployment_id=rollout.id, kind=kind)

    waiting = await run_once(product_runner(rollout.runtime), removal.id)

    assert (waiting.status, (await rollout.ledger())["LAB/remove"]) == (OperationStatus.WAITING, "PLANNED")
    await rollout.order(commands.resume)
    assert (await rollout.run(OperationKind.EXECUTE_ROLLBACK)).status is OperationStatus.SUCCEEDED
