# SPDX-License-Identifier: Apache-2.0
import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import leases
from app.domain.leases import Beat
from app.domain.operations import Failure
from app.errors import LeaseLost
from app.models import OperationStatus
from app.runtime import Runtime
from tests.domain.operation_bench import (
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


async def test_an_error_text_that_postgresql_would_refuse_is_stored(runtime: Runtime, told: Told) -> None:
    mine = await claimed(runtime)
    odd = Failure("permanent", "permanent", "a\x00b" + "x" * 5000)

    await within(runtime, lambda s: leases.fail(s, mine, odd, ended=told.ended))

    error = (await row(runtime, mine.id)).error
    assert error is not None
    assert error["message"] == "ab" + "x" * 1998
