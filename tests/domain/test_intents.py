# SPDX-License-Identifier: Apache-2.0
"""What an intent means, and the one statement that accepts it."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from app.connectors.contract import PackageKind, Plane, Target, TargetKind
from app.connectors.packages import PACKAGE
from app.domain import deployments, intents
from app.domain.intents import GateNumbers
from app.domain.policies import STANDARD
from app.errors import ActiveDeploymentExists, IdempotencyKeyReused, Invalid, PlaneNotConfigured, TargetNotSet
from app.models import Base, Deployment, DeploymentStatus, Event, Operation, Ring, RingDeployment, new_id
from app.runtime import Runtime
from tests.factories import (
    FACTORS,
    NOON,
    accept_plan,
    answer_to,
    make_intent,
    make_plan,
    request_key,
    surroundings,
)


def test_lanes_are_planned_ring_by_ring_and_only_the_first_ring_starts() -> None:
    plan = make_plan(target_ring=Ring.PILOT)

    assert [(lane.ring, lane.operation_id is not None) for lane in plan.lanes] == [
        (Ring.LAB, True),
        (Ring.CANARY, False),
        (Ring.PILOT, False),
    ]


def test_the_blast_radius_comes_from_the_targets_unless_it_is_given() -> None:
    computed = make_plan(target_ring=Ring.GLOBAL)
    given = make_plan(target_ring=Ring.GLOBAL, risk_factors=FACTORS | {"blast_radius": 1.0})

    assert computed.risk_factors["blast_radius"] == 0.3
    assert given.risk_factors["blast_radius"] == 1.0


@pytest.mark.parametrize(
    ("overrides", "required"),
    [
        ({}, False),
        ({"privileged": True}, True),
        ({"risk_factors": dict.fromkeys(FACTORS, 0.9)}, True),
        ({"gates": {Ring.CANARY: GateNumbers(min_success_rate=0.9)}}, True),
        ({"gates": {Ring.CANARY: GateNumbers(min_success_rate=0.99)}}, False),
        ({"risk_factors": FACTORS | {"sbom_vulnerability": 1.0}}, True),
    ],
    ids=["low risk", "privileged", "high score", "looser gate", "stricter gate", "critical vulnerability"],
)
def test_the_cab_is_needed_for_risk_privilege_looser_gates_and_critical_vulnerabilities(
    overrides: dict[str, object],
    required: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    assert make_plan(policy=STANDARD, **overrides).requires_cab_approval is required


def test_a_critical_vulnerability_starts_nothing() -> None:
    plan = make_plan(risk_factors=FACTORS | {"sbom_vulnerability": 1.0})

    assert plan.status is DeploymentStatus.AWAITING_CAB
    assert plan.operation_id is None


def test_a_plane_that_is_not_configured_is_named_with_what_is_missing() -> None:
    with pytest.raises(PlaneNotConfigured) as caught:
        intents.plan(make_intent(planes=(Plane.INTUNE, Plane.JAMF)), surroundings(), correlation_id=new_id())

    assert [(e.pointer, e.detail) for e in caught.value.errors] == [
        ("/planes/1", "EUCORA_PLANES__JAMF__BASE_URL is not set")
    ]


def test_a_package_the_plane_cannot_install_is_named() -> None:
    deb = PACKAGE.validate_python({"kind": PackageKind.DEB, "name": "firefox"})

    with pytest.raises(Invalid) as caught:
        make_plan(packages={Plane.INTUNE: deb})

    assert [e.pointer for e in caught.value.errors] == ["/package/kind"]


def test_a_lane_without_a_target_is_named() -> None:
    around = surroundings()
    targets = {lane: known for lane, known in around.targets.items() if lane[1] is not Ring.CANARY}

    with pytest.raises(TargetNotSet) as caught:
        intents.plan(
            make_intent(),
            intents.Surroundings(targets, around.policy, around.manifests, around.unconfigured),
            correlation_id=new_id(),
        )

    assert [e.pointer for e in caught.value.errors] == ["/planes/0"]


def test_a_target_of_a_kind_the_plane_does_not_know_is_as_good_as_none() -> None:
    around = surroundings()
    stale = intents.KnownTarget(Target(TargetKind.TAG, "7"), 10)
    targets = {**around.targets, (Plane.INTUNE, Ring.CANARY): stale}

    with pytest.raises(TargetNotSet) as caught:
        intents.plan(make_intent(), replace(around, targets=targets), correlation_id=new_id())

    assert [(e.pointer, e.detail) for e in caught.value.errors] == [
        (
            "/planes/0",
            "the target for CANARY must be set again: intune knows no target of kind tag; it knows group",
        )
    ]


async def test_accepting_stores_everything_in_one_statement(runtime: Runtime) -> None:
    plan = make_plan(target_ring=Ring.GLOBAL)

    async with runtime.driver() as connection:
        stored = await accept_plan(
            connection, plan, actor="alice", request=request_key(), answer=answer_to(plan), now=NOON
        )

    assert stored is None
    async with runtime.transaction() as session:
        deployment = await deployments.get(session, plan.id)
        assert [lane.ring for lane in deployment.lanes] == list(Ring)
        assert deployment.operation_id == deployment.lanes[0].operation_id
        operation = (await session.scalars(select(Operation))).one()
        assert (operation.kind, operation.queue) == ("deploy_to_connector", "deploy")
        assert operation.subject_id == str(deployment.lanes[0].id)
        assert (await session.scalars(select(Event.type))).all() == ["deployment.submitted"]
        assert deployments.policy_of(deployment).name == "demo"


async def test_a_start_in_the_future_keeps_the_first_push_waiting(runtime: Runtime) -> None:
    start = runtime.clock() + timedelta(hours=3)
    plan = make_plan(start_at=start)

    async with runtime.driver() as connection:
        await accept_plan(
            connection, plan, actor="alice", request=request_key(), answer=answer_to(plan), now=NOON
        )

    async with runtime.transaction() as session:
        operation = (await session.scalars(select(Operation))).one()
        assert operation.run_after == start
        assert operation.deadline == start + timedelta(hours=24)


async def test_the_same_request_twice_is_stored_once_and_answered_alike(runtime: Runtime) -> None:
    first, second, request = make_plan(), make_plan(), request_key("k")

    async with runtime.driver() as connection:
        await accept_plan(connection, first, actor="a", request=request, answer=answer_to(first), now=NOON)
        again = await accept_plan(
            connection, second, actor="a", request=request, answer=answer_to(second), now=NOON
        )

    assert again == answer_to(first)
    assert await rows_of(runtime, Deployment) == 1


async def test_a_key_with_another_body_is_refused(runtime: Runtime) -> None:
    first, second = make_plan(), make_plan(app_name="Other")

    async with runtime.driver() as connection:
        await accept_plan(
            connection, first, actor="a", request=request_key("k"), answer=answer_to(first), now=NOON
        )
        with pytest.raises(IdempotencyKeyReused):
            await accept_plan(
                connection,
                second,
                actor="a",
                request=request_key("k", b"e" * 32),
                answer=answer_to(second),
                now=NOON,
            )


async def test_of_many_equal_requests_at_once_one_is_stored(runtime: Runtime) -> None:
    request = request_key("k")

    async def submit() -> bytes:
        plan = make_plan()
        async with runtime.driver() as connection:
            stored = await accept_plan(
                connection, plan, actor="a", request=request, answer=answer_to(plan), now=NOON
            )
        return (stored or answer_to(plan)).body

    bodies = await asyncio.gather(*(submit() for _ in range(12)))

    assert len(set(bodies)) == 1
    assert await rows_of(runtime, Deployment) == 1
    assert await rows_of(runtime, RingDeployment) == 2


async def test_a_second_active_deployment_of_the_application_is_refused_and_stores_nothing(
    runtime: Runtime,
) -> None:
    first, second = make_plan(), make_plan(app_name="MOZILLA firefox", version="144.0")

    async with runtime.driver() as connection:
        await accept_plan(
            connection, first, actor="a", request=request_key(), answer=answer_to(first), now=NOON
        )
        with pytest.raises(ActiveDeploymentExists, match=str(first.id)):
            await accept_plan(
                connection, second, actor="a", request=request_key(), answer=answer_to(second), now=NOON
            )

    assert await rows_of(runtime, Deployment) == 1


async def rows_of(runtime: Runtime, table: type[Base]) -> int:
    async with runtime.transaction() as session:
        return await session.scalar(select(func.count()).select_from(table)) or 0
