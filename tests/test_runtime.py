# SPDX-License-Identifier: Apache-2.0
"""Sessions and what guards them: the database's breaker, limits that the work's deadline lowers."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from pydantic import ValidationError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app import telemetry
from app.api.submissions import Submissions
from app.database import call_error
from app.errors import Invalid
from app.resilience import BreakerOpen, BreakerState, deadline
from app.resilience.errors import CallError, DatabaseDown, DatabaseSlow, DeadlineExceeded
from app.runtime import Runtime, breaker_policies, open_runtime
from app.settings import BreakerSettings, DatabaseSettings, Settings
from tests.factories import NOON, answer_to, make_plan, request_key
from tests.servers import own_server
from tests.waiting import eventually
from tests.wire import Cutting, wired


@asynccontextmanager
async def limited(settings: Settings, **limits: object) -> AsyncIterator[Runtime]:
    """A runtime with other limits of its connections."""
    own = settings.model_copy(update={"database": DatabaseSettings.model_validate(limits)})
    async with open_runtime(own, process="test") as runtime:
        yield runtime


async def test_slow_statements_are_counted_and_open_nothing(settings: Settings) -> None:
    before = slow_statements()
    async with limited(settings, statement_timeout=0.02) as runtime:
        for _ in range(20):
            with pytest.raises(DBAPIError) as raised:
                async with runtime.transaction() as session:
                    await session.execute(text("SELECT pg_sleep(5)"))
            assert isinstance(call_error(raised.value), DatabaseSlow)

        assert runtime.breakers.get("database").effective is BreakerState.CLOSED
        assert runtime.breakers.get("database").fail_counter == 0

    assert slow_statements() >= before + 20


def slow_statements() -> float:
    return telemetry.registry.get_sample_value("eucora_database_slow_total") or 0.0


async def test_a_pool_that_is_used_up_opens_nothing_and_recovers_at_once(settings: Settings) -> None:
    async with limited(settings, pool_size=2, max_overflow=0, pool_timeout=0.2) as runtime:

        async def hold(gate: asyncio.Event) -> None:
            async with runtime.transaction():
                await gate.wait()

        gate = asyncio.Event()
        holders = [asyncio.create_task(hold(gate)) for _ in range(2)]
        await eventually(lambda: runtime.engine.pool.checkedout() == 2, within=5)  # type: ignore[attr-defined]
        refused = await asyncio.gather(*(hold(gate) for _ in range(200)), return_exceptions=True)
        gate.set()
        await asyncio.gather(*holders)

        assert {type(error) for error in refused} == {PoolTimeout}
        assert runtime.breakers.get("database").fail_counter == 0
        async with runtime.transaction() as session:
            assert await session.scalar(text("SELECT 1")) == 1


async def test_a_statement_ends_with_the_work_it_is_for(runtime: Runtime) -> None:
    began = time.monotonic()

    with deadline.within(began + 1), pytest.raises(DBAPIError) as raised:
        async with runtime.transaction() as session:
            await session.execute(text("SELECT pg_sleep(25)"))

    assert 0.9 < time.monotonic() - began < 20
    assert isinstance(call_error(raised.value), DatabaseSlow)
    async with runtime.transaction() as session:  # the connection's usual limit is back
        assert await session.scalar(text("SHOW statement_timeout")) == "30s"


async def test_work_whose_time_is_over_does_not_begin_a_transaction(runtime: Runtime) -> None:
    with deadline.within(time.monotonic() - 1), pytest.raises(DeadlineExceeded):
        async with runtime.transaction():
            raise AssertionError


async def test_a_database_that_is_away_is_left_alone_after_five_failures(settings: Settings) -> None:
    async with own_server(settings) as (server, own), open_runtime(own, process="test") as runtime:
        breaker = runtime.breakers.get("database")
        assert await answers(runtime)
        await server.child.stop()

        errors = [await failure(runtime) for _ in range(6)]

        assert [type(error) for error in errors] == [DatabaseDown] * 5 + [BreakerOpen]
        assert errors[5].retry_after is not None
        with pytest.raises(DatabaseDown):  # what must be written whatever the breaker says still tries
            async with runtime.transaction(guarded=False):
                raise AssertionError
        await server.child.start()
        await eventually(partial(answers, runtime), within=10)
        await eventually(lambda: breaker.effective is BreakerState.CLOSED, within=5)


async def answers(runtime: Runtime) -> bool:
    try:
        async with runtime.transaction() as session:
            return bool(await session.scalar(text("SELECT true")))
    except CallError:
        return False


async def failure(runtime: Runtime) -> CallError:
    with pytest.raises(Exception) as raised:
        async with runtime.transaction() as session:
            await session.execute(text("SELECT 1"))
    error = raised.value
    found = error if isinstance(error, CallError) else call_error(error)
    assert found is not None, error
    return found


async def test_a_commit_whose_answer_is_lost_is_looked_up_by_its_key_and_not_done_again(
    settings: Settings, runtime: Runtime
) -> None:
    plan, request = make_plan(app_name="Lost Answer"), request_key()
    wire = Cutting(b"Lost Answer")
    async with wired(settings, wire) as through, open_runtime(through, process="test") as fragile:
        answer = await Submissions(fragile).accept(
            plan, actor="alice", request=request, answer=answer_to(plan), now=NOON
        )

    assert wire.cuts == 1
    assert answer is not None  # the one that was stored with it
    async with runtime.transaction() as session:
        assert await session.scalar(text("SELECT count(*) FROM deployments")) == 1
        assert await session.scalar(text("SELECT count(*) FROM idempotency_keys")) == 1


def test_a_setting_of_a_breaker_leaves_the_others_as_they_are() -> None:
    settings = Settings(breakers={"database": BreakerSettings(fail_max=3), "jira": BreakerSettings(window=9)})

    policies = breaker_policies(settings)

    assert (policies["database"].fail_max, policies["database"].reset_timeout) == (3, 30.0)
    assert (policies["jira"].fail_max, policies["jira"].reset_timeout, policies["jira"].window) == (
        5,
        60.0,
        9,
    )
    with pytest.raises(Invalid, match="EUCORA_BREAKERS: no service 'nobody'; known are intune"):
        breaker_policies(Settings(breakers={"nobody": BreakerSettings()}))


@pytest.mark.parametrize(("name", "value"), [("fail_max", 0), ("reset_timeout", -1), ("failure_rate", 1.5)])
def test_a_setting_with_which_a_breaker_could_not_work_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValidationError):
        BreakerSettings.model_validate({name: value})
