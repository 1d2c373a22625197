# SPDX-License-Identifier: Apache-2.0
"""What a plane tells of a lane's devices: read and stored page by page, from where a run broke off."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action, Assignment, Connector, DeviceReport
from app.domain import leases
from workers.context import Job

READ_ON = timedelta(minutes=10)
"""How long ago a reading may have stopped and still be gone on with: what it read is not older than that."""

Store = Callable[[AsyncSession, Sequence[DeviceReport]], Awaitable[None]]


async def read_all(
    job: Job, connector: Connector, action: Action, assignment: Assignment, store: Store
) -> bool:
    """Store one page of ``Connector.status`` after the other, each with the mark behind it.

    False: the time of one run is used up, and the next one goes on.
    """
    what = f"{action} {assignment.made_id or assignment.key}"
    begun_at = mark = kept_mark(job, what)
    async for page in connector.status(action, assignment, after=mark):
        async with job.transaction() as session:
            await store(session, page.reports)
            if page.mark != mark:
                kept = {"what": what, "mark": page.mark, "at": job.runtime.clock().isoformat()}
                await leases.keep_checkpoint(session, job.claimed, kept)
        mark = page.mark
        if job.out_of_time() and mark != begun_at:
            return False
    return True


def kept_mark(job: Job, what: str) -> str | None:
    """The mark of the last page of the same that was stored, if its reading broke off a short time ago."""
    kept = job.claimed.checkpoint
    if kept is None or kept["what"] != what:
        return None
    mark: str | None = kept["mark"]
    return None if job.runtime.clock() - datetime.fromisoformat(kept["at"]) > READ_ON else mark
