# SPDX-License-Identifier: Apache-2.0
"""Another try for what failed: pushes that ended, measurements that stopped, and devices, within a budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action, Assignment, Capability, Manifest, Plane
from app.domain import (
    deployments,
    devices,
    effects,
    events,
    lanes,
    operations,
    outcomes,
    rollout,
    signatures,
)
from app.domain.applications import made_on
from app.domain.budgets import Limits
from app.domain.effects import Planned
from app.domain.operations import OperationKind
from app.domain.rollout import Command
from app.errors import IllegalTransition, Invalid, RetryBudgetSpent, RetryUnavailable
from app.models import Connectivity, Deployment, DeploymentStatus, LaneStatus, RingDeployment

STUCK = frozenset({LaneStatus.HELD, LaneStatus.FAILED})


async def retry(
    session: AsyncSession,
    deployment_id: UUID,
    *,
    manifests: Mapping[Plane, Manifest],
    limits: Limits,
    actor: str,
    now: datetime,
    reason: str | None = None,
    reset_budget: bool = False,
    version: int | None = None,
) -> tuple[Deployment, UUID | None]:
    """Push again what failed, and only that; the deployment and the first operation that this started.

    A lane whose push or measuring ended goes on there. Of a lane that stopped at its gate the failed devices
    try again, where the plane can do that. ``reset_budget`` gives the one fresh budget, for a ``reason``.

    Raises:
        NotFound, VersionMismatch: as ``deployments.lock``.
        IllegalTransition: nothing has failed, or nothing is tried again in the state the deployment is in.
        RetryBudgetSpent: so many devices were tried again already; names the commonest cause.
        RetryUnavailable: the plane has no way to try a device again.
        Invalid: a budget is reset without a reason, or a second time.
        ActiveDeploymentExists: another deployment of the application is active meanwhile.
    """
    deployment = await deployments.lock(session, deployment_id, version=version)
    rollout.holds_already(Command.RETRY, deployment.status)
    works = {lane.id: await _work_of(session, lane) for lane in deployment.lanes if lane.status in STUCK}
    stuck = [lane for lane in deployment.lanes if lane.id in works]
    if asked := [lane.operation_id for lane in stuck if works[lane.id] is Work.UNDER_WAY]:
        return deployment, asked[0]
    if not stuck:
        raise IllegalTransition(
            f"the deployment is {deployment.status.value} and nothing of it has failed",
            status=deployment.status.value,
        )
    if reset_budget:
        await _reset(session, deployment, actor=actor, now=now, reason=reason)
    ended = [lane for lane in stuck if works[lane.id] is Work.ENDED]
    failed = [lane for lane in stuck if lane not in ended and _stopped_at_its_gate(lane)]
    if not ended and (not failed or deployment.status is DeploymentStatus.FAILED):
        raise IllegalTransition(_why_not(stuck), status=deployment.status.value)
    _check_planes(failed, manifests)
    await _spend(session, deployment, failed, limits=limits)
    told = {"reason": reason, "devices": sum(lane.failure_count for lane in failed)}
    events.record(session, deployment, "deployment.retried", actor=actor, now=now, after=told)
    started = [await _revive(session, lane) for lane in ended]
    for lane in failed:
        can = manifests[Plane(lane.plane)].can(Capability.RETRY)
        started.append(await _try_again(session, deployment, lane, asks=can, now=now))
    return deployment, started[0]


def _why_not(stuck: Sequence[RingDeployment]) -> str:
    if any(lane.operation_id is None for lane in stuck):
        return "what failed ended so long ago that its work is forgotten: submit it again"
    return "no device of a held lane has failed"


def _stopped_at_its_gate(lane: RingDeployment) -> bool:
    """Whether devices of the lane may try again; of one that was taken back in part none may."""
    return lane.status is LaneStatus.HELD and lane.pushed_at is not None and lane.failure_count > 0


class Work(Enum):
    """What became of a stuck lane's operation: it stopped, a retry goes on, or it was the gate."""

    ENDED = "ended"
    UNDER_WAY = "under way"
    DONE = "done"


async def _work_of(session: AsyncSession, lane: RingDeployment) -> Work:
    if lane.operation_id is None:
        return Work.DONE
    operation = await operations.get(session, lane.operation_id)
    if operation.status in operations.REVIVABLE:
        return Work.ENDED
    retries_now = operation.kind == OperationKind.RETRY_DEVICES.value
    return Work.UNDER_WAY if retries_now and operation.status not in operations.ENDED else Work.DONE


