# SPDX-License-Identifier: Apache-2.0
"""One change asked of a plane: written down, sent, settled; where an answer was lost, asked for first."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Assignment, Capability, Connector, Verified
from app.domain import doubts, effects, leases
from app.domain.effects import Planned
from app.domain.operations import Failure
from app.errors import IllegalTransition
from app.resilience.errors import (
    AmbiguousError,
    AuthError,
    CallError,
    PermanentError,
    PolicyError,
    Unsettled,
)
from app.telemetry import redact_text
from workers.context import Again, CancelRequested, Done, Job, Outcome
from workers.planes import connector_for

SECOND_LOOK = timedelta(seconds=3)
"""After this a plane that did not show an effect is asked again: directories are slow to show what is new."""


ABSENT = Failure("unknown", "absent", "its answer was lost, and the plane does not have it")

Permit = Callable[[AsyncSession], Awaitable[Again | None]]
"""Asked in the transaction that writes SENT, with the deployment locked: None lets the request leave, an
outcome puts it off. Raises ``IllegalTransition`` where it must not leave any more."""


class PutOff(Exception):
    """Something holds the deployment back: nothing was sent, and the job is to end with ``outcome``."""

    def __init__(self, outcome: Again) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome


async def perform(
    job: Job,
    step: Planned,
    *,
    permit: Permit,
    ask: Callable[[], Awaitable[Verified]],
    send: Callable[[], Awaitable[str | None]],
) -> str | None:
    """Carry out one effect unless the ledger, or the plane itself, says it is there; the vendor's id.

    May be repeated from any point: a confirmed effect is not sent again, one whose answer was lost is asked
    for first.

    Raises:
        CallError: as ``ask`` and ``send``; a refusal is in the ledger then, a lost answer too.
        Unsettled: it was sent before, and whether the plane has it is not certain yet.
        LeaseLost, CancelRequested, PutOff: see ``announce``; nothing was sent.
    """
    if step.done:
        return step.external_id
    if step.doubtful:
        there = await ask()
        if there.holds:
            await settle(job, step, there.external_id)
            return there.external_id
        await believe_absence(job, step)
    await announce(job, step, permit)
    async with in_ledger(job, step):
        external_id = await send()
    await settle(job, step, external_id)
    return external_id


async def believe_absence(job: Job, step: Planned) -> None:
    """An effect that is not there must be missed twice, some time apart, before it is sent again.

    Raises:
        Unsettled: this was the first time.
    """
    now = job.runtime.clock()
    if step.absent_at is not None and now - step.absent_at >= SECOND_LOOK:
        return
    async with job.transaction() as session:
        await effects.absent(session, step.id, now=step.absent_at or now)
    detail = f"{step.key} was sent and is not to be seen"
    raise Unsettled(detail, service=step.key.split("/")[1], retry_after=SECOND_LOOK.total_seconds())


async def announce(job: Job, step: Planned, permit: Permit) -> None:
    """Write SENT before the request leaves.

    The deployment's row is locked meanwhile: a rollback either sees the effect as sent, or keeps it in.

    Raises:
        LeaseLost: another worker has the operation.
        CancelRequested: the deployment is in a state in which this must not be sent any more.
        PutOff: something holds it back.
    """
    async with job.transaction() as session:
        try:
            put_off = await permit(session)
        except IllegalTransition as error:
            raise CancelRequested from error
        if put_off is None:
            await effects.sent(session, step.id, operation_id=job.claimed.id, now=job.runtime.clock())
    if put_off is not None:  # what holds it back may have been written down: the board was asked, say
        raise PutOff(put_off)


async def settle(job: Job, step: Planned, external_id: str | None) -> None:
    """Write CONFIRMED."""
    async with job.transaction() as session:
        await effects.confirmed(session, step.id, external_id=external_id, now=job.runtime.clock())
        await leases.progressed(session, job.claimed)


async def save_checkpoint(job: Job, step: Planned, checkpoint: dict[str, object]) -> None:
    """Keep what the next run has to know of the effect: how far an upload is, what was chosen, or seen."""
    async with job.transaction() as session:
        await effects.progressed(session, step.id, checkpoint)
        await leases.progressed(session, job.claimed)


async def with_baseline(job: Job, connector: Connector, step: Planned, assignment: Assignment) -> Assignment:
    """Keep, before it is sent, what a plane without markers needs to find it again after a lost answer."""
    if connector.manifest.can(Capability.MARKER) or step.done or step.baseline is not None:
        return assignment
    baseline = await connector.baseline(assignment)
    await save_checkpoint(job, step, {"previous_id": assignment.previous_id, "baseline": baseline})
    return replace(assignment, baseline=baseline)


@asynccontextmanager
async def in_ledger(job: Job, step: Planned) -> AsyncIterator[None]:
    """Write down what an error of the call inside means for the effect, and let the error go on."""
    try:
        yield
    except AmbiguousError as error:
        async with job.transaction() as session:
            await effects.unknown(session, step.id, error=as_json(error))
        raise
    except (PermanentError, AuthError, PolicyError) as error:
        async with job.transaction() as session:
            await effects.rejected(session, step.id, error=as_json(error), now=job.runtime.clock())
        raise


def as_json(error: CallError) -> dict[str, Any]:
    """An error as the ledger and the lanes keep it."""
    message = redact_text(error.detail)
    return {"class": error.error_class, "code": error.code, "message": message, "service": error.service}


async def settle_effect(job: Job) -> Outcome:
    """Ask the plane about an effect whose answer was lost, and whose own work has ended; nothing is sent."""
    async with job.transaction() as session:
        doubt = await doubts.begin(session, UUID(job.claimed.subject.id))
    if doubt is None:
        return Done({"outcome": "not_in_doubt"})
    there = await connector_for(job, doubt.plane).verify(doubt.action, doubt.app, doubt.assignment)
    if not there.holds:
        await believe_absence(job, doubt.step)
    async with job.transaction() as session:
        if not await doubts.is_open(session, doubt):
            return Done({"outcome": "taken_up"})
        now = job.runtime.clock()
        if there.holds:
            await effects.confirmed(session, doubt.step.id, external_id=there.external_id, now=now)
            return Done({"outcome": "there"})
        await effects.rejected(session, doubt.step.id, error=ABSENT.to_json(), now=now)
    return Done({"outcome": "absent"})
