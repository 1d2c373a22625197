# SPDX-License-Identifier: Apache-2.0
import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import make_url, text

from app.domain import dispatch, leases, operations
from app.domain.operations import OperationKind, Subject
from app.models import Operation, OperationStatus
from app.runtime import Runtime
from tests.domain.operation_bench import (
    DEPLOY,
    LEASE,
    OUTAGE,
    REFUSED,
    SOON,
    Told,
    alter,
    claim,
    claimed,
    due,
    enqueue,
    row,
    seconds_until,
    sweep,
    within,
)


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
    await alter(runtime, other, "kind = 'of_a_later_release', queue = 'ai'")

    assert await due(runtime) == [old, young]


@pytest.mark.fresh_database
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
    due = dispatch.due(list(OperationKind), ring_again=timedelta(seconds=10), limit=100)
    statement = due.compile(
        dialect=make_url("postgresql+asyncpg://").get_dialect()(), compile_kwargs={"literal_binds": True}
    )

    plan = await within(runtime, lambda session: session.scalars(text(f"EXPLAIN {statement}")))

    assert "ix_operations_due" in "\n".join(plan)


async def lose(runtime: Runtime, told: Told, operation_id: UUID, *, lived: bool) -> Operation:
    """A worker takes the operation, writes something if it ``lived``, and is never heard of again."""
    await alter(runtime, operation_id, "run_after = clock_timestamp()")
    mine = await claimed(runtime, operation_id)
    if lived:
        await within(runtime, lambda session: leases.hold_alive(session, mine))
    await alter(runtime, operation_id, "lease_until = clock_timestamp() - interval '1 second'")
    await sweep(runtime, told)
    return await row(runtime, operation_id)


async def board(runtime: Runtime, owner: str, aboard: list[UUID]) -> None:
    """One worker takes them all."""
    for operation_id in aboard:
        await alter(runtime, operation_id, "run_after = clock_timestamp()")
        assert await claim(runtime, operation_id, owner=owner) is not None


async def drown(runtime: Runtime, told: Told, operation_id: UUID) -> None:
    """Its worker is not heard of again: its lease ends."""
    await alter(runtime, operation_id, "lease_until = clock_timestamp() - interval '1 second'")
    await sweep(runtime, told)


async def sink(runtime: Runtime, told: Told, owner: str, aboard: list[UUID]) -> None:
    """One worker takes them all and is never heard of again; their leases end one after the other."""
    await board(runtime, owner, aboard)
    for operation_id in aboard:
        await drown(runtime, told, operation_id)