async def _revive(session: AsyncSession, lane: RingDeployment) -> UUID:
    """Have the lane's operation go on, unless its ring's first revival did so."""
    assert lane.operation_id is not None  # it has ended
    if await _work_of(session, lane) is not Work.ENDED:
        return lane.operation_id
    revived = outcomes.operation_revived
    return (await operations.revive(session, lane.operation_id, revived=revived)).id


def _check_planes(failed: Sequence[RingDeployment], manifests: Mapping[Plane, Manifest]) -> None:
    for lane in failed:
        manifest = manifests.get(Plane(lane.plane))
        if manifest is None:
            raise RetryUnavailable(f"{lane.plane} is not configured here")
        if not manifest.can(Capability.RETRY) and not manifest.retries_itself:
            why = manifest.cannot[Capability.RETRY]
            raise RetryUnavailable(f"{lane.plane} cannot try {lane.ring.value}'s devices again: {why}")


async def _reset(
    session: AsyncSession, deployment: Deployment, *, actor: str, now: datetime, reason: str | None
) -> None:
    if reason is None:
        raise Invalid("a fresh retry budget needs a reason")
    if deployment.retries_reset:
        raise Invalid("the one fresh retry budget was given already")
    before = {"retries_used": deployment.retries_used}
    deployment.retries_used, deployment.retries_reset = 0, True
    deployments.touch(deployment, now)
    told: dict[str, Mapping[str, object]] = {"before": before, "after": {"retries_used": 0, "reason": reason}}
    events.record(session, deployment, "retry_budget.reset", actor=actor, now=now, **told)


async def _spend(
    session: AsyncSession, deployment: Deployment, failed: Sequence[RingDeployment], *, limits: Limits
) -> None:
    wanted = sum(lane.failure_count for lane in failed)
    budget = limits.retries(sum(lane.targeted for lane in deployment.lanes))
    if deployment.retries_used + wanted > budget:
        causes = await signatures.of_failures(session, deployment.id)
        because = f"; {causes[0]}" if causes else ""
        used = deployment.retries_used
        detail = f"{used} of {budget} devices were tried again, and {wanted} would be{because}"
        raise RetryBudgetSpent(detail, used=used, budget=budget)
    deployment.retries_used += wanted


async def _try_again(
    session: AsyncSession, deployment: Deployment, lane: RingDeployment, *, asks: bool, now: datetime
) -> UUID:
    """Have the failed devices try once more: ask the plane, or wait where they do so by themselves.

    These may take as long as a device that is online.
    """
    kind = OperationKind.RETRY_DEVICES if asks else OperationKind.MEASURE_RING
    if not asks:
        await reopen(session, deployment, lane, now=now)
        lane.retry_until = now + deployments.policy_of(deployment).connectivity[Connectivity.ONLINE]
    return await lanes.enqueue(session, deployment, lane, kind)


async def reopen(
    session: AsyncSession, deployment: Deployment, lane: RingDeployment, *, now: datetime
) -> None:
    """Measure a held lane again: its devices' deadlines and its soak begin anew."""
    lanes.begin_anew(lane, now)
    await deployments.move_lane(session, deployment, lane, LaneStatus.MEASURING, now=now)


@dataclass(frozen=True, slots=True)
class Again:
    """What to ask of which plane: ``assignment`` is what was made before."""

    plane: Plane
    assignment: Assignment
    step: Planned


async def begin(session: AsyncSession, lane_id: UUID, operation_id: UUID) -> Again | None:
    """What a lane's retry asks; None if the lane is not held any more. Locks the deployment."""
    deployment, lane = await lanes.lock_lane(session, lane_id)
    if lane.status is not LaneStatus.HELD or deployment.status not in lanes.PUSHING:
        return None
    step = await effects.plan_turn(session, lane, Action.ASSIGN, operation_id)
    assignment = await made_on(session, deployment, lane, key=step.key)
    return Again(Plane(lane.plane), assignment, step)


async def confirm(session: AsyncSession, lane_id: UUID, *, now: datetime) -> None:
    """The plane tries them again: what they said before is over, and the lane is measured anew."""
    deployment, lane = await lanes.lock_lane(session, lane_id)
    if lane.status is not LaneStatus.HELD:
        return
    await devices.forget_failures(session, lane_id, now=now)
    await session.refresh(lane)
    await reopen(session, deployment, lane, now=now)
    delay = deployments.policy_of(deployment).measure_first
    await lanes.enqueue(session, deployment, lane, OperationKind.MEASURE_RING, delay=delay)
