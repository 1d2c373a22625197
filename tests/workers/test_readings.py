# SPDX-License-Identifier: Apache-2.0
"""A lane of many pages whose reading is interrupted, against a sandbox plane."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from app.connectors.contract import Plane
from app.domain import operations, rollback
from app.domain.operations import KINDS, OperationKind
from app.models import Operation, OperationStatus
from app.settings import Settings
from tests.sandbox.stage import Stage
from tests.workers.conftest import product_runner, run_once
from tests.workers.rollouts import Rollout, opened, pages_read, pushed
from workers.readings import READ_ON

MEASURE, TAKE_BACK = OperationKind.MEASURE_RING, OperationKind.EXECUTE_ROLLBACK
DEVICES, PAGES = 250, 3
"""Jamf is asked for a hundred computers at a time."""


@pytest.fixture
async def rollout(settings: Settings, stage: Stage) -> AsyncIterator[Rollout]:
    async with opened(settings, stage, plane=Plane.JAMF) as made:
        await made.fleet(devices=DEVICES)
        await pushed(made, stage)
        yield made


async def once(rollout: Rollout, kind: OperationKind) -> Operation:
    """One run of the newest operation of that kind, with time for one page."""
    async with rollout.runtime.transaction() as session:
        [found] = await operations.find(session, limit=1, deployment_id=rollout.id, kind=kind)
        await operations.hasten(session, rollout.id)
    kinds = {kind: replace(rules, soft_limit=timedelta(0)) for kind, rules in KINDS.items()}
    return await run_once(product_runner(rollout.runtime, kinds=kinds), found.id)


async def test_a_reading_that_takes_longer_than_one_run_comes_to_its_end(rollout: Rollout) -> None:
    before = await pages_read(rollout)

    runs = [await once(rollout, MEASURE) for _ in range(PAGES)]

    assert await pages_read(rollout) == before + PAGES
    assert len({str(run.checkpoint) for run in runs}) == PAGES
    assert len(set.union(*map(began, runs))) == 1
    assert (await rollout.whole()).lanes[0].verdict is None
    last = await once(rollout, MEASURE)
    assert await pages_read(rollout) == before + PAGES
    assert last.checkpoint is None
    assert (await rollout.whole()).lanes[0].verdict is not None


def began(run: Operation) -> set[str]:
    """When the readings that the run left off began."""
    return {place["began"] for place in (run.checkpoint or {}).values()}


LONG_AGO = (datetime.now(UTC) - READ_ON - timedelta(seconds=1)).isoformat()


@pytest.mark.parametrize("change", ["long ago", "of another assignment"])
async def test_what_was_read_then_is_read_again(rollout: Rollout, change: str) -> None:
    before = await pages_read(rollout)
    first = await once(rollout, MEASURE)
    [(name, place)] = (first.checkpoint or {}).items()
    kept = {name: place | {"at": LONG_AGO}} if change == "long ago" else {"assign another": place}
    async with rollout.runtime.transaction() as session:
        statement = "UPDATE operations SET checkpoint = CAST(:kept AS jsonb) WHERE id = :id"
        await session.execute(text(statement), {"kept": json.dumps(kept), "id": first.id})

    for _ in range(PAGES):
        await once(rollout, MEASURE)
    assert await pages_read(rollout) == before + 1 + PAGES
    assert (await rollout.whole()).lanes[0].verdict is None
    await once(rollout, MEASURE)

    assert await pages_read(rollout) == before + 1 + PAGES
    assert (await rollout.whole()).lanes[0].verdict is not None


async def test_a_rollback_that_looks_for_longer_than_one_run_begins_after_the_last_page(
    rollout: Rollout,
) -> None:
    before = await pages_read(rollout)
    await rollout.order(rollback.begin)

    for _ in range(PAGES):
        assert (await once(rollout, TAKE_BACK)).status is OperationStatus.WAITING
        assert (await rollout.ledger())["LAB/remove"] == "PLANNED"
    assert await pages_read(rollout) == before + PAGES
    await once(rollout, TAKE_BACK)

    assert (await rollout.ledger())["LAB/remove"] == "CONFIRMED"
    done = await rollout.run(TAKE_BACK)
    assert (done.status, done.checkpoint) == (OperationStatus.SUCCEEDED, None)


async def test_a_rollback_of_devices_that_were_forgotten_learns_them_again(rollout: Rollout) -> None:
    assert (await rollout.run(MEASURE)).status is OperationStatus.SUCCEEDED
    async with rollout.runtime.transaction() as session:
        await session.execute(text("DELETE FROM device_results"))
    await rollout.order(rollback.begin)

    done = await rollout.run(TAKE_BACK)
    assert done.status is OperationStatus.SUCCEEDED, done.error

    async with rollout.runtime.transaction() as session:
        taken = "SELECT count(*) FROM device_results WHERE rollback_state = 'SUCCEEDED'"
        assert await session.scalar(text(taken)) == DEVICES
