# SPDX-License-Identifier: Apache-2.0
import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import dispatch, leases, operations
from app.domain.leases import Beat, Claimed
from app.domain.operations import KINDS, Failure, OperationKind, Subject
from app.errors import IllegalTransition, LeaseLost, NotFound, VersionMismatch
from app.models import Operation, OperationStatus
from app.runtime import Runtime

T = TypeVar("T")
LEASE = timedelta(seconds=30)
SOON = timedelta(0)
SUBJECT = Subject("plane", "intune")
OUTAGE = Failure("transient", "circuit_open", "the breaker is open", "intune")
REFUSED = Failure("permanent", "permanent", "the plane refused it", "intune")
DEPLOY = OperationKind.DEPLOY_TO_CONNECTOR


class Told:
    """Who was told of an ending or a revival: what stands for lanes and deployments here."""

    def __init__(self) -> None:
        self.of: list[tuple[UUID, OperationStatus]] = []

    async def ended(self, session: AsyncSession, operation: Operation) -> None:
        stored = await operations.get(session, operation.id)
        self.of.append((stored.id, stored.status))


@pytest.fixture
def told() -> Told:
    return Told()


async def enqueue(runtime: Runtime, kind: OperationKind = DEPLOY, **values: Any) -> UUID:
    values = {"subject": SUBJECT, "correlation_id": uuid4(), **values}
    return await within(runtime, lambda session: operations.enqueue(session, kind, **values))


async def claim(runtime: Runtime, operation_id: UUID) -> Claimed | None:
    return await within(
        runtime, lambda session: leases.claim(session, operation_id, owner="test", lease=LEASE)
    )


async def claimed(runtime: Runtime, operation_id: UUID | None = None) -> Claimed:
    """An operation, by default a new one, in our hands."""
    mine = await claim(runtime, operation_id or await enqueue(runtime))
    assert mine is not None
    return mine


async def within(runtime: Runtime, act: Callable[[AsyncSession], Awaitable[T]]) -> T:
    async with runtime.transaction() as session:
        return await act(session)


async def row(runtime: Runtime, operation_id: UUID) -> Operation:
    return await within(runtime, lambda session: operations.get(session, operation_id))


async def alter(runtime: Runtime, operation_id: UUID, change: str) -> None:
    """What the passing of time would have done."""
    statement = text(f"UPDATE operations SET {change} WHERE id = :id")
    await within(runtime, lambda session: session.execute(statement, {"id": operation_id}))


async def seconds_until(runtime: Runtime, operation_id: UUID, column: str = "run_after") -> float:
    query = text(f"SELECT extract(epoch FROM {column} - clock_timestamp()) FROM operations WHERE id = :id")
    async with runtime.transaction() as session:
        return float(await session.scalar(query, {"id": operation_id}) or 0)


async def sweep(runtime: Runtime, told: Told) -> int:
    """One round of a relay; how many were queued again."""
    queued = await within(runtime, dispatch.reclaim)
    for operation_id in await within(runtime, dispatch.hopeless):
        await within(runtime, partial(dispatch.give_up, operation_id=operation_id, ended=told.ended))
    return queued


async def due(runtime: Runtime, *, ring_again: float = 10, limit: int = 100) -> list[UUID]:
    found = await within(
        runtime,
        lambda session: dispatch.dispatch(
            session, OperationKind, ring_again=timedelta(seconds=ring_again), limit=limit
        ),
    )
    return [item.id for item in found]


def test_the_limits_are_the_required_ones() -> None:
    deploy, rollback = KINDS[DEPLOY], KINDS[OperationKind.EXECUTE_ROLLBACK]

    assert (deploy.queue, rollback.queue) == ("deploy", "rollback")
    for kind in (deploy, rollback):
        assert (kind.hard_limit, kind.soft_limit) == (timedelta(seconds=300), timedelta(seconds=270))
    assert (deploy.deadline, rollback.deadline) == (timedelta(hours=24), None)
    assert {kind.max_attempts for kind in KINDS.values()} == {4}
    assert set(KINDS) == set(OperationKind)


async def test_enqueued_work_is_due_at_once_and_wakes_the_relays(runtime: Runtime) -> None:
    correlation_id = uuid4()

    async with runtime.transaction() as session:
        operation_id = await operations.enqueue(
            session,
            DEPLOY,
            subject=Subject("lane", "42"),
            correlation_id=correlation_id,
            args={"ring": "LAB"},
        )
        assert session.info["wake"] is True

    stored = await row(runtime, operation_id)
    assert (stored.kind, stored.queue, stored.status) == (
        "deploy_to_connector",
        "deploy",
        OperationStatus.QUEUED,
    )
    assert (stored.subject_type, stored.subject_id, stored.args) == ("lane", "42", {"ring": "LAB"})
    assert stored.correlation_id == correlation_id
    assert 86_390 < await seconds_until(runtime, operation_id, "deadline") <= 86_400
    assert await due(runtime) == [operation_id]


