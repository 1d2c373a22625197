# SPDX-License-Identifier: Apache-2.0
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import leases, operations
from app.domain.leases import Beat
from app.domain.operations import KINDS, OperationKind, Subject
from app.errors import IllegalTransition, NotFound, VersionMismatch
from app.models import OperationStatus
from app.runtime import Runtime
from tests.domain.operation_bench import (
    DEPLOY,
    LEASE,
    OUTAGE,
    REFUSED,
    SOON,
    SUBJECT,
    Told,
    alter,
    claim,
    claimed,
    due,
    enqueue,
    row,
    sweep,
    within,
)


def test_the_limits_are_the_required_ones() -> None:
    deploy, rollback = KINDS[DEPLOY], KINDS[OperationKind.EXECUTE_ROLLBACK]

    assert (deploy.queue, rollback.queue) == ("deploy", "rollback")
    for kind in (deploy, rollback):
        assert (kind.hard_limit, kind.soft_limit) == (timedelta(seconds=300), timedelta(seconds=270))
    assert (deploy.deadline, rollback.deadline) == (timedelta(hours=24), None)
    assert {kind.max_attempts for kind in KINDS.values()} == {4}
    assert set(KINDS) == set(OperationKind)


async def test_work_that_is_rolled_back_never_was(runtime: Runtime) -> None:
    async def enqueue_and_fail(session: AsyncSession) -> None:
        await operations.enqueue(session, DEPLOY, subject=SUBJECT, correlation_id=uuid4())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await within(runtime, enqueue_and_fail)

    assert await due(runtime) == []


async def test_cancelling_what_waits_needs_no_worker(runtime: Runtime, told: Told) -> None:
    operation_id = await enqueue(runtime)

    cancelled = await within(runtime, lambda s: operations.cancel(s, operation_id, ended=told.ended))

    assert cancelled.status is OperationStatus.CANCELLED
    assert cancelled.finished_at is not None
    assert told.of == [(operation_id, OperationStatus.CANCELLED)]
    assert await due(runtime) == []
    assert await claim(runtime, operation_id) is None


async def test_cancelling_what_runs_tells_its_worker(runtime: Runtime, told: Told) -> None:
    mine = await claimed(runtime)

    asked = await within(runtime, lambda s: operations.cancel(s, mine.id, ended=told.ended))
    assert (asked.status, asked.cancel_requested) == (OperationStatus.RUNNING, True)
    assert await within(runtime, lambda s: leases.heartbeat(s, mine, lease=LEASE)) is Beat.CANCEL
    assert told.of == []
    await within(runtime, lambda s: leases.finish_cancel(s, mine, ended=told.ended))

    stored = await row(runtime, mine.id)
    assert (stored.status, stored.cancel_requested) == (OperationStatus.CANCELLED, False)
    assert told.of == [(mine.id, OperationStatus.CANCELLED)]


async def test_cancelling_what_a_silent_worker_holds_does_not_wait_for_it(
    runtime: Runtime, told: Told
) -> None:
    mine = await claimed(runtime)
    await alter(runtime, mine.id, "lease_until = clock_timestamp() - interval '1 second'")

    cancelled = await within(runtime, lambda s: operations.cancel(s, mine.id, ended=told.ended))

    assert cancelled.status is OperationStatus.CANCELLED


@pytest.mark.parametrize("leave", ["retry", "defer", "again", "give_back", "its worker dies"])
async def test_a_cancelled_operation_does_not_wait_for_another_run(
    runtime: Runtime, told: Told, leave: str
) -> None:
    mine = await claimed(runtime)
    await within(runtime, lambda s: operations.cancel(s, mine.id, ended=told.ended))

    if leave == "retry":
        await within(runtime, lambda s: leases.retry(s, mine, OUTAGE, delay=SOON, ended=told.ended))
    elif leave == "defer":
        await within(runtime, lambda s: leases.defer(s, mine, OUTAGE, delay=SOON, ended=told.ended))
    elif leave == "again":
        await within(runtime, lambda s: leases.again(s, mine, delay=SOON, ended=told.ended))
    elif leave == "give_back":
        await within(runtime, lambda s: leases.give_back(s, mine, ended=told.ended))
    else:
        await alter(runtime, mine.id, "lease_until = clock_timestamp() - interval '1 second'")
        await sweep(runtime, told)

    assert (await row(runtime, mine.id)).status is OperationStatus.CANCELLED
    assert told.of == [(mine.id, OperationStatus.CANCELLED)]


