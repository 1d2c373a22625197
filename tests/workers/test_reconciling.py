# SPDX-License-Identifier: Apache-2.0
"""Planes are looked at lane by lane: what cannot be read, or not in time, keeps no other lane up."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text

from app.connectors.contract import Action, InstallState, Plane
from app.domain import comparison, operations
from app.domain.operations import ENDED, KINDS, OperationKind, Subject
from app.models import Drift, Operation, OperationStatus, RingDeployment, new_id
from app.settings import BreakerSettings, Settings
from tests.logs import captured_lines
from tests.sandbox.stage import Stage
from tests.waiting import eventually
from tests.workers.conftest import product_runner, run_once
from tests.workers.rollouts import NO_BREAKER, Rollout, opened, pages_read, pushed
from workers.readings import READ_ON
from workers.reconciliation import LONGEST

LANES = 3
TICK = datetime(2026, 6, 1, 12, tzinfo=UTC)
GONE = {"method": "GET", "path": "*/policies/name/*", "status": 404}


@dataclass(slots=True)
class Bench:
    """Lanes on one plane, in the order in which they are looked at, and the work that looks at them."""

    rollout: Rollout
    lanes: list[UUID]

    async def fault(self, lane: int, **fault: Any) -> None:
        """What the plane answers to whoever asks about one lane; to all of them, without ``lane``."""
        row = await self.row(lane)
        await self.rollout.faults({"method": "GET", "path": f"*/v1/packages/{row.external_id}", **fault})

    async def row(self, lane: int) -> RingDeployment:
        async with self.rollout.runtime.transaction() as session:
            return await session.get_one(RingDeployment, self.lanes[lane])

    async def looked_at(self) -> list[bool]:
        """Of which lanes the look for this tick is over."""
        rows = [await self.row(lane) for lane in range(len(self.lanes))]
        return [row.looked_at is not None and row.looked_at >= TICK for row in rows]

    async def tick(self, tick: datetime = TICK) -> UUID:
        async with self.rollout.runtime.transaction() as session:
            return await operations.enqueue(
                session,
                OperationKind.RECONCILE,
                subject=Subject("plane", "jamf"),
                correlation_id=new_id(),
                args={"critical": False, "tick": tick.isoformat()},
            )

    async def look_again(self) -> Operation:
        """One run of a later tick, all lanes having been looked at before it."""
        await self.execute("UPDATE ring_deployments SET looked_at = :at", at=TICK)
        return await self.run(await self.tick(TICK + timedelta(hours=1)))

    async def repairs(self) -> list[UUID]:
        """What was ordered to be put back."""
        async with self.rollout.runtime.transaction() as session:
            found = await operations.find(session, limit=9, kind=OperationKind.REPAIR_LANE)
        return [operation.id for operation in found]

    async def run(self, work: UUID, **limits: float) -> Operation:
        """One run, now; ``limits`` in seconds."""
        given = {name: timedelta(seconds=seconds) for name, seconds in limits.items()}
        kinds = {kind: replace(rules, **given) for kind, rules in KINDS.items()}  # type: ignore[arg-type]
        await self.execute("UPDATE operations SET run_after = now() WHERE id = :id", id=work)
        return await run_once(product_runner(self.rollout.runtime, kinds=kinds), work)

    async def ended(self, work: UUID, **limits: float) -> Operation:
        async def once() -> Operation:
            return await self.run(work, **limits)

        return await eventually(once, until=lambda row: row.status in ENDED, within=20)

    async def execute(self, statement: str, **values: Any) -> None:
        async with self.rollout.runtime.transaction() as session:
            await session.execute(text(statement), values)


@pytest.fixture
async def bench(settings: Settings, stage: Stage) -> AsyncIterator[Bench]:
    async with opened(settings, stage, plane=Plane.JAMF, breakers=NO_BREAKER) as rollout:
        yield await bench_of(rollout, stage)


async def bench_of(rollout: Rollout, stage: Stage, lanes: int = LANES) -> Bench:
    made = []
    for number in range(lanes):
        await pushed(rollout, stage, app_name=f"Application {number}")
        made.append((await rollout.whole()).lanes[0].id)
    return Bench(rollout, sorted(made))


UNREADABLE: dict[str, dict[str, Any]] = {
    "server_error": {"status": 500},
    "policy": {"status": 403},
    "bug": {"path": "*/policies/name/*", "status": 200, "body": json.dumps({"policy": {}})},
}


@pytest.mark.parametrize(("code", "fault"), UNREADABLE.items(), ids=UNREADABLE)
async def test_a_lane_that_cannot_be_read_costs_only_its_own_look(
    bench: Bench, code: str, fault: dict[str, Any]
) -> None:
    if "path" in fault:
        deployment = (await bench.row(0)).deployment_id
        fault = fault | {"path": f"*/policies/name/*{deployment}*"}
    await bench.fault(0, **fault)

    with captured_lines() as lines:
        done = await bench.run(await bench.tick())

    assert (done.status, done.result) == (
        OperationStatus.SUCCEEDED,
        {"outcome": "looked", "not_readable": 1},
    )
    assert await bench.looked_at() == [True] * LANES
    [told] = [line for line in lines() if line["event"] == "lane_not_readable"]
    assert (told["lane_id"], told["code"]) == (str(bench.lanes[0]), code)
    assert ("exception" in told) == (code == "bug")


async def test_what_is_not_readable_is_neither_fine_nor_gone(bench: Bench) -> None:
    await bench.rollout.faults(GONE)
    await bench.run(await bench.tick())
    await bench.fault(0, status=500)

    assert (await bench.look_again()).result == {"outcome": "looked", "not_readable": 1}

    async with bench.rollout.runtime.transaction() as session:
        rows = {row.lane_id: row for row in await session.scalars(select(Drift))}
    assert [rows[lane].status for lane in bench.lanes] == ["SUSPECTED", "RESOLVED", "RESOLVED"]
    assert rows[bench.lanes[0]].seen == 1


async def test_what_is_gone_is_put_back_once(bench: Bench) -> None:
    await bench.rollout.faults(GONE)
    await bench.run(await bench.tick())
    await bench.execute("UPDATE drifts SET first_seen_at = first_seen_at - interval '1 hour'")
    await bench.look_again()
    ordered = await bench.repairs()
    assert len(ordered) == LANES

    await bench.rollout.faults()
    done = [await bench.run(work) for work in ordered]

    assert [row.result for row in done] == [{"outcome": "repaired"}] * LANES
    await bench.look_again()
    async with bench.rollout.runtime.transaction() as session:
        assert [row.status for row in await session.scalars(select(Drift))] == ["RESOLVED"] * LANES
    assert await bench.repairs() == ordered


async def test_a_plane_that_asks_to_wait_defers_all_looks_and_spends_no_attempt(bench: Bench) -> None:
    await bench.rollout.faults({"method": "GET", "status": 429, "headers": {"Retry-After": "100"}})

    waiting = await bench.run(await bench.tick())

    assert (waiting.status, waiting.attempt, waiting.deferrals) == (OperationStatus.WAITING, 0, 1)
    assert await bench.looked_at() == [False] * LANES


async def test_lanes_that_keep_everybody_away_from_their_plane_come_last(
    settings: Settings, stage: Stage
) -> None:
    quick = {"jamf": BreakerSettings(fail_max=1, reset_timeout=0.2)}
    async with opened(settings, stage, plane=Plane.JAMF, breakers=quick) as rollout:
        bench = await bench_of(rollout, stage)
        await bench.fault(0, status=500)

        work = await bench.tick()
        waiting = await bench.run(work)
        assert (waiting.status, waiting.attempt) == (OperationStatus.WAITING, 0)
        assert await bench.looked_at() == [False] * LANES
        done = await bench.ended(work)

        assert await bench.looked_at() == [True] * LANES
        assert (done.status, done.result) == (
            OperationStatus.SUCCEEDED,
            {"outcome": "looked", "not_readable": 1},
        )


async def test_a_lane_that_takes_too_long_is_left_before_the_run_is_over(bench: Bench) -> None:
    await bench.fault(0, latency=3600)
    work = await bench.tick()

    waiting = await bench.run(work, hard_limit=3, soft_limit=1)
    assert (waiting.status, waiting.attempt) == (OperationStatus.WAITING, 0)
    assert await bench.looked_at() == [True, False, False]
    done = await bench.ended(work)

    assert done.result == {"outcome": "looked", "not_readable": 1}
    assert await bench.looked_at() == [True] * LANES


async def test_a_lane_that_had_only_the_rest_of_a_run_comes_first_in_the_next(bench: Bench) -> None:
    await bench.fault(1, latency=3600)
    work = await bench.tick()

    await bench.run(work, hard_limit=3, soft_limit=2.5)
    assert await bench.looked_at() == [True, False, False]
    await bench.rollout.faults()
    done = await bench.ended(work)

    assert done.result == {"outcome": "looked", "not_readable": 0}


DEVICES, PAGES = 250, 3
"""Jamf is asked for a hundred computers at a time."""


@pytest.fixture
async def big(settings: Settings, stage: Stage) -> AsyncIterator[Bench]:
    """A lane that was promoted once all its devices had it, which none of them has any more."""
    async with opened(settings, stage, plane=Plane.JAMF) as rollout:
        await rollout.fleet(devices=DEVICES, delay=[20, 20], fail=1.0)
        bench = await bench_of(rollout, stage, lanes=1)
        await eventually(lambda: states(bench), until=lambda told: told == {InstallState.FAILED}, within=20)
        await bench.execute("UPDATE device_results SET state = 'SUCCEEDED'")
        await bench.execute(f"UPDATE ring_deployments SET status = 'PROMOTED', success_count = {DEVICES}")
        yield bench


async def states(bench: Bench) -> set[InstallState]:
    """What the devices say."""
    runtime = bench.rollout.runtime
    async with runtime.transaction() as session:
        look = await comparison.begin_look(session, bench.lanes[0])
    assert look is not None
    pages = runtime.connectors[Plane.JAMF].status(Action.ASSIGN, look.assignment)
    return {report.state async for page in pages for report in page.reports}


async def test_the_devices_of_a_big_lane_are_read_run_by_run(big: Bench) -> None:
    before, work = await pages_read(big.rollout), await big.tick()

    for _ in range(PAGES):
        assert (await big.run(work, soft_limit=0)).status is OperationStatus.WAITING
    done = await big.ended(work, soft_limit=0)

    assert done.result == {"outcome": "looked", "not_readable": 0}
    assert await pages_read(big.rollout) == before + PAGES
    async with big.rollout.runtime.transaction() as session:
        found = (await session.scalars(select(Drift))).one()
    assert (found.type.value, found.observed["devices"]) == ("compliance_drift", 0)
    assert len(found.observed["examples"]) == 10


async def test_a_lane_that_is_read_for_too_long_gives_way_to_others(big: Bench) -> None:
    work = await big.tick()
    first = await big.run(work, soft_limit=0)
    long_ago = {"began": (datetime.now(UTC) - LONGEST - timedelta(seconds=1)).isoformat()}
    await alter_reading(big, first, long_ago)

    done = await big.ended(work)

    assert done.result == {"outcome": "looked", "not_readable": 1}


async def test_what_was_read_long_ago_is_read_again(big: Bench) -> None:
    before, work = await pages_read(big.rollout), await big.tick()
    first = await big.run(work, soft_limit=0)
    await alter_reading(big, first, {"at": (datetime.now(UTC) - READ_ON - timedelta(seconds=1)).isoformat()})

    await big.ended(work)

    assert await pages_read(big.rollout) == before + 1 + PAGES


async def alter_reading(bench: Bench, work: Operation, change: dict[str, str]) -> None:
    statement = (
        "UPDATE operations SET checkpoint = jsonb_set(checkpoint, '{reading,place}',"
        " checkpoint #> '{reading,place}' || CAST(:change AS jsonb)) WHERE id = :id"
    )
    await bench.execute(statement, change=json.dumps(change), id=work.id)