async def test_work_that_is_rolled_back_never_was(runtime: Runtime) -> None:
    async def enqueue_and_fail(session: AsyncSession) -> None:
        await operations.enqueue(session, DEPLOY, subject=SUBJECT, correlation_id=uuid4())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await within(runtime, enqueue_and_fail)

    assert await due(runtime) == []


async def test_of_many_claims_at_the_same_moment_one_wins(runtime: Runtime) -> None:
    operation_id = await enqueue(runtime)

    answers = await asyncio.gather(*(claim(runtime, operation_id) for _ in range(15)))

    won = [answer for answer in answers if answer is not None]
    assert [(answer.attempt, answer.fence) for answer in won] == [(1, 1)]
    assert (await row(runtime, operation_id)).status is OperationStatus.RUNNING


async def test_delayed_work_is_neither_due_nor_claimed_early(runtime: Runtime) -> None:
    operation_id = await enqueue(runtime, delay=timedelta(minutes=5))

    assert await due(runtime) == []
    assert await claim(runtime, operation_id) is None
    assert 290 < await seconds_until(runtime, operation_id) <= 300


async def test_each_claim_raises_the_fence_and_it_is_never_given_back(runtime: Runtime, told: Told) -> None:
    first = await claimed(runtime)
    await within(runtime, lambda session: leases.give_back(session, first, ended=told.ended))

    second = await claimed(runtime, first.id)

    assert (first.attempt, second.attempt) == (1, 1)
    assert (first.fence, second.fence) == (1, 2)


@pytest.mark.parametrize(
    "act", ["hold", "succeed", "fail", "retry", "defer", "again", "give_back", "finish_cancel"]
)
async def test_a_worker_that_lost_its_lease_can_write_nothing(runtime: Runtime, told: Told, act: str) -> None:
    stale = await claimed(runtime)
    await alter(runtime, stale.id, "lease_until = clock_timestamp() - interval '1 second'")
    assert await sweep(runtime, told) == 1
    current = await claimed(runtime, stale.id)

    writes: dict[str, Callable[[AsyncSession], Awaitable[object]]] = {
        "hold": lambda session: leases.hold(session, stale),
        "succeed": lambda session: leases.succeed(session, stale, {"stale": True}),
        "fail": lambda session: leases.fail(session, stale, REFUSED, ended=told.ended),
        "retry": lambda session: leases.retry(session, stale, OUTAGE, delay=SOON, ended=told.ended),
        "defer": lambda session: leases.defer(session, stale, OUTAGE, delay=SOON, ended=told.ended),
        "again": lambda session: leases.again(session, stale, delay=SOON, ended=told.ended),
        "give_back": lambda session: leases.give_back(session, stale, ended=told.ended),
        "finish_cancel": lambda session: leases.finish_cancel(session, stale, ended=told.ended),
    }
    with pytest.raises(LeaseLost):
        await within(runtime, writes[act])

    stored = await row(runtime, stale.id)
    assert (stored.status, stored.fence, stored.result, stored.error) == (
        OperationStatus.RUNNING,
        current.fence,
        None,
        None,
    )
    assert told.of == []
    assert await within(runtime, lambda s: leases.heartbeat(s, stale, lease=LEASE)) is Beat.LOST
    assert await within(runtime, lambda s: leases.look(s, stale)) is Beat.LOST


async def test_nobody_takes_an_operation_while_its_holder_writes(runtime: Runtime, told: Told) -> None:
    mine = await claimed(runtime)
    await alter(runtime, mine.id, "lease_until = clock_timestamp() - interval '1 second'")

    async with runtime.transaction() as session:
        await leases.hold(session, mine)
        assert await sweep(runtime, told) == 0

    assert await sweep(runtime, told) == 1


async def test_a_heartbeat_prolongs_the_lease(runtime: Runtime) -> None:
    mine = await claimed(runtime)
    await alter(runtime, mine.id, "lease_until = clock_timestamp() + interval '1 second'")

    assert await within(runtime, lambda s: leases.heartbeat(s, mine, lease=LEASE)) is Beat.FINE

    assert await seconds_until(runtime, mine.id, "lease_until") > 25


