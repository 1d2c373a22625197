# SPDX-License-Identifier: Apache-2.0
"""Jobs in real workers that call a service which misbehaves: what waits costs no attempt."""

import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from uuid import UUID

from app.domain import breakers
from app.domain.operations import OperationKind
from app.models import Operation, OperationStatus
from tests.resilience.misbehaving import answer, misbehaving, reset
from tests.waiting import eventually
from tests.workers.conftest import RESET_TIMEOUT, Bench, Workers

OUTAGE = 8 * RESET_TIMEOUT
"""Longer than all attempts of an operation would last if each probe cost one."""


def deferred(code: str) -> Callable[[Operation], bool]:
    """Whether it waits for that reason."""
    return lambda row: bool(row.deferrals and row.error and row.error["code"] == code)


async def succeeded(bench: Bench) -> int:
    return await bench.count("operations WHERE status = 'SUCCEEDED'")


async def test_a_pause_of_an_hour_costs_no_attempt_and_no_slot(bench: Bench, workers: Workers) -> None:
    async with misbehaving(answer(429, Retry_After="3600")) as server:
        await workers.start(max_jobs=1)
        asked_to_wait = await bench.enqueue("calls_out", kind=OperationKind.COUNT_TARGET, url=server.url)
        told = await eventually(partial(bench.row, asked_to_wait), until=deferred("throttled"), within=10)
        other = await bench.enqueue()
        done = await bench.ended(other)

    assert (told.status, told.attempt) == (OperationStatus.WAITING, 0)
    assert told.run_after - told.created_at > timedelta(seconds=3590)
    assert len(server.received) == 1
    assert done.status is OperationStatus.SUCCEEDED


async def test_a_service_that_is_away_for_long_holds_the_work_and_fails_none_of_it(
    bench: Bench, workers: Workers
) -> None:
    async with misbehaving(reset) as server:
        for _ in range(2):
            await workers.start(backoff=0.02)
        held = [await bench.enqueue("calls_out", url=server.url) for _ in range(12)]
        began = time.monotonic()
        for operation_id in held:
            await eventually(partial(bench.row, operation_id), until=lambda row: row.deferrals > 0, within=20)
        await eventually(lambda: time.monotonic() - began > OUTAGE, within=2 * OUTAGE)
        during, lasted = len(server.received), time.monotonic() - began
        assert await succeeded(bench) == 0
        server.script = [answer()]
        await eventually(partial(succeeded, bench), until=lambda number: number == len(held), within=30)

    # Until it opened, what was on its way by then, and a probe for each cool-down.
    assert during <= 2 * 5 + len(held) + lasted / RESET_TIMEOUT + 2
    for operation_id in held:
        assert (await bench.row(operation_id)).attempt <= 3


async def test_one_job_alone_outlasts_a_long_outage_though_it_is_every_probe(
    bench: Bench, workers: Workers
) -> None:
    async with misbehaving(answer(503)) as server:
        await workers.start(backoff=0.01)
        lonely = await bench.enqueue("calls_out", url=server.url)
        await eventually(lambda: len(server.received) >= 5 + 6, within=30)  # six probes failed
        waiting = await bench.row(lonely)
        server.script = [answer()]
        done = await bench.ended(lonely, within=20)

    assert waiting.status in {OperationStatus.WAITING, OperationStatus.RUNNING}
    assert done.status is OperationStatus.SUCCEEDED


async def test_credentials_that_are_refused_for_ever_cause_two_requests_and_a_person_is_asked(
    bench: Bench, workers: Workers
) -> None:
    async with misbehaving(answer(401)) as server:
        await workers.start()
        failed = await bench.ended(await bench.enqueue("calls_out", url=server.url))

    assert failed.error is not None
    assert (failed.status, failed.attempt) == (OperationStatus.FAILED, 1)
    assert (failed.error["class"], failed.error["code"]) == ("auth", "auth_denied")
    assert [request.headers["authorization"] for request in server.received] == [
        "Bearer token-0",
        "Bearer token-1",
    ]


async def test_an_isolated_service_is_left_alone_until_it_is_enabled_then_work_goes_on_at_once(
    bench: Bench, workers: Workers
) -> None:
    async with misbehaving() as server:
        await workers.start()
        await bench.runtime.breakers.isolate("jira", actor="alice", reason="maintenance")
        held = [await bench.enqueue("calls_out", url=server.url) for _ in range(5)]
        for operation_id in held:
            row = await eventually(
                partial(bench.row, operation_id), until=deferred("circuit_open"), within=10
            )
            assert row.error is not None
            assert "isolated by alice: maintenance" in row.error["message"]
        assert server.received == []

        await bench.runtime.breakers.enable("jira", actor="alice")
        async with bench.runtime.transaction() as session:
            assert await breakers.let_go(session, "jira") == 5

        await eventually(partial(succeeded, bench), until=lambda number: number == 5, within=5)


async def test_the_correlation_id_of_the_work_is_on_every_request(bench: Bench, workers: Workers) -> None:
    async with misbehaving(answer(503), answer()) as server:
        worker = await workers.start()
        operation_id: UUID = await bench.enqueue("calls_out", url=server.url)
        done = await bench.ended(operation_id)

    sent = {request.headers["x-correlation-id"] for request in server.received}
    assert sent == {str(done.correlation_id)}
    assert len({request.headers["traceparent"].split("-")[1] for request in server.received}) == 1
    line = next(line for line in worker.said().splitlines() if '"call_failed"' in line)
    assert str(done.correlation_id) in line
