# SPDX-License-Identifier: Apache-2.0
"""Answers to COMMIT that never come: it was carried out, and nobody heard."""

import pytest

from app.connectors.contract import Plane
from app.models import DeploymentStatus
from app.settings import Settings
from tests.faults.conftest import Workers
from tests.faults.test_steps import OVER, PRODUCT, made_once
from tests.sandbox.stage import Stage
from tests.waiting import eventually
from tests.wire import Wire, wired
from tests.workers.rollouts import opened


class LosesCommit(Wire):
    """A wire that is cut in place of the answer to the ``number``-th COMMIT of those who use it."""

    def __init__(self, number: int) -> None:
        super().__init__(moment=0)
        self._left = number

    @property
    def has_lost(self) -> bool:
        """Whether there were so many."""
        return self._left <= 0

    async def _keeps_back(self, asked: bytes) -> bool:
        if b"COMMIT" not in asked:
            return False
        self._left -= 1
        return self._left == 0


SHORT = (5,)
"""What is cut in every run of the tests; the rest with ``--faults`` only."""


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=[] if n in SHORT else pytest.mark.long) for n in range(1, 17)]
)
async def test_a_worker_whose_commit_was_carried_out_unheard_does_nothing_twice(
    own: Settings, stage: Stage, number: int
) -> None:
    async with opened(own, stage, plane=Plane.INTUNE) as rollout:
        await rollout.submit(stage.url)
        reached = own.model_copy(update={"sandbox_url": stage.url})
        wire = LosesCommit(number)
        async with wired(reached, wire) as cut:
            workers = Workers(cut, own.data_dir, command=PRODUCT)
            await workers.start(lease=1.5, heartbeat=0.4)
            status = await eventually(
                rollout.status, until=lambda status: status in OVER, within=60, every=0.1
            )
            await workers.stop()

        assert wire.has_lost
        assert status is DeploymentStatus.COMPLETED
        await made_once(rollout)
