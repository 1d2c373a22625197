# SPDX-License-Identifier: Apache-2.0
"""The jobs that keep the database small and its history provable, run as a worker runs them."""

from datetime import timedelta

from sqlalchemy import text

from app.domain import operations
from app.domain.operations import OperationKind, Subject
from app.models import OperationStatus, new_id
from app.runtime import Runtime
from tests.factories import accept, make_plan
from tests.workers.conftest import product_runner, run_once

OLD_WORK = "UPDATE operations SET status = 'SUCCEEDED', created_at = :at, finished_at = :at WHERE id = :id"
OLD_TICK = """
INSERT INTO schedule_ticks (name, tick, operation_id, missed, created_at)
VALUES ('reconcile', :at, :id, 0, :at)
"""


async def done(runtime: Runtime, kind: OperationKind) -> dict[str, object]:
    """What it came to, in one run."""
    async with runtime.transaction() as session:
        work = await operations.enqueue(
            session, kind, subject=Subject("schedule", kind.value), correlation_id=new_id()
        )
    ended = await run_once(product_runner(runtime), work)
    assert ended.status is OperationStatus.SUCCEEDED
    assert ended.result is not None
    return ended.result


async def test_where_histories_stand_is_written_down_once(runtime: Runtime) -> None:
    async with runtime.transaction() as session:
        await accept(session, make_plan(), now=runtime.clock())

    first = await done(runtime, OperationKind.CHECKPOINT_HISTORY)
    again = await done(runtime, OperationKind.CHECKPOINT_HISTORY)

    assert (first, again) == ({"checkpoint": 1}, {"checkpoint": None})


async def test_what_is_too_old_goes_and_what_is_not_stays(runtime: Runtime) -> None:
    async with runtime.transaction() as session:
        for days in (0, 400):
            work = await operations.enqueue(
                session,
                OperationKind.CHECK_PLANE,
                subject=Subject("plane", f"seen {days} days ago"),
                correlation_id=new_id(),
            )
            at = runtime.clock() - timedelta(days=days)
            for statement in (OLD_WORK, OLD_TICK):
                await session.execute(text(statement), {"at": at, "id": work})

    gone = await done(runtime, OperationKind.APPLY_RETENTION)

    assert {what for what, number in gone.items() if number} == {"operations", "schedule_ticks"}
    async with runtime.transaction() as session:
        left = await operations.find(session, limit=9, kind=OperationKind.CHECK_PLANE)
        assert [row.subject_id for row in left] == ["seen 0 days ago"]
        assert await session.scalar(text("SELECT count(*) FROM schedule_ticks")) == 1
