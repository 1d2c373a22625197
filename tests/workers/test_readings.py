# SPDX-License-Identifier: Apache-2.0
"""A lane of many pages whose reading is interrupted, against a sandbox plane."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from app.connectors.contract import Plane
from app.domain import operations
from app.domain.operations import KINDS, OperationKind
from app.models import Operation
from app.settings import Settings
from tests.sandbox.stage import Stage
from tests.workers.conftest import product_runner, run_once
from tests.workers.rollouts import Rollout, opened, pushed
from workers.readings import READ_ON

DEVICES, PAGES = 250, 3
"""Jamf is asked for a hundred computers at a time."""


@pytest.fixture
async def rollout(settings: Settings, stage: Stage) -> AsyncIterator[Rollout]:
    async with opened(settings, stage, plane=Plane.JAMF) as made:
        await made.fleet(devices=DEVICES)
        await pushed(made, stage)
        yield made


async def measure(rollout: Rollout) -> Operation:
    """One run of the measurement, with time for one page."""
    async with rollout.runtime.transaction() as session:
        kind = OperationKind.MEASURE_RING
        [found] = await operations.find(session, limit=1, deployment_id=rollout.id, kind=kind)
        await operations.hasten(session, rollout.id)
    kinds = {kind: replace(rules, soft_limit=timedelta(0)) for kind, rules in KINDS.items()}
    return await run_once(product_runner(rollout.runtime, kinds=kinds), found.id)


async def pages_read(rollout: Rollout) -> int:
    """How many pages of the inventory were asked for."""
    told = (await rollout.http.get("/jamf/_sandbox/requests")).raise_for_status().json()
    return sum(number for call, number in told["counts"].items() if call.endswith("/v4/computers-inventory"))


async def test_a_reading_that_takes_longer_than_one_run_comes_to_its_end(rollout: Rollout) -> None:
    before = await pages_read(rollout)

    runs = [await measure(rollout) for _ in range(PAGES)]

    assert await pages_read(rollout) == before + PAGES
    assert len({str(run.checkpoint) for run in runs}) == PAGES
    assert (await rollout.whole()).lanes[0].verdict is None
    last = await measure(rollout)
    assert await pages_read(rollout) == before + PAGES
    assert last.checkpoint is None
    assert (await rollout.whole()).lanes[0].verdict is not None


LONG_AGO = {"at": (datetime.now(UTC) - READ_ON - timedelta(seconds=1)).isoformat()}
ANOTHER = {"what": "assign another"}


@pytest.mark.parametrize("kept", [LONG_AGO, ANOTHER], ids=["long ago", "of another assignment"])
async def test_what_was_read_then_is_read_again(rollout: Rollout, kept: dict[str, str]) -> None:
    before = await pages_read(rollout)
    first = await measure(rollout)
    async with rollout.runtime.transaction() as session:
        change = "UPDATE operations SET checkpoint = checkpoint || CAST(:kept AS jsonb) WHERE id = :id"
        await session.execute(text(change), {"kept": json.dumps(kept), "id": first.id})

    await rollout.run(OperationKind.MEASURE_RING)

    assert await pages_read(rollout) >= before + 1 + PAGES
