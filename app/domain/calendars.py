# SPDX-License-Identifier: Apache-2.0
"""When devices may be touched: freezes, and the weekly hours of a maintenance window. Pure.

Hours are local to a named time zone, so that a window at 22:00 stays at 22:00 when the clocks change.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from functools import cached_property
from typing import Any, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from app.errors import FieldError, Invalid
from app.models import Ring

DAY = timedelta(days=1)


class Weekday(StrEnum):
    """The day on which a span begins."""

    MONDAY = "monday"
    TUESDAY = "tuesday"
    WEDNESDAY = "wednesday"
    THURSDAY = "thursday"
    FRIDAY = "friday"
    SATURDAY = "saturday"
    SUNDAY = "sunday"


@dataclass(frozen=True, slots=True)
class FreezeSpan:
    """A freeze as it is asked about; no rings or no planes mean all of them."""

    starts_at: datetime
    ends_at: datetime
    rings: frozenset[Ring]
    planes: frozenset[str]
    reason: str

    def covers(self, plane: str, ring: Ring, at: datetime) -> bool:
        """Whether it keeps this ring on this plane from being touched then; its end is not part of it."""
        meant = (not self.rings or ring in self.rings) and (not self.planes or plane in self.planes)
        return meant and self.starts_at <= at < self.ends_at


@dataclass(frozen=True, slots=True)
class Span:
    """On each of ``days`` from ``start`` to ``end``; an end that is not later is on the next day."""

    days: tuple[Weekday, ...]
    start: time
    end: time

    def on(self, day: date, zone: ZoneInfo) -> tuple[datetime, datetime] | None:
        """When the span that begins on ``day`` begins and ends, in UTC; None if none does.

        An hour that the clocks skip is moved behind the gap, one that they repeat counts from its first.
        """
        if tuple(Weekday)[day.weekday()] not in self.days:
            return None
        last = day if self.end > self.start else day + DAY
        begins = datetime.combine(day, self.start, zone)
        ends = datetime.combine(last, self.end, zone)
        return begins.astimezone(UTC), ends.astimezone(UTC)

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "days": [day.value for day in self.days],
            "start": self.start.isoformat("minutes"),
            "end": self.end.isoformat("minutes"),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """What ``to_json`` wrote."""
        days = tuple(Weekday(day) for day in document["days"])
        return cls(days, time.fromisoformat(document["start"]), time.fromisoformat(document["end"]))


@dataclass(frozen=True)
class Calendar:
    """A maintenance window: open in any of its spans. ``zone`` is an IANA name."""

    zone: str
    spans: tuple[Span, ...]

    @cached_property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self.zone)

    def is_open(self, at: datetime) -> bool:
        """Whether devices may be touched then."""
        return any(begins <= at < ends for begins, ends in self._around(at))

    def opens(self, at: datetime) -> datetime | None:
        """When it opens next after ``at``; None if it never does."""
        return min((begins for begins, _ in self._around(at) if begins > at), default=None)

    def _around(self, at: datetime) -> Iterator[tuple[datetime, datetime]]:
        """The spans of yesterday, which may last until today, and of the coming week."""
        today = at.astimezone(self._zone).date()
        for ahead in range(-1, 9):
            for span in self.spans:
                found = span.on(today + ahead * DAY, self._zone)
                if found is not None:
                    yield found


def check_zone(name: str) -> None:
    """Refuse a time zone that is not one of the IANA database.

    Raises:
        Invalid: with its pointer.
    """
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        wrong = FieldError("/timezone", "must be a time zone of the IANA database, as Europe/Berlin")
        raise Invalid("there is no such time zone", wrong) from error


def covering(freezes: Sequence[FreezeSpan], plane: str, ring: Ring, at: datetime) -> FreezeSpan | None:
    """The freeze that keeps this ring on this plane from being touched then, the one that ends last."""
    found = [freeze for freeze in freezes if freeze.covers(plane, ring, at)]
    return max(found, key=lambda freeze: freeze.ends_at, default=None)
