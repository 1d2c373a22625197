# SPDX-License-Identifier: Apache-2.0
"""Submissions that arrive together: stored together, judged one by one."""

import asyncio
import math
from collections.abc import Awaitable

import pytest
from sqlalchemy import func, select, text

from app.api.submissions import MOST, Submissions
from app.domain.idempotency import RequestKey, StoredAnswer
from app.domain.intents import Plan
from app.errors import ActiveDeploymentExists, IdempotencyKeyReused
from app.models import Deployment, IdempotencyKey
from app.runtime import Runtime
from tests.factories import NOON, answer_to, make_plan, request_key

MANY = 40


@pytest.fixture
def submissions(runtime: Runtime) -> Submissions:
    return Submissions(runtime)


def accepted(
    submissions: Submissions, plan: Plan, request: RequestKey | None = None
) -> Awaitable[StoredAnswer | None]:
    return submissions.accept(
        plan, actor="alice", request=request or request_key(), answer=answer_to(plan), now=NOON
    )


def plans(count: int) -> list[Plan]:
    return [make_plan(app_name=f"Application {number}") for number in range(count)]


async def stored(runtime: Runtime) -> int:
    async with runtime.sessions() as session:
        return await session.scalar(select(func.count()).select_from(Deployment)) or 0


async def test_all_that_arrive_together_are_stored_in_a_few_transactions(
    runtime: Runtime, submissions: Submissions
) -> None:
    answers = await asyncio.gather(*(accepted(submissions, plan) for plan in plans(MANY)))

    assert answers == [None] * MANY
    async with runtime.sessions() as session:
        transactions = select(func.count(func.distinct(text("xmin::text")))).select_from(Deployment)
        assert 1 <= (await session.scalar(transactions) or 0) <= math.ceil(MANY / MOST)
    assert await stored(runtime) == MANY


async def test_one_that_breaks_a_rule_does_not_spoil_the_others(
    runtime: Runtime, submissions: Submissions
) -> None:
    given = [*plans(MANY), make_plan(app_name="application 7")]

    answers = await asyncio.gather(*(accepted(submissions, plan) for plan in given), return_exceptions=True)

    refused = [answer for answer in answers if answer is not None]
    assert [type(error) for error in refused] == [ActiveDeploymentExists]
    assert await stored(runtime) == MANY


async def test_one_key_in_one_batch_is_stored_once(runtime: Runtime, submissions: Submissions) -> None:
    request, given = request_key("k"), plans(12)

    answers = await asyncio.gather(*(accepted(submissions, plan, request) for plan in given))

    bodies = {(answer or answer_to(plan)).body for answer, plan in zip(answers, given, strict=True)}
    assert len(bodies) == 1
    assert await stored(runtime) == 1


async def test_a_key_with_another_body_is_refused_to_the_one_who_sent_it(
    runtime: Runtime, submissions: Submissions
) -> None:
    first, second, third = plans(3)

    answers = await asyncio.gather(
        accepted(submissions, first, request_key("k")),
        accepted(submissions, second, request_key("k", b"e" * 32)),
        accepted(submissions, third),
        return_exceptions=True,
    )

    assert answers[0] is answers[2] is None
    assert isinstance(answers[1], IdempotencyKeyReused)
    assert await stored(runtime) == 2


async def test_a_caller_who_goes_away_does_not_take_the_others_along(
    runtime: Runtime, submissions: Submissions
) -> None:
    leaver, *others = [asyncio.ensure_future(accepted(submissions, plan)) for plan in plans(5)]
    await asyncio.sleep(0)  # all have joined one batch
    leaver.cancel()

    assert await asyncio.gather(*others) == [None] * 4
    assert leaver.cancelled()
    assert await stored(runtime) == 5


async def test_connections_that_died_are_replaced_at_once(runtime: Runtime, submissions: Submissions) -> None:
    before, after = plans(2)
    await accepted(submissions, before)
    async with runtime.transaction() as session:
        others = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        await session.execute(text(f"{others} AND datname = current_database()"))

    assert await accepted(submissions, after) is None
    assert await stored(runtime) == 2


async def test_a_batch_that_waits_for_a_lock_does_not_hold_up_the_next(
    runtime: Runtime, submissions: Submissions
) -> None:
    held, free = plans(2)
    async with runtime.transaction() as session:
        session.add(
            IdempotencyKey(caller="tester", key="held", digest=b"d" * 32, status=202, headers={}, body=b"")
        )
        await session.flush()
        waiting = asyncio.ensure_future(accepted(submissions, held, request_key("held")))
        await asyncio.sleep(0)  # it has joined a batch of its own
        await asyncio.sleep(0)

        async with asyncio.timeout(30):
            assert await accepted(submissions, free) is None
        assert not waiting.done()
        await session.rollback()

    assert await waiting is None
    assert await stored(runtime) == 2