async def test_success_keeps_the_result_and_clears_the_last_error(runtime: Runtime, told: Told) -> None:
    first = await claimed(runtime)
    await within(runtime, lambda s: leases.retry(s, first, OUTAGE, delay=SOON, ended=told.ended))
    second = await claimed(runtime, first.id)

    await within(runtime, lambda session: leases.succeed(session, second, {"devices": 3}))

    stored = await row(runtime, first.id)
    assert (stored.status, stored.result, stored.error) == (OperationStatus.SUCCEEDED, {"devices": 3}, None)
    assert (stored.lease_owner, stored.lease_until) == (None, None)
    assert stored.finished_at is not None
    assert told.of == []


async def test_three_retries_and_then_it_has_failed(runtime: Runtime, told: Told) -> None:
    operation_id = await enqueue(runtime)

    states = []
    for _ in range(4):
        mine = await claimed(runtime, operation_id)
        states.append(
            await within(
                runtime, partial(leases.retry, claimed=mine, failure=OUTAGE, delay=SOON, ended=told.ended)
            )
        )

    assert states == [OperationStatus.WAITING] * 3 + [OperationStatus.FAILED]
    stored = await row(runtime, operation_id)
    assert stored.error == {
        "class": "transient",
        "code": "circuit_open",
        "message": "the breaker is open",
        "service": "intune",
    }
    assert stored.attempt == 4
    assert told.of == [(operation_id, OperationStatus.FAILED)]
    assert await claim(runtime, operation_id) is None


async def test_a_retry_waits(runtime: Runtime, told: Told) -> None:
    mine = await claimed(runtime)

    await within(
        runtime, lambda s: leases.retry(s, mine, OUTAGE, delay=timedelta(seconds=60), ended=told.ended)
    )

    assert 55 < await seconds_until(runtime, mine.id) <= 60
    assert await due(runtime) == []


async def test_a_deferral_returns_the_attempt(runtime: Runtime, told: Told) -> None:
    operation_id = await enqueue(runtime)

    for _ in range(10):
        mine = await claimed(runtime, operation_id)
        await within(
            runtime, partial(leases.defer, claimed=mine, failure=OUTAGE, delay=SOON, ended=told.ended)
        )

    stored = await row(runtime, operation_id)
    assert (stored.status, stored.attempt, stored.deferrals) == (OperationStatus.WAITING, 0, 10)
    assert stored.fence == 10


async def test_a_deferral_never_waits_past_the_deadline(runtime: Runtime, told: Told) -> None:
    operation_id = await enqueue(runtime, deadline=timedelta(minutes=1))
    mine = await claimed(runtime, operation_id)

    await within(runtime, lambda s: leases.defer(s, mine, OUTAGE, delay=timedelta(hours=1), ended=told.ended))

    assert 50 < await seconds_until(runtime, operation_id) <= 60


@pytest.mark.parametrize("waiting", [True, False], ids=["found by the sweeper", "at the deferral"])
async def test_past_the_deadline_a_deferred_operation_has_failed_for_its_plane(
    runtime: Runtime, told: Told, *, waiting: bool
) -> None:
    mine = await claimed(runtime)
    if waiting:
        await within(runtime, lambda s: leases.defer(s, mine, OUTAGE, delay=SOON, ended=told.ended))
    await alter(runtime, mine.id, "deadline = clock_timestamp() - interval '1 second'")

    if waiting:
        await sweep(runtime, told)
    else:
        await within(runtime, lambda s: leases.defer(s, mine, OUTAGE, delay=SOON, ended=told.ended))

    stored = await row(runtime, mine.id)
    assert stored.status is OperationStatus.FAILED
    assert stored.error is not None
    assert (stored.error["class"], stored.error["code"], stored.error["service"]) == (
        "transient",
        "plane_unavailable",
        "intune",
    )
    assert told.of == [(mine.id, OperationStatus.FAILED)]


async def test_work_that_no_worker_took_before_its_deadline_has_failed(runtime: Runtime, told: Told) -> None:
    operation_id = await enqueue(runtime)
    await alter(runtime, operation_id, "deadline = clock_timestamp() - interval '1 second'")

    assert await claim(runtime, operation_id) is None
    await sweep(runtime, told)

    stored = await row(runtime, operation_id)
    assert stored.error is not None
    assert (stored.status, stored.error["code"]) == (OperationStatus.FAILED, "deadline")