async def test_cancelling_twice_changes_nothing_more(runtime: Runtime, told: Told) -> None:
    operation_id = await enqueue(runtime)
    first = await within(runtime, lambda s: operations.cancel(s, operation_id, ended=told.ended))

    second = await within(runtime, lambda s: operations.cancel(s, operation_id, ended=told.ended))

    assert second.version == first.version
    assert len(told.of) == 1


async def test_what_has_succeeded_cannot_be_cancelled(runtime: Runtime, told: Told) -> None:
    mine = await claimed(runtime)
    await within(runtime, lambda session: leases.succeed(session, mine))

    with pytest.raises(IllegalTransition, match="SUCCEEDED"):
        await within(runtime, lambda s: operations.cancel(s, mine.id, ended=told.ended))


async def test_a_failed_operation_is_revived_with_fresh_attempts(runtime: Runtime, told: Told) -> None:
    mine = await claimed(runtime)
    await within(runtime, lambda s: leases.fail(s, mine, REFUSED, ended=told.ended))
    await alter(runtime, mine.id, "deadline = clock_timestamp() - interval '1 second'")

    revived = await within(runtime, lambda s: operations.revive(s, mine.id, revived=told.ended))

    assert (revived.status, revived.attempt, revived.error) == (OperationStatus.QUEUED, 0, None)
    assert revived.finished_at is None
    assert told.of[-1] == (mine.id, OperationStatus.QUEUED)
    assert await sweep(runtime, told) == 0
    again = await claimed(runtime, mine.id)
    assert (again.attempt, again.fence) == (1, 2)


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING", "SUCCEEDED"])
async def test_only_what_failed_or_was_cancelled_is_revived(runtime: Runtime, told: Told, state: str) -> None:
    operation_id = await enqueue(runtime)
    if state != "QUEUED":
        mine = await claimed(runtime, operation_id)
    if state == "SUCCEEDED":
        await within(runtime, lambda session: leases.succeed(session, mine))

    with pytest.raises(IllegalTransition, match=state):
        await within(runtime, lambda s: operations.revive(s, operation_id, revived=told.ended))


async def test_commands_on_an_outdated_version_are_refused(runtime: Runtime, told: Told) -> None:
    operation_id = await enqueue(runtime)
    await claimed(runtime, operation_id)

    with pytest.raises(VersionMismatch):
        await within(runtime, lambda s: operations.cancel(s, operation_id, ended=told.ended, version=1))

    assert not (await row(runtime, operation_id)).cancel_requested


async def test_the_version_rises_with_each_state(runtime: Runtime, told: Told) -> None:
    operation_id = await enqueue(runtime)
    seen = [(await row(runtime, operation_id)).version]

    mine = await claimed(runtime, operation_id)
    seen.append((await row(runtime, operation_id)).version)
    await within(runtime, lambda s: leases.heartbeat(s, mine, lease=LEASE))
    seen.append((await row(runtime, operation_id)).version)
    await within(runtime, lambda s: leases.fail(s, mine, REFUSED, ended=told.ended))
    seen.append((await row(runtime, operation_id)).version)

    assert seen == [1, 2, 2, 3]


async def test_an_unknown_operation_is_not_found(runtime: Runtime, told: Told) -> None:
    with pytest.raises(NotFound):
        await row(runtime, uuid4())
    with pytest.raises(NotFound):
        await within(runtime, lambda s: operations.cancel(s, uuid4(), ended=told.ended))


async def test_pages_of_operations_follow_each_other_without_gap(runtime: Runtime) -> None:
    async with runtime.transaction() as session:  # one transaction, so one created_at for all
        ids = [
            await operations.enqueue(session, DEPLOY, subject=SUBJECT, correlation_id=uuid4())
            for _ in range(7)
        ]

    seen: list[UUID] = []
    before = None
    while page := await within(runtime, partial(operations.find, limit=3, before=before)):
        seen += [operation.id for operation in page]
        before = (page[-1].created_at, page[-1].id)
        await enqueue(runtime)  # newer ones do not disturb

    assert seen == sorted(ids, reverse=True)


async def test_operations_are_filtered(runtime: Runtime) -> None:
    lane = await enqueue(runtime, subject=Subject("lane", "1"))
    check = await enqueue(runtime, OperationKind.CHECK_PLANE)
    running = await claimed(runtime, check)

    async def ids(**filters: Any) -> list[UUID]:
        found = await within(runtime, lambda session: operations.find(session, limit=10, **filters))
        return [operation.id for operation in found]

    assert await ids(kind=OperationKind.CHECK_PLANE) == [check]
    assert await ids(status=OperationStatus.RUNNING) == [running.id]
    assert await ids(subject_type="lane", subject_id="1") == [lane]
    assert await ids(deployment_id=uuid4()) == []
