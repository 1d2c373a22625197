# SPDX-License-Identifier: Apache-2.0
"""What a plane tells of a lane's devices: read and stored page by page, from where a run broke off."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol, Self
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action, Assignment, Connector, DeviceReport, ReportPage, Target
from app.domain import devices, leases
from app.models.base import Json
from workers.context import Job

READ_ON = timedelta(minutes=10)
"""How long ago the last page may have been stored for a reading to go on behind it."""

Store = Callable[[AsyncSession, Sequence[DeviceReport]], Awaitable[None]]


class Pages(Protocol):
    """A connector's pages of reports, behind a mark if one is given."""

    def __call__(self, *, after: str | None) -> AsyncIterator[ReportPage]:
        """The pages."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """How far one reading has come: when it began, behind which mark it is, when that was."""

    began: datetime
    at: datetime
    mark: str | None = None

    def is_recent(self, now: datetime) -> bool:
        """Whether a reading may go on from here."""
        return now - self.at <= READ_ON

    @classmethod
    def of(cls, stored: Json) -> Self:
        """As it was kept with the operation."""
        began, at = (datetime.fromisoformat(stored[name]) for name in ("began", "at"))
        return cls(began, at, stored["mark"])

    def to_json(self) -> Json:
        """As it is kept with the operation."""
        return {"began": self.began.isoformat(), "at": self.at.isoformat(), "mark": self.mark}


def of(action: Action, assignment: Assignment) -> str:
    """The name of a reading: what is made anew is read anew."""
    return f"{action} {assignment.made_id or assignment.key}"


async def read_members(
    job: Job, connector: Connector, lane_id: UUID, target: Target, *, late: bool = False
) -> None:
    """Add the devices the target holds now to the lane; ``late`` as in ``devices.store_members``."""
    async for members in connector.members(target):
        async with job.transaction() as session:
            await devices.store_members(session, lane_id, members, now=job.runtime.clock(), late=late)


class Readings:
    """The readings of one operation, by their names; what an earlier run has read is not read again."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._kept: Json = dict(job.claimed.checkpoint or {})

    async def read(self, name: str, pages: Pages, store: Store) -> datetime | None:
        """Store one page after the other; when the first of them was asked for, perhaps by an earlier run.

        None: the time of one run is used up, and the next one goes on.
        """
        place = begun = self._place(name)
        async for page in pages(after=begun.mark):
            async with self._job.transaction() as session:
                await store(session, page.reports)
                if page.mark != place.mark:
                    place = replace(place, mark=page.mark, at=self._job.runtime.clock())
                    await self._keep(session, name, place)
            if self._job.out_of_time() and place.mark != begun.mark:
                return None
        return place.began

    async def read_status(
        self, connector: Connector, lane_id: UUID, assignment: Assignment
    ) -> datetime | None:
        """Store what devices report of what was assigned, and move the lane's counters; as ``read``."""

        async def store(session: AsyncSession, reports: Sequence[DeviceReport]) -> None:
            await devices.store_reports(session, lane_id, reports, now=self._job.runtime.clock())

        pages = partial(connector.status, Action.ASSIGN, assignment)
        return await self.read(of(Action.ASSIGN, assignment), pages, store)

    def _place(self, name: str) -> Place:
        now = self._job.runtime.clock()
        place = Place.of(self._kept[name]) if name in self._kept else Place(now, now)
        return place if place.is_recent(now) else Place(now, now)

    async def _keep(self, session: AsyncSession, name: str, place: Place) -> None:
        self._kept[name] = place.to_json()
        await leases.keep_checkpoint(session, self._job.claimed, self._kept)

    async def end(self, session: AsyncSession) -> None:
        """What was read is judged: the next readings begin at the beginning."""
        await leases.keep_checkpoint(session, self._job.claimed, None)
