# SPDX-License-Identifier: Apache-2.0
"""An effect in doubt about which one asks while another takes its work up again."""

from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action
from app.domain import doubts, effects, leases, operations, outcomes, pushes
from app.domain.doubts import Doubt
from app.domain.operations import Failure
from app.domain.pushes import Push
from app.models import RingDeployment
from tests.domain.steps import S, operation_of
from tests.factories import NOON, make_deployment

REFUSED = Failure("permanent", "refused", "no")


async def sent_and_over(session: AsyncSession, lane: RingDeployment) -> Doubt:
    """A push that ended while nobody knew what had become of its publication."""
    operation_id = await operation_of(session, lane)
    claimed = await leases.claim(session, operation_id, owner="test", lease=timedelta(seconds=15))
    assert claimed is not None
    begun = await pushes.begin_push(session, lane.id, operation_id, now=NOON)
    assert isinstance(begun, Push)
    step = begun.steps[Action.PUBLISH]
    await effects.sent(session, step.id, operation_id=operation_id, now=NOON)
    await leases.fail(session, claimed, REFUSED, ended=outcomes.operation_ended)
    doubt = await doubts.begin(session, step.id)
    assert doubt is not None
    return doubt


async def test_a_doubt_stays_open_as_long_as_nobody_takes_it_up(session: AsyncSession) -> None:
    deployment = await make_deployment(session)

    doubt = await sent_and_over(session, deployment.lanes[0])

    assert await doubts.is_open(session, doubt)


async def test_who_asks_says_nothing_once_the_work_goes_on(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    doubt = await sent_and_over(session, deployment.lanes[0])
    operation_id = await operation_of(session, deployment.lanes[0])

    await operations.revive(session, operation_id, revived=outcomes.operation_revived)

    assert not await doubts.is_open(session, doubt)


async def test_who_asks_says_nothing_of_what_was_sent_since(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    doubt = await sent_and_over(session, deployment.lanes[0])
    operation_id = await operation_of(session, deployment.lanes[0])

    await effects.sent(session, doubt.step.id, operation_id=operation_id, now=NOON + S)

    assert not await doubts.is_open(session, doubt)
