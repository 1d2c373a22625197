# SPDX-License-Identifier: Apache-2.0
"""Many claims and many successes in one statement: nothing of what holds for one of them is lost."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from app.domain import batches, leases, operations
from app.domain.batches import Success
from app.domain.leases import Claimed
from app.models import OperationStatus
from app.models.base import Json
from app.runtime import Runtime
from tests.domain.operation_bench import LEASE, Told, alter, claim, claimed, enqueue, row, sweep, within


async def claim_together(runtime: Runtime, ids: Sequence[UUID]) -> dict[UUID, Claimed]:
    async with runtime.driver() as connection:
        return await batches.claim(connection, ids, owner="test", lease=LEASE)


async def succeed_together(runtime: Runtime, successes: Sequence[Success]) -> set[UUID]:
    async with runtime.driver() as connection:
        return await batches.succeed(connection, successes)


async def test_what_is_claimed_together_is_as_if_it_were_claimed_alone(runtime: Runtime) -> None:
    values: dict[str, Any] = {"args": {"devices": [1, 2]}, "deadline": timedelta(hours=1)}
    alone, other = await enqueue(runtime, **values), await enqueue(runtime, **values)

    one = await claim(runtime, alone)
    together = (await claim_together(runtime, [other]))[other]

    assert one is not None
    same = (
        "kind",
        "subject",
        "attempt",
        "max_attempts",
        "fence",
        "deferrals",
        "args",
        "last_error",
        "checkpoint",
    )
    assert [getattr(together, name) for name in same] == [getattr(one, name) for name in same]
    stored, expected = await row(runtime, other), await row(runtime, alone)
    for name in ("status", "attempt", "fence", "version", "lived", "nudged", "lease_owner"):
        assert getattr(stored, name) == getattr(expected, name)
    assert stored.lease_until is not None
    assert together.deadline == stored.deadline


async def test_only_what_is_due_and_free_is_claimed_together(runtime: Runtime, told: Told) -> None:
    free, taken, early, late = [await enqueue(runtime) for _ in range(4)]
    await claimed(runtime, taken)
    await alter(runtime, early, "run_after = clock_timestamp() + interval '1 minute'")
    await alter(runtime, late, "deadline = clock_timestamp() - interval '1 second'")
    cancelled = await enqueue(runtime)
    await within(runtime, lambda session: operations.cancel(session, cancelled, ended=told.ended))

    won = await claim_together(runtime, [free, taken, early, late, cancelled, uuid4()])

    assert set(won) == {free}


async def test_of_many_batches_at_the_same_moment_each_operation_goes_to_one(runtime: Runtime) -> None:
    ids = [await enqueue(runtime) for _ in range(20)]

    batches_of = [ids[number:] + ids[:number] for number in range(8)]
    won = await asyncio.gather(*(claim_together(runtime, each) for each in batches_of))

    taken = sorted(operation_id for each in won for operation_id in each)
    assert taken == sorted(ids)
    assert {(await row(runtime, each)).fence for each in ids} == {1}


async def test_nobody_waits_for_a_row_in_anothers_hands(runtime: Runtime) -> None:
    locked, free = await enqueue(runtime), await enqueue(runtime)
    held = await claimed(runtime)
    busy = await claimed(runtime)
    async with runtime.transaction() as session:
        query = text("SELECT FROM operations WHERE id IN (:one, :other) FOR UPDATE")
        await session.execute(query, {"one": locked, "other": busy.id})

        assert set(await claim_together(runtime, [locked, free])) == {free}
        written = await succeed_together(runtime, [Success.of(busy, None), Success.of(held, None)])
        assert written == {held.id}

    assert set(await claim_together(runtime, [locked])) == {locked}
    assert (await row(runtime, busy.id)).status is OperationStatus.RUNNING


async def test_successes_are_written_under_their_fences_only(runtime: Runtime, told: Told) -> None:
    stale, held, ended = [await claimed(runtime) for _ in range(3)]
    await alter(runtime, stale.id, "lease_until = clock_timestamp() - interval '1 second'")
    assert await sweep(runtime, told) == 1
    await alter(runtime, stale.id, "run_after = clock_timestamp()")
    await claimed(runtime, stale.id)
    await within(runtime, lambda session: leases.succeed(session, ended, {"first": True}))

    results: list[tuple[Claimed, Json]] = [
        (stale, {"stale": True}),
        (held, {"devices": 3}),
        (ended, {"second": True}),
    ]
    written = await succeed_together(runtime, [Success.of(each, result) for each, result in results])

    assert written == {held.id}
    done = await row(runtime, held.id)
    assert (done.status, done.result, done.lease_owner) == (OperationStatus.SUCCEEDED, {"devices": 3}, None)
    assert done.finished_at is not None
    assert (await row(runtime, stale.id)).status is OperationStatus.RUNNING
    assert (await row(runtime, ended.id)).result == {"first": True}


async def test_a_success_may_have_no_result_and_must_have_one_that_is_json(runtime: Runtime) -> None:
    held = await claimed(runtime)

    with pytest.raises(TypeError):
        Success.of(held, {"at": object()})
    await succeed_together(runtime, [Success.of(held, None)])

    assert (await row(runtime, held.id)).result is None
