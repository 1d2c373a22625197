# SPDX-License-Identifier: Apache-2.0
"""A relay in this process, whose servers fail it in the middle of what it does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from uuid import UUID

from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession

from app import telemetry
from app.domain import approvals
from app.domain.operations import OperationKind
from app.models import ApprovalStatus, Operation, OperationStatus
from app.runtime import Runtime, open_runtime
from app.settings import Settings, WorkerSettings
from tests.factories import RISK_62, make_deployment
from tests.logs import captured_lines
from tests.waiting import eventually
from tests.wire import Cutting, wired
from tests.workers.conftest import Bench, product_runner
from tests.workers.jobs import do
from workers import queues
from workers.main import end, queue_loops
from workers.relay import Relay

KINDS = list(OperationKind)


async def nothing(_: AsyncSession, __: Operation) -> None:
    """Nobody asked for these operations."""


@asynccontextmanager
async def relaying(
    runtime: Runtime, ended: Callable[[AsyncSession, Operation], object] = nothing
) -> AsyncIterator[Callable[[], list[str]]]:
    """A relay at work; what it has logged."""
    relay = Relay(runtime, KINDS, ended=ended)  # type: ignore[arg-type]
    with captured_lines() as written:
        tasks = [asyncio.ensure_future(loop) for loop in relay.loops()]
        try:
            yield lambda: [line["event"] for line in written()]
        finally:
            await end(*tasks)


async def stamped_again(bench: Bench, operation_id: UUID) -> bool:
    """Whether a wake-up is believed to be on its way."""
    return (await bench.row(operation_id)).dispatched_at is not None


async def waiting_in(url: str) -> int:
    async with Redis.from_url(url) as redis:
        return int(await redis.zcard(queues.queue_key("default")))


async def test_a_wake_up_that_was_lost_on_its_way_is_rung_again(
    settings: Settings, bench: Bench, redis_url: str
) -> None:
    wire = Cutting(b"ZADD", silent=True)
    async with (
        wired(settings, wire) as through,
        open_runtime(through, process="test") as fragile,
        relaying(fragile) as events,
    ):
        operation_id = await bench.enqueue()
        await eventually(lambda: "relay_failed" in events(), within=20)
        await eventually(partial(stamped_again, bench, operation_id), within=20)
        assert await waiting_in(redis_url) == 1

    assert wire.cuts == 1


async def test_a_relay_outlives_a_redis_that_is_not_there(
    settings: Settings, bench: Bench, unused_tcp_port: int
) -> None:
    away = SecretStr(f"redis://127.0.0.1:{unused_tcp_port}/0")
    own = settings.model_copy(update={"redis_url": away})
    before = failures_counted()
    async with open_runtime(own, process="test") as runtime, relaying(runtime) as events:
        await eventually(lambda: events().count("relay_failed") >= 2, within=20)
    assert failures_counted() >= before + 2


def failures_counted() -> float:
    """What an alert would look at."""
    return telemetry.registry.get_sample_value("eucora_relay_failures_total", {"step": "ring"}) or 0.0


async def test_a_relay_waits_while_the_database_is_kept_away_from_and_goes_on_then(
    runtime: Runtime, bench: Bench, redis_url: str
) -> None:
    breaker = runtime.breakers.get("database")
    operation_id = await bench.enqueue()
    breaker.open()
    async with relaying(runtime) as events:
        for _ in range(100):
            await asyncio.sleep(0)  # each of its loops meets the open breaker
        assert await waiting_in(redis_url) == 0
        breaker.close()
        await eventually(lambda: waiting_in(redis_url), within=10)

    assert "relay_failed" not in events()
    assert (await bench.row(operation_id)).dispatched_at is not None


async def test_an_operation_that_cannot_be_given_up_does_not_keep_the_others_waiting(
    runtime: Runtime, bench: Bench
) -> None:
    broken, other = await bench.enqueue(), await bench.enqueue()
    for each in (broken, other):
        await bench.alter(each, "deadline = now() - interval '1 second'")

    async def unable(_: AsyncSession, operation: Operation) -> None:
        if operation.id == broken:
            raise LookupError

    async with relaying(runtime, unable) as events:
        assert (await bench.ended(other, within=20)).status is OperationStatus.FAILED
        await eventually(lambda: "not_given_up" in events(), within=10)

    assert (await bench.row(broken)).status is OperationStatus.QUEUED


async def test_the_queues_are_heard_again_and_again_while_redis_is_away(
    settings: Settings, unused_tcp_port: int
) -> None:
    away = SecretStr(f"redis://127.0.0.1:{unused_tcp_port}/0")
    own = settings.model_copy(update={"redis_url": away, "worker": WorkerSettings(poll=0.05)})
    with captured_lines() as written:
        async with open_runtime(own, process="test") as runtime:
            runner = product_runner(runtime, jobs=dict.fromkeys(KINDS[:1], do))
            tasks = [asyncio.create_task(loop.run()) for loop in queue_loops(runner)]
            await eventually(
                lambda: [line["event"] for line in written()].count("queue_lost") >= 2, within=20
            )
            await end(*tasks)


async def test_a_request_to_the_board_that_nobody_decides_runs_out_by_itself(runtime: Runtime) -> None:
    async with runtime.transaction() as session:
        deployment = await make_deployment(session, risk_factors=RISK_62)

    async def status() -> ApprovalStatus | None:
        async with runtime.transaction() as session:
            found = await approvals.newest(session, deployment.id)
            return found.status if found else None

    assert await status() is ApprovalStatus.PENDING
    async with relaying(runtime):
        assert await eventually(status, within=5, until=lambda now: now is ApprovalStatus.EXPIRED)