class TestLostWorkers:
    """Twenty operations die with one worker, and one of them at most has killed it."""

    async def test_work_that_dies_before_it_has_written_anything_has_four_lives(
        self, runtime: Runtime, told: Told
    ) -> None:
        operation_id = await enqueue(runtime)

        lives = [await lose(runtime, told, operation_id, lived=False) for _ in range(4)]

        assert [life.status.value for life in lives] == ["QUEUED", "QUEUED", "QUEUED", "FAILED"]
        assert (lives[-1].error or {})["code"] == "worker_lost"

    async def test_a_bystander_gets_an_attempt_for_each_lost_one(self, runtime: Runtime, told: Told) -> None:
        operation_id = await enqueue(runtime)

        lives = [await lose(runtime, told, operation_id, lived=True) for _ in range(6)]

        assert {life.status for life in lives} == {OperationStatus.QUEUED}
        assert (lives[-1].attempt, lives[-1].max_attempts) == (6, 10)

    async def test_nobody_is_a_bystander_for_ever(self, runtime: Runtime, told: Told) -> None:
        operation_id, deaths = await enqueue(runtime), 0

        while (await lose(runtime, told, operation_id, lived=True)).status is OperationStatus.QUEUED:
            deaths += 1

        assert deaths + 1 == dispatch.MOST_ATTEMPTS == 24

    async def test_whoever_gets_on_has_lost_nothing_yet(self, runtime: Runtime, told: Told) -> None:
        operation_id = await enqueue(runtime)
        for _ in range(6):
            await lose(runtime, told, operation_id, lived=True)
        await alter(runtime, operation_id, "run_after = clock_timestamp()")
        mine = await claimed(runtime, operation_id)

        await within(runtime, lambda session: leases.keep_checkpoint(session, mine, {"page": 1}))

        now = await row(runtime, operation_id)
        assert (now.attempt, now.max_attempts, now.checkpoint) == (1, 4, {"page": 1})

    async def test_the_unlucky_wait_longer_each_time(self, runtime: Runtime, told: Told) -> None:
        operation_id, waits = await enqueue(runtime), list[float]()

        for _ in range(10):
            await lose(runtime, told, operation_id, lived=True)
            waits.append(await seconds_until(runtime, operation_id))

        longest = [0, 0, 0, 1, 2, 4, 8, 16, 30, 30]
        assert all(most / 2 - 5 < wait <= most for wait, most in zip(waits, longest, strict=True)), waits

    async def test_who_dies_in_company_is_not_to_blame_although_nothing_was_written(
        self, runtime: Runtime, told: Told
    ) -> None:
        aboard = [await enqueue(runtime) for _ in range(3)]

        for ship in ("first", "second", "third", "fourth"):
            await sink(runtime, told, ship, aboard)

        lost = [await row(runtime, operation_id) for operation_id in aboard]
        assert [(each.status, each.attempt, each.max_attempts) for each in lost] == [
            (OperationStatus.QUEUED, 4, 8)
        ] * 3

    async def test_who_has_always_died_in_company_is_looked_at_alone_after_a_while(
        self, runtime: Runtime, told: Told
    ) -> None:
        aboard, deaths = [await enqueue(runtime) for _ in range(2)], 0

        while (await row(runtime, aboard[0])).status is OperationStatus.QUEUED:
            await sink(runtime, told, f"ship {deaths}", aboard)
            deaths += 1

        assert deaths == 4 + dispatch.IN_COMPANY == 12

    async def test_company_parts_at_once(self, runtime: Runtime, told: Told) -> None:
        aboard = [await enqueue(runtime) for _ in range(8)]

        await board(runtime, "ship", aboard)

        shortest, longest = list[float](), list[float]()
        for operation_id in aboard:
            before = runtime.clock()
            await drown(runtime, told, operation_id)
            after, again = runtime.clock(), (await row(runtime, operation_id)).run_after
            shortest.append((again - after).total_seconds())
            longest.append((again - before).total_seconds())
        assert all(wait <= 1 for wait in shortest)
        assert all(wait >= 0.5 for wait in longest)
        assert max(shortest) - min(longest) > 0.01

    async def test_the_only_run_that_had_not_lived_is_the_suspect(self, runtime: Runtime, told: Told) -> None:
        aboard = [await claimed(runtime) for _ in range(3)]
        for each in aboard[:2]:
            await within(runtime, lambda session: leases.heartbeat(session, each, lease=LEASE))  # noqa: B023
        for each in aboard:
            await alter(runtime, each.id, "lease_until = clock_timestamp() - interval '1 second'")
            await sweep(runtime, told)

        assert [(await row(runtime, each.id)).max_attempts for each in aboard] == [5, 5, 4]

    async def test_heartbeats_speak_for_nobody_who_was_told_to_stop(
        self, runtime: Runtime, told: Told
    ) -> None:
        mine = await claimed(runtime)
        await within(runtime, lambda session: leases.heartbeat(session, mine, lease=LEASE, well=False))
        await alter(runtime, mine.id, "lease_until = clock_timestamp() - interval '1 second'")

        await sweep(runtime, told)

        assert (await row(runtime, mine.id)).max_attempts == 4

    async def test_an_accused_run_is_no_bystander_in_whatever_company(
        self, runtime: Runtime, told: Told
    ) -> None:
        mine, other = await claimed(runtime), await claimed(runtime)
        await within(runtime, lambda session: leases.accuse(session, mine))
        for lost in (mine, other):
            await alter(runtime, lost.id, "lease_until = clock_timestamp() - interval '1 second'")

        await sweep(runtime, told)

        assert (await row(runtime, mine.id)).max_attempts == 4

    async def test_an_accused_run_is_no_bystander(self, runtime: Runtime, told: Told) -> None:
        mine = await claimed(runtime)
        await within(runtime, lambda session: leases.hold_alive(session, mine))
        await within(runtime, lambda session: leases.accuse(session, mine))
        await alter(runtime, mine.id, "lease_until = clock_timestamp() - interval '1 second'")

        await sweep(runtime, told)

        assert (await row(runtime, mine.id)).max_attempts == 4

    @pytest.mark.parametrize("revived", [False, True], ids=["goes on", "is revived"])
    async def test_who_goes_on_starts_from_nothing(
        self, runtime: Runtime, told: Told, *, revived: bool
    ) -> None:
        operation_id = await enqueue(runtime)
        await lose(runtime, told, operation_id, lived=True)
        await alter(runtime, operation_id, "run_after = clock_timestamp()")
        mine = await claimed(runtime, operation_id)

        if revived:
            await within(runtime, lambda s: leases.fail(s, mine, REFUSED, ended=told.ended))
            await within(runtime, lambda s: operations.revive(s, operation_id, revived=told.ended))
        else:
            await within(runtime, lambda s: leases.again(s, mine, delay=SOON, ended=told.ended))

        stored = await row(runtime, operation_id)
        assert (stored.attempt, stored.max_attempts) == (0, 4)
