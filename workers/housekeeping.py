# SPDX-License-Identifier: Apache-2.0
"""The jobs that keep the database small and its history provable."""

from collections import Counter
from datetime import timedelta

from app.domain import audit, retention, schedules
from workers.context import Again, Done, Job, Outcome


async def checkpoint_history(job: Job) -> Outcome:
    """Write down where all histories stand."""
    newest = None
    while True:
        async with job.transaction() as session:
            made = await audit.checkpoint(session, now=job.runtime.clock())
            newest = newest if made is None else made.number
        if made is None:
            return Done({"checkpoint": newest})
        if job.out_of_time():
            return Again(timedelta(0), "more histories went on")


async def apply_retention(job: Job) -> Outcome:
    """Delete what is older than it has to be kept, batch by batch. May be repeated."""
    gone: Counter[str] = Counter()
    for what in retention.STATEMENTS:
        while True:
            async with job.transaction() as session:
                number = await retention.forget(session, what, now=job.runtime.clock())
            gone[what] += number
            if number < retention.BATCH:
                break
            if job.out_of_time():
                return Again(timedelta(0), "there is more to delete")
    async with job.transaction() as session:
        before = job.runtime.clock() - retention.WORK
        gone["schedule_ticks"] = await schedules.forget_ticks(session, before=before)
    return Done(dict(gone))
