# SPDX-License-Identifier: Apache-2.0
"""What is deleted when it is too old, and what is not, however old it is."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import InstallState
from app.domain import (
    ai_calls,
    ai_tasks,
    audit,
    conversations,
    effects,
    leases,
    operations,
    outcomes,
    retention,
    retries,
    rollback,
)
from app.domain.accounts import Actor
from app.domain.ai_calls import Allowance
from app.domain.budgets import Limits
from app.domain.idempotency import StoredAnswer, keep
from app.domain.operations import Failure, OperationKind, Subject
from app.domain.rollback import Progress
from app.errors import IllegalTransition
from app.models import (
    AiCall,
    AiTaskKind,
    Conversation,
    Deployment,
    DeploymentStatus,
    DeviceResult,
    Effect,
    IdempotencyKey,
    Message,
    Operation,
    OperationStatus,
    Ring,
    Role,
    new_id,
)
from tests.domain.steps import S, measure, push
from tests.factories import NOON, make_deployment, request_key

DAY = timedelta(days=1)
LATER = NOON + 200 * DAY


async def count(session: AsyncSession, table: type[object]) -> int:
    return int(await session.scalar(select(func.count()).select_from(table)) or 0)


async def completed(session: AsyncSession, version: str, *, now: datetime = NOON) -> Deployment:
    """A deployment to LAB that ended well, with one device."""
    deployment = await make_deployment(session, version=version, target_ring=Ring.LAB)
    (lane,) = deployment.lanes
    await push(session, lane, "pc-1", now=now)
    await measure(session, lane, InstallState.INSTALLED, "pc-1", now=now + S)
    await measure(session, lane, InstallState.INSTALLED, now=now + 3 * S)
    await session.refresh(deployment)
    assert deployment.finished_at is not None
    return deployment


async def test_a_key_is_kept_for_two_days(session: AsyncSession) -> None:
    for age in (timedelta(hours=47), timedelta(hours=49)):
        await keep(session, request_key(), StoredAnswer(202, {}, b"{}"))
        await session.execute(
            text("UPDATE idempotency_keys SET created_at = :at WHERE created_at = now()"), {"at": NOON - age}
        )

    assert await retention.forget(session, "idempotency_keys", now=NOON) == 1
    assert await count(session, IdempotencyKey) == 1


async def test_finished_work_goes_after_90_days_and_leaves_the_ledger_and_the_history(
    session: AsyncSession,
) -> None:
    deployment = await completed(session, "1")
    before = await count(session, Effect)
    await session.execute(text("UPDATE operations SET status = 'SUCCEEDED', finished_at = now()"))
    await session.execute(text("UPDATE operations SET created_at = :at, finished_at = :at"), {"at": NOON})

    assert await retention.forget(session, "operations", now=NOON + 89 * DAY) == 0
    assert await retention.forget(session, "operations", now=LATER) > 0

    assert await count(session, Operation) == 0
    assert await count(session, Effect) == before > 0
    assert (await audit.verify(session)).broken == []
    rows, _ = await effects.page(session, deployment.id, after=None, limit=10)
    assert len(rows) == before


async def test_what_was_completed_long_ago_can_still_be_taken_back(session: AsyncSession) -> None:
    deployment_id = (await completed(session, "1")).id
    await session.execute(text("UPDATE operations SET status = 'SUCCEEDED', finished_at = :at"), {"at": NOON})
    await session.execute(text("UPDATE operations SET created_at = :at"), {"at": NOON})
    assert await retention.forget(session, "operations", now=LATER) > 0
    session.expire_all()

    deployment, operation_id = await rollback.begin(session, deployment_id, actor="bob", now=LATER)

    assert deployment.status is DeploymentStatus.ROLLING_BACK
    assert operation_id is not None
    work = await operations.get(session, operation_id)
    assert (work.kind, work.status) == ("execute_rollback", OperationStatus.QUEUED)


async def test_a_push_that_failed_long_ago_is_not_tried_again_and_that_is_said(session: AsyncSession) -> None:
    deployment = await make_deployment(session, target_ring=Ring.LAB)
    deployment_id, operation_id = deployment.id, deployment.lanes[0].operation_id
    assert operation_id is not None
    claimed = await leases.claim(session, operation_id, owner="test", lease=timedelta(seconds=15))
    assert claimed is not None
    refused = Failure("permanent", "refused", "no")
    await leases.fail(session, claimed, refused, ended=outcomes.operation_ended)
    await session.execute(text("UPDATE operations SET created_at = :at, finished_at = :at"), {"at": NOON})
    await session.execute(text("UPDATE deployments SET finished_at = :at"), {"at": NOON})
    assert await retention.forget(session, "operations", now=LATER) == 1
    session.expire_all()

    with pytest.raises(IllegalTransition, match="forgotten"):
        await retries.retry(session, deployment_id, manifests={}, limits=Limits(), actor="bob", now=LATER)


async def test_work_of_a_deployment_that_goes_on_stays(session: AsyncSession) -> None:
    await make_deployment(session)
    await session.execute(
        text("UPDATE operations SET status = 'FAILED', created_at = :at, finished_at = :at"), {"at": NOON}
    )

    assert await retention.forget(session, "operations", now=LATER) == 0


async def test_work_that_has_not_ended_stays(session: AsyncSession) -> None:
    await operations.enqueue(
        session, OperationKind.CHECK_PLANE, subject=Subject("plane", "intune"), correlation_id=new_id()
    )
    await session.execute(text("UPDATE operations SET created_at = :at"), {"at": NOON})

    assert await retention.forget(session, "operations", now=LATER) == 0


async def test_conversations_and_calls_go_after_90_days_and_tasks_stay(session: AsyncSession) -> None:
    author = Actor(new_id(), "Alice", Role.PACKAGER)
    given: dict[str, Any] = {"actor": author, "allowance": Allowance(9, 9), "correlation_id": new_id()}
    deployment = await make_deployment(session)
    for at in (NOON, LATER):
        conversation = await conversations.begin(session, "why?", now=at, **given)
        await ai_calls.begin(
            session,
            operation_id=new_id(),
            actor="Alice",
            now=at,
            **dict.fromkeys(("provider", "model", "prompt", "input_digest"), "x"),
            input_tokens=0,
        )
    task = await ai_tasks.request(
        session, AiTaskKind.TRIAGE_FAILURES, deployment.id, instructions=None, now=NOON, **given
    )
    task.steps = [{"text": "read"}]
    await ai_tasks.fail(session, task.id, Failure("permanent", "refused", "no"), now=NOON)

    gone = [
        await retention.forget(session, what, now=LATER) for what in ("conversations", "ai_calls", "ai_steps")
    ]

    assert gone == [1, 1, 1]
    assert (await session.scalars(select(Conversation.id))).all() == [conversation.id]
    assert await count(session, Message) == 2
    assert await count(session, AiCall) == 1
    await session.refresh(task)
    assert task.steps == []


async def test_devices_of_the_version_that_is_there_stay(session: AsyncSession) -> None:
    await completed(session, "1")

    assert await retention.forget(session, "device_results", now=LATER) == 0
    assert await count(session, DeviceResult) == 1


async def test_devices_of_a_version_that_was_replaced_go(session: AsyncSession) -> None:
    old = await completed(session, "1")
    new = await completed(session, "2", now=NOON + 50 * DAY)

    assert await retention.forget(session, "device_results", now=NOON + 100 * DAY) == 0
    assert await retention.forget(session, "device_results", now=LATER) == 1

    (left,) = await session.scalars(select(DeviceResult.lane_id))
    assert left == new.lanes[0].id != old.lanes[0].id


async def test_devices_of_a_deployment_that_was_taken_back_go(session: AsyncSession) -> None:
    deployment = await completed(session, "1")
    await rollback.begin(session, deployment.id, actor="bob", now=NOON + DAY)
    done = Progress(None, complete=True)
    await rollback.finish_lane(
        session, deployment.lanes[0].id, done, deployment_id=deployment.id, now=NOON + DAY
    )

    assert await retention.forget(session, "device_results", now=NOON + 80 * DAY) == 0
    assert await retention.forget(session, "device_results", now=LATER) == 1
