# SPDX-License-Identifier: Apache-2.0
"""What a plane tells of a lane's devices: read and stored page by page, from where a run broke off."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import DeviceReport, ReportPage
from app.domain import leases
from workers.context import Job

READ_ON = timedelta(minutes=10)
"""How long ago a reading may have stopped and still be gone on with: what it read is not older than that."""

Store = Callable[[AsyncSession, Sequence[DeviceReport]], Awaitable[None]]


async def read_all(job: Job, pages: Callable[[str | None], AsyncIterator[ReportPage]], store: Store) -> bool:
    """Store one page after the other, each with the mark behind it; ``pages`` begins behind a mark, if any.

    False: the time of one run is used up, and the next one goes on.
    """
    begun_at = mark = kept_mark(job)
    async for page in pages(mark):
        async with job.transaction() as session:
            await store(session, page.reports)
            if page.mark != mark:
                kept = {"mark": page.mark, "at": job.runtime.clock().isoformat()}
                await leases.keep_checkpoint(session, job.claimed, kept)
        mark = page.mark
        if job.out_of_time() and mark != begun_at:
            return False
    return True


def kept_mark(job: Job) -> str | None:
    """The mark of the last page that was stored, if the reading did not come to its end a short time ago."""
    kept = job.claimed.checkpoint
    if kept is None or job.runtime.clock() - datetime.fromisoformat(kept["at"]) > READ_ON:
        return None
    mark: str | None = kept["mark"]
    return mark
