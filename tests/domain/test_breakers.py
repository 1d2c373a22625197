# SPDX-License-Identifier: Apache-2.0
"""Orders of operators: written down where they are looked for, and what they set free."""

from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import breakers, events, operations
from app.domain.breakers import Order
from app.domain.operations import OperationKind, Subject
from app.models import Deployment, DeploymentPlane, Operation, OperationStatus, new_id
from tests.factories import NOON, make_deployment

HOUR = timedelta(hours=1)
CLOSED, ISOLATED = Order("closed"), Order("isolated", "vendor maintenance", NOON + HOUR)


async def give(session: AsyncSession, service: str, order: Order, kind: str = "breaker.isolated") -> None:
    await breakers.ordered(
        session, service, kind, before=CLOSED, after=order, actor="alice", correlation_id=uuid4(), now=NOON
    )


async def test_an_order_stands_in_the_history_of_the_service_and_of_every_active_deployment_on_it(
    session: AsyncSession,
) -> None:
    active, over = await make_deployment(session), await make_deployment(session, app_name="Other")
    await session.execute(
        update(DeploymentPlane).where(DeploymentPlane.deployment_id == over.id).values(active=False)
    )

    await give(session, "intune", ISOLATED)
    await give(session, "jira", ISOLATED)

    (own,) = await breakers.page(session, "intune", before=None, limit=10)
    assert (own.type, own.actor, own.after) == ("breaker.isolated", "alice", ISOLATED.to_json())
    assert await types_of(session, active) == ["breaker.isolated"]
    assert await types_of(session, over) == []


async def types_of(session: AsyncSession, deployment: Deployment) -> list[str]:
    rows = await events.page(session, deployment.id, after=0, limit=100)
    return [row.type for row in rows if row.type.startswith("breaker.")]


async def test_the_newest_orders_come_first_and_by_pages(session: AsyncSession) -> None:
    for number in range(3):
        await give(session, "jamf", Order("isolated", f"order {number}"))

    first = await breakers.page(session, "jamf", before=None, limit=2)
    rest = await breakers.page(session, "jamf", before=first[-1].id, limit=2)

    reasons = [event.after["reason"] for event in [*first, *rest] if event.after]
    assert reasons == ["order 2", "order 1", "order 0"]


async def test_only_the_newest_order_that_has_not_run_out_stands(session: AsyncSession) -> None:
    await give(session, "intune", ISOLATED)
    await give(session, "jamf", ISOLATED)
    await give(session, "jamf", CLOSED, "breaker.enabled")
    await give(session, "sccm", Order("disabled"))

    assert [event.service for event in await breakers.standing(session, NOON)] == ["intune", "sccm"]
    assert [event.service for event in await breakers.standing(session, NOON + HOUR)] == ["sccm"]


async def waiting_for(session: AsyncSession, service: str, code: str) -> UUID:
    operation_id = await operations.enqueue(
        session, OperationKind.CHECK_PLANE, subject=Subject("plane", service), correlation_id=new_id()
    )
    error = {"class": "transient", "code": code, "message": "", "service": service}
    later = operations.after(HOUR)
    await session.execute(
        update(Operation)
        .where(Operation.id == operation_id)
        .values(status=OperationStatus.WAITING, run_after=later, error=error, deferrals=1)
    )
    return operation_id


async def test_what_waits_for_the_breaker_is_due_at_once_and_nothing_else(session: AsyncSession) -> None:
    kept_away = await waiting_for(session, "intune", "circuit_open")
    await waiting_for(session, "intune", "throttled")
    await waiting_for(session, "jamf", "circuit_open")

    assert await breakers.let_go(session, "intune") == 1

    due = select(Operation.id).where(Operation.run_after <= operations.after(timedelta(0)))
    assert list(await session.scalars(due)) == [kept_away]
    assert session.info.get("wake")