async def test_progress_starts_the_attempts_from_nothing(runtime: Runtime, told: Told) -> None:
    operation_id = await enqueue(runtime)
    for _ in range(3):
        failing = await claimed(runtime, operation_id)
        await within(
            runtime, partial(leases.retry, claimed=failing, failure=OUTAGE, delay=SOON, ended=told.ended)
        )

    mine = await claimed(runtime, operation_id)
    await within(runtime, lambda s: leases.again(s, mine, delay=timedelta(seconds=60), ended=told.ended))

    stored = await row(runtime, operation_id)
    assert (stored.status, stored.attempt, stored.deferrals, stored.error) == (
        OperationStatus.WAITING,
        0,
        0,
        None,
    )
    assert 55 < await seconds_until(runtime, operation_id) <= 60


async def test_what_a_silent_worker_held_is_queued_again(runtime: Runtime, told: Told) -> None:
    mine = await claimed(runtime)
    assert await sweep(runtime, told) == 0
    await alter(runtime, mine.id, "lease_until = clock_timestamp() - interval '1 second'")

    assert await sweep(runtime, told) == 1

    assert (await row(runtime, mine.id)).status is OperationStatus.QUEUED
    assert (await claimed(runtime, mine.id)).attempt == 2
    assert told.of == []


async def test_work_that_kills_its_worker_each_time_runs_out_of_attempts(
    runtime: Runtime, told: Told
) -> None:
    operation_id = await enqueue(runtime)

    for _ in range(4):
        await claimed(runtime, operation_id)
        await alter(runtime, operation_id, "lease_until = clock_timestamp() - interval '1 second'")
        await sweep(runtime, told)

    stored = await row(runtime, operation_id)
    assert stored.error is not None
    assert (stored.status, stored.error["code"]) == (OperationStatus.FAILED, "worker_lost")
    assert told.of == [(operation_id, OperationStatus.FAILED)]


async def test_many_relays_at_once_end_an_operation_once(runtime: Runtime, told: Told) -> None:
    operation_id = await enqueue(runtime)
    await alter(runtime, operation_id, "deadline = clock_timestamp() - interval '1 second'")

    await asyncio.gather(*(sweep(runtime, told) for _ in range(8)))

    assert told.of == [(operation_id, OperationStatus.FAILED)]


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


async def test_an_error_text_that_postgresql_would_refuse_is_stored(runtime: Runtime, told: Told) -> None:
    mine = await claimed(runtime)
    odd = Failure("permanent", "permanent", "a\x00b" + "x" * 5000)

    await within(runtime, lambda s: leases.fail(s, mine, odd, ended=told.ended))

    error = (await row(runtime, mine.id)).error
    assert error is not None
    assert error["message"] == "ab" + "x" * 1998


async def test_a_wake_up_is_rung_again_only_when_nobody_answered(runtime: Runtime) -> None:
    operation_id = await enqueue(runtime)

    assert await due(runtime) == [operation_id]
    assert await due(runtime) == []
    await alter(runtime, operation_id, "dispatched_at = clock_timestamp() - interval '11 seconds'")
    assert await due(runtime) == [operation_id]
    await within(runtime, lambda session: dispatch.undispatch(session, [operation_id]))
    assert await due(runtime) == [operation_id]


async def test_relays_at_the_same_moment_share_the_due_operations(runtime: Runtime) -> None:
    queued = [await enqueue(runtime) for _ in range(40)]

    shares = await asyncio.gather(*(due(runtime, limit=10) for _ in range(6)))

    rung = [operation_id for share in shares for operation_id in share]
    assert sorted(rung) == sorted(queued)


async def test_the_longest_due_comes_first_and_kinds_without_a_job_are_left(runtime: Runtime) -> None:
    young, old, other = await enqueue(runtime), await enqueue(runtime), await enqueue(runtime)
    await alter(runtime, old, "run_after = run_after - interval '1 hour'")
    await alter(runtime, other, "kind = 'execute_ai_task', queue = 'ai'")

    assert await due(runtime) == [old, young]


async def test_the_due_are_found_by_the_partial_index(runtime: Runtime) -> None:
    await within(
        runtime,
        lambda session: session.execute(
            text(
                "INSERT INTO operations (id, kind, queue, subject_type, subject_id, correlation_id, status)"
                " SELECT gen_random_uuid(), 'check_plane', 'default', 'plane', 'x', gen_random_uuid(),"
                " 'SUCCEEDED' FROM generate_series(1, 20000)"
            )
        ),
    )
    await within(runtime, lambda session: session.execute(text("ANALYZE operations")))
    plan = await within(
        runtime,
        lambda session: session.scalars(
            text(
                "EXPLAIN SELECT id FROM operations WHERE status IN ('QUEUED', 'WAITING')"
                " AND queue IN ('deploy', 'default') AND run_after <= now() ORDER BY run_after LIMIT 100"
            )
        ),
    )

    assert "ix_operations_due" in "\n".join(plan)


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
